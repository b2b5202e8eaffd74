"""The checks of an installation: what holds, what does not, and how to mend it.

Each check is a function that returns one `Finding` and never raises for what it is there to find. `manage.py
doctor` runs them all; `/healthz/full` runs those about the running site. They only look: nothing is changed,
and nothing is asked of a server for longer than two seconds.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg
import redis
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Max
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from bus.conf import conf
from bus.models import ServerInstance
from cleanup.engine.area import marker_uuid
from cleanup.engine.errors import AreaRefused
from cleanup.models import StagingArea
from xnai_site import sqlite
from xnai_site.celery import app as celery_app

OK, WARNING, FAILED = "ok", "warning", "failed"

#: Beat has ticks every 30 s; three missed ones are no hiccup.
BEAT_SILENCE = timedelta(seconds=90)
#: Below this the databases and the broker come close to refusing writes.
LEAST_FREE_BYTES = 500_000_000
LEAST_FREE_PERCENT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    name: str
    #: `ok`, `warning` (works, not well) or `failed`.
    state: str
    detail: str
    #: What to do about it; empty where nothing has to be done.
    mend: str = ""

    def as_json(self) -> dict[str, str]:
        return {"name": self.name, "state": self.state, "detail": self.detail, "mend": self.mend}


# The machine ------------------------------------------------------------------------------------------------


def python() -> Finding:
    version = sys.version.split()[0]
    return Finding(name="python", state=OK, detail=f"{version} at {sys.prefix}")


def packages() -> Finding:
    """Compare what is installed with the pins of requirements.txt, markers considered."""
    wrong = []
    for name, wanted in pinned(settings.BASE_DIR / "requirements.txt"):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found != wanted:
            wrong.append(f"{name} {found} (wanted {wanted})")
    if wrong:
        return Finding(
            name="packages",
            state=FAILED,
            detail=", ".join(wrong),
            mend="Run `pip install -r requirements.txt` in this environment, or delete .venv and run again.",
        )
    return Finding(name="packages", state=OK, detail="as pinned in requirements.txt")


def pinned(requirements: Path) -> list[tuple[str, str]]:
    """Names and versions that requirements.txt pins for this platform and interpreter."""
    from packaging.requirements import Requirement

    entries = (line.split("#")[0].strip() for line in requirements.read_text().splitlines())
    wanted = [Requirement(entry) for entry in entries if entry]
    here = [entry for entry in wanted if entry.marker is None or entry.marker.evaluate()]
    return [(entry.name, next(iter(entry.specifier)).version) for entry in here]


def disk() -> Finding:
    """Look at the file systems of the state folder and of the staging root."""
    tight = []
    for folder in {settings.VAR_DIR, Path(settings.CLEANUP["STAGING_ROOT"])}:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        usage = shutil.disk_usage(there)
        if usage.free < LEAST_FREE_BYTES or usage.free * 100 < usage.total * LEAST_FREE_PERCENT:
            tight.append(f"{folder}: {usage.free / 1e9:.1f} GB free")
    if tight:
        return Finding(
            name="disk",
            state=WARNING,
            detail="; ".join(tight),
            mend="Free some space: `manage.py cleanup report` shows what the policies would give back.",
        )
    return Finding(name="disk", state=OK, detail="enough space")


def state_folder() -> Finding:
    """The secret key must be readable by its owner alone."""
    key = settings.VAR_DIR / "secret_key"
    if key.is_file() and key.stat().st_mode & 0o077:
        return Finding(
            name="state folder",
            state=FAILED,
            detail=f"{key} can be read by other users",
            mend=f"chmod 600 {key}; then make a new key if somebody else has had the chance to read it.",
        )
    return Finding(name="state folder", state=OK, detail=str(settings.VAR_DIR))


# The database -----------------------------------------------------------------------------------------------


def sqlite_library() -> Finding:
    version = ".".join(map(str, sqlite.version()))
    if connection.vendor != "sqlite":
        return Finding(name="sqlite", state=OK, detail=f"{version}, not used")
    if sqlite.is_sound():
        return Finding(name="sqlite", state=OK, detail=version)
    return Finding(
        name="sqlite",
        state=WARNING,
        detail=f"{version} can corrupt a database in WAL mode; the slower rollback journal is used",
        mend="Install pysqlite3, use SQLite 3.51.3 or newer, or set DATABASE_URL to a PostgreSQL database.",
    )


def database() -> Finding:
    if error := database_trouble():
        return Finding(
            name="database",
            state=FAILED,
            detail=f"{connection.vendor}: {error}",
            mend="Check DATABASE_URL, and that the server runs and knows this user and database.",
        )
    return Finding(name="database", state=OK, detail=f"{connection.vendor} answers")


def database_trouble() -> str:
    """Why the database does not answer; empty if it does.

    PostgreSQL is first asked past the pool, which would hide the reason behind ten seconds of trying.
    """
    try:
        if connection.vendor == "postgresql" and connection.connection is None:
            psycopg.connect(**{**connection.get_connection_params(), "connect_timeout": 2}).close()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, psycopg.Error) as error:
        return first_line(error)
    return ""


def migrations() -> Finding:
    try:
        missing = unapplied_migrations()
    except DatabaseError as error:
        return Finding(name="migrations", state=FAILED, detail=f"cannot be read: {first_line(error)}")
    if missing:
        return Finding(
            name="migrations",
            state=FAILED,
            detail=f"{len(missing)} not applied, first {missing[0]}",
            mend="Run `manage.py migrate`.",
        )
    return Finding(name="migrations", state=OK, detail="all applied")


def unapplied_migrations() -> list[str]:
    """The migrations that the database lacks. Raises `DatabaseError` if it cannot be asked."""
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [f"{migration.app_label}.{migration.name}" for migration, _ in plan]


# Redis and the processes ------------------------------------------------------------------------------------


def log() -> Finding:
    """Whether events outlive the processes."""
    if not conf().volatile:
        return Finding(name="log", state=OK, detail="events are kept in the database")
    return Finding(
        name="log",
        state=WARNING,
        detail="volatile: events are kept in the memory of one process, and lost with it",
        mend="Unset BUS_VOLATILE, unless nobody will miss them. It is meant for a single web process.",
    )


def redis_server() -> Finding:
    if error := redis_trouble():
        return Finding(
            name="redis",
            state=FAILED,
            detail=error,
            mend="Start `manage.py up`, or check REDIS_URL and that the server runs.",
        )
    return Finding(name="redis", state=OK, detail="answers")


def redis_trouble() -> str:
    """Why Redis does not answer within a second; empty if it does. Never shows the password of the URL."""
    try:
        client = redis.Redis.from_url(settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1)
    except ValueError as error:
        return f"REDIS_URL is wrong: {first_line(error)}"
    try:
        client.ping()
    except (redis.RedisError, OSError) as error:
        return first_line(error)
    finally:
        client.close()
    return ""


def layer_canary() -> Finding:
    """Send a message to ourselves through the channel layer."""
    try:
        async_to_sync(_there_and_back)()
    except Exception as error:  # noqa: BLE001  (the layer raises what its driver raises; all of it is the finding)
        return Finding(
            name="layer",
            state=FAILED,
            detail=f"no message came back: {first_line(error) or type(error).__name__}",
            mend="Events still arrive, about a second late. Look at the finding about Redis.",
        )
    return Finding(name="layer", state=OK, detail="a message came back")


async def _there_and_back() -> None:
    import asyncio

    layer = get_channel_layer()
    async with asyncio.timeout(2):
        name = await layer.new_channel()
        await layer.send(name, {"type": "canary"})
        await layer.receive(name)
        await layer.flush()


def servers() -> Finding:
    """What the web processes say of themselves."""
    try:
        alive = list(ServerInstance.objects.filter(lease_until__gt=timezone.now()))
    except DatabaseError as error:
        return Finding(name="servers", state=FAILED, detail=first_line(error))
    deaf = [server.name for server in alive if not server.layer_up]
    if deaf:
        return Finding(
            name="servers",
            state=WARNING,
            detail=f"no canary comes back to {', '.join(deaf)}",
            mend="Events still arrive, about a second late. Is Redis reachable from there?",
        )
    return Finding(name="servers", state=OK, detail=f"{len(alive)} with connections or recently so")


def beat() -> Finding:
    try:
        last = PeriodicTask.objects.filter(enabled=True).aggregate(last=Max("last_run_at"))["last"]
    except DatabaseError as error:
        return Finding(name="beat", state=FAILED, detail=first_line(error))
    mend = "Start `manage.py up`, or `celery -A xnai_site beat`. Nothing is cleaned or reaped without it."
    if last is None:
        return _beat_without_tick(mend)
    age = timezone.now() - last
    detail = f"last tick {age.total_seconds():.0f} s ago"
    if age > BEAT_SILENCE:
        return Finding(name="beat", state=FAILED, detail=detail, mend=mend)
    return Finding(name="beat", state=OK, detail=detail)


def _beat_without_tick(mend: str) -> Finding:
    """Beat writes its schedule when it starts and ticks half a minute later."""
    written = PeriodicTask.objects.aggregate(at=Max("date_changed"))["at"]
    if written is not None and timezone.now() - written <= BEAT_SILENCE:
        return Finding(name="beat", state=OK, detail="has just started, no tick yet")
    return Finding(name="beat", state=FAILED, detail="has never run", mend=mend)


def worker() -> Finding:
    if redis_trouble():
        return Finding(name="worker", state=FAILED, detail="cannot be asked without Redis")
    answers = celery_app.control.ping(timeout=2.0, limit=1)
    if not answers:
        return Finding(
            name="worker",
            state=FAILED,
            detail="no worker answers",
            mend="Start `manage.py up`, or `celery -A xnai_site worker`.",
        )
    return Finding(name="worker", state=OK, detail=f"{next(iter(answers[0]))} answers")


def port() -> Finding:
    """Whether the usual port is free, or ours."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", 8000)) != 0:
            return Finding(name="port", state=OK, detail="8000 is free")
    return Finding(
        name="port",
        state=WARNING,
        detail="somebody listens on 8000",
        mend="If that is not this site, choose another: `manage.py up --port N`.",
    )


# Staging ----------------------------------------------------------------------------------------------------


def staging() -> Finding:
    """Every enabled area must be there and carry its own marker."""
    try:
        areas = list(StagingArea.objects.filter(enabled=True))
    except DatabaseError as error:
        return Finding(name="staging", state=FAILED, detail=first_line(error))
    wrong = [text for area in areas if (text := _area_trouble(area))]
    if wrong:
        return Finding(
            name="staging",
            state=FAILED,
            detail="; ".join(wrong),
            mend="Mount or restore the tree, or register it anew with `manage.py cleanup areas add`. "
            "Until then nothing in it is touched.",
        )
    return Finding(name="staging", state=OK, detail=f"{len(areas)} areas carry their markers")


def _area_trouble(area: StagingArea) -> str:
    try:
        found = marker_uuid(area.path)
    except AreaRefused as error:
        return f"{area.name}: {error}"
    if found is None:
        return f"{area.name}: {area.path} is missing or has no marker"
    return "" if found == str(area.uuid) else f"{area.name}: {area.path} carries the marker of another area"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without the user and password of a URL in it."""
    text = str(error).strip().splitlines()
    return re.sub(r"//[^@/\s]*@", "//…@", text[0]) if text else ""


#: Those that say how the running site is.
RUNNING_SITE: tuple[Callable[[], Finding], ...] = (
    database,
    migrations,
    log,
    redis_server,
    servers,
    worker,
    beat,
    staging,
    disk,
)
ALL: tuple[Callable[[], Finding], ...] = (
    python,
    packages,
    state_folder,
    sqlite_library,
    database,
    migrations,
    log,
    redis_server,
    layer_canary,
    servers,
    worker,
    beat,
    port,
    staging,
    disk,
)
