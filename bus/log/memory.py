"""The event log in the memory of one process.

Same contract as the database's (`bus.log.EventLog`), for tests and for the volatile mode, in which nothing
outlives the process: the connect reply, admin and metrics say so. An open database transaction means
nothing to it: what is appended is there at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Lock

from msgspec import structs

from bus.log import Appended, NewEvent, Page, StoredEvent, TopicState, event_id, refusals
from bus.log.batch import new_epoch
from bus.protocol.errors import BusError, TopicEnded
from bus.protocol.positions import Position
from bus.protocol.topics import check_topic


@dataclass(slots=True)
class _Topic:
    epoch: str = field(default_factory=new_epoch)
    events: deque[StoredEvent] = field(default_factory=deque)
    keys: dict[str, Appended] = field(default_factory=dict)
    last_offset: int = 0
    ended_at: datetime | None = None
    #: When it was opened or renewed, while nobody has written to it.
    renewed_at: datetime | None = None

    @property
    def first_offset(self) -> int:
        return self.last_offset - len(self.events) + 1

    def store(self, event: NewEvent, now: datetime) -> Appended:
        self.last_offset += 1
        place = Appended(
            topic=event.topic,
            epoch=self.epoch,
            offset=self.last_offset,
            event_id=event_id(event.tags),
            created_at=now,
        )
        self.events.append(StoredEvent.of(event, place))
        if event.key is not None:
            self.keys[event.key] = structs.replace(place, duplicate=True)
        if event.end_status is not None:
            self.ended_at = now
        return place

    def forget_newest(self, key: str | None) -> None:
        self.events.pop()
        self.keys.pop(key or "", None)
        self.last_offset -= 1
        self.ended_at = None


class MemoryEventLog:
    """See `bus.log.EventLog`.

    Args:
        clock: gives the time, with a zone.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._topics: dict[str, _Topic] = {}
        self._lock = Lock()

    def append(self, events: Sequence[NewEvent]) -> list[Appended]:
        """Store all events, or raise and store none."""
        undo: list[Callable[[], None]] = []
        with self._lock:
            try:
                return [self._append(event, undo) for event in events]
            except BusError:
                for step in reversed(undo):
                    step()
                raise

    def append_each(self, events: Sequence[NewEvent]) -> list[Appended | BusError]:
        """Store what can be stored."""
        results: list[Appended | BusError] = []
        with self._lock:
            for event in events:
                try:
                    results.append(self._append(event, []))
                except BusError as error:
                    results.append(error)
        return results

    def _append(self, event: NewEvent, undo: list[Callable[[], None]]) -> Appended:
        (refusal,) = refusals((event,))
        if refusal is not None:
            raise refusal
        topic = self._topics.get(event.topic)
        if topic is not None and event.key is not None and (known := topic.keys.get(event.key)):
            return known
        if topic is None or (topic.ended_at is not None and event.restarts):
            undo.append(partial(self._put_back, event.topic, topic))
            topic = self._topics[event.topic] = _Topic()
        if topic.ended_at is not None:
            raise TopicEnded
        undo.append(partial(topic.forget_newest, event.key))
        return topic.store(event, self._clock())

    def _put_back(self, name: str, topic: _Topic | None) -> None:
        if topic is None:
            del self._topics[name]
        else:
            self._topics[name] = topic

    def read(self, topic: str, since: Position | None = None, *, limit: int, reverse: bool = False) -> Page:
        """Return events after `since`, or before it in reverse."""
        with self._lock:
            held = self._topics.get(topic)
            if held is None:
                return Page(epoch="", first_offset=0, last_offset=0, events=[])
            events = list(held.events)
            epoch, first, last = held.epoch, held.first_offset, held.last_offset
        if since is not None and not since.is_in(epoch):
            events = []
        return Page(
            epoch=epoch, first_offset=first, last_offset=last, events=_slice(events, since, limit, reverse)
        )

    def states(self, topics: Collection[str]) -> dict[str, TopicState]:
        """Return the state of those topics that exist."""
        with self._lock:
            return {name: _state(name, held) for name in topics if (held := self._topics.get(name))}

    def open(self, topic: str) -> TopicState:
        """Return the state of a topic, made if missing."""
        check_topic(topic)
        with self._lock:
            if topic not in self._topics:
                self._topics[topic] = _Topic(renewed_at=self._clock())
            return _state(topic, self._topics[topic])

    def names(self, after: str = "", *, limit: int = 1000) -> list[str]:
        """Return names of topics in order."""
        with self._lock:
            return sorted(name for name in self._topics if name > after)[:limit]

    def trim(
        self,
        topic: str,
        *,
        max_age: timedelta | None,
        max_events: int | None,
        up_to: Position | None = None,
        batch: int = 1000,
    ) -> int:
        """Forget old events. The lock is held for `batch` of them at a time."""
        trimmed = 0
        while went := self._trim_batch(topic, max_age, max_events, up_to, batch):
            trimmed += went
        return trimmed

    def _trim_batch(
        self,
        topic: str,
        max_age: timedelta | None,
        max_events: int | None,
        up_to: Position | None,
        batch: int,
    ) -> int:
        oldest = None if max_age is None else self._clock() - max_age
        went = 0
        with self._lock:
            held = self._topics.get(topic)
            while held is not None and held.events and went < batch:
                too_many = max_events is not None and len(held.events) > max_events
                too_old = oldest is not None and held.events[0].created_at < oldest
                is_meant = up_to is not None and up_to.is_in(held.epoch)
                if not (too_many or too_old or (is_meant and held.first_offset <= up_to.offset)):  # type: ignore[union-attr]
                    break
                gone = held.events.popleft()
                held.keys.pop(gone.key or "", None)
                went += 1
        return went

    def renew(self, topics: Collection[str]) -> None:
        """Note that these topics are being read."""
        now = self._clock()
        with self._lock:
            for name in topics:
                if held := self._topics.get(name):
                    held.renewed_at = now

    def forget_unused(self, idle: timedelta, *, batch: int = 1000) -> int:
        """Forget topics that nobody has written to."""
        oldest = self._clock() - idle
        with self._lock:
            unused = [
                name
                for name, held in self._topics.items()
                if not held.last_offset and held.renewed_at is not None and held.renewed_at < oldest
            ]
            for name in unused:
                del self._topics[name]
        return len(unused)

    def remove(self, topic: str) -> bool:
        """Forget a topic."""
        with self._lock:
            return self._topics.pop(topic, None) is not None


def _slice(events: list[StoredEvent], since: Position | None, limit: int, reverse: bool) -> list[StoredEvent]:
    if reverse:
        chosen = [event for event in reversed(events) if since is None or event.offset < since.offset]
    else:
        chosen = [event for event in events if since is None or event.offset > since.offset]
    return chosen[:limit]


def _state(name: str, held: _Topic) -> TopicState:
    return TopicState(
        topic=name,
        epoch=held.epoch,
        first_offset=held.first_offset,
        last_offset=held.last_offset,
        ended_at=held.ended_at,
    )
