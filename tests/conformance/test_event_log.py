"""The contract of `bus.log.EventLog`, held against every implementation.

The database one runs on SQLite or PostgreSQL, whichever the run is for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from random import Random
from threading import Barrier, Event

import pytest
from django.db import connections, transaction

from bus.log import Appended, EventLog, NewEvent, Page
from bus.log.database import DatabaseEventLog
from bus.log.memory import MemoryEventLog
from bus.protocol.errors import BadRequest, BusError, TopicEnded
from bus.protocol.positions import Position, is_contiguous, is_reachable

pytestmark = pytest.mark.django_db(transaction=True)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "database"])
def log(request: pytest.FixtureRequest, clock: Clock) -> EventLog:
    return MemoryEventLog(clock) if request.param == "memory" else DatabaseEventLog(clock=clock)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Eight threads that leave no connection behind."""
    with ThreadPoolExecutor(8) as pool:
        yield pool
        barrier = Barrier(8)

        def leave() -> None:
            barrier.wait(10)
            connections.close_all()

        for closed in [pool.submit(leave) for _ in range(8)]:
            closed.result()


def event(topic: str = "task:1", number: int = 0, **options: object) -> NewEvent:
    payload = b'{"event_type":"output","data":{"n":%d}}' % number
    return NewEvent(**{"topic": topic, "event_type": "output", "payload": payload, **options})


def fill(log: EventLog, count: int, topic: str = "task:1") -> list[Appended]:
    return log.append([event(topic, number) for number in range(count)])


def offsets(page: Page) -> list[int]:
    return [stored.offset for stored in page.events]


def all_of(log: EventLog, topic: str = "task:1") -> Page:
    return log.read(topic, limit=10_000)


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


def test_a_position_of_another_epoch_gives_no_events(log):
    fill(log, 3)
    page = log.read("task:1", Position(epoch="former", offset=0), limit=9)
    assert (page.events, page.last_offset) == ([], 3)


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


def test_a_refused_event_keeps_the_whole_append_out(log):
    log.append([event("task:2", end_status="completed")])
    with pytest.raises(TopicEnded):
        log.append([event("task:1"), event("task:3", key="k"), event("task:2")])
    assert sorted(log.states(["task:1", "task:2", "task:3"])) == ["task:2"]


def test_a_batch_that_fails_half_way_leaves_an_older_life_as_it_was(log):
    before = log.append([event(key="a"), event(end_status="completed")])
    with pytest.raises(TopicEnded):
        log.append([event(restarts=True), event(end_status="failed"), event()])
    page = all_of(log)
    assert (page.epoch, offsets(page)) == (before[0].epoch, [1, 2])
    assert log.append([event(key="a")])[0].duplicate


def test_appending_each_fails_the_refused_event_alone(log):
    log.append([event("task:2", end_status="completed")])
    results = log.append_each([event("task:1"), event("task:2"), event("no topic"), event("task:1")])
    assert [type(result) for result in results] == [Appended, TopicEnded, BadRequest, Appended]
    assert offsets(all_of(log)) == [1, 2]


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


def test_a_topic_opened_by_many_at_once_is_one_topic(log, threads):
    together = Barrier(8)

    def open_it(_: int) -> str:
        together.wait(10)
        return log.open("task:1").epoch

    assert len({done.result(30) for done in [threads.submit(open_it, n) for n in range(8)]}) == 1


def test_names_come_in_pages_and_in_order(log):
    log.append([event(name) for name in ("task:b", "agent:x", "task:a", "broadcast")])
    assert log.names() == ["agent:x", "broadcast", "task:a", "task:b"]
    assert log.names("broadcast", limit=1) == ["task:a"]


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


#: What one database could store and the other could not, had it not been refused before.
ODD = {
    "NUL in the payload": {"payload": b'"a\0b"'},
    "payload that is no UTF-8": {"payload": b'"\xff"'},
    "lone surrogate in the payload": {"payload": b'"\xed\xa0\x80"'},
    "NUL in the tags": {"tags": b'{"id":"\0"}'},
    "NUL in the key": {"key": "a\0b"},
    "lone surrogate in the key": {"key": "a\ud800"},
    "NUL in the event type": {"event_type": "a\0b"},
    "NUL in the publisher": {"publisher": "a\0b"},
    "empty key": {"key": ""},
    "long key": {"key": "k" * 201},
    "long event type": {"event_type": "t" * 101},
    "long publisher": {"publisher": "p" * 201},
    "long end status": {"end_status": "s" * 33},
    "empty topic": {"topic": ""},
    "long topic": {"topic": "t" * 201},
    "topic with a space": {"topic": "task: 1"},
    "topic with a line end": {"topic": "task:1\n"},
}
FINE = {
    "the longest names": {
        "topic": "t" * 200,
        "key": "k" * 200,
        "event_type": "e" * 100,
        "publisher": "p" * 200,
    },
    "the longest names beyond ASCII": {"key": "ß" * 200, "event_type": "😀" * 100},
    "an escaped NUL that is text": {"payload": b'"\\\\u0000"'},
    "a large payload": {"payload": b'"' + b"x" * 260_000 + b'"'},
    "tabs and percent signs": {"payload": b'"\\t %s %% \\\\N"', "key": "\\N\t%s"},
    "quotes": {"payload": b'"\'; DROP TABLE bus_event; --"', "key": "';--"},
}


@pytest.mark.parametrize("options", ODD.values(), ids=ODD)
def test_what_one_database_cannot_hold_is_refused_by_all(log, options):
    with pytest.raises(BadRequest):
        log.append([event(**options)])
    assert isinstance(log.append_each([event(**options)])[0], BadRequest)
    assert log.names() == []


@pytest.mark.parametrize("options", FINE.values(), ids=FINE)
def test_what_all_can_hold_comes_back_as_it_was(log, options):
    given = event(**options)
    # More than a few rows at once take another way into PostgreSQL.
    log.append([given, *(event("task:other", number) for number in range(20))])
    (stored,) = all_of(log, given.topic).events
    assert all(getattr(stored, name) == value for name, value in options.items())


def test_many_rows_at_once_are_stored_as_few_are(log):
    given = [event(number=number, key=f"k{number}", tags=b'{"id":"%d"}' % number) for number in range(600)]
    log.append(given)
    stored = all_of(log).events
    assert [(one.payload, one.key, one.tags) for one in stored] == [
        (one.payload, one.key, one.tags) for one in given
    ]


def test_appends_from_many_threads_give_every_offset_once(log, threads):
    together = Barrier(8)

    def publish(worker: int) -> list[Appended]:
        together.wait(10)
        return [
            place
            for number in range(10)
            for place in log.append([event("task:1", number), event(f"task:{worker % 3}", number)])
        ]

    results = [place for done in [threads.submit(publish, n) for n in range(8)] for place in done.result(60)]
    for topic in ("task:0", "task:1", "task:2"):
        taken = sorted(place.offset for place in results if place.topic == topic)
        assert taken == list(range(1, len(taken) + 1))
        assert offsets(all_of(log, topic)) == taken


def test_batches_over_the_same_topics_in_any_order_never_block_each_other(log, threads):
    """In every turn the topics are new to all, so they are made, and then they are locked."""
    together = Barrier(8)
    chosen = Random(7)
    names = [[f"task:{turn}.{number}" for number in range(24)] for turn in range(10)]
    shares = [[chosen.sample(turn, chosen.choice([3, 8, 24])) for turn in names] for _ in range(8)]

    def publish(share: list[list[str]]) -> None:
        for turn in share:
            together.wait(30)
            for _ in range(2):
                log.append([event(name) for name in turn])

    for done in [threads.submit(publish, share) for share in shares]:
        done.result(60)
    published = Counter(name for share in shares for turn in share for name in turn)
    states = log.states(list(published))
    assert {name: state.last_offset for name, state in states.items()} == {
        name: 2 * count for name, count in published.items()
    }


def test_a_key_published_by_many_at_once_is_stored_once(log, threads):
    together = Barrier(8)

    def publish(_: int) -> Appended:
        together.wait(10)
        return log.append([event(key="same")])[0]

    places = [done.result(30) for done in [threads.submit(publish, number) for number in range(8)]]
    assert {place.offset for place in places} == {1}
    assert sum(not place.duplicate for place in places) == 1


def test_a_reader_beside_the_writers_never_sees_a_hole(log, threads):
    done = Event()

    def write(_: int) -> None:
        for number in range(15):
            log.append([event(number=number)] * 3)

    def read(_: int) -> int:
        at = Position(epoch="", offset=0)
        while True:
            last_round = done.is_set()
            page = log.read("task:1", at, limit=7)
            assert is_contiguous(at.offset, page.events, at.offset + len(page.events))
            at = Position(epoch=page.epoch, offset=at.offset + len(page.events))
            if last_round and not page.events:
                return at.offset

    readers = [threads.submit(read, number) for number in range(2)]
    for writer in [threads.submit(write, number) for number in range(4)]:
        writer.result(60)
    done.set()
    assert [reader.result(30) for reader in readers] == [180, 180]


@pytest.mark.skipif("connections['default'].vendor == 'sqlite'", reason="SQLite has one writer at a time")
def test_a_transaction_held_open_keeps_later_offsets_back(clock, threads):
    """A sequence would let the second publisher commit a later offset first: the reader loses an event."""
    log = DatabaseEventLog(clock=clock)
    fill(log, 1)
    appended, go_on, other_started = Event(), Event(), Event()

    def hold() -> None:
        with transaction.atomic():
            log.append([event(number=2)])
            appended.set()
            assert go_on.wait(30)

    def publish() -> int:
        other_started.set()
        return log.append([event(number=3)])[0].offset

    holder = threads.submit(hold)
    assert appended.wait(10)
    other = threads.submit(publish)
    assert other_started.wait(10)
    with pytest.raises(TimeoutError):
        other.result(0.3)
    assert offsets(all_of(log)) == [1]
    go_on.set()
    holder.result(10)
    assert other.result(10) == 3
    assert [stored.payload for stored in all_of(log).events][1:] == [
        event(number=2).payload,
        event(number=3).payload,
    ]


def test_an_append_in_an_open_transaction_is_rolled_back_with_it(clock):
    log = DatabaseEventLog(clock=clock)
    fill(log, 1)
    with transaction.atomic():
        assert fill(log, 2)[-1].offset == 3
        transaction.set_rollback(True)
    assert offsets(all_of(log)) == [1]
    assert fill(log, 1)[0].offset == 2


def test_a_refused_append_leaves_the_open_transaction_usable(clock):
    log = DatabaseEventLog(clock=clock)
    log.append([event("task:2", end_status="completed")])
    with transaction.atomic():
        fill(log, 1)
        with pytest.raises(BusError):
            log.append([event("task:1"), event("task:2")])
        fill(log, 1)
    assert offsets(all_of(log)) == [1, 2]


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
