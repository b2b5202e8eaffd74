"""The contract of `bus.log.EventLog`: many writers and readers at once, and open transactions."""

from __future__ import annotations

from collections import Counter
from random import Random
from threading import Barrier, Event

import pytest
from django.db import connection, transaction

from bus.log import Appended
from bus.log.database import DatabaseEventLog
from bus.protocol.errors import BusError
from bus.protocol.positions import Position, is_contiguous
from tests.conformance.kit import all_of, event, fill, offsets

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_topic_opened_by_many_at_once_is_one_topic(log, threads):
    together = Barrier(8)

    def open_it(_: int) -> str:
        together.wait(60)
        return log.open("task:1").epoch

    assert len({done.result(30) for done in [threads.submit(open_it, n) for n in range(8)]}) == 1


def test_appends_from_many_threads_give_every_offset_once(log, threads):
    together = Barrier(8)

    def publish(worker: int) -> list[Appended]:
        together.wait(60)
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
            together.wait(60)
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
        together.wait(60)
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


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has one writer at a time")
def test_a_transaction_held_open_keeps_later_offsets_back(clock, threads):
    """A sequence would let the second publisher commit a later offset first: the reader loses an event."""
    log = DatabaseEventLog(clock=clock)
    fill(log, 1)
    appended, go_on, other_started = Event(), Event(), Event()

    def hold() -> None:
        with transaction.atomic():
            log.append([event(number=2)])
            appended.set()
            assert go_on.wait(60)

    def publish() -> int:
        other_started.set()
        return log.append([event(number=3)])[0].offset

    holder = threads.submit(hold)
    assert appended.wait(60)
    other = threads.submit(publish)
    assert other_started.wait(60)
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
