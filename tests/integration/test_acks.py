"""Cursors: cumulative, never back, together."""

from __future__ import annotations

import asyncio

import pytest

from bus import acks, publishing
from bus.acks import Ack
from bus.log import NewEvent
from bus.log.current import event_log
from bus.log.threads import close
from bus.models import Cursor
from bus.protocol.errors import BadRequest, NotAvailable, UnknownTopic, UnrecoverablePosition

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _ended_threads():
    yield
    close()


@pytest.fixture
def epoch() -> str:
    """Ten events in the inbox of an agent."""
    events = [NewEvent(topic="agent:a", event_type="agent.message", payload=b"{}") for _ in range(10)]
    return event_log().append(events)[-1].epoch


def test_a_cursor_moves_forward_and_lag_is_what_remains(epoch):
    state = acks.ack("agent:a", "agent:a", 4)
    assert (state.offset, state.lag, state.epoch) == (4, 6, epoch)
    assert acks.ack("agent:a", "agent:a", 10).lag == 0


def test_an_ack_is_idempotent_and_never_moves_back(epoch):
    acks.ack("c", "agent:a", 7)
    first = Cursor.objects.get().acked_at
    assert acks.ack("c", "agent:a", 7).offset == 7
    assert acks.ack("c", "agent:a", 3).offset == 7
    assert Cursor.objects.get().acked_at == first


def test_each_consumer_has_its_own_cursor(epoch):
    acks.ack("c1", "agent:a", 2)
    acks.ack("c2", "agent:a", 5)
    assert [(state.consumer, state.offset) for state in acks.cursors("agent:a")] == [("c1", 2), ("c2", 5)]
    untouched = acks.cursor_of("c3", "agent:a")
    assert untouched is not None
    assert (untouched.offset, untouched.lag) == (0, 10)


def test_what_cannot_be_acknowledged_is_refused(epoch):
    for offset in (11, -1):
        with pytest.raises(BadRequest):
            acks.ack("c", "agent:a", offset)
    with pytest.raises(BadRequest):
        acks.ack("", "agent:a", 1)
    with pytest.raises(UnknownTopic):
        acks.ack("c", "agent:nobody", 1)
    assert acks.cursor_of("c", "agent:nobody") is None
    assert Cursor.objects.count() == 0


def test_an_ack_for_a_former_life_of_the_topic_is_refused(epoch):
    acks.ack("c", "agent:a", 9, epoch=epoch)
    event_log().remove("agent:a")
    publishing.publish("agent:a", "agent.message")
    with pytest.raises(UnrecoverablePosition):
        acks.ack("c", "agent:a", 1, epoch=epoch)
    state = acks.cursor_of("c", "agent:a")
    assert state is not None
    assert (state.offset, state.lag) == (0, 1)


def test_many_acks_are_one_statement_and_the_furthest_counts(epoch, django_assert_max_num_queries):
    given = [Ack(consumer=f"c{number % 3}", topic="agent:a", offset=number % 11) for number in range(100)]
    given.append(Ack(consumer="c0", topic="agent:nobody", offset=1))
    with django_assert_max_num_queries(5):
        results = acks.ack_all(given)
    assert isinstance(results[-1], UnknownTopic)
    assert {state.consumer: state.offset for state in results[:-1]} == {"c0": 10, "c1": 10, "c2": 10}


def test_a_reader_goes_on_from_its_cursor_but_not_below_what_was_trimmed(epoch):
    acks.ack("c", "agent:a", 3)
    position = acks.position("c", "agent:a")
    assert position is not None
    assert (position.epoch, position.offset) == (epoch, 3)
    event_log().trim("agent:a", max_age=None, max_events=2)
    position = acks.position("c", "agent:a")
    assert position is not None
    assert position.offset == 8
    assert acks.position("c", "agent:nobody") is None


async def test_coroutines_acknowledge_together(epoch):
    states = await asyncio.gather(
        *(acks.aack(f"c{n % 4}", "agent:a", n % 11, epoch=epoch) for n in range(200))
    )
    assert {state.consumer: state.offset for state in states[-50:]} == {f"c{n}": 10 for n in range(4)}
    with pytest.raises(BadRequest):
        await acks.aack("c", "agent:a", 99)
    assert (await acks.aack("c", "agent:a", 1)).offset == 1


def test_a_volatile_log_keeps_no_cursors(settings):
    settings.BUS = {**settings.BUS, "VOLATILE": True}
    with pytest.raises(NotAvailable):
        acks.ack("c", "agent:a", 1)
