"""What happened on the bus, and what must never have: the checker behind every test of faults.

Three witnesses are compared: what publishers were told (acks), what the log holds in the end, and what
readers were sent, in order. `problems` names each contradiction by its kind: `lost`, `duplicate`,
`out of order`, `skipped`, `non-monotonic`. No finding means that per topic everybody saw 1, 2, 3 … or was
told that it could not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

#: A topic in one of its lives: name and epoch.
Life = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """An event of which a publisher was told where it is."""

    topic: str
    epoch: str
    offset: int
    key: str
    #: Whoever sent it, and its number there: each publisher sends 1, 2, 3 … to a topic.
    publisher: str = ""
    number: int = 0
    #: Seconds since 1970.
    sent_at: float = 0.0
    acked_at: float = 0.0
    #: The server knew the key already: an earlier try had been stored.
    duplicate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """An event of the log."""

    topic: str
    epoch: str
    offset: int
    key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An event that a reader was sent."""

    epoch: str
    offset: int
    key: str
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A reader was told where it stands: at its first subscription, or where it could not go on."""

    epoch: str
    offset: int


@dataclass(slots=True, kw_only=True)
class Reading:
    """All that one reader was sent of one topic, in order."""

    reader: str
    topic: str
    steps: list[Start | Seen] = field(default_factory=list)

    @property
    def seen(self) -> list[Seen]:
        """The events."""
        return [step for step in self.steps if isinstance(step, Seen)]

    @property
    def starts(self) -> list[Start]:
        """Where it began; more than one means that it was told of a loss."""
        return [step for step in self.steps if isinstance(step, Start)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A broken promise."""

    kind: str
    topic: str
    who: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.who} on {self.topic}: {self.detail}"


def problems(
    *, log: Iterable[Logged] = (), acks: Iterable[Acked] = (), readings: Iterable[Reading] = ()
) -> list[Finding]:
    """Compare what the witnesses say; an empty list means that all promises were kept.

    Readings are taken to be complete: whoever began before an event of the log must have seen it, so they
    are to be looked at when everything has arrived. A log that was trimmed is to be given from its first
    offset; it may begin above 1.
    """
    lives = _lives(log)
    return [
        *_of_log(lives),
        *_of_acks(list(acks), lives),
        *(finding for reading in readings for finding in _of_reading(reading, lives)),
    ]


def from_rows(rows: Iterable[Sequence[Any]]) -> list[Logged]:
    """Make the log from rows of (topic, epoch, offset, key)."""
    return [Logged(topic=row[0], epoch=row[1], offset=row[2], key=row[3]) for row in rows]


def _lives(log: Iterable[Logged]) -> dict[Life, dict[int, Logged]]:
    lives: dict[Life, dict[int, Logged]] = {}
    for event in sorted(log, key=lambda event: (event.topic, event.epoch, event.offset)):
        lives.setdefault((event.topic, event.epoch), {})[event.offset] = event
    return lives


def _of_log(lives: Mapping[Life, Mapping[int, Logged]]) -> Iterator[Finding]:
    for (topic, _), events in lives.items():
        for before, after in pairwise(events):
            if after != before + 1:
                yield Finding(kind="skipped", topic=topic, who="the log", detail=f"{before}, then {after}")
        keys = Counter(event.key for event in events.values() if event.key is not None)
        for key, times in keys.items():
            if times > 1:
                yield Finding(kind="duplicate", topic=topic, who="the log", detail=f"{key} {times} times")


def _of_acks(acks: list[Acked], lives: Mapping[Life, Mapping[int, Logged]]) -> Iterator[Finding]:
    for ack in acks:
        kept = lives.get((ack.topic, ack.epoch), {}).get(ack.offset)
        if kept is None or kept.key != ack.key:
            found = "nothing" if kept is None else repr(kept.key)
            detail = f"{ack.key} was acknowledged at {ack.offset}, where {found} is"
            yield Finding(kind="lost", topic=ack.topic, who=ack.publisher, detail=detail)
    yield from _of_order(acks)


def _of_order(acks: list[Acked]) -> Iterator[Finding]:
    """One publisher's events stand in the order in which it sent them, if it waited for each ack."""
    by_publisher: dict[tuple[str, str, str], list[Acked]] = {}
    for ack in acks:
        if ack.number:
            by_publisher.setdefault((ack.publisher, ack.topic, ack.epoch), []).append(ack)
    for (publisher, topic, _), given in by_publisher.items():
        for before, after in pairwise(sorted(given, key=lambda ack: ack.number)):
            if after.sent_at >= before.acked_at and after.offset <= before.offset:
                detail = f"number {before.number} at {before.offset}, {after.number} at {after.offset}"
                yield Finding(kind="non-monotonic", topic=topic, who=publisher, detail=detail)


def _of_reading(reading: Reading, lives: Mapping[Life, Mapping[int, Logged]]) -> Iterator[Finding]:
    yield from _of_steps(reading)
    yield from _against_log(reading, lives)


def _of_steps(reading: Reading) -> Iterator[Finding]:
    at: Start | Seen | None = None
    for step in reading.steps:
        if isinstance(step, Seen) and (fault := _fault(at, step)):
            detail = f"{at.offset if at else 'nothing'}, then {step.offset}"
            yield Finding(kind=fault, topic=reading.topic, who=reading.reader, detail=detail)
        at = step


def _fault(before: Start | Seen | None, after: Seen) -> str | None:
    """Name what is wrong with one event after another, if anything is."""
    if before is None or after.epoch != before.epoch:
        return "non-monotonic"
    if after.offset == before.offset + 1:
        return None
    if after.offset > before.offset:
        return "skipped"
    return "duplicate" if after.offset == before.offset else "out of order"


def _against_log(reading: Reading, lives: Mapping[Life, Mapping[int, Logged]]) -> Iterator[Finding]:
    seen = {(event.epoch, event.offset): event for event in reading.seen}
    for start in reading.starts[:1]:
        kept = lives.get((reading.topic, start.epoch), {})
        missed = [offset for offset in kept if offset > start.offset and (start.epoch, offset) not in seen]
        if missed:
            detail = f"{len(missed)} events, the first is {missed[0]}"
            yield Finding(kind="lost", topic=reading.topic, who=reading.reader, detail=detail)
    for (epoch, offset), event in seen.items():
        kept = lives.get((reading.topic, epoch), {})
        if kept and offset >= min(kept) and (offset not in kept or kept[offset].key != event.key):
            detail = f"it saw {event.key} at {offset}, which the log does not hold"
            yield Finding(kind="lost", topic=reading.topic, who=reading.reader, detail=detail)


def late(acks: Iterable[Acked], readings: Iterable[Reading]) -> list[float]:
    """Seconds from each ack to each reader's arrival, the shortest first; 0 if it arrived before its ack."""
    acked = {(ack.topic, ack.epoch, ack.offset): ack.acked_at for ack in acks}
    delays = [
        max(0.0, event.at - acked[reading.topic, event.epoch, event.offset])
        for reading in readings
        for event in reading.seen
        if (reading.topic, event.epoch, event.offset) in acked
    ]
    return sorted(delays)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted values lie."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0
