"""Clients of the simulated site: readers with sockets of any speed, who keep account as the protocol asks.

A `Wire` is the way to one client: what the server has written is under way for a while, and a slow client
takes it piece by piece; a cut loses what is under way. A `Visit` is one subscription over such a wire, and
what the hub calls a subscriber. A `Client` comes, reads, leaves or is thrown out, and comes again from where
it was, or from anywhere else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from bus.connections.leases import Details
from bus.fanout.feeds import Form
from bus.fanout.hub import Hub, Subscribed
from bus.fanout.sending import Frame, SendQueue
from bus.layer import Control
from bus.protocol.errors import BusError, UnsubscribeCode
from bus.protocol.positions import BEGINNING, Position
from tests.property.simulation.history import History, Reading

if TYPE_CHECKING:
    from tests.property.simulation.world import Process, World

_decode = msgspec.json.decode


class Wire:
    """The way to one client; an outlet for the send queue.

    Args:
        loop: gives the time. take: the client takes a piece. way: seconds that a piece is under way. speed:
        bytes a second that a slow client takes, or None for one that takes everything at once.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, take: Callable[[Any], None], way: float, speed: float | None
    ) -> None:
        self._loop = loop
        self._take = take
        self._way = way
        self._speed = speed
        self._pieces: deque[tuple[Any, int]] = deque()
        self._pending = 0
        self._free_at = 0.0
        self._is_cut = False

    def write(self, frame: Frame) -> int:
        """Send a frame; returns what a slow client has not taken yet."""
        self.put(frame, frame.size)
        return self._pending

    def pending_bytes(self) -> int:
        return self._pending

    async def close(self, code: int, reason: str) -> None:
        self.cut()

    def put(self, piece: Any, size: int = 0) -> None:
        """Send a piece behind all others."""
        if self._is_cut:
            return
        self._pieces.append((piece, size))
        now = self._loop.time()
        if self._speed is not None:
            self._pending += size
            self._free_at = max(now, self._free_at) + size / self._speed
        self._loop.call_at(max(now, self._free_at) + self._way, self._arrive)

    def hurry(self) -> None:
        """Take everything at once from now on."""
        self._speed, self._pending, self._free_at = None, 0, 0.0
        for _ in range(len(self._pieces)):
            self._arrive()

    def cut(self) -> None:
        """Lose what is under way."""
        self._is_cut = True
        self._pieces.clear()
        self._pending = 0

    def _arrive(self) -> None:
        if self._pieces and not self._is_cut:
            piece, size = self._pieces.popleft()
            if self._speed is not None:
                self._pending -= size
            self._take(piece)


class Visit:
    """One subscription of a client: a subscriber of the hub."""

    def __init__(self, client: Client, hub: Hub, reading: Reading) -> None:
        chance = client.chance
        self.form = chance.choice([Form.CENTRIFUGO, Form.PLAIN])
        self._loop = asyncio.get_running_loop()
        speed = None if client.world.is_settling else client.speed
        self.wire = Wire(self._loop, self._take, 0.005 * chance.random(), speed)
        self.queue = SendQueue(self.wire, max_bytes=client.patience, max_frames=64)
        self.details = Details(client_id=client.name, connected_at=datetime(2026, 1, 1, tzinfo=UTC))
        self.reading = reading
        self.history: History = client.world.history
        self.over = asyncio.Event()
        self._hub = hub

    async def begin(self) -> None:
        """Subscribe as a socket does. Raises what the hub raises."""
        reading = self.reading
        found = await self._hub.subscribe(self, reading.topic, reading.since)
        self.wire.put(found)
        self._hub.release(found)

    def leave(self, *, was_cut: bool) -> None:
        """Go, or be cut off."""
        self.wire.cut()
        self._hub.unsubscribe(self, self.reading.topic)
        self.history.left(self.reading, self._loop.time(), was_cut=was_cut)
        self.over.set()

    def unsubscribed(self, topic: str, code: UnsubscribeCode) -> None:
        self.wire.put(code)

    def finished(self, topic: str) -> None:
        """The client sees it by the event itself."""

    def somebody_came_or_went(self, order: Control) -> None:
        """Nobody here asks for presence."""

    def too_slow(self) -> None:
        """The server closes: it owes too much."""
        self._loop.call_soon(lambda: self.leave(was_cut=True))

    def _take(self, piece: Any) -> None:
        if self.over.is_set():
            return
        if isinstance(piece, Subscribed):
            self._take_answer(piece)
        elif isinstance(piece, Frame):
            for number, event in (pair for text in piece.texts for pair in _events(self.form, text)):
                self.history.given(self.reading, number, event, self._loop.time())
        elif self.reading.replied_at is not None or int(piece) < 2500:
            # While they wait for the answer to subscribe, SDKs do not heed a request to subscribe again.
            self.history.ended(self.reading, self._loop.time(), int(piece))
            self.over.set()

    def _take_answer(self, found: Subscribed) -> None:
        now, since = self._loop.time(), self.reading.since
        start = since.offset if found.recovered and since is not None else found.offset - len(found.events)
        self.history.replied(self.reading, now, epoch=found.epoch, start=start, recovered=found.recovered)
        for event in found.events:
            self.history.given(self.reading, event.offset, _number(_decode(event.payload)), now)
        if self.reading.at != found.offset:
            self.history.blame("skipped", f"the answer ends at {self.reading.at}, not at {found.offset}")


class Client:
    """Whoever reads a topic, again and again.

    Args:
        world: where. name: its name in the history. topic: what it reads. chance: its own dice.
    """

    def __init__(self, world: World, name: str, topic: str, chance: Random) -> None:
        self.world, self.name, self.topic, self.chance = world, name, topic, chance
        self.speed = chance.choice([None, None, 20_000.0, 2_000.0])
        self.patience = chance.choice([1_000_000, 6_000])
        self.visit: Visit | None = None
        self._known: list[Position] = [BEGINNING]

    async def live(self) -> None:
        """Come and go until the world is over. The last visit lasts to the end."""
        await asyncio.sleep(self.chance.random() * 2)
        since = self.chance.choice([None, BEGINNING])
        while True:
            await self._come(await self.world.a_process(self.chance), since)
            since = self._next()
            await asyncio.sleep(0.05 * self.chance.random())

    async def _come(self, process: Process, since: Position | None) -> None:
        reading = Reading(client=self.name, topic=self.topic, since=since, asked_at=self.world.now)
        visit = process.run(lambda: Visit(self, process.hub, reading))
        process.visits[visit] = None
        self.visit = visit
        self.world.history.begins(reading)
        try:
            await process.spawn(visit.begin())
        except BusError:
            visit.leave(was_cut=True)
        try:
            async with asyncio.timeout(self._patience()):
                await visit.over.wait()
        except TimeoutError:
            visit.leave(was_cut=True)
        process.visits.pop(visit, None)
        if reading.replied_at is not None:
            self._known.append(Position(epoch=reading.epoch, offset=reading.at))

    def _patience(self) -> float | None:
        if self.world.is_settling:
            return None
        stays = self.chance.choice([0.01, 0.3, 2.0, None])
        return None if stays is None else stays * self.chance.random()

    def _next(self) -> Position | None:
        """Where it goes on: nearly always where it was."""
        last = self._known[-1]
        fate = self.chance.random()
        if fate < 0.7 or self.world.is_settling:
            return last
        if fate < 0.75:
            return None
        if fate < 0.85:
            return self.chance.choice(self._known)
        return Position(epoch=last.epoch, offset=max(0, last.offset + self.chance.randint(-8, 3)))


def _events(form: Form, text: bytes) -> Sequence[tuple[int, int]]:
    if form is Form.PLAIN:
        said = _decode(text)
        return [(said["offset"], _number(said))]
    pushes = [_decode(line)["push"]["pub"] for line in text.split(b"\n")]
    return [(push["offset"], _number(push["data"])) for push in pushes]


def _number(event: dict[str, Any]) -> int:
    return int(event["data"]["n"])
