"""Checks of Redis and of the processes: web servers and their layer, beat, workers.

Beat and workers are never asked: what they have noted while they worked is read (`bus.pulses`), so a frozen
one costs whoever looks no time, and every page may look.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import redis
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import DatabaseError
from django.db.models import Max
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from bus import pulses
from bus.cells import span
from bus.conf import conf
from bus.models import Pulse, ServerInstance
from cleanup.stores.sql import database_now
from xnai_site.checkup.finding import FAILED, OK, WARNING, Finding, failed, first_line, number, ok, warning

#: A worker that has said nothing for so long while others work is taken for removed, not for silent.
FORGOTTEN = timedelta(hours=1)


def log() -> Finding:
    """Whether events outlive the processes."""
    if not conf().volatile:
        return Finding(name="log", state=OK, detail="events are kept in the database")
    return Finding(
        name="log",
        state=WARNING,
        detail="volatile: events are kept in memory only, by one process, and lost with it",
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


def redis_memory() -> Finding:
    """Whether Redis throws nothing away: queued tasks are wake-ups, but a lost one costs half a minute."""
    name = "redis memory"
    try:
        with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1) as client:
            memory = client.info("memory")
    except (redis.RedisError, OSError, ValueError) as error:
        return failed(name, first_line(error), "Look at the finding about Redis.")
    limit, policy = int(memory.get("maxmemory", 0)), str(memory.get("maxmemory_policy", "noeviction"))
    if limit and policy != "noeviction":
        return warning(
            name,
            f"above {limit:,} bytes it throws keys away ({policy}), queued tasks among them",
            "CONFIG SET maxmemory-policy noeviction, and keep that in the server's configuration.",
        )
    if limit and int(memory.get("used_memory", 0)) > limit * 9 // 10:
        return warning(name, "nine tenths of its memory are in use", "Raise maxmemory; does a worker run?")
    return ok(name, f"{policy}, {f'at most {limit:,} bytes' if limit else 'no limit of its own'}")


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
    # One that has just begun has not sent a canary yet.
    settled = timezone.now() - 2 * conf().canary_interval
    deaf = [server.name for server in alive if not server.layer_up and server.started_at < settled]
    if deaf:
        return Finding(
            name="servers",
            state=FAILED if len(deaf) == len(alive) else WARNING,
            detail=f"channel layer down: no canary comes back to {', '.join(deaf)}",
            mend="Events still arrive, about a second late. Is Redis reachable from there?",
        )
    return Finding(name="servers", state=OK, detail=f"{len(alive)} with connections or recently so")


def silence() -> timedelta:
    """After so long without a sign of life a process is missed."""
    return timedelta(seconds=settings.SILENCE.total_seconds())


def beat() -> Finding:
    """Whether beat sends tasks."""
    try:
        last = PeriodicTask.objects.filter(enabled=True).aggregate(last=Max("last_run_at"))["last"]
    except DatabaseError as error:
        return failed("beat", first_line(error))
    mend = "Start `manage.py up`, or `celery -A xnai_site beat`. Nothing is cleaned or reaped without it."
    if last is None:
        return _beat_without_tick(mend)
    age = timezone.now() - last
    detail = f"last tick {span(age)} ago"
    return failed("beat", detail, mend) if age > silence() else ok("beat", detail)


def _beat_without_tick(mend: str) -> Finding:
    """Beat writes its schedule when it starts and ticks a few seconds later."""
    written = PeriodicTask.objects.aggregate(at=Max("date_changed"))["at"]
    if written is not None and timezone.now() - written <= silence():
        return ok("beat", "has just started, no tick yet")
    return failed("beat", "has never run", mend)


_MEND_WORKER = (
    "Start `manage.py up`, or `celery -A xnai_site worker`. If its process is there, it is frozen or stuck: "
    "kill it and start it again; nothing is lost, an interrupted run goes on."
)


def worker() -> Finding:
    """Whether workers do what beat sends: every task that one begins is a sign of life.

    They are missed once beat has been sending for as long as `silence` and nothing was begun in that time.
    While beat is silent there is nothing to begin, so nothing can be said.
    """
    try:
        now, found = database_now(), [*Pulse.objects.all()]
    except DatabaseError as error:
        return failed("worker", first_line(error))
    heard = {row.name: row.at for row in found if row.kind == pulses.WORKER}
    last = max(heard.values(), default=None)
    if last is not None and now - last <= silence():
        return _one_or_more(heard, now)
    since = max((row.started_at for row in found if row.kind == pulses.BEAT), default=None)
    if beat().state != OK:
        return _unknown(last, now)
    if since is not None and now - since <= silence():
        return ok("worker", "beat has just started, no task begun yet")
    if last is None:
        return failed("worker", "no worker has ever begun a task", _MEND_WORKER)
    return failed(
        "worker", f"no worker has begun a task for {span(now - last)}, while beat goes on", _MEND_WORKER
    )


def _one_or_more(heard: dict[str, datetime], now: datetime) -> Finding:
    lost = sorted(name for name, at in heard.items() if silence() < now - at <= FORGOTTEN)
    if lost:
        return warning("worker", f"nothing heard of {', '.join(lost)}, while others work", _MEND_WORKER)
    alive = [name for name, at in heard.items() if now - at <= silence()]
    return ok(
        "worker", f"{number(len(alive), 'worker')}, last task begun {span(now - max(heard.values()))} ago"
    )


def _unknown(last: datetime | None, now: datetime) -> Finding:
    if last is None:
        return failed("worker", "no worker has ever begun a task", _MEND_WORKER)
    detail = f"last task begun {span(now - last)} ago; beat is silent, so there was nothing to do since"
    return warning("worker", detail, "Look at the finding about beat first.")
