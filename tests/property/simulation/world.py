"""One simulated site: processes with real hubs, a log, a bad network, publishers, clients, and a schedule.

    World(seed).run() --> its History

Everything that happens is drawn from the seed: how slow threads and network are, what is dropped, when the
layer freezes or forgets, when topics are trimmed, end, begin anew or are removed, when a process restarts,
when the log fails. At the end faults stop, a few seconds pass, and whoever reads must have everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from datetime import timedelta
from random import Random
from typing import Any

from channels.layers import channel_layers

from bus import layer, publishing
from bus.conf import conf
from bus.fanout.hub import Hub
from bus.log import Appended, EventLog, NewEvent, StoredEvent
from bus.protocol.errors import BusError, LogUnavailable
from tests.property.simulation.clients import Client, Visit
from tests.property.simulation.history import History
from tests.property.simulation.loop import VirtualLoop
from tests.property.simulation.network import HERE, Network, Weather

#: Virtual seconds of bad weather, and of good weather after it.
SPAN, CALM = 6.0, 4.0


class Here:
    """A process's end of the layer: that of whichever simulated process runs at the moment."""

    def __init__(self, processes: dict[str, Process]) -> None:
        self._processes = processes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processes[HERE.get()].end, name)


class Process:
    """A server process: its hub and link, and the clients that are connected to it."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self._context = copy_context()
        self._context.run(HERE.set, name)
        self.visits: dict[Visit, None] = {}
        self.is_up = False

    def start(self) -> None:
        """Start a hub as a server does with its first connection."""
        self.hub: Hub = self.run(self.world.make_hub)
        self.run(self.hub.start)
        self.end = layer._server
        layer._server = self.world.here
        self.is_up = True

    async def stop(self) -> None:
        """End as a killed process: clients are cut off, nothing is said to anybody."""
        self.is_up = False
        for visit in list(self.visits):
            visit.leave(was_cut=True)
        await self.spawn(self.hub.stop())

    def run(self, call: Callable[[], Any]) -> Any:
        """Call something as this process."""
        return self._context.run(call)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as this process."""
        return self.world.loop.create_task(work, context=self._context)


class World:
    """See the module.

    Args:
        seed: of everything.
        log: the event log that the hubs find in `event_log()`.
        make_hub: the hub of a process.
        topics: what is written and read. `task:` topics end and begin anew.
    """

    def __init__(
        self,
        seed: int,
        log: EventLog,
        *,
        make_hub: Callable[[], Hub] = Hub,
        topics: Sequence[str] = ("lab:1", "task:1"),
    ) -> None:
        self.seed, self.log, self.make_hub, self.topics = seed, log, make_hub, topics
        self.chance = Random(seed)
        self.loop = VirtualLoop(Random(seed + 1), slowness=self.chance.choice([0.001, 0.02, 0.2]))
        self.history = History()
        self.processes: dict[str, Process] = {}
        self.here = Here(self.processes)
        self.is_settling = False
        self.settles_at = self.loop.time() + SPAN
        self._numbers = iter(range(10**9))
        self._keys: list[tuple[str, int]] = []
        #: Whether calls of the log fail now and then.
        self.is_flaky = self.chance.random() < 0.3

    @property
    def now(self) -> float:
        return self.loop.time()

    def run(self) -> History:
        """Live through it all."""
        try:
            self.loop.run_until_complete(self._live())
            self.history.finish()
        finally:
            layer._server = None
            asyncio.set_event_loop(None)
            self.loop.close()
        for uncaught in self.loop.uncaught:
            self.history.blame("uncaught", uncaught)
        return self.history

    async def _live(self) -> None:
        slowness = self.chance.choice([0.001, 0.05, 1.5])
        drops, repeats = self.chance.choice([0, 0.1, 0.5, 1]), self.chance.choice([0, 0.2])
        weather = Weather(slowness=slowness, drops=drops, repeats=repeats)
        self.network = Network(Random(self.seed + 2), weather)
        former = channel_layers.set("default", self.network)
        try:
            await self._days()
        finally:
            if former is not None:
                channel_layers.set("default", former)

    async def _days(self) -> None:
        for number in range(self.chance.choice([1, 2, 3])):
            process = self.processes[f"p{number}"] = Process(self, f"p{number}")
            process.start()
        busy = [self._publish_for_ever(Random(f"{self.seed} w{n}"), n) for n in range(2)]
        busy += [self._keep_house(Random(f"{self.seed} house"))]
        clients = [self._client(number) for number in range(self.chance.randint(3, 6))]
        reading = [self.loop.create_task(client.live()) for client in clients]
        try:
            await asyncio.gather(*busy)
            await self._settle()
            for client in clients:
                if client.visit is None or client.visit.over.is_set():
                    self.history.blame("away", f"{client.name} could not come back")
        finally:
            for task in reading:
                task.cancel()
            for ended in await asyncio.gather(*reading, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    self.history.blame("failed", repr(ended))
            for process in self.processes.values():
                await process.spawn(process.hub.stop())

    def _client(self, number: int) -> Client:
        topic = self.topics[number % len(self.topics)]
        return Client(self, f"c{number}", topic, Random(f"{self.seed} c{number}"))

    async def _settle(self) -> None:
        """Let the weather clear up, and everybody find what was missed."""
        self.is_settling, self.is_flaky = True, False
        self.network.thaw()
        self.loop.calm()
        for process in self.processes.values():
            if not process.is_up:
                process.start()
            for visit in list(process.visits):
                visit.wire.hurry()
        await asyncio.sleep(CALM)

    async def a_process(self, chance: Random) -> Process:
        """One of the processes that are up."""
        while not (up := [process for process in self.processes.values() if process.is_up]):
            await asyncio.sleep(0.01)
        return chance.choice(up)

    # What is written.

    async def _publish_for_ever(self, chance: Random, number: int) -> None:
        pace = chance.choice([0.02, 0.1, 0.3])
        while self.now < self.settles_at:
            process = await self.a_process(chance)
            topic = chance.choice(self.topics)
            what = chance.choice([self._one, self._one, self._batch, self._again])
            if topic.startswith("task:") and chance.random() < 0.1:
                what = self._end_and_begin
            await process.spawn(what(topic, chance))
            await asyncio.sleep(pace * chance.random())

    async def _one(self, topic: str, chance: Random) -> None:
        number = next(self._numbers)
        self._keys.append((topic, number))
        await self.in_thread(self._publish, topic, number, chance.choice([0, 0, 0, 2_000]))

    async def _again(self, topic: str, chance: Random) -> None:
        """Repeat what was published before: nothing may come of it, unless the topic began anew."""
        if self._keys:
            await self.in_thread(self._publish, *chance.choice(self._keys[-20:]), 0)

    def _publish(self, topic: str, number: int, size: int) -> None:
        data = {"n": number, "filling": "x" * size}
        self._note([publishing.publish(topic, "output", data, key=f"k{number}")], [number])

    async def _end_and_begin(self, topic: str, chance: Random) -> None:
        await self.in_thread(self._end, topic)
        await asyncio.sleep(chance.choice([0.0, 0.5, 3.0]) * chance.random())
        await self.in_thread(self._begin, topic)

    def _end(self, topic: str) -> None:
        number = next(self._numbers)
        self._note([publishing.end(topic, "completed", {"n": number})], [number])

    def _begin(self, topic: str) -> None:
        number = next(self._numbers)
        self._note([publishing.publish(topic, publishing.STARTED, {"n": number})], [number])

    async def _batch(self, topic: str, chance: Random) -> None:
        """What a group commit does: many events and one hint. Sometimes the process dies before that."""
        numbers = [next(self._numbers) for _ in range(chance.randint(2, 12))]
        events = [event_of(topic, number) for number in numbers]
        stored = await self.in_thread(self._commit, events, numbers)
        if stored and chance.random() < 0.8:
            layer.told(stored)

    def _commit(self, events: list[NewEvent], numbers: list[int]) -> list[StoredEvent]:
        results = self.log.append_each(events)
        kept = [
            (e, p, n) for e, p, n in zip(events, results, numbers, strict=True) if isinstance(p, Appended)
        ]
        self._note([place for _, place, _ in kept], [number for _, _, number in kept])
        return [StoredEvent.of(event, place) for event, place, _ in kept]

    async def in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do something that blocks, as a worker does; a log that fails, or has ended, is not our concern."""
        try:
            return await self.loop.run_in_executor(None, work, *args)
        except LogUnavailable:
            return None
        except BusError:
            return None

    def _note(self, places: Sequence[Appended], numbers: Sequence[int]) -> None:
        for place, number in zip(places, numbers, strict=True):
            if not place.duplicate:
                self.history.stored(place.topic, place.epoch, place.offset, number, self.now)

    # What befalls it.

    async def _keep_house(self, chance: Random) -> None:
        """Trim, remove, freeze, forget, restart: one thing after the other."""
        mishaps = [self._trim] * 6 + [self._freeze, self._freeze, self._forget, self._restart, self._remove]
        while self.now < self.settles_at:
            await asyncio.sleep(chance.random())
            await chance.choice(mishaps)(chance)

    async def _trim(self, chance: Random) -> None:
        topic, keep = chance.choice(self.topics), chance.randint(0, 40)
        await self.in_thread(self._trim_now, topic, keep, chance.randint(1, 10))

    def _trim_now(self, topic: str, keep: int, batch: int) -> None:
        flaky, self.is_flaky = self.is_flaky, False
        self.log.trim(topic, max_age=None, max_events=keep, batch=batch)
        for state in self.log.states([topic]).values():
            self.history.trimmed(topic, state.epoch, state.first_offset, self.now)
        self.is_flaky = flaky

    async def _remove(self, chance: Random) -> None:
        await self.in_thread(self._remove_now, chance.choice(self.topics))

    def _remove_now(self, topic: str) -> None:
        if self.log.remove(topic):
            self.history.died(topic, self.now)

    async def _freeze(self, chance: Random) -> None:
        self.network.freeze()
        await asyncio.sleep(3 * chance.random())
        self.network.thaw()

    async def _forget(self, _: Random) -> None:
        self.network.empty()

    async def _restart(self, chance: Random) -> None:
        process = await self.a_process(chance)
        self.history.failures.append(self.now)
        await process.stop()
        await asyncio.sleep(chance.random())
        process.start()


def event_of(topic: str, number: int) -> NewEvent:
    """An event as publishing makes it."""
    payload = publishing.encode_event("output", {"n": number})
    tags = b'{"id":"%016d"}' % number
    return NewEvent(topic=topic, event_type="output", payload=payload, tags=tags, key=f"k{number}")


def settings_of(seed: int) -> dict[str, Any]:
    """Settings of a seed: hints without events, small pages, ended topics that let go early or late."""
    chance = Random(f"{seed} settings")
    return {
        "HINT_BYTES": chance.choice([1, 400, conf().hint_bytes]),
        "REPLAY_PAGE": chance.choice([1, 3, 10, 1_000]),
        "TASK_LINGER": timedelta(seconds=chance.choice([2, 60])),
    }
