"""The contract of `bus.log.EventLog`: topics that end, begin anew, are removed."""

from __future__ import annotations

import pytest

from bus.protocol.errors import TopicEnded
from bus.protocol.positions import Position
from tests.conformance.kit import all_of, event, fill, offsets

pytestmark = pytest.mark.django_db(transaction=True)


def test_what_is_read_is_what_was_appended(log, clock):
    given = event(
        payload='{"event_type":"output","data":"grüße 😀"}'.encode(),
        tags=b'{"id":"abc","key":"bar"}',
        info=b'{"user":"42"}',
        key="k-1",
        publisher="agent:a7",
    )
    (place,) = log.append([given])
    (stored,) = all_of(log).events
    for name in ("topic", "event_type", "payload", "tags", "info", "key", "publisher"):
        assert getattr(stored, name) == getattr(given, name)
    assert (stored.epoch, stored.offset, stored.created_at) == (place.epoch, 1, clock.now)
    assert (place.event_id, place.created_at, place.duplicate) == ("abc", clock.now, False)


def test_a_position_of_another_epoch_gives_no_events(log):
    fill(log, 3)
    page = log.read("task:1", Position(epoch="former", offset=0), limit=9)
    assert (page.events, page.last_offset) == ([], 3)


def test_an_ended_topic_takes_no_more_events(log, clock):
    log.append([event(), event(end_status="completed")])
    assert log.states(["task:1"])["task:1"].ended_at == clock.now
    with pytest.raises(TopicEnded):
        log.append([event()])
    assert offsets(all_of(log)) == [1, 2]


def test_repeating_the_final_event_by_key_is_no_error(log):
    log.append([event(key="end", end_status="failed")])
    (again,) = log.append([event(key="end", end_status="failed")])
    assert (again.offset, again.duplicate) == (1, True)


def test_a_batch_that_fails_half_way_leaves_an_older_life_as_it_was(log):
    before = log.append([event(key="a"), event(end_status="completed")])
    with pytest.raises(TopicEnded):
        log.append([event(restarts=True), event(end_status="failed"), event()])
    page = all_of(log)
    assert (page.epoch, offsets(page)) == (before[0].epoch, [1, 2])
    assert log.append([event(key="a")])[0].duplicate


def test_an_event_that_restarts_begins_an_ended_topic_anew(log):
    old = log.append([event(key="k"), event(end_status="completed")])
    (first, second) = log.append([event(restarts=True), event(key="k")])
    assert (first.offset, second.offset, second.duplicate) == (1, 2, False)
    assert first.epoch != old[0].epoch
    page = all_of(log)
    assert (page.epoch, offsets(page)) == (first.epoch, [1, 2])
    assert log.states(["task:1"])["task:1"].ended_at is None


def test_an_event_that_restarts_changes_nothing_where_nothing_has_ended(log):
    epoch = fill(log, 2)[0].epoch
    (place,) = log.append([event(restarts=True)])
    assert (place.epoch, place.offset) == (epoch, 3)


def test_a_topic_may_end_and_begin_within_one_batch(log):
    places = log.append([event(), event(end_status="completed"), event(restarts=True), event()])
    assert [place.offset for place in places] == [1, 2, 1, 2]
    assert places[0].epoch == places[1].epoch != places[2].epoch
    assert all_of(log).epoch == places[3].epoch


def test_a_removed_topic_comes_back_in_another_epoch(log):
    before = log.append([event(key="k")])[0]
    assert log.remove("task:1") is True
    assert log.states(["task:1"]) == {}
    after = log.append([event(key="k")])[0]
    assert (after.offset, after.duplicate) == (1, False)
    assert after.epoch != before.epoch
