"""Reading what a subscriber missed: recovery, further pages, gaps, history.

The hub holds live events of the topic back, subscribes, asks `recover`, and splices with
`bus.protocol.positions.splice`. Recovery is never partial: either every event after the position can be
had, or the answer is that it was not recovered. More than a page comes in further pages, before anything
live. Reads run in threads of their own, never in the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from bus.faults import fault
from bus.layer import LiveEvent
from bus.log import EventLog, Page, StoredEvent
from bus.log.threads import in_thread
from bus.protocol.errors import UnrecoverablePosition
from bus.protocol.positions import BEGINNING, Position, is_contiguous, is_reachable

#: Bytes of events in one message of a recovery: more follow as pushes.
MAX_REPLY_BYTES = 262_144
#: Bytes of events in one answer to a history request: many clients refuse a message of more than 1 MiB.
MAX_ANSWER_BYTES = 786_432


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """The answer to a subscriber that comes with a position, or without one."""

    #: Everything after the position is in `events`, or can be had by `Replay.pages` from `position` on.
    recovered: bool
    #: The first page of what was missed; empty unless recovered.
    events: list[StoredEvent]
    #: Where the subscriber stands with `events`: the offset for the subscribe reply.
    position: Position
    #: Last offset of the topic when it was read.
    top: int

    @property
    def is_complete(self) -> bool:
        """Whether there are no further pages."""
        return self.position.offset >= self.top


class Replay:
    """Reads of one log.

    Args:
        log: where to read.
        page: most events in one read.
    """

    def __init__(self, log: EventLog, *, page: int = 1_000) -> None:
        self._log = log
        self._page = page

    async def recover(self, topic: str, since: Position | None) -> Recovery:
        """Decide whether a subscriber can go on from `since`, and return the first page of what it missed.

        Without `since` it starts at the top and has missed nothing. For a topic that does not exist yet, only
        a position at its beginning (offset 0, no epoch) is recovered.
        """
        limit = 0 if since is None else self._page
        fault("replay.before_read")
        page = await in_thread(self._log.read, topic, since, limit=limit)
        fault("replay.after_read")
        if since is None or not _goes_on(since, page):
            at = Position(epoch=page.epoch, offset=page.last_offset)
            return Recovery(recovered=False, events=[], position=at, top=page.last_offset)
        at = Position(epoch=page.epoch, offset=since.offset + len(page.events))
        return Recovery(recovered=True, events=page.events, position=at, top=page.last_offset)

    async def pages(self, topic: str, since: Position, top: int) -> AsyncIterator[list[StoredEvent]]:
        """Yield pages of events after `since`, in order, up to offset `top` at least.

        Raises:
            UnrecoverablePosition: they are not all there any more.
        """
        at = since
        while at.offset < top:
            page = await in_thread(self._log.read, topic, at, limit=self._page)
            if not page.events or not _goes_on(at, page):
                raise UnrecoverablePosition
            yield page.events
            at = Position(epoch=page.epoch, offset=page.events[-1].offset)

    async def fill(self, topic: str, since: Position, top: int) -> list[StoredEvent]:
        """Return exactly the events after `since` up to `top`: the gap before an event that came too early.

        Raises:
            UnrecoverablePosition: they are not all there any more.
        """
        found = [
            event async for page in self.pages(topic, since, top) for event in page if event.offset <= top
        ]
        if not is_contiguous(since.offset, found, max(since.offset, top)):
            raise UnrecoverablePosition
        return found

    async def history(self, topic: str, *, since: Position | None, limit: int, reverse: bool = False) -> Page:
        """Answer a history request in the protocol's terms: a limit of 0 is the position, a negative one all.

        "All" is at most one page, and events beyond `MAX_ANSWER_BYTES` are left for another: the caller goes
        on from the last offset that it got.

        Raises:
            UnrecoverablePosition: what follows `since` is not there, or `since` is in another epoch.
        """
        wanted = self._page if limit < 0 else min(limit, self._page)
        page = await in_thread(self._log.read, topic, since, limit=wanted, reverse=reverse)
        if since is not None and not reverse and not _is_served(since, page):
            raise UnrecoverablePosition
        if since is not None and reverse and not since.is_in(page.epoch):
            raise UnrecoverablePosition
        return replace(page, events=page.events[: _count_fitting(page.events)])


def _is_served(since: Position, page: Page) -> bool:
    if not page.epoch:
        return since == BEGINNING
    return is_reachable(since, epoch=page.epoch, first_offset=page.first_offset, last_offset=page.last_offset)


def _goes_on(since: Position, page: Page) -> bool:
    """Tell whether the page is the continuation of `since`: nothing between, nothing missing inside."""
    return _is_served(since, page) and is_contiguous(
        since.offset, page.events, since.offset + len(page.events)
    )


def _count_fitting(events: Sequence[StoredEvent]) -> int:
    """Return how many of the first events make one answer, at least one."""
    size = 0
    for number, event in enumerate(events):
        size += len(event.payload)
        if number and size > MAX_ANSWER_BYTES:
            return number
    return len(events)


def live(events: Sequence[StoredEvent]) -> list[LiveEvent]:
    """Return events of the log as subscribers get them."""
    return [LiveEvent(e.offset, e.event_type, e.payload, e.tags, e.info) for e in events]


def fitting(events: Sequence[StoredEvent | LiveEvent]) -> list[LiveEvent]:
    """Return as many of the first events as fit into one message, and at least one."""
    taken: list[LiveEvent] = []
    size = 0
    for e in events:
        size += len(e.payload)
        if taken and size > MAX_REPLY_BYTES:
            break
        taken.append(LiveEvent(e.offset, e.event_type, e.payload, e.tags, e.info))
    return taken
