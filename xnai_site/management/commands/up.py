"""`manage.py up`: run the whole site on this machine, from nothing.

Valkey (unless `REDIS_URL` names one), the database, static files, web processes, worker, beat and, on a fresh
state folder, a small demonstration. The listening socket is made here and handed to the web processes: while
one of them is killed and starts again, connecting clients wait in the queue of the socket and are never
refused. `xnai_site.bootstrap` has taken the lock of the state folder before this module was loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from argparse import ArgumentParser
from typing import Any

import psutil
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, OutputWrapper
from prometheus_client import multiprocess

from xnai_site import installation, valkey
from xnai_site.supervisor import Child, Crew, StartError

#: Twisted's default of 50 made 64 clients that connected at once wait for whole seconds.
BACKLOG = 2048
COLOURS = ("36", "33", "35", "32", "34", "96", "93", "95")


class Command(BaseCommand):
    """Run everything; Ctrl-C stops it."""

    help = "Run the whole site: Valkey, web, worker and beat. Prints READY with address and first password."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
        parser.add_argument(
            "--port", type=int, default=8000, help="0 takes any free one (default: %(default)s)"
        )
        parser.add_argument(
            "--web", type=int, default=1, metavar="N", help="web processes (default: %(default)s)"
        )
        parser.add_argument(
            "--demo",
            action="store_true",
            default=None,
            help="start the demonstration; without it a fresh state folder has one and the choice is kept",
        )
        parser.add_argument("--no-demo", action="store_false", dest="demo", help="do not start it")

    def handle(self, *_: Any, **options: Any) -> None:
        if "xnai_bootstrap" not in sys.modules:
            raise CommandError("Start it as `python3 manage.py up`, which prepares the state folder first.")
        if options["web"] < 1:
            raise CommandError("--web must be at least 1.")
        self._colours: dict[str, str] = {}
        self._demo = wants_demo(options["demo"])
        with listening_socket(options["host"], options["port"]) as listener:
            try:
                asyncio.run(self._run(listener, options["host"], options["web"]))
            except (StartError, installation.InstallationError, valkey.NoServerError) as error:
                raise CommandError(str(error)) from error

    async def _run(self, listener: socket.socket, host: str, web: int) -> None:
        """Start in order, say READY, and stay until told to stop."""
        crew = Crew(show=self._show)
        stop_on_signals(crew)
        with contextlib.suppress(asyncio.CancelledError):
            async with crew:
                if settings.REDIS_IS_GIVEN:
                    await asyncio.to_thread(valkey.require_answer)
                else:
                    await crew.start([valkey_child()])
                password = await asyncio.to_thread(prepare)
                base = common(child_environment(host))
                await crew.start(children(listener, host, web, base))
                self._say_ready(listener, host, password)
                if self._demo:
                    await crew.start([demo_child(address(listener, host), base)])
                await asyncio.get_running_loop().create_future()

    def _say_ready(self, listener: socket.socket, host: str, password: str) -> None:
        secret = password or "unchanged"
        self.stdout.write(f"READY {address(listener, host)} user={installation.FIRST_USER} password={secret}")
        self.stdout.flush()

    def _show(self, name: str, line: str) -> None:
        colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
        prefix = f"{name:<7}|"
        if self.style.SUCCESS("x") != "x":  # Django has decided that colours are wanted
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        try:
            self.stdout.write(f"{prefix} {line}")
            self.stdout.flush()
        except BrokenPipeError:  # whoever read our lines has gone: stop as at Ctrl-C, and say no more
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            self.stdout = OutputWrapper(sys.stdout)
            os.kill(os.getpid(), signal.SIGTERM)


def stop_on_signals(crew: Crew) -> None:
    """Let Ctrl-C, SIGTERM and a closed terminal stop everything in order; the second time, at once."""
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None  # noqa: S101  (called from a coroutine)
    asked: list[bool] = []

    def stop() -> None:
        if asked:
            crew.hurry()
        else:
            main.cancel()
        asked.append(True)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)


def prepare() -> str:
    """Bring database and files into shape. Returns the first user's password, empty if it was made before."""
    try:
        installation.prepare()
        installation.prepare_staging()
        return installation.ensure_first_user()
    finally:
        installation.close_connections()


def wants_demo(asked: bool | None) -> bool:
    """Whether the demonstration runs: as asked, else as the last time, else yes."""
    kept = settings.VAR_DIR / "demo"
    if asked is None:
        asked = not kept.is_file() or kept.read_text().strip() == "on"
    kept.write_text("on\n" if asked else "off\n")
    return bool(asked)


# The listening socket ---------------------------------------------------------------------------------------


def listening_socket(host: str, port: int) -> socket.socket:
    """Bind and listen. Raises `CommandError` if that is not possible, and says who has the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OverflowError as error:
        raise CommandError(f"{port} is no port; it must be 0 to 65535.") from error
    except OSError as error:
        listener.close()
        raise CommandError(
            f"cannot listen on {host} port {port}: {error.strerror}{holder_of(port)}. "
            "Choose another with --port N, or stop what has it."
        ) from error
    return listener


def holder_of(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    try:
        found = [entry for entry in psutil.net_connections("tcp") if entry.status == psutil.CONN_LISTEN]
        pid = next((entry.pid for entry in found if entry.laddr.port == port and entry.pid), None)
        return f" (process {pid}, {psutil.Process(pid).name()})" if pid else ""
    except psutil.Error:
        return ""


def address(listener: socket.socket, host: str) -> str:
    """The URL to open in a browser on this machine."""
    port = listener.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}/"


# The children -----------------------------------------------------------------------------------------------


def valkey_child() -> Child:
    return Child(
        name="valkey",
        command=valkey.command(settings.VAR_DIR / "valkey"),
        environment=os.environ,
        folder=str(settings.VAR_DIR / "valkey"),
        ready=valkey.answers,
    )


def common(environment: dict[str, str]) -> dict[str, Any]:
    """What all children that run this project's code have in common."""
    return {"environment": environment, "folder": str(settings.BASE_DIR), "ended": forget_gauges}


def children(listener: socket.socket, host: str, web: int, base: dict[str, Any]) -> list[Child]:
    """Web processes, worker and beat, in the order of starting."""
    names = [f"web-{number}" for number in range(1, web + 1)] if web > 1 else ["web"]
    celery = [sys.executable, "-m", "celery", "--quiet", "-A", "xnai_site"]
    # A name of its own: another installation on this machine may use the same Redis.
    worker = [*celery, "worker", "-n", f"up-{os.getpid()}@%h", "-c", "2", "-l", "INFO", *QUIET_WORKER]
    return [
        *(web_child(listener, host, name, base) for name in names),
        Child(name="worker", command=worker, **base),
        Child(name="beat", command=[*celery, "beat", "-l", "WARNING"], **base),
    ]


def demo_child(site: str, base: dict[str, Any]) -> Child:
    """The demonstration counts as ready at once: if it fails, the site goes on and it is tried again."""
    return Child(name="demo", command=[sys.executable, "-m", "xnai_site.demo", site], ready=at_once, **base)


async def at_once() -> None:
    """Wait for nothing."""


#: Workers of one machine need not look for each other; it costs a second at every start.
QUIET_WORKER = ("--without-gossip", "--without-mingle")


def web_child(listener: socket.socket, host: str, name: str, base: dict[str, Any]) -> Child:
    descriptor = listener.fileno()
    return Child(
        name=name,
        command=[
            sys.executable,
            "-m",
            "bus.transport",
            "--fd",
            str(descriptor),
            "-v",
            "0",
            "xnai_site.asgi:application",
        ],
        descriptors=(descriptor,),
        ready=lambda: until_site_answers(host, listener.getsockname()[1]),
        patience=12.0,  # it tells its clients first, over 3 s, and gives itself 10
        **base,
    )


def child_environment(host: str) -> dict[str, str]:
    """Our own environment, the folder of the counters, and the names under which the site may be called."""
    counters = settings.VAR_DIR / "metrics"
    shutil.rmtree(counters, ignore_errors=True)
    counters.mkdir()
    names = dict.fromkeys([*settings.ALLOWED_HOSTS, host, socket.gethostname()])
    return {
        **os.environ,
        "XNAI_VAR": str(settings.VAR_DIR),
        "ALLOWED_HOSTS": os.environ.get("ALLOWED_HOSTS") or ",".join(names),
        "PROMETHEUS_MULTIPROC_DIR": str(counters),
        "PYTHONUNBUFFERED": "1",
    }


def forget_gauges(pid: int) -> None:
    """A process that has ended owes nothing to anybody: drop its live gauges, keep its counters."""
    multiprocess.mark_process_dead(pid, path=str(settings.VAR_DIR / "metrics"))  # type: ignore[no-untyped-call]


async def until_site_answers(host: str, port: int) -> None:
    """Return once `/healthz/ready` says 200."""
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    while not await _is_ready(target, port):  # noqa: ASYNC110  (the event is in another process)
        await asyncio.sleep(0.05)


async def _is_ready(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            status = await reader.readline()
            writer.close()
            return b" 200 " in status
    except (OSError, TimeoutError):
        return False
