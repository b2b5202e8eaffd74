"""Topics that readers have opened and nobody has written to: every log forgets them, and only them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bus.log import EventLog, NewEvent
from bus.log.database import DatabaseEventLog
from bus.log.memory import MemoryEventLog

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "database"])
def log(request: pytest.FixtureRequest, clock: Clock) -> EventLog:
    return MemoryEventLog(clock) if request.param == "memory" else DatabaseEventLog(clock=clock)


def event(topic: str) -> NewEvent:
    return NewEvent(topic=topic, event_type="output", payload=b"{}")


def test_a_topic_that_was_only_opened_is_forgotten_after_a_while(log: EventLog, clock: Clock) -> None:
    former = log.open("room:1").epoch
    clock.now += HOUR
    assert log.forget_unused(HOUR) == 0
    clock.now += timedelta(seconds=1)
    assert log.forget_unused(HOUR) == 1
    assert log.states(["room:1"]) == {}
    assert log.open("room:1").epoch != former


def test_a_topic_that_is_read_stays(log: EventLog, clock: Clock) -> None:
    log.open("room:read")
    log.open("room:left")
    clock.now += HOUR
    log.renew(["room:read", "room:unknown"])
    clock.now += timedelta(minutes=1)
    assert log.forget_unused(HOUR) == 1
    assert log.names() == ["room:read"]


def test_a_topic_that_was_written_to_stays_even_when_nothing_is_left_of_it(
    log: EventLog, clock: Clock
) -> None:
    log.open("room:1")
    (place,) = log.append([event("room:1")])
    log.trim("room:1", max_age=None, max_events=0)
    clock.now += 24 * HOUR
    assert log.forget_unused(HOUR) == 0
    state = log.states(["room:1"])["room:1"]
    assert (state.epoch, state.first_offset, state.last_offset) == (place.epoch, 2, 1)


def test_many_are_forgotten_in_batches(log: EventLog, clock: Clock) -> None:
    for number in range(7):
        log.open(f"room:{number}")
    log.append([event("room:3")])
    clock.now += 2 * HOUR
    assert log.forget_unused(HOUR, batch=2) == 6
    assert log.names() == ["room:3"]
