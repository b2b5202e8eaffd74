"""What the suites of the event log share: a clock that stands still, and short words for events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bus.log import Appended, EventLog, NewEvent, Page


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


def event(topic: str = "task:1", number: int = 0, **options: object) -> NewEvent:
    payload = b'{"event_type":"output","data":{"n":%d}}' % number
    return NewEvent(**{"topic": topic, "event_type": "output", "payload": payload, **options})


def fill(log: EventLog, count: int, topic: str = "task:1") -> list[Appended]:
    return log.append([event(topic, number) for number in range(count)])


def offsets(page: Page) -> list[int]:
    return [stored.offset for stored in page.events]


def all_of(log: EventLog, topic: str = "task:1") -> Page:
    return log.read(topic, limit=10_000)
