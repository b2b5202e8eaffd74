"""Many bare clients in one thread: readers that recover, publishers that repeat what was not acknowledged.

They speak the Centrifugo protocol over plain WebSockets, come back by themselves as the SDKs do (same
backoff), and keep what a test of faults needs to know: `tests.history` judges it. A `Reader` never asks for
the past but by its position; a `Feeder` sends numbered events under keys, some of them in flight at once, and
after a cut sends those without an ack again.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.history import Acked, Logged, Reading, Seen, Start, problems
from tests.servers import PATIENCE, wait_until

#: Backoff of a client (s), as the README tells to set that of an SDK.
MIN_DELAY, MAX_DELAY = 0.1, 1.0
LOST = (OSError, ConnectionClosed, InvalidHandshake, TimeoutError, EOFError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """How a connection ended, as the client saw it."""

    at: float
    code: int
    reason: str


class Swarm:
    """The thread with its clients; use it as a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="swarm", daemon=True)
        self.readers: list[Reader] = []
        self.feeders: list[Feeder] = []
        self.others: list[Client] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def read(self, urls: Sequence[str], topics: Sequence[str], token: str, *, name: str = "") -> Reader:
        """Add a reader of some topics, which tries the servers in turn; it connects at once."""
        reader = Reader(name or f"reader {len(self.readers)}", urls, token, topics)
        self.readers.append(reader)
        self.call(self._start(reader))
        return reader

    def feed(
        self, urls: Sequence[str], topic: str, token: str, *, series: str, count: int, **pace: Any
    ) -> Feeder:
        """Add a publisher of `count` events; see `Feeder` for its pace."""
        feeder = Feeder(series, urls, token, topic, count=count, **pace)
        self.feeders.append(feeder)
        self.call(self._start(feeder))
        return feeder

    def add(self, client: Client) -> None:
        """Add a client of another kind."""
        self.others.append(client)
        self.call(self._start(client))

    def call(self, work: Coroutine[Any, Any, Any], timeout: float = 2 * PATIENCE) -> Any:
        """Run a coroutine in the thread and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    async def _start(self, client: Client) -> None:
        client.task = asyncio.get_running_loop().create_task(client.run())

    async def _end(self) -> None:
        tasks = [client.task for client in (*self.readers, *self.feeders, *self.others) if client.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wait_connected(self, timeout: float = 2 * PATIENCE) -> None:
        """Wait until every client is connected and its subscriptions were answered."""
        clients = (*self.readers, *self.feeders)
        wait_until(lambda: all(c.is_up for c in clients), timeout=timeout, what=f"{len(clients)} clients")

    @property
    def acks(self) -> list[Acked]:
        """What all publishers were told."""
        return [ack for feeder in self.feeders for ack in list(feeder.acks)]

    @property
    def readings(self) -> list[Reading]:
        """What all readers were sent."""
        return [reading for reader in self.readers for reading in reader.readings.values()]

    def settle(self, log: Callable[[], list[Logged]], timeout: float = 2 * PATIENCE) -> list[Logged]:
        """Wait until every reader has seen the end of the log and return the log; a later verdict says who
        has not."""
        found = log()
        tops: dict[str, int] = {}
        for event in found:
            tops[event.topic] = max(tops.get(event.topic, 0), event.offset)
        with suppress(TimeoutError):
            wait_until(lambda: self._have_reached(tops), timeout=timeout, what="the ends")
        return found

    def _have_reached(self, tops: dict[str, int]) -> bool:
        return all(
            reading.steps and reading.steps[-1].offset >= tops.get(reading.topic, 0)
            for reading in self.readings
        )

    def assert_sound(self, log: Callable[[], list[Logged]], timeout: float = 2 * PATIENCE) -> None:
        """Wait for the last event everywhere, then have the history judged."""
        findings = problems(log=self.settle(log, timeout), acks=self.acks, readings=self.readings)
        assert not findings, f"{len(findings)} findings: " + "; ".join(map(str, findings[:10]))


class Client:
    """A connection that comes back."""

    def __init__(self, name: str, urls: Sequence[str], token: str) -> None:
        self.name = name
        self.urls = urls
        self.token = token
        #: Kept from the event loop, which holds tasks weakly.
        self.task: asyncio.Task[None] | None = None
        self.is_up = False
        #: The server that it is connected to, or tries.
        self.url = urls[0]
        #: When it was connected and answered, each time, in steady seconds.
        self.connected_at: list[float] = []
        self.closes: list[Close] = []
        self.errors: list[dict[str, Any]] = []
        self._socket: ClientConnection | None = None

    @property
    def losses(self) -> list[Close]:
        """How it lost its connection, each time since it had one."""
        return [close for close in self.closes if self.connected_at and close.at > self.connected_at[0]]

    async def run(self) -> None:
        """Connect, again and again."""
        attempt = step = 0
        while True:
            self.url = url = self.urls[attempt % len(self.urls)]
            attempt += 1
            came = len(self.connected_at)
            try:
                await self._connection(url)
            except LOST as error:
                self._note(error)
            self.is_up = False
            self._socket = None
            step = 0 if len(self.connected_at) > came else min(step + 1, 10)
            await asyncio.sleep(backoff(step))

    async def _connection(self, url: str) -> None:
        async with connect(
            url,
            proxy=None,
            open_timeout=10,
            close_timeout=1,
            ping_interval=None,
            compression=None,
            max_size=None,
        ) as socket:
            self._socket = socket
            await self._talk(socket)

    async def _talk(self, socket: ClientConnection) -> None:
        await socket.send("\n".join(map(json.dumps, self.greeting())))
        async for frame in socket:
            for line in str(frame).split("\n"):
                if line == "{}":
                    await socket.send("{}")
                else:
                    self._take(json.loads(line))

    def _note(self, error: BaseException) -> None:
        received = error.rcvd if isinstance(error, ConnectionClosed) else None
        code, reason = (received.code, received.reason) if received else (1006, repr(error))
        self.closes.append(Close(at=time.monotonic(), code=code, reason=reason))

    def _take(self, message: dict[str, Any]) -> None:
        if error := message.get("error"):
            self.errors.append(error)
        if "push" in message:
            self.pushed(message["push"])
        elif "id" in message:
            self.answered(message)

    def _up(self) -> None:
        self.is_up = True
        self.connected_at.append(time.monotonic())

    def greeting(self) -> list[dict[str, Any]]:
        """What is sent first, in one frame."""
        return [{"id": 1, "connect": {"token": self.token}}]

    def answered(self, message: dict[str, Any]) -> None:
        """Take an answer."""
        if "connect" in message:
            self._up()

    def pushed(self, push: dict[str, Any]) -> None:
        """Take a push."""


class Reader(Client):
    """Reads topics, from its position on after each cut."""

    def __init__(self, name: str, urls: Sequence[str], token: str, topics: Sequence[str]) -> None:
        super().__init__(name, urls, token)
        self.readings = {topic: Reading(reader=name, topic=topic) for topic in topics}
        self._topics = list(topics)
        self._owed: set[int] = set()

    def greeting(self) -> list[dict[str, Any]]:
        """Connect and subscribe to all at once, as SDKs do."""
        self._owed = {number + 2 for number in range(len(self._topics))}
        subscribes = [self._subscribe(number + 2, topic) for number, topic in enumerate(self._topics)]
        return [*super().greeting(), *subscribes]

    def _subscribe(self, number: int, topic: str) -> dict[str, Any]:
        steps = self.readings[topic].steps
        body: dict[str, Any] = {"channel": topic, "positioned": True, "recoverable": True}
        if steps:
            body |= {"recover": True, "epoch": steps[-1].epoch, "offset": steps[-1].offset}
        return {"id": number, "subscribe": body}

    def answered(self, message: dict[str, Any]) -> None:
        """Take the answer to a subscribe: what was missed, or a new beginning; or ask again later."""
        topic = self._topics[(message["id"] - 2) % len(self._topics)]
        if message["id"] >= 2 and message.get("error", {}).get("temporary"):
            self._again = asyncio.get_running_loop().create_task(self._ask_later(message["id"], topic))
        if "subscribe" not in message:
            return
        self._subscribed(topic, message["subscribe"])
        self._owed.discard(message["id"])
        if not self._owed and not self.is_up:
            self._up()

    async def _ask_later(self, number: int, topic: str) -> None:
        await asyncio.sleep(backoff(0))
        if self._socket is not None:
            await quietly(self._socket.send(json.dumps(self._subscribe(number, topic))))

    def _subscribed(self, topic: str, result: dict[str, Any]) -> None:
        steps = self.readings[topic].steps
        epoch = result.get("epoch", "")
        if not steps or not result.get("recovered"):
            steps.append(Start(epoch=epoch, offset=result.get("offset", 0)))
        for pub in result.get("publications", ()):
            self._see(topic, epoch, pub)

    def pushed(self, push: dict[str, Any]) -> None:
        """Take an event; a subscription that the server ends is asked for again."""
        topic = push.get("channel", "")
        if topic not in self.readings:
            return
        if "pub" in push:
            self._see(topic, self.readings[topic].steps[-1].epoch, push["pub"])
        elif push.get("unsubscribe", {}).get("code", 0) >= 2500 and self._socket is not None:
            number = 2 + self._topics.index(topic) + len(self._topics) * 1_000
            again = self._socket.send(json.dumps(self._subscribe(number, topic)))
            self._again = asyncio.get_running_loop().create_task(quietly(again))

    def _see(self, topic: str, epoch: str, pub: dict[str, Any]) -> None:
        key = (pub.get("tags") or {}).get("key", "")
        seen = Seen(epoch=epoch, offset=pub.get("offset", 0), key=key, at=time.time())
        self.readings[topic].steps.append(seen)

    @property
    def reading(self) -> Reading:
        """Of the one topic that it reads."""
        (only,) = self.readings.values()
        return only


class Feeder(Client):
    """Publishes events 1 to `count`, `window` in flight, `rate` a second at most, each until it is acked.

    The key of event 7 of series `a` is `a-7`.
    """

    def __init__(
        self,
        series: str,
        urls: Sequence[str],
        token: str,
        topic: str,
        *,
        count: int,
        window: int = 1,
        rate: float = 0.0,
        padding: int = 0,
    ) -> None:
        super().__init__(series, urls, token)
        self.topic = topic
        self.count = count
        self.window = window
        self.rate = rate
        self.padding = "x" * padding
        self.acks: list[Acked] = []
        self.tries = 0
        self._unacked: dict[int, float] = {}
        self._next = 1
        self._moved = asyncio.Event()

    @property
    def is_done(self) -> bool:
        """Whether all are acknowledged."""
        return len(self.acks) >= self.count

    def wait_for(self, number: int, timeout: float = 2 * PATIENCE) -> None:
        """Wait until so many are acknowledged."""
        wait_until(
            lambda: len(self.acks) >= number,
            timeout=timeout,
            interval=0.005,
            what=f"ack {number} of {self.name}",
        )

    def enough(self, timeout: float = 2 * PATIENCE) -> list[Acked]:
        """Begin no more, and wait for the acks of those on their way."""
        # In the thread that sends: between its look at the count and its sending nothing may come in.
        asyncio.run_coroutine_threadsafe(self._stop_beginning(), self._loop_of_task()).result(timeout)
        return self.finish(timeout)

    async def _stop_beginning(self) -> None:
        self.count = self._next - 1

    def _loop_of_task(self) -> asyncio.AbstractEventLoop:
        if self.task is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.task.get_loop()

    def finish(self, timeout: float = 3 * PATIENCE) -> list[Acked]:
        """Wait for all acks."""
        self.wait_for(self.count, timeout)
        return self.acks

    async def _talk(self, socket: ClientConnection) -> None:
        sending = asyncio.get_running_loop().create_task(quietly(self._send_all(socket)))
        try:
            await super()._talk(socket)
        finally:
            sending.cancel()

    async def _send_all(self, socket: ClientConnection) -> None:
        while not self.is_up:
            await self._wait()
        for number in list(self._unacked):
            await self._send(socket, number)
        while self._next <= self.count:
            while len(self._unacked) >= self.window:
                await self._wait()
            if self._next > self.count:
                break
            number, self._next = self._next, self._next + 1
            self._unacked[number] = time.time()
            await self._send(socket, number)
            if self.rate:
                await asyncio.sleep(1 / self.rate)

    async def _wait(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    async def _send(self, socket: ClientConnection, number: int) -> None:
        self.tries += 1
        data = {"n": number, "padding": self.padding} if self.padding else {"n": number}
        call = {"topic": self.topic, "event_type": "output", "data": data, "key": f"{self.name}-{number}"}
        await socket.send(json.dumps({"id": number + 1, "rpc": {"method": "bus.publish", "data": call}}))

    def answered(self, message: dict[str, Any]) -> None:
        """Take an ack; what was refused for now is sent again."""
        super().answered(message)
        number = message["id"] - 1
        if "rpc" in message and (sent_at := self._unacked.pop(number, None)) is not None:
            self.acks.append(self._acked(number, sent_at, message["rpc"]["data"]))
        elif "error" in message and number in self._unacked and self._socket is not None:
            again = self._send_later(self._socket, number)
            self._again = asyncio.get_running_loop().create_task(quietly(again))
        self._moved.set()

    async def _send_later(self, socket: ClientConnection, number: int) -> None:
        await asyncio.sleep(0.05)
        await self._send(socket, number)

    def _acked(self, number: int, sent_at: float, place: dict[str, Any]) -> Acked:
        return Acked(
            topic=self.topic,
            epoch=place["epoch"],
            offset=place["offset"],
            key=f"{self.name}-{number}",
            publisher=self.name,
            number=number,
            sent_at=sent_at,
            acked_at=time.time(),
            duplicate=bool(place.get("duplicate")),
        )


def backoff(step: int) -> float:
    """How long a client waits before it tries again: the formula of the stock SDKs."""
    return min(MAX_DELAY, MIN_DELAY + random.uniform(0, min(MAX_DELAY, MIN_DELAY * 2**step)))


async def quietly(work: Coroutine[Any, Any, Any]) -> None:
    """Do something on a socket that may be gone; whoever reads from it notices."""
    with suppress(*LOST):
        await work
