"""What a cursor is, and the cursors of a volatile log.

A cursor says how far one consumer has acknowledged one topic, in one life of it. The rules of an ack are
here, for both places where cursors are kept: rows, in `bus.acks`, and the memory of the process where the
log is in memory, too. A cursor never outlives the events that it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Protocol

from bus.log import EventLog, TopicState
from bus.protocol.errors import BadRequest, BusError, LimitExceeded, UnknownTopic, UnrecoverablePosition
from bus.protocol.positions import Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """A consumer says that it has done everything up to `offset`."""

    consumer: str
    topic: str
    offset: int
    #: The epoch in which the offset counts; empty: whichever the topic has now.
    epoch: str = ""
    #: Whose cursor it is where the consumer is a name of its choice, `owner/name`: those are limited.
    owner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorState:
    """Where a consumer stands."""

    consumer: str
    topic: str
    epoch: str
    #: The last acknowledged offset; 0 before the first.
    offset: int
    #: Events after it.
    lag: int
    #: When the cursor last moved: everything up to `offset` was acknowledged by then. None before the first.
    acked_at: datetime | None = None


#: Cursors of its own choice that one owner may have in one topic: a client must not make rows without end.
MAX_OWN_CURSORS = 100


def no_room() -> BusError:
    """Return the refusal of one cursor too many."""
    return LimitExceeded(f"at most {MAX_OWN_CURSORS} cursors of your own in one topic")


class Life(Protocol):
    """What an ack is compared with: a topic as it is."""

    @property
    def epoch(self) -> str:
        """Its present life."""

    @property
    def last_offset(self) -> int:
        """Its top."""


def refusal_of(ack: Ack, topic: Life | None) -> BusError | None:
    """Return why an ack cannot be, or None."""
    if topic is None:
        return UnknownTopic()
    if ack.epoch not in ("", topic.epoch):
        return UnrecoverablePosition("the topic began anew")
    if not 0 <= ack.offset <= topic.last_offset:
        return BadRequest(f"the offset must lie between 0 and {topic.last_offset}")
    if not 0 < len(ack.consumer) <= 200:
        return BadRequest("the name of a consumer has 1 to 200 characters")
    return None


class MemoryCursors:
    """Cursors of a log in memory.

    Args:
        log: whose topics they are about.
        clock: gives the time, with a zone.
    """

    def __init__(self, log: EventLog, clock: Callable[[], datetime]) -> None:
        self.log = log
        self._clock = clock
        #: Topic to its epoch and, by consumer, the offset and when it was reached.
        self._topics: dict[str, tuple[str, dict[str, tuple[int, datetime]]]] = {}
        self._lock = Lock()

    def ack_all(self, acks: Sequence[Ack]) -> list[CursorState | BusError]:
        """Move the cursors; return for each where it stands, or why it was refused."""
        states = self.log.states({ack.topic for ack in acks})
        with self._lock:
            return [self._ack(ack, states.get(ack.topic)) for ack in acks]

    def _ack(self, ack: Ack, topic: TopicState | None) -> CursorState | BusError:
        if topic is None:
            return UnknownTopic()
        if refusal := refusal_of(ack, topic):
            return refusal
        held = self._of(topic)
        if ack.owner and ack.consumer not in held and _owned(held, ack.owner) >= MAX_OWN_CURSORS:
            return no_room()
        if ack.consumer not in held or held[ack.consumer][0] < ack.offset:
            held[ack.consumer] = (ack.offset, self._clock())
        return _state(ack.consumer, topic, *held[ack.consumer])

    def _of(self, topic: TopicState) -> dict[str, tuple[int, datetime]]:
        """Return the cursors of a topic's present life; those of a former one go."""
        if self._topics.get(topic.topic, ("",))[0] != topic.epoch:
            self._topics[topic.topic] = (topic.epoch, {})
        return self._topics[topic.topic][1]

    def place(self, ack: Ack) -> CursorState:
        """Set a cursor, forward or back. Raises what an ack is refused with."""
        topic = self.log.states([ack.topic]).get(ack.topic)
        if topic is None:
            raise UnknownTopic
        if refusal := refusal_of(ack, topic):
            raise refusal
        with self._lock:
            held = self._of(topic)
            held[ack.consumer] = (ack.offset, self._clock())
            return _state(ack.consumer, topic, *held[ack.consumer])

    def forget(self, consumer: str, topic: str) -> int | None:
        """Forget a cursor; return where it stood, or None if there was none."""
        state = self.log.states([topic]).get(topic)
        if state is None:
            return None
        with self._lock:
            found = self._of(state).pop(consumer, None)
        return None if found is None else found[0]

    def cursor_of(self, consumer: str, topic: str) -> CursorState | None:
        """Return where a consumer stands, or None if there is no such topic."""
        state = self.log.states([topic]).get(topic)
        if state is None:
            return None
        with self._lock:
            return _state(consumer, state, *self._of(state).get(consumer, (0, None)))

    def position(self, consumer: str, topic: str) -> Position | None:
        """Return the position from which a consumer goes on reading, or None if there is no such topic."""
        state = self.log.states([topic]).get(topic)
        found = self.cursor_of(consumer, topic)
        if state is None or found is None or found.epoch != state.epoch:
            return None
        return Position(epoch=state.epoch, offset=max(found.offset, state.first_offset - 1))

    def cursors(self, topic: str) -> list[CursorState]:
        """Return all cursors of a topic, the furthest behind first."""
        state = self.log.states([topic]).get(topic)
        if state is None:
            return []
        with self._lock:
            found = [_state(consumer, state, *place) for consumer, place in self._of(state).items()]
        return sorted(found, key=lambda cursor: (cursor.offset, cursor.consumer))


def _owned(consumers: Iterable[str], owner: str) -> int:
    return sum(1 for consumer in consumers if consumer.startswith(f"{owner}/"))


def _state(consumer: str, topic: TopicState, offset: int, acked_at: datetime | None) -> CursorState:
    return CursorState(
        consumer=consumer,
        topic=topic.topic,
        epoch=topic.epoch,
        offset=offset,
        lag=topic.last_offset - offset,
        acked_at=acked_at,
    )
