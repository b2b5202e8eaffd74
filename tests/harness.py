"""A site of real processes for one test module: database, Valkey, web servers, worker, beat.

Everything a `Site` starts lives in a folder of its own and listens on free ports of the loopback
interface; what is killed is killed by its own process group, and nothing outlives the test run (the
kernel ends the children of one that dies). Logs are kept in files and shown when a test fails. The
database is a copy of a template that was migrated once: SQLite by default, a database of the session's
PostgreSQL server with `TEST_DATABASE=postgresql`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
import pytest

from tests import services
from tests.history import Logged, from_rows
from tests.servers import PATIENCE, Postgres, Valkey, die_with_parent, free_port, wait_until

ROOT = Path(__file__).resolve().parent.parent
#: Long enough for Django to start on a busy machine with two cores.
START_TIMEOUT = 120.0

#: How many others are within a transaction, and so may hold locks.
_IN_TRANSACTION = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
AND backend_type = 'client backend' AND xact_start IS NOT NULL
"""

#: Sites that are up, for the logs of a failed test.
running: list[Site] = []


class Program:
    """One process group with a log file, which can be killed, stopped, frozen and started again."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.command = list(command)
        self.environment = environment
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, **extra: str) -> None:
        """Start the process, `extra` on top of its environment; its output is appended to the log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env={**self.environment, **extra},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def said(self, text: str, *, since: int = 0) -> bool:
        """Whether the log holds `text` after the first `since` bytes."""
        return text.encode() in self.log.read_bytes()[since:]

    def signal(self, number: int) -> None:
        """Send a signal to the whole group: a worker's pool dies and freezes with it."""
        os.killpg(self.pid, number)

    def freeze(self) -> None:
        """SIGSTOP, and wait until every thread stands: the signal is on its way when `killpg` returns."""
        self.signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")
        wait_until(
            lambda: all(_state(task) in "TtZX" for task in tasks.iterdir()), what=f"{self.name} to freeze"
        )

    def thaw(self) -> None:
        """Let a frozen program go on."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: no goodbye, as in a crash."""
        if self.is_alive:
            self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(PATIENCE)

    def terminate(self, timeout: float = PATIENCE) -> int:
        """SIGTERM to the main process and wait; returns its exit code."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(timeout)
        finally:
            self.kill()

    def tail(self, size: int = 6_000) -> str:
        """The end of the log."""
        return self.log.read_bytes()[-size:].decode(errors="replace") if self.log.exists() else ""


class Web(Program):
    """One Daphne process on a port of its own that it keeps over restarts."""

    def __init__(self, name: str, environment: dict[str, str], log: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "bus.transport", "-b", "127.0.0.1", "-p", str(self.port)]
        super().__init__(name, [*command, "xnai_site.asgi:application"], environment, log)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def socket(self) -> str:
        """Address of the Centrifugo protocol."""
        return f"ws://127.0.0.1:{self.port}/connection/websocket"

    def is_ready(self) -> bool:
        """Whether it answers `/healthz/live`; fails at once if the process has ended."""
        assert self.is_alive, f"{self.name} ended:\n{self.tail()}"
        try:
            return httpx.get(f"{self.url}/healthz/live", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def wait_ready(self) -> None:
        wait_until(self.is_ready, timeout=START_TIMEOUT, interval=0.05, what=f"{self.name} on {self.url}")

    def restart(self, **extra: str) -> None:
        """Start again, `extra` on top of its environment, and wait until it serves."""
        self.start(**extra)
        self.wait_ready()


class Site:
    """The processes of one site, on a database and a Valkey of their own.

    Args:
        web: how many web servers.
        own_postgres: with PostgreSQL, on a server of its own, which the test may kill.
        settings: environment of all processes.
    """

    def __init__(self, *, web: int = 1, own_postgres: bool = False, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="site-", dir=services.folder))
        self.var = self.folder / "var"
        (self.var / "static").mkdir(parents=True)
        self.valkey = Valkey(folder=self.folder)
        self.secret = secrets.token_urlsafe(40)
        self.postgres = Postgres().start() if own_postgres and services.postgres is not None else None
        self.database_url = self.postgres.url if self.postgres else _new_database(self.folder)
        self.environment = self._environment(settings)
        self.web = [Web(f"web {n}", self.environment, self.folder / f"web{n}.log") for n in range(web)]
        self.worker = self._celery("worker", "--concurrency", "1", "--without-gossip", "--without-mingle")
        self.beat = self._celery("beat", "--pidfile", "", "--schedule", str(self.folder / "schedule"))

    def _environment(self, settings: dict[str, str]) -> dict[str, str]:
        return {
            **os.environ,
            "XNAI_VAR": str(self.var),
            "XNAI_NO_VENV": "1",
            "DJANGO_SETTINGS_MODULE": "xnai_site.settings",
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.valkey.url,
            "SECRET_KEY": self.secret,
            "LOG_LEVEL": "INFO",
            "PYTHONUNBUFFERED": "1",
            **settings,
        }

    def _celery(self, what: str, *options: str) -> Program:
        command = [sys.executable, "-m", "celery", "-A", "xnai_site", what, "--loglevel", "INFO", *options]
        return Program(what, command, self.environment, self.folder / f"{what}.log")

    @property
    def programs(self) -> list[Program]:
        return [self.beat, self.worker, *self.web]

    def start(self) -> Site:
        """Start Valkey and the web processes, and wait until they serve."""
        running.append(self)
        self.valkey.start()
        if self.postgres is not None:
            self.manage("migrate", "--verbosity", "0")
        for web in self.web:
            web.start()
        for web in self.web:
            web.wait_ready()
        return self

    def start_worker(self, *options: str) -> None:
        """Start the Celery worker and wait until it takes tasks."""
        self.worker.command += [option for option in options if option not in self.worker.command]
        self._start_and_hear(self.worker, " ready.")

    def start_beat(self) -> None:
        """Start beat and wait until it ticks."""
        self._start_and_hear(self.beat, "beat: Starting...")

    def _start_and_hear(self, program: Program, words: str) -> None:
        since = program.log.stat().st_size if program.log.exists() else 0
        program.start()

        def heard() -> bool:
            assert program.is_alive, f"{program.name} ended:\n{program.tail()}"
            return program.said(words, since=since)

        wait_until(heard, timeout=START_TIMEOUT, what=f"{words!r} of {program.name}")

    def mend(self) -> None:
        """Start what a test has killed and thaw what it has frozen: Valkey and the web servers."""
        if self.valkey.process is None:
            self.valkey.start()
        self.valkey.thaw()
        for web in self.web:
            if not web.is_alive:
                web.kill()
                web.start()
            web.thaw()
        for web in self.web:
            web.wait_ready()

    def stop(self) -> None:
        """End every process of the site and remove its database and folder."""
        for program in self.programs:
            program.kill()
        self.valkey.kill()
        running.remove(self)
        if self.postgres is not None:
            self.postgres.stop()
        else:
            _drop_database(self.database_url)
        shutil.rmtree(self.folder, ignore_errors=True)

    def manage(self, *words: str, accept: Sequence[int] = (0,), timeout: float = 180.0) -> str:
        """Run `manage.py` and return its output. An exit code that is not in `accept` fails the test."""
        done = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *words],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode in accept, (
            f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def manage_json(self, *words: str, accept: Sequence[int] = (0,), timeout: float = 180.0) -> Any:
        """Run `manage.py … --json` and return what it printed."""
        return json.loads(self.manage(*words, "--json", accept=accept, timeout=timeout))

    def python(self, code: str) -> str:
        """Run Python code inside the site's Django and return what it printed, without the last line end."""
        return self.manage("shell", "--no-imports", "-c", code).strip()

    def token(self, agent: str, *scopes: str, ttl: float = 3600.0, **claims: Any) -> str:
        """A connection token for an agent, signed as the documentation of the protocol says."""
        expires = int(time.time() + ttl)
        body = {"sub": agent, "agent": agent, "exp": expires, "scopes": list(scopes), **claims}
        return jwt.encode(body, self.secret, algorithm="HS256")

    def api_key(self, *scopes: str) -> str:
        """A new API key with these scopes (`publish` if none is given)."""
        name, given = f"key {secrets.token_hex(4)}", scopes or ("publish",)
        return self.python(
            "from bus.access.tokens import create_api_key;"
            f" print(create_api_key({name!r}, scopes={given!r})[1])"
        )

    def log(self, *areas: str) -> list[Logged]:
        """What the log holds of the topics in these areas, for `tests.history`."""
        rows = self.sql(
            'SELECT t.name, t.epoch, e."offset", e."key" '
            "FROM bus_event e JOIN bus_topic t ON t.id = e.topic_id"
        )
        return from_rows(row for row in rows if not areas or row[0].split(":")[0] in areas)

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement on the site's database, past Django; `%s` marks a value."""
        with _connect(self.database_url) as connection:
            is_postgres = self.database_url.startswith("postgres")
            # Without values psycopg takes a `%` for what it is.
            given = [query, values or None] if is_postgres else [query.replace("%s", "?"), values]
            cursor = connection.execute(*given)
            return list(cursor.fetchall()) if cursor.description else []

    def is_writable(self) -> bool:
        """Whether nobody holds the one write lock of SQLite, or is within a transaction on PostgreSQL."""
        if self.database_url.startswith("postgres"):
            ((count,),) = self.sql(_IN_TRANSACTION)
            return not count
        import sqlite3

        with _connect(self.database_url, timeout=0.2) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE").execute("ROLLBACK")
            except sqlite3.OperationalError:
                return False
        return True


def _state(task: Path) -> str:
    """State of a thread, a letter of proc(5); `X` when it has gone meanwhile."""
    try:
        return task.joinpath("stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


@contextmanager
def _connect(url: str, *, timeout: float = PATIENCE) -> Iterator[Any]:
    """A connection that commits each statement by itself."""
    if url.startswith("postgres"):
        import psycopg

        connection: Any = psycopg.connect(url, autocommit=True)
    else:
        import sqlite3  # the sound one: xnai_site has put it in place

        connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=timeout, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def _server_url(database: str) -> str:
    assert services.postgres is not None
    return urlsplit(services.postgres.url)._replace(path=f"/{database}").geturl()


@lru_cache(maxsize=1)
def _template() -> str:
    """The URL of a database with all migrations, made once a test run."""
    if services.postgres is not None:
        with _connect(services.postgres.url) as connection:
            connection.execute("CREATE DATABASE site_template")
        url = _server_url("site_template")
    else:
        url = f"sqlite:///{services.folder / 'template.sqlite3'}"
    environment = {**os.environ, "DATABASE_URL": url, "XNAI_NO_VENV": "1"}
    command = [sys.executable, str(ROOT / "manage.py"), "migrate", "--verbosity", "0"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"migrate ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    if services.postgres is None:
        with _connect(url) as connection:  # into one file, to be copied
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return url


def _new_database(folder: Path) -> str:
    """A copy of the template for one site."""
    template = _template()
    if services.postgres is None:
        shutil.copy(template.removeprefix("sqlite:///"), folder / "db.sqlite3")
        return f"sqlite:///{folder / 'db.sqlite3'}"
    name = f"site_{secrets.token_hex(6)}"
    copy = f"CREATE DATABASE {name} TEMPLATE site_template"
    wait_until(lambda: _has_done(copy), interval=0.5, what="a copy of the template")
    return _server_url(name)


def _drop_database(url: str) -> None:
    if services.postgres is not None:
        drop = f"DROP DATABASE {urlsplit(url).path[1:]} WITH (FORCE)"
        wait_until(lambda: _has_done(drop), interval=0.5, what="the end of a database")


def _has_done(statement: str) -> bool:
    """Whether the PostgreSQL server carried it out: a database may still be in use for a moment.

    Whoever made the template, or cleans it up, is connected to it; and a server that drops a database waits
    only 5 s for the processes that it ends for that.
    """
    import psycopg

    assert services.postgres is not None
    with _connect(services.postgres.url) as connection:
        try:
            connection.execute(statement)
        except psycopg.errors.ObjectInUse:
            return False
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the ends of the logs of all running sites beside a failed test."""
    report = yield
    if report.failed:
        for program in (program for site in running for program in site.programs):
            if text := program.tail():
                report.sections.append((f"log of {program.name}", text))
    return report
