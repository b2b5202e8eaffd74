"""The contract of `bus.log.EventLog`: what is forgotten, and that a reader can see it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from bus.log.database import DatabaseEventLog
from bus.protocol.positions import Position, is_contiguous, is_reachable
from tests.conformance.kit import all_of, event, fill, offsets

pytestmark = pytest.mark.django_db(transaction=True)


def test_trimming_by_count_keeps_the_newest(log):
    fill(log, 10)
    assert log.trim("task:1", max_age=None, max_events=4, batch=3) == 6
    page = all_of(log)
    assert (offsets(page), page.first_offset, page.last_offset) == ([7, 8, 9, 10], 7, 10)
    assert log.trim("task:1", max_age=None, max_events=4) == 0


def test_trimming_by_age_keeps_the_young(log, clock):
    fill(log, 5)
    clock.move(hours=1)
    fill(log, 2)
    assert log.trim("task:1", max_age=timedelta(hours=1), max_events=None) == 0
    clock.move(seconds=1)
    assert log.trim("task:1", max_age=timedelta(hours=1), max_events=None, batch=2) == 5
    assert offsets(all_of(log)) == [6, 7]


def test_trimming_up_to_a_position_spares_what_comes_after_it(log):
    epoch = fill(log, 7)[0].epoch
    place = Position(epoch=epoch, offset=5)
    fill(log, 1)
    assert log.trim("task:1", max_age=None, max_events=None, up_to=place, batch=2) == 5
    assert offsets(all_of(log)) == [6, 7, 8]
    assert log.trim("task:1", max_age=None, max_events=None, up_to=place) == 0


def test_a_position_of_another_life_trims_nothing(log):
    fill(log, 3)
    place = Position(epoch="of-another-life", offset=3)
    assert log.trim("task:1", max_age=None, max_events=None, up_to=place) == 0
    assert offsets(all_of(log)) == [1, 2, 3]


def test_a_position_beyond_the_end_trims_all_and_keeps_the_count(log):
    epoch = fill(log, 3)[0].epoch
    place = Position(epoch=epoch, offset=99)
    assert log.trim("task:1", max_age=None, max_events=None, up_to=place) == 3
    assert fill(log, 1)[0].offset == 4


def test_trimming_everything_keeps_the_count(log, clock):
    epoch = fill(log, 3)[0].epoch
    clock.move(days=1)
    assert log.trim("task:1", max_age=timedelta(hours=1), max_events=None) == 3
    state = log.states(["task:1"])["task:1"]
    assert (state.first_offset, state.last_offset) == (4, 3)
    assert (fill(log, 1)[0].offset, all_of(log).epoch) == (4, epoch)


def test_a_key_is_remembered_as_long_as_its_event(log):
    log.append([event(key="k"), event()])
    log.trim("task:1", max_age=None, max_events=1)
    assert log.append([event(key="k")])[0].offset == 3


def test_a_reader_below_the_trimmed_part_can_see_that(log):
    epoch = fill(log, 10)[0].epoch
    log.trim("task:1", max_age=None, max_events=4)
    for offset in range(12):
        since = Position(epoch=epoch, offset=offset)
        page = log.read("task:1", since, limit=100)
        told = is_reachable(
            since, epoch=page.epoch, first_offset=page.first_offset, last_offset=page.last_offset
        )
        assert told is (6 <= offset <= 10)
        assert told is is_contiguous(offset, page.events, page.last_offset)


def test_trimming_beside_the_writers_loses_nothing_that_is_to_stay(log, threads):
    def write() -> None:
        for number in range(40):
            log.append([event(number=number)])

    def trim(writing: Callable[[], bool]) -> int:
        trimmed = 0
        while not writing():
            trimmed += log.trim("task:1", max_age=None, max_events=5, batch=2)
        return trimmed + log.trim("task:1", max_age=None, max_events=5, batch=2)

    writer = threads.submit(write)
    trimmer = threads.submit(trim, writer.done)
    writer.result(60)
    assert trimmer.result(60) == 35
    assert offsets(all_of(log)) == [36, 37, 38, 39, 40]


def test_of_age_and_count_the_stricter_holds(log, clock):
    fill(log, 6)
    clock.move(hours=2)
    fill(log, 4)
    assert log.trim("task:1", max_age=timedelta(hours=1), max_events=8, batch=4) == 6
    assert log.trim("task:1", max_age=timedelta(hours=1), max_events=3, batch=4) == 1
    assert offsets(all_of(log)) == [8, 9, 10]


def test_no_transaction_of_a_trim_takes_more_than_a_batch(clock):
    log = DatabaseEventLog(clock=clock)
    fill(log, 10)
    with CaptureQueriesContext(connection) as captured:
        assert log.trim("task:1", max_age=None, max_events=0, batch=3) == 10
    deletes = [query["sql"] for query in captured if query["sql"].startswith("DELETE")]
    bounds = [int(sql.rpartition("<")[2].strip(" '")) for sql in deletes]
    assert bounds == [4, 7, 10, 11]


def test_between_two_batches_of_a_trim_a_reader_sees_a_whole_log(log, threads):
    """The first offset moves with the events: whoever looks in between is told of a hole or sees none."""
    epoch = fill(log, 400)[0].epoch
    trimming = threads.submit(log.trim, "task:1", max_age=None, max_events=10, batch=5)
    looks = 0
    while not trimming.done() or looks < 20:
        page = all_of(log)
        assert offsets(page) == list(range(page.first_offset, 401))
        since = Position(epoch=epoch, offset=page.first_offset + looks % 3)
        read = log.read("task:1", since, limit=50)
        told = is_reachable(
            since, epoch=read.epoch, first_offset=read.first_offset, last_offset=read.last_offset
        )
        assert told is is_contiguous(since.offset, read.events, min(since.offset + 50, read.last_offset))
        looks += 1
    assert trimming.result(60) == 390
