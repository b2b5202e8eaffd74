"""Cursors: cumulative, never back, together."""

from __future__ import annotations

import asyncio
from threading import Thread

import pytest
from django.db import connection, connections, transaction

from bus import acks, publishing
from bus.acks import Ack
from bus.log import NewEvent
from bus.log.current import event_log
from bus.log.threads import close
from bus.models import Cursor
from bus.protocol.errors import BadRequest, LimitExceeded, UnknownTopic, UnrecoverablePosition
from tests.servers import wait_until

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


def test_an_ack_that_meets_a_new_beginning_of_its_topic_does_not_count_in_it(epoch):
    """The ack was read against the former life and is stored after the new one was begun."""
    answers: list[object] = []

    def acknowledge() -> None:
        answers.extend(acks.ack_all([Ack(consumer="c", topic="agent:a", offset=10)]))
        connections.close_all()

    late = Thread(target=acknowledge)
    with transaction.atomic():
        event_log().remove("agent:a")
        publishing.publish("agent:a", "agent.message")
        late.start()
        wait_until(_is_waited_for, what="the ack to wait")
    late.join(60)
    assert [type(answer) for answer in answers] in ([BadRequest], [UnknownTopic])
    assert acks.cursor_of("c", "agent:a").offset == 0


def test_an_ack_that_meets_a_restart_of_its_task_does_not_count_in_it(epoch):
    publishing.publish("task:t", "task.started")
    publishing.end("task:t")
    acks.ack("known", "task:t", 1)
    answers: list[object] = []

    def acknowledge() -> None:
        wanted = [Ack(consumer=consumer, topic="task:t", offset=2) for consumer in ("known", "new")]
        answers.extend(acks.ack_all(wanted))
        connections.close_all()

    late = Thread(target=acknowledge)
    with transaction.atomic():
        publishing.publish("task:t", "task.started")
        late.start()
        wait_until(_is_waited_for, what="the ack to wait")
    late.join(60)
    assert [type(answer) for answer in answers] == [BadRequest, BadRequest]
    assert Cursor.objects.count() == 0


def _is_waited_for() -> bool:
    """Whether somebody waits for a lock; SQLite has one for all writers and does not tell."""
    if connection.vendor == "sqlite":
        return True
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return cursor.fetchone()[0] > 0


def test_many_acks_are_one_statement_and_the_furthest_counts(epoch, django_assert_max_num_queries):
    given = [Ack(consumer=f"c{number % 3}", topic="agent:a", offset=number % 11) for number in range(100)]
    given.append(Ack(consumer="c0", topic="agent:nobody", offset=1))
    with django_assert_max_num_queries(7):
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


@pytest.mark.parametrize("volatile", [False, True])
async def test_nobody_makes_cursors_without_end(settings, volatile):
    settings.BUS = {**settings.BUS, "VOLATILE": volatile}
    for topic in ("lab:1", "lab:2"):
        await publishing.apublish(topic, "output")
    names = [f"a/{number}" for number in range(acks.MAX_OWN_CURSORS + 5)]
    calls = [acks.aack(name, "lab:1", 1, owner="a") for name in names]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results[-5:]] == [LimitExceeded] * 5
    assert all(state.offset == 1 for state in results[:-5])
    assert (await acks.aack(names[0], "lab:1", 0, owner="a")).offset == 1
    assert (await acks.aack("a", "lab:1", 1)).offset == 1
    assert (await acks.aack("b/0", "lab:1", 1, owner="b")).offset == 1
    assert (await acks.aack("a/0", "lab:2", 1, owner="a")).offset == 1


def test_who_has_acknowledged_an_event_is_known_and_by_when(epoch):
    for consumer, offset in (("c1", 2), ("c2", 5), ("c3", 10)):
        acks.ack(consumer, "agent:a", offset)
    found = acks.acknowledged_by("agent:a", 5)
    assert [state.consumer for state in found] == ["c3", "c2"]
    assert found[0].acked_at >= found[1].acked_at
    assert [state.consumer for state in acks.acknowledged_by("agent:a", 5, limit=1)] == ["c3"]
    assert acks.acknowledged_by("agent:nobody", 1) == []


def test_the_depth_of_an_offline_queue_is_what_will_come_when_the_agent_is_back(epoch):
    publishing.publish("agent:b", "agent.message")
    acks.ack("a", "agent:a", 4)
    acks.ack("somebody else", "agent:b", 1)
    assert acks.offline_depths(["a", "b", "nobody"]) == {"a": 6, "b": 1, "nobody": 0}
    event_log().trim("agent:a", max_age=None, max_events=2)
    assert acks.offline_depths(["a"]) == {"a": 2}


def test_a_volatile_log_has_cursors_that_follow_the_same_rules(settings):
    settings.BUS = {**settings.BUS, "VOLATILE": True}
    epochs = {publishing.publish("agent:a", "agent.message").epoch for _ in range(5)}
    assert acks.position("a", "agent:a").offset == 0
    assert acks.ack("a", "agent:a", 4).lag == 1
    assert acks.ack("a", "agent:a", 2).offset == 4
    assert acks.ack("b", "agent:a", 1, epoch=epochs.pop()).lag == 4
    assert [state.consumer for state in acks.cursors("agent:a")] == ["b", "a"]
    assert [state.consumer for state in acks.acknowledged_by("agent:a", 3)] == ["a"]
    assert acks.offline_depths(["a", "b"]) == {"a": 1, "b": 0}
    for ack in ({"offset": 6}, {"offset": 1, "epoch": "another"}, {"offset": -1}):
        with pytest.raises((BadRequest, UnrecoverablePosition)):
            acks.ack("a", "agent:a", **ack)
    with pytest.raises(UnknownTopic):
        acks.ack("a", "agent:nobody", 1)
    assert acks.cursor_of("a", "agent:nobody") is None
    event_log().remove("agent:a")
    publishing.publish("agent:a", "agent.message")
    assert acks.position("a", "agent:a").offset == 0
    assert Cursor.objects.count() == 0


@pytest.mark.parametrize("volatile", [False, True])
def test_an_operator_sets_a_cursor_forward_and_back_and_forgets_it(settings, volatile):
    settings.BUS = {**settings.BUS, "VOLATILE": volatile}
    for _ in range(5):
        publishing.publish("agent:a", "agent.message")
    assert acks.place("a", "agent:a", 4).lag == 1
    assert acks.place("a", "agent:a", 1).lag == 4
    assert acks.position("a", "agent:a").offset == 1
    for offset in (-1, 6):
        with pytest.raises(BadRequest):
            acks.place("a", "agent:a", offset)
    with pytest.raises(UnknownTopic):
        acks.place("a", "agent:nobody", 0)
    assert acks.forget("a", "agent:a") == 1
    assert acks.forget("a", "agent:a") is None
    assert acks.forget("a", "agent:nobody") is None
    assert acks.position("a", "agent:a").offset == 0
