"""Where a reader stands in a topic, and when what it gets is complete.

Used on every subscribe, resume and hint. The promise kept here: a reader sees offsets 1, 2, 3 ... of one
epoch, or is told that it cannot; what was read from the log and what arrived meanwhile are joined without a
gap or a repetition.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, Protocol, TypeVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The last event a reader has: everything up to and including `offset` of the topic's life `epoch`."""

    #: Drawn when a topic is created. An empty epoch means: whichever the topic has now.
    epoch: str
    #: 0 is before the first event.
    offset: int

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise ValueError(f"an offset is never negative: {self.offset}")

    def is_in(self, epoch: str) -> bool:
        """Tell whether the position belongs to the life `epoch` of its topic."""
        return self.epoch in ("", epoch)


#: Before the first event of whichever life the topic has, or will have.
BEGINNING = Position(epoch="", offset=0)


class HasOffset(Protocol):
    """Anything that stands at one place of a topic."""

    @property
    def offset(self) -> int:
        """Place in the topic, from 1."""


EventT = TypeVar("EventT", bound=HasOffset)


def is_contiguous(since: int, events: Iterable[HasOffset], top: int) -> bool:
    """Tell whether `events` are exactly the offsets `since + 1` to `top`, in order."""
    at = since
    for event in events:
        if event.offset != at + 1:
            return False
        at += 1
    return at == top


def is_reachable(since: Position, *, epoch: str, first_offset: int, last_offset: int) -> bool:
    """Tell whether a log that holds `first_offset` to `last_offset` of `epoch` can continue from `since`.

    A position in another epoch, before what was trimmed, or beyond the top cannot be continued.
    """
    return since.is_in(epoch) and first_offset - 1 <= since.offset <= last_offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Spliced(Generic[EventT]):
    """What a reader gets after a resume."""

    events: list[EventT]
    #: Something is missing between the events: the reader must resume again.
    gap: bool


def splice(backlog: Sequence[EventT], held_back: Iterable[EventT]) -> Spliced[EventT]:
    """Join events read from the log with live ones held back meanwhile: each offset once, in order.

    Both may overlap and `held_back` may come in any order; for an offset in both the one from the log stays.
    """
    merged = {event.offset: event for event in held_back}
    merged.update((event.offset, event) for event in backlog)
    offsets = sorted(merged)
    gap = any(right != left + 1 for left, right in pairwise(offsets))
    return Spliced(events=[merged[offset] for offset in offsets], gap=gap)
