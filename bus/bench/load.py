"""The clients of a benchmark: `python -m bus.bench.load SPEC`, one process with one event loop.

It connects the readers and publishers of the spec, prints a line with how long that took, waits for a line on
standard input, publishes, waits until every reader has every event, and prints the result. Sockets are bare:
they count marks in what arrives (`bus.bench.tongues`), so that the clients are never what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bus.bench.tongues import MARK, Tongue, tongue

#: Connections that are being made at the same time.
CONNECTING = 64
#: Seconds between two looks of a load with a rate at what is due.
TICK = 0.001
#: Seconds to wait for what is still under way when the time is over.
PATIENCE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What to do."""

    port: int
    kind: str
    options: dict[str, str | bool]
    readers: int = 0
    publishers: int = 0
    #: Publishes of one publisher that may be unanswered.
    in_flight: int = 1
    #: Those of one publisher travel in one frame.
    joined: bool = False
    #: The next publish comes when every reader has the one before. For one publisher with one in flight.
    lockstep: bool = False
    seconds: float = 3.0
    #: Events a second of one publisher, whatever the answers; latencies are then until one reader has them.
    #: 0: as many as are answered.
    rate: float = 0.0


def frame(payload: bytes, *, binary: bool) -> bytes:
    """Return a client's frame. Its mask is zero: masked, as the protocol wants, and unchanged."""
    size = len(payload)
    first = 0x82 if binary else 0x81
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65_536:
        head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


class Client(asyncio.Protocol):
    """A WebSocket that greets and then counts.

    Args:
        speaks: the server's protocol.
        reads: it is a reader, else a publisher.
        counted: told how many more marks or answers have come.
        failed: told, after the greeting, that the server refuses or has closed.
    """

    def __init__(
        self,
        speaks: Tongue,
        *,
        reads: bool,
        counted: Callable[[Client, int], None],
        failed: Callable[[str], None],
    ) -> None:
        self._tongue = speaks
        self._reads = reads
        self._counted = counted
        self._failed = failed
        self._marker = MARK if reads else speaks.acked
        self._greeting = iter(speaks.hello(reads=reads))
        self._awaited = b""
        self._take = self._take_handshake
        self._rest = b""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent = self.answered = 0
        self.sent_at: deque[float] = deque()

    def connection_made(self, transport: Any) -> None:
        """Ask for a WebSocket."""
        self._transport = transport
        transport.write(
            f"GET {self._tongue.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._take(self._rest + data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so to who waits."""
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(f"closed early: {self._rest[-300:]!r}"))
        else:
            self._failed("a connection was closed by the server")

    def _take_handshake(self, data: bytes) -> None:
        head, end, self._rest = data.partition(b"\r\n\r\n")
        if not end:
            self._rest = data
        elif b" 101 " not in head.split(b"\r\n")[0]:
            self.ready.set_exception(ConnectionError(head.decode(errors="replace")))
        else:
            self._take = self._take_greeting
            self._greet()

    def _take_greeting(self, data: bytes) -> None:
        self._rest = data
        if self._awaited in data:
            self._rest = b""
            self._greet()

    def _greet(self) -> None:
        """Say the next word of the greeting; after the last one count."""
        message, self._awaited = next(self._greeting, (b"", b""))
        if message:
            self._transport.write(frame(message, binary=self._tongue.binary))
        else:
            self._take = self._take_marks
            self.ready.set_result(None)

    def _take_marks(self, data: bytes) -> None:
        count = data.count(self._marker)
        self._rest = data[1 - len(self._marker) :]
        if not self._reads and b'"error"' in data:
            self._failed(f"a publish was refused: {data[:300]!r}")
        if count:
            self.answered += count
            self._counted(self, count)

    def publish(self, count: int, *, joined: bool) -> None:
        """Send so many publishes, each in a frame or all in one."""
        made = [self._tongue.publish(self.sent + number) for number in range(count)]
        if joined and self._tongue.joiner is not None:
            made = [self._tongue.joiner.join(made)]
        now = time.perf_counter()
        self.sent_at.extend([now] * count)
        self.sent += count
        self._transport.write(b"".join([frame(each, binary=self._tongue.binary) for each in made]))


@dataclass(slots=True)
class Load:
    """All clients of one run."""

    spec: Spec
    readers: list[Client] = field(default_factory=list)
    publishers: list[Client] = field(default_factory=list)
    delivered: int = 0
    latencies: list[float] = field(default_factory=list)
    until: float = 0.0
    #: Done when everything has arrived, or something has failed.
    over: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    async def connect(self) -> float:
        """Connect all and return the seconds that the readers took."""
        turn = asyncio.Semaphore(CONNECTING)
        started = time.perf_counter()
        self.readers = list(
            await asyncio.gather(*(self._connect(turn, reads=True) for _ in range(self.spec.readers)))
        )
        took = time.perf_counter() - started
        for _ in range(self.spec.publishers):
            self.publishers.append(await self._connect(turn, reads=False))
        return took

    async def _connect(self, turn: asyncio.Semaphore, *, reads: bool) -> Client:
        async with turn:
            speaks = tongue(self.spec.kind, self.spec.options)
            counted = self._delivered if reads else self._answered
            _, client = await asyncio.get_running_loop().create_connection(
                lambda: Client(speaks, reads=reads, counted=counted, failed=self.fail),
                "127.0.0.1",
                self.spec.port,
            )
            await client.ready
            return client

    def fail(self, why: str) -> None:
        """End the run with an error."""
        if not self.over.done():
            self.over.set_exception(ConnectionError(why))

    def _delivered(self, _: Client, count: int) -> None:
        self.delivered += count
        if self.spec.lockstep:
            self._next_step()
        elif self.spec.rate:
            self._note(self.publishers[0], count, time.perf_counter())
        self._check_over()

    def _answered(self, client: Client, count: int) -> None:
        now = time.perf_counter()
        if self.spec.lockstep:
            self._next_step()
        elif not self.spec.rate:
            self._note(client, count, now)
            self._pump(client, now)
        self._check_over()

    def _note(self, client: Client, count: int, now: float) -> None:
        self.latencies += [now - client.sent_at.popleft() for _ in range(count)]

    def _next_step(self) -> None:
        (client,) = self.publishers
        if client.answered < client.sent or self.delivered < client.sent * len(self.readers):
            return
        now = time.perf_counter()
        self.latencies.append(now - client.sent_at.popleft())
        self._pump(client, now)

    def _pump(self, client: Client, now: float) -> None:
        if now >= self.until or self.spec.rate:
            return
        room = self.spec.in_flight - (client.sent - client.answered)
        if room == self.spec.in_flight or (room and not self.spec.joined):
            client.publish(room, joined=self.spec.joined)

    async def _pace(self, started: float) -> None:
        """Publish at the rate of the spec, answered or not; what is late by a tick is sent with the next."""
        now = started
        while self.spec.rate and now < self.until and not self.over.done():
            (client,) = self.publishers
            if due := int((now - started) * self.spec.rate) - client.sent:
                client.publish(due, joined=False)
            await asyncio.sleep(TICK)
            now = time.perf_counter()
        self._check_over()

    def _check_over(self) -> None:
        if time.perf_counter() >= self.until and self._is_complete() and not self.over.done():
            self.over.set_result(None)

    def _is_complete(self) -> bool:
        sent = sum(client.sent for client in self.publishers)
        answered = sum(client.answered for client in self.publishers)
        return answered == sent and self.delivered >= sent * len(self.readers)

    async def run(self) -> dict[str, Any]:
        """Publish for as long as the spec says; raises `TimeoutError` if not everything arrives."""
        started = time.perf_counter()
        self.until = started + self.spec.seconds
        pacing = asyncio.ensure_future(self._pace(started))
        for client in self.publishers:
            self._pump(client, started)
        async with asyncio.timeout(self.spec.seconds + PATIENCE):
            await self.over
        await pacing
        took = time.perf_counter() - started
        ordered = sorted(self.latencies)
        return {
            "published": sum(client.sent for client in self.publishers),
            "delivered": self.delivered,
            "seconds": took,
            "p50_ms": 1e3 * ordered[len(ordered) // 2],
            "p99_ms": 1e3 * ordered[len(ordered) * 99 // 100],
        }


async def main(spec: Spec) -> None:
    """Connect, wait for the word, publish."""
    load = Load(spec)
    say({"connect_seconds": await load.connect()})
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    if load.publishers:
        say(await load.run())


def say(words: dict[str, Any]) -> None:
    """Print one JSON line for the process that started this one."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Spec(**json.loads(sys.argv[1]))))
