"""The durable event log: the truth of what was said. This module is the contract.

Publishers append, readers read by position, trimming forgets. `memory.MemoryEventLog` keeps it in the
process, `database.DatabaseEventLog` in SQL; one conformance suite holds both to the same words.
`writer.LogWriter` commits many publishers' events together. Positions and recovery rules are in
`bus.protocol.positions`; who may publish is decided above, in `bus.publishing`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Protocol

import msgspec

from bus.protocol.errors import BadRequest, BusError
from bus.protocol.positions import Position
from bus.protocol.topics import check_topic

#: Lengths that both databases hold.
MAX_EVENT_TYPE = 100
MAX_TEXT = 200
MAX_STATUS = 32


class NewEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event to be appended. Bytes are JSON that has passed `bus.protocol.limits`.

    Like the other two below it holds texts and numbers only, so the garbage collector need not look at it.
    """

    topic: str
    event_type: str
    #: The event object as it is stored and sent.
    payload: bytes
    #: JSON object of strings, or None. `id` in it is the event's id.
    tags: bytes | None = None
    #: JSON object that names the publishing client, or None.
    info: bytes | None = None
    #: Idempotency key: a second event of the topic with this key is not stored.
    key: str | None = None
    publisher: str = ""
    #: Set on the final event only: the topic ends with it, in this status.
    end_status: str | None = None
    #: The event begins something anew: if its topic has ended, that one is removed first.
    restarts: bool = False


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event of the log."""

    topic: str
    epoch: str
    offset: int
    event_type: str
    payload: bytes
    tags: bytes | None
    info: bytes | None
    key: str | None
    publisher: str
    created_at: datetime

    @classmethod
    def of(cls, event: NewEvent, place: Appended) -> StoredEvent:
        """Return the event as the log holds it at `place`, without reading it back."""
        return cls(
            topic=event.topic,
            epoch=place.epoch,
            offset=place.offset,
            event_type=event.event_type,
            payload=event.payload,
            tags=event.tags,
            info=event.info,
            key=event.key,
            publisher=event.publisher,
            created_at=place.created_at,
        )


class Appended(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where an event is in the log."""

    topic: str
    epoch: str
    offset: int
    #: The `id` of the event's tags; empty if it has none.
    event_id: str
    #: An earlier event had the same key. It is the one described here, and nothing was stored.
    duplicate: bool = False
    #: When it was stored, by the log's clock.
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicState:
    """What a topic is at one moment."""

    topic: str
    epoch: str
    #: The oldest offset that can be read; `last_offset + 1` if nothing is kept.
    first_offset: int
    #: 0 before the first event.
    last_offset: int
    #: When the final event was stored, or None.
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Events of a topic beside the state in which it was read, all of one moment.

    Empty epoch and zero offsets: there is no such topic.
    """

    epoch: str
    first_offset: int
    last_offset: int
    events: list[StoredEvent]


class EventLog(Protocol):
    """A set of topics, each an ordered run of events.

    Guarantees:
        - Offsets of a topic's epoch are 1, 2, 3 ... Commit order is offset order: whoever reads up to n and
          later from n on misses nothing, however many append at once.
        - What `append` has answered is committed; unless a transaction was open, see `DatabaseEventLog`.
        - A call is atomic: all of it, or an exception and nothing.
        - The same (topic, key) is stored once. A repetition is answered with the place of the first.
        - An epoch is drawn when a topic comes to be and never seen again after `remove`.

    Implementations are safe to call from several threads.
    """

    def append(self, events: Sequence[NewEvent]) -> list[Appended]:
        """Store all events and return their places, in the order given. Topics come to be as needed.

        An event with `end_status` ends its topic; one that `restarts` begins an ended one anew.

        Raises:
            TopicEnded: an event, not a repetition by key, is for a topic that has ended.
            BadRequest: a name or text does not fit: see `refusals`.
            LogUnavailable: nothing was stored; the call may be repeated.
        """
        ...

    def append_each(self, events: Sequence[NewEvent]) -> list[Appended | BusError]:
        """Like `append`, but an event that must be refused does not hinder the others.

        Raises:
            LogUnavailable: nothing was stored; the call may be repeated.
        """
        ...

    def read(self, topic: str, since: Position | None = None, *, limit: int, reverse: bool = False) -> Page:
        """Return up to `limit` events after `since` (before it, if `reverse`), in reading order.

        Without `since` from the oldest event kept (the newest, if `reverse`). A `since` in another epoch
        gives no events. Whether events are missing between `since` and the first one returned is for the
        caller to see from `first_offset`: see `bus.protocol.positions.is_reachable`.
        """
        ...

    def states(self, topics: Collection[str]) -> dict[str, TopicState]:
        """Return the state of those topics that exist."""
        ...

    def open(self, topic: str) -> TopicState:
        """Return the state of a topic, which comes to be if it is missing: a reader knows its epoch early.

        Raises:
            BadRequest: this is no name of a topic.
            LogUnavailable: the call may be repeated.
        """
        ...

    def names(self, after: str = "", *, limit: int = 1000) -> list[str]:
        """Return up to `limit` names of topics in order, those behind `after`."""
        ...

    def trim(
        self,
        topic: str,
        *,
        max_age: timedelta | None,
        max_events: int | None,
        up_to: Position | None = None,
        batch: int = 1000,
    ) -> int:
        """Forget events older than `max_age`, the oldest beyond `max_events`, and those up to a position.

        Returns how many went. A position in another epoch than the topic's forgets nothing. At most `batch`
        in one transaction. A reader below the new `first_offset` sees that it is below.
        """
        ...

    def renew(self, topics: Collection[str]) -> None:
        """Note that these topics are being read, for `forget_unused`. Those written to need no such note.

        Raises:
            LogUnavailable: the call may be repeated.
        """
        ...

    def forget_unused(self, idle: timedelta, *, batch: int = 1000) -> int:
        """Forget topics that nobody has ever written to, opened or renewed longer than `idle` ago.

        Returns how many went; at most `batch` in one transaction. A reader that still stands there finds the
        topic gone, and another epoch when it is opened again.
        """
        ...

    def remove(self, topic: str) -> bool:
        """Forget a topic, its events and its cursors. The next event begins a new epoch at offset 1."""
        ...


def refusals(events: Sequence[NewEvent]) -> list[BusError | None]:
    """Say of each event why it cannot be stored, or None, so that all implementations give one verdict."""
    data: list[bytes] = []
    texts: list[str] = []
    for event in events:
        data += (event.payload, event.tags or b"", event.info or b"")
        texts += (event.event_type, event.key or "", event.publisher, event.end_status or "")
    # All together, for nearly always all are right, and else one after the other.
    if _why_not_text(data, texts) is None:
        return [_misfit(event) for event in events]
    return [_refusal(event) for event in events]


def _refusal(event: NewEvent) -> BusError | None:
    return _misfit(event) or _why_not_text(
        (event.payload, event.tags or b"", event.info or b""),
        (event.event_type, event.key or "", event.publisher, event.end_status or ""),
    )


def _misfit(event: NewEvent) -> BusError | None:
    """Return what is wrong with a name or a length."""
    try:
        _check_topic(event.topic)
    except BusError as error:
        return error
    key, end_status = event.key, event.end_status
    if len(event.event_type) > MAX_EVENT_TYPE:
        return BadRequest(f"an event type has at most {MAX_EVENT_TYPE} characters")
    if key is not None and not 0 < len(key) <= MAX_TEXT:
        return BadRequest(f"a key has 1 to {MAX_TEXT} characters")
    if len(event.publisher) > MAX_TEXT:
        return BadRequest(f"a publisher has at most {MAX_TEXT} characters")
    if end_status is not None and len(end_status) > MAX_STATUS:
        return BadRequest(f"an end status has at most {MAX_STATUS} characters")
    return None


def _why_not_text(data: Sequence[bytes], texts: Sequence[str]) -> BusError | None:
    """Return what a database could not store as text; lines between, so that no two halves make a whole."""
    try:
        whole = b"\n".join((*data, "\n".join(texts).encode()))
        if not whole.isascii():
            whole.decode()
    except UnicodeError:
        return BadRequest("an event is UTF-8 text")
    return BadRequest("a NUL character cannot be stored") if b"\0" in whole else None


def event_id(tags: bytes | None) -> str:
    """Return the `id` of encoded tags, or an empty string."""
    return _decode_tags(tags).id if tags else ""


class _Tags(msgspec.Struct):
    id: str = ""


#: The same few topics come again and again; refusals are not remembered.
_check_topic = lru_cache(maxsize=10_000)(check_topic)

_decode_tags = msgspec.json.Decoder(_Tags).decode
