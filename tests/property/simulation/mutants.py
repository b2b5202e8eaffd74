"""Wrong designs, small and plausible, which the judge of the simulation has to find.

The first two are the known ones: offsets from a sequence that is drawn before the commit, and a backlog that
is read before the subscription stands. The others are slips that somebody might make in the hub.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from bus import layer
from bus.conf import conf
from bus.fanout.feeds import Subscriber, Subscription
from bus.fanout.hub import Hub, Subscribed
from bus.layer import LiveEvent
from bus.log import StoredEvent
from bus.log.current import event_log
from bus.protocol.positions import Position
from bus.replay import Replay
from tests.property.simulation.logs import SequenceLog
from tests.property.simulation.world import World, event_of


class SequenceWorld(World):
    """Batches draw their offsets from a sequence and commit a little later, as transactions do."""

    log: SequenceLog

    async def _batch(self, topic: str, chance: Random) -> None:
        numbers = [next(self._numbers) for _ in range(chance.randint(1, 4))]
        events = [event_of(topic, number) for number in numbers]
        places = await self.in_thread(self.log.draw, events)
        await asyncio.sleep(0.3 * chance.random())
        await self.in_thread(self._make_visible, places, numbers)
        stored = [StoredEvent.of(event, place) for event, place in zip(events, places, strict=True)]
        layer.told(stored)

    def _make_visible(self, places: Sequence[Any], numbers: Sequence[int]) -> None:
        self.log.commit(places)
        self._note(places, numbers)


class ReadsFirst(Hub):
    """Reads what was missed, and then subscribes: what comes between is never seen."""

    async def subscribe(
        self, subscriber: Subscriber, topic: str, since: Position | None = None
    ) -> Subscribed:
        missed = await Replay(event_log(), page=conf().replay_page).recover(topic, since)
        live = await super().subscribe(subscriber, topic, None)
        if since is None or not missed.recovered or not missed.is_complete:
            return live
        events = [LiveEvent(e.offset, e.event_type, e.payload, e.tags, e.info) for e in missed.events]
        return replace(live, recovered=True, events=events)


class GoesLiveAtOnce(Hub):
    """Passes live events on as soon as the answer is out, whatever the read of the log had not seen yet."""

    def release(self, subscribed: Subscribed) -> None:
        subscribed.subscription.answered = True
        subscribed.subscription.held = None


class TellsTheEndFirst(Hub):
    """Tells of the end of a subscription whose request is not answered yet, when nobody listens for it."""

    def _end(self, subscription: Subscription, code: int) -> None:
        subscription.answered = True
        super()._end(subscription, code)


class TrustsHints(Hub):
    """Passes on what a hint brings, whether or not something is missing before it."""

    def hear_hint(self, topic: str, epoch: str, first: int, last: int, events: Sequence[LiveEvent]) -> None:
        feed = self._feeds.get(topic)
        if feed is not None and feed.epoch == epoch and events:
            feed.pass_on(events)
        else:
            super().hear_hint(topic, epoch, first, last, events)


class TakesHintsOfAnyLife(Hub):
    """Does not look at the epoch of a hint."""

    def hear_hint(self, topic: str, epoch: str, first: int, last: int, events: Sequence[LiveEvent]) -> None:
        feed = self._feeds.get(topic)
        super().hear_hint(topic, feed.epoch if feed else epoch, first, last, events)


class RecoversAnyLife(Hub):
    """Takes a position for one of the present life of the topic, whatever epoch it names."""

    async def subscribe(
        self, subscriber: Subscriber, topic: str, since: Position | None = None
    ) -> Subscribed:
        anywhere = None if since is None else Position(epoch="", offset=since.offset)
        return await super().subscribe(subscriber, topic, anywhere)


class SaysRecovered(Hub):
    """Says that a position was recovered where it was not."""

    async def subscribe(
        self, subscriber: Subscriber, topic: str, since: Position | None = None
    ) -> Subscribed:
        return replace(await super().subscribe(subscriber, topic, since), recovered=since is not None)


class NeverCompares(Hub):
    """Relies on hints alone."""

    async def _compare(self, feeds: Any) -> None:
        return


#: Hubs with a slip, and what they make a client suffer, at least.
HUBS: dict[str, tuple[type[Hub], set[str]]] = {
    "backlog read before subscribe": (ReadsFirst, {"skipped"}),
    "live at once": (GoesLiveAtOnce, {"skipped"}),
    "end told before the answer": (TellsTheEndFirst, {"lost"}),
    "hint trusted over a gap": (TrustsHints, {"skipped"}),
    "hint of another life": (TakesHintsOfAnyLife, {"wrong event", "lost"}),
    "recovered without epoch check": (RecoversAnyLife, {"crossed epochs"}),
    "recovered without looking": (SaysRecovered, {"skipped", "crossed epochs"}),
    "positions never compared": (NeverCompares, {"lost"}),
}
