"""One process's view of one topic: where it stands in the log and who reads it here.

A feed is the pure part of the hub: no I/O, no waiting. Events go through it strictly in order, each exactly
once for every subscription: a batch is encoded once for each form and the same frame goes to all who stand at
the same place. A subscription that is still recovering holds live events back until its missed ones are out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import msgspec

from bus.connections.leases import Details
from bus.fanout.sending import Frame, SendQueue, Verdict, count
from bus.layer import Control, LiveEvent
from bus.protocol import eventstream, frames
from bus.protocol.positions import splice

#: Bytes of events joined in one message. Far below the 1 MiB beyond which the WebSocket libraries of many
#: clients close the connection.
MAX_JOINED_BYTES = 262_144
#: Live events held back for one subscription; beyond it they are read from the log again.
MAX_HELD_BACK = 4_096


class Form(Enum):
    """How events look to a client."""

    #: Pushes of the Centrifugo protocol, joined into one message.
    CENTRIFUGO = "centrifugo"
    #: One event a message, as a JSON object.
    PLAIN = "plain"
    #: Server-sent events.
    STREAM = "stream"


def encode(form: Form, topic: str, epoch: str, events: Sequence[LiveEvent]) -> Frame:
    """Return events as they are sent in one form."""
    if form is Form.PLAIN:
        return Frame([frames.plain_event(topic, epoch, event.offset, event.payload) for event in events])
    if form is Form.STREAM:
        return Frame([eventstream.event(epoch, e.offset, e.event_type, e.payload) for e in events])
    return Frame([frames.push_publications(topic, events)])


def publication(event: LiveEvent) -> bytes:
    """Return an event as it stands in replies and pushes."""
    return frames.publication(event.offset, event.payload, event.tags, event.info)


class _Tags(msgspec.Struct):
    key: str = ""
    end: str = ""


_read_tags = msgspec.json.Decoder(_Tags).decode


def key_of(event: LiveEvent) -> str:
    """Return what a newer event replaces, or an empty string: then none does."""
    return _read_tags(event.tags).key if event.tags and b'"key"' in event.tags else ""


def is_final(event: LiveEvent) -> bool:
    """Tell whether the topic ends with this event."""
    return bool(event.tags and b'"end"' in event.tags and _read_tags(event.tags).end)


def parts(events: Sequence[LiveEvent]) -> list[Sequence[LiveEvent]]:
    """Split events into runs that make messages of bounded size, and at least one event each.

    What was committed together may be megabytes: clients refuse a message that large, and a queue that takes
    it whole would owe more than its bound.
    """
    if sum([len(event.payload) for event in events]) <= MAX_JOINED_BYTES:
        return [events]
    runs: list[Sequence[LiveEvent]] = []
    start = size = 0
    for number, event in enumerate(events):
        if number > start and size + len(event.payload) > MAX_JOINED_BYTES:
            runs.append(events[start:number])
            start, size = number, 0
        size += len(event.payload)
    return [*runs, events[start:]]


class Batch:
    """Events of one topic that came together, encoded once for each form."""

    __slots__ = ("_centrifugo", "_plain", "_stream", "epoch", "events", "first", "is_final", "last", "topic")

    def __init__(self, topic: str, epoch: str, events: Sequence[LiveEvent]) -> None:
        self.topic = topic
        self.epoch = epoch
        self.events = events
        self.first = events[0].offset
        self.last = events[-1].offset
        #: Whether the topic ends with it.
        self.is_final = is_final(events[-1])
        self._centrifugo: Frame | None = None
        self._plain: Frame | None = None
        self._stream: Frame | None = None

    def frame(self, form: Form) -> Frame:
        """Return the shared frame."""
        # Fields and no dictionary: hashing a member of an enum costs a tenth of a delivery.
        if form is Form.PLAIN:
            if self._plain is None:
                self._plain = encode(form, self.topic, self.epoch, self.events)
            return self._plain
        if form is Form.STREAM:
            if self._stream is None:
                self._stream = encode(form, self.topic, self.epoch, self.events)
            return self._stream
        if self._centrifugo is None:
            self._centrifugo = encode(form, self.topic, self.epoch, self.events)
        return self._centrifugo


class Subscriber(Protocol):
    """A connection, as the hub sees it. Nothing here may block or raise."""

    @property
    def form(self) -> Form:
        """How its events look."""

    @property
    def queue(self) -> SendQueue:
        """Where its events go."""

    @property
    def details(self) -> Details:
        """Who it is."""

    def unsubscribed(self, topic: str, code: int) -> None:
        """Its subscription was ended by the server: `UnsubscribeCode`, or what an operator has chosen."""

    def finished(self, topic: str) -> None:
        """It has just been sent the final event of the topic."""

    def somebody_came_or_went(self, order: Control) -> None:
        """Another client joined or left a topic that it reads."""

    def too_slow(self) -> None:
        """It must be closed: events that must arrive do not fit into its queue."""


@dataclass(slots=True, eq=False)
class Subscription:
    """One connection's reading of one topic."""

    feed: Feed
    subscriber: Subscriber
    queue: SendQueue
    form: Form
    #: The last offset it was sent, or that its reply names.
    at: int = 0
    epoch: str = ""
    #: Live events held back while it recovers, or None once it is live.
    held: list[LiveEvent] | None = field(default_factory=list)
    #: More was held back than fits, or was not in the hint: only the log has it.
    overflowed: bool = False
    ended: bool = False
    #: Its subscribe was answered: until then its end is not told, for clients do not heed one before that.
    answered: bool = False
    #: The code with which it ended before it was answered.
    owed_end: int = 0

    def take(self, batch: Batch) -> bool:
        """Send a batch, or hold it back. What was sent before is left out. True if it went out as it is."""
        if self.held is not None:
            self._hold(batch)
        elif batch.first == self.at + 1 or not batch.first:
            if batch.first:
                self.at = batch.last
            return self._send(batch)
        elif batch.last > self.at:
            self.send_events([event for event in batch.events if event.offset > self.at])
        return False

    def send_events(self, events: Sequence[LiveEvent]) -> None:
        """Send events that are for this subscription alone; they follow what it has."""
        for part in parts(events) if events else ():
            self.at = part[-1].offset or self.at
            if self._send(Batch(self.feed.topic, self.epoch, part)):
                count(Verdict.SENT)

    def go_live(self) -> bool:
        """Send what was held back and take all directly from now on. False: something is missing between."""
        held = self.held or []
        logged = [event for event in held if event.offset > self.at]
        joined = splice([], logged)
        starts = not joined.events or joined.events[0].offset == self.at + 1
        # The feed may have begun beyond what this one's read of the log saw: another has read it later.
        reaches = (joined.events[-1].offset if joined.events else self.at) >= self.feed.last
        if self.overflowed or joined.gap or not (starts and reaches):
            self.held, self.overflowed = [], False
            return False
        self.held = None
        self.send_events(joined.events)
        for event in held:
            if not event.offset:
                self._send(Batch(self.feed.topic, self.epoch, [event]))
        return True

    def _hold(self, batch: Batch) -> None:
        held = self.held if self.held is not None else []
        if len(held) + len(batch.events) > MAX_HELD_BACK:
            self.overflowed = True
            held.clear()
        else:
            held += batch.events

    def _send(self, batch: Batch) -> bool:
        """Offer a batch; true if it went out, which whoever sends to many counts at once."""
        verdict = self.queue.offer(batch.frame(self.form), self.feed.delivery)
        if verdict is Verdict.KEPT_BACK and not self._keep_back(batch.events):
            verdict = Verdict.TOO_SLOW
        if verdict in (Verdict.SENT, Verdict.KEPT_BACK):
            self.queue.events += len(batch.events)
        if verdict is Verdict.SENT:
            if batch.is_final:
                self.subscriber.finished(self.feed.topic)
            return True
        count(verdict)
        if verdict is Verdict.TOO_SLOW:
            self.subscriber.too_slow()
        return False

    def _keep_back(self, events: Sequence[LiveEvent]) -> bool:
        """Keep back the newest event of each key. False if one has no key, so that none may be left out."""
        newest = {key_of(event): event for event in events}
        if "" in newest:
            return False
        topic, kept = self.feed.topic, True
        for key, event in newest.items():
            frame = encode(self.form, topic, self.epoch, [event])
            kept = self.queue.keep_back(topic, key, frame) and kept
        return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribed:
    """The answer to a subscribe. Send it, then call `Hub.release`, with nothing awaited between."""

    subscription: Subscription
    recovered: bool
    epoch: str
    #: Where the subscriber stands after `events`.
    offset: int
    events: list[LiveEvent]
    #: What was read from the log goes up to here; if that is more than `offset`, pushes follow.
    top: int


class Feed:
    """A topic that somebody reads here.

    Args:
        topic: its name. delivery: class of its rule: `must`, `latest` or `ephemeral`. later: runs a function
        soon; called between slices of a large fan-out, so that other work gets its turn. slice_size:
        subscriptions served in one go.
    """

    def __init__(
        self,
        topic: str,
        delivery: str,
        later: Callable[[Callable[[], None]], object],
        *,
        slice_size: int = 256,
    ) -> None:
        self.topic = topic
        self.delivery = delivery
        #: Empty until the log was read for the first time; always so for a topic that is not logged.
        self.epoch = ""
        #: The last offset that was passed on.
        self.last = 0
        self.subscriptions: dict[Subscriber, Subscription] = {}
        self._later = later
        self._slice = slice_size
        self._queue: list[Batch] = []
        self._is_busy = False

    @property
    def is_logged(self) -> bool:
        """Whether its events have offsets."""
        return self.delivery != "ephemeral"

    def locate(self, epoch: str, top: int) -> None:
        """Take the place that the log has, if none is known yet."""
        if not self.epoch:
            self.epoch, self.last = epoch, top

    def misses(self, epoch: str, first: int) -> bool:
        """Tell whether events that begin at `first` cannot be passed on, for others come before them."""
        return epoch != self.epoch or first > self.last + 1

    def pass_on(self, events: Sequence[LiveEvent]) -> None:
        """Send to every subscription what is new in `events`. They follow on `last`, or are not logged."""
        new = [event for event in events if not event.offset or event.offset > self.last]
        if not new:
            return
        self.last = new[-1].offset or self.last
        self._queue += [Batch(self.topic, self.epoch, part) for part in parts(new)]
        if not self._is_busy:
            self._next_batch()

    def _next_batch(self) -> None:
        # One batch after the other, or a subscription in a late slice would get them in the wrong order.
        while self._queue:
            batch = self._queue.pop(0)
            self._is_busy = True
            if not self._fan_out(batch, list(self.subscriptions.values()), 0):
                return
            self._is_busy = False

    def _fan_out(self, batch: Batch, readers: list[Subscription], start: int) -> bool:
        """Serve a slice and have the rest served later. True when all are served."""
        count(Verdict.SENT, _serve(readers[start : start + self._slice], batch))
        if start + self._slice >= len(readers):
            return True
        self._later(lambda: self._go_on(batch, readers, start + self._slice))
        return False

    def _go_on(self, batch: Batch, readers: list[Subscription], start: int) -> None:
        if self._fan_out(batch, readers, start):
            self._is_busy = False
            self._next_batch()


def _serve(readers: Sequence[Subscription], batch: Batch) -> int:
    """Give a batch to every reader; return to how many it went out as it is.

    This loop is what a delivery costs besides the system call: a reader that stands right before the batch,
    owes nothing and takes whole frames gets its bytes without another call of ours.
    """
    sent, at_once = 0, not batch.is_final
    before = batch.first - 1 if batch.first else None
    last, events = batch.last, len(batch.events)
    form, wire = None, b""
    for reader in readers:
        if reader.ended:
            continue
        queue = reader.queue
        direct = queue.direct
        is_next = before is None or reader.at == before
        if at_once and is_next and direct is not None and reader.held is None and not queue.owes:
            if reader.form is not form:
                form = reader.form
                frame = batch.frame(form)
                wire = frame.wire or frame.prepare()
            if before is not None:
                reader.at = last
            queue.events += events
            if pending := direct(wire):
                queue.fell_behind(pending)
            sent += 1
        else:
            sent += reader.take(batch)
    return sent
