"""The contract of `bus.log.EventLog`, held against every implementation.

The database one runs on SQLite or PostgreSQL, whichever the run is for.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bus.log import Appended, Page
from bus.protocol.errors import BadRequest, TopicEnded
from bus.protocol.positions import Position
from tests.conformance.kit import all_of, event, fill, offsets

pytestmark = pytest.mark.django_db(transaction=True)


def test_offsets_start_at_one_and_have_no_gap(log):
    first = fill(log, 3)
    second = fill(log, 2)
    assert [place.offset for place in first + second] == [1, 2, 3, 4, 5]
    assert len({place.epoch for place in first + second}) == 1
    assert offsets(all_of(log)) == [1, 2, 3, 4, 5]


def test_each_topic_counts_for_itself(log):
    places = log.append([event("task:b"), event("task:a"), event("task:b"), event("broadcast")])
    assert [(place.topic, place.offset) for place in places] == [
        ("task:b", 1),
        ("task:a", 1),
        ("task:b", 2),
        ("broadcast", 1),
    ]
    assert places[0].epoch != places[1].epoch


def test_an_event_without_tags_and_info_has_none(log):
    fill(log, 1)
    (stored,) = all_of(log).events
    assert (stored.tags, stored.info, stored.key) == (None, None, None)


def test_a_time_between_whole_seconds_survives(log, clock):
    clock.now = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)
    fill(log, 1)
    assert all_of(log).events[0].created_at == clock.now


def test_a_topic_that_does_not_exist_reads_as_empty(log):
    assert all_of(log) == Page(epoch="", first_offset=0, last_offset=0, events=[])
    assert log.states(["task:1"]) == {}
    assert log.trim("task:1", max_age=None, max_events=1) == 0
    assert log.remove("task:1") is False


def test_appending_nothing_does_nothing(log):
    assert log.append([]) == []
    assert log.append_each([]) == []


def test_reading_goes_on_after_a_position(log):
    epoch = fill(log, 10)[0].epoch
    page = log.read("task:1", Position(epoch=epoch, offset=4), limit=3)
    assert offsets(page) == [5, 6, 7]
    assert (page.first_offset, page.last_offset) == (1, 10)
    assert offsets(log.read("task:1", Position(epoch=epoch, offset=10), limit=3)) == []
    assert offsets(log.read("task:1", Position(epoch="", offset=8), limit=3)) == [9, 10]


def test_reading_backwards_starts_at_the_newest_or_before_a_position(log):
    epoch = fill(log, 5)[0].epoch
    assert offsets(log.read("task:1", limit=2, reverse=True)) == [5, 4]
    assert offsets(log.read("task:1", Position(epoch=epoch, offset=3), limit=9, reverse=True)) == [2, 1]


def test_a_limit_of_zero_gives_the_position_alone(log):
    epoch = fill(log, 2)[0].epoch
    assert log.read("task:1", limit=0) == Page(epoch=epoch, first_offset=1, last_offset=2, events=[])


def test_a_repeated_key_is_answered_with_the_first_place(log, clock):
    (first,) = log.append([event(key="k", tags=b'{"id":"first"}')])
    clock.move(seconds=5)
    fill(log, 1)
    (again,) = log.append([event(key="k", tags=b'{"id":"second"}')])
    assert again.duplicate
    assert (again.offset, again.epoch, again.event_id) == (first.offset, first.epoch, "first")
    assert again.created_at == first.created_at
    assert offsets(all_of(log)) == [1, 2]


def test_a_key_repeated_within_a_batch_is_stored_once(log):
    places = log.append([event(key="k"), event(), event(key="k"), event("task:2", key="k")])
    assert [(place.offset, place.duplicate) for place in places] == [
        (1, False),
        (2, False),
        (1, True),
        (1, False),
    ]


def test_a_refused_event_keeps_the_whole_append_out(log):
    log.append([event("task:2", end_status="completed")])
    with pytest.raises(TopicEnded):
        log.append([event("task:1"), event("task:3", key="k"), event("task:2")])
    assert sorted(log.states(["task:1", "task:2", "task:3"])) == ["task:2"]


def test_appending_each_fails_the_refused_event_alone(log):
    log.append([event("task:2", end_status="completed")])
    results = log.append_each([event("task:1"), event("task:2"), event("no topic"), event("task:1")])
    assert [type(result) for result in results] == [Appended, TopicEnded, BadRequest, Appended]
    assert offsets(all_of(log)) == [1, 2]


def test_states_tell_of_those_that_exist(log):
    place = fill(log, 3)[0]
    (state,) = log.states(["task:1", "task:2"]).values()
    assert (state.topic, state.epoch) == ("task:1", place.epoch)
    assert (state.first_offset, state.last_offset, state.ended_at) == (1, 3, None)
    assert log.states([]) == {}


def test_a_topic_can_be_opened_before_its_first_event(log):
    state = log.open("task:1")
    assert (state.topic, state.first_offset, state.last_offset, state.ended_at) == ("task:1", 1, 0, None)
    assert all_of(log) == Page(epoch=state.epoch, first_offset=1, last_offset=0, events=[])
    (place,) = fill(log, 1)
    assert (place.epoch, place.offset) == (state.epoch, 1)
    assert log.open("task:1").last_offset == 1
    with pytest.raises(BadRequest):
        log.open("no topic")


def test_names_come_in_pages_and_in_order(log):
    log.append([event(name) for name in ("task:b", "agent:x", "task:a", "broadcast")])
    assert log.names() == ["agent:x", "broadcast", "task:a", "task:b"]
    assert log.names("broadcast", limit=1) == ["task:a"]
