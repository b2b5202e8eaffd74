"""Group commit: one thread, many publishers."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from threading import Event, get_ident
from urllib.parse import urlsplit

import pytest
from django.db import connection

from bus.log import Appended, NewEvent, StoredEvent
from bus.log.database import DatabaseEventLog
from bus.log.memory import MemoryEventLog
from bus.log.writer import LogWriter
from bus.protocol.errors import BadRequest, BusError, LogUnavailable, TooManyRequests, TopicEnded
from tests.servers import python


def event(number: int = 0, topic: str = "task:1", **options: object) -> NewEvent:
    payload = b'{"n":%d}' % number
    return NewEvent(**{"topic": topic, "event_type": "output", "payload": payload, **options})


class GatedLog(MemoryEventLog):
    """The memory log with a door before the commit, and a list of what was committed together."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.open = Event(), Event()
        self.batches: list[int] = []

    def append_each(self, events: Sequence[NewEvent]) -> list[Appended | BusError]:
        self.reached.set()
        assert self.open.wait(60)
        self.batches.append(len(events))
        return super().append_each(events)


@pytest.fixture
def gated() -> GatedLog:
    return GatedLog()


@pytest.fixture
def start() -> Iterator[Callable[..., LogWriter]]:
    """Starts writers, and stops them when the test is over."""
    running: list[LogWriter] = []

    def begin(log: object, **options: object) -> LogWriter:
        writer = LogWriter(log, **options)
        writer.start()
        running.append(writer)
        return writer

    yield begin
    for writer in running:
        if isinstance(writer._log, GatedLog):
            writer._log.open.set()
        writer.stop()


def test_what_arrives_while_a_commit_runs_is_committed_together(gated, start):
    writer = start(gated, batch=4)
    first = writer.submit(event())
    assert gated.reached.wait(60)
    rest = [writer.submit(event(number)) for number in range(1, 8)]
    assert not first.done()
    gated.open.set()
    assert [future.result(60).offset for future in [first, *rest]] == list(range(1, 9))
    assert gated.batches == [1, 4, 3]


def test_more_than_the_queue_holds_is_refused_as_temporary(gated, start):
    writer = start(gated, queue=3)
    first = writer.submit(event())
    assert gated.reached.wait(60)
    rest = [writer.submit(event()) for _ in range(3)]
    with pytest.raises(TooManyRequests) as refused:
        writer.submit(event())
    assert refused.value.retryable
    assert writer.owed == 3
    gated.open.set()
    assert [future.result(60).offset for future in [first, *rest]] == [1, 2, 3, 4]


def test_a_refused_event_fails_alone(start):
    log = MemoryEventLog()
    log.append([event(topic="task:over", end_status="completed")])
    writer = start(log)
    good, ended, bad, last = (
        writer.submit(event(topic=topic)) for topic in ("task:1", "task:over", "no topic", "task:1")
    )
    assert (good.result(60).offset, last.result(60).offset) == (1, 2)
    assert isinstance(ended.exception(10), TopicEnded)
    assert isinstance(bad.exception(10), BadRequest)


def test_stopping_commits_what_is_owed(gated, start):
    writer = start(gated)
    futures = [writer.submit(event(number)) for number in range(5)]
    gated.open.set()
    writer.stop()
    assert [future.result(0).offset for future in futures] == [1, 2, 3, 4, 5]
    with pytest.raises(LogUnavailable):
        writer.submit(event())


def test_stopping_without_flush_refuses_what_is_owed(gated, start):
    writer = start(gated, batch=1)
    first = writer.submit(event())
    assert gated.reached.wait(60)
    owed = [writer.submit(event()) for _ in range(3)]
    # The door opens only when the last of them was refused.
    owed[-1].add_done_callback(lambda _: gated.open.set())
    writer.stop(flush=False)
    assert first.result(60).offset == 1
    assert all(isinstance(waiting.exception(10), LogUnavailable) for waiting in owed)
    assert gated.read("task:1", limit=9).last_offset == 1


def test_a_publisher_that_no_longer_waits_disturbs_nobody(gated, start):
    writer = start(gated)
    writer.submit(event())
    assert gated.reached.wait(60)
    gone, other = writer.submit(event()), writer.submit(event())
    assert gone.cancel()
    gated.open.set()
    assert other.result(60).offset == 3


async def test_groups_stay_together_where_a_commit_has_no_room_for_the_next(gated, start):
    writer = start(gated, batch=5)
    writer.submit(event())
    assert await asyncio.to_thread(gated.reached.wait, 10)
    groups = [writer.asubmit_many([event() for _ in range(size)]) for size in (3, 3, 2, 7)]
    gated.open.set()
    places = [place.offset for group in await asyncio.gather(*groups) for place in group]
    assert places == list(range(2, 17))
    assert gated.batches == [1, 3, 5, 7]


async def test_coroutines_are_answered_and_told_in_their_own_loop(start):
    told: list[tuple[int, list[int]]] = []
    answered: list[int] = []

    def tell(stored: list[StoredEvent]) -> None:
        told.append((get_ident(), [one.offset for one in stored]))

    writer = start(MemoryEventLog(), on_committed=tell)

    async def publish(number: int) -> None:
        place = await writer.asubmit(event(number, key=f"k{number % 10}"))
        answered.append(place.offset)

    await asyncio.gather(*(publish(number) for number in range(50)))
    await asyncio.sleep(0)
    assert {thread for thread, _ in told} == {get_ident()}
    # Ten keys, so forty of the fifty were repetitions: nobody is told of those.
    assert [offset for _, offsets in told for offset in offsets] == list(range(1, 11))
    assert sorted(set(answered)) == list(range(1, 11))


async def test_a_cancelled_coroutine_disturbs_nobody(gated, start):
    writer = start(gated)
    gone = asyncio.ensure_future(writer.asubmit(event()))
    other = writer.asubmit(event())
    gone.cancel()
    gated.open.set()
    assert (await other).offset == 2


def test_a_loop_that_is_closed_meanwhile_does_not_stop_the_writer(gated, start):
    told: list[int] = []
    writer = start(gated, on_committed=lambda stored: told.extend(one.offset for one in stored))

    async def leave() -> None:
        writer.asubmit(event())

    asyncio.run(leave())
    gated.open.set()
    assert writer.submit(event()).result(60).offset == 2
    writer.stop()
    assert told == [1, 2]


@pytest.mark.django_db(transaction=True)
def test_a_failing_database_fails_the_batch_and_the_writer_goes_on(start, caplog):
    writer = start(DatabaseEventLog())
    assert writer.submit(event(1)).result(60).offset == 1
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE bus_event RENAME TO bus_event_away")
    try:
        failures = [writer.submit(event(2)).exception(30) for _ in range(2)]
        with pytest.raises(LogUnavailable):
            DatabaseEventLog().append([event(number) for number in range(40)])
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE bus_event_away RENAME TO bus_event")
    assert all(isinstance(failure, LogUnavailable) and failure.retryable for failure in failures)
    assert "did not commit" in caplog.text
    assert writer.submit(event(3)).result(60).offset == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="SQLite has no server that could hang up")
def test_a_connection_cut_by_the_server_is_replaced(start, caplog):
    writer = start(DatabaseEventLog())
    assert writer.submit(event(1)).result(60).offset == 1
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert isinstance(writer.submit(event(2)).exception(30), LogUnavailable)
    assert writer.submit(event(3)).result(60).offset == 2


@pytest.mark.django_db(transaction=True)
async def test_a_thousand_coroutines_share_few_commits(start):
    log = DatabaseEventLog()
    batches: list[int] = []
    writer = start(log, on_committed=lambda stored: batches.append(len(stored)))
    places = await asyncio.gather(*(writer.asubmit(event(number)) for number in range(1000)))
    assert [place.offset for place in places] == list(range(1, 1001))
    await asyncio.sleep(0)
    assert sum(batches) == 1000
    assert len(batches) <= 20
    assert max(batches) <= 512


PUBLISHER = """
import os, sys
import django
django.setup()
from bus import publishing
for number in range(int(sys.argv[1])):
    place = publishing.writer().submit(
        publishing.NewEvent(topic="task:crash", event_type="output", payload=b"%d" % number, key=str(number))
    ).result(60)
    os.write(1, b"%d\\n" % place.offset)
"""


def _database_url() -> str:
    """The address of the test's database, for another process."""
    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    return urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "point", ["log.before_insert", "log.after_insert", "log.before_commit", "log.after_commit"]
)
def test_what_was_acknowledged_survives_a_kill(point):
    """Killed at its third commit, a publisher has had two answers; a retry by key repeats nothing."""
    environment = {
        **os.environ,
        "DATABASE_URL": _database_url(),
    }
    command = [python(), "-c", PUBLISHER, "6"]
    killed = subprocess.run(
        command, env={**environment, "FAULT": f"{point}:3:kill"}, capture_output=True, timeout=100
    )
    assert killed.returncode == -9, killed.stderr.decode()
    acknowledged = [int(line) for line in killed.stdout.split()]
    assert acknowledged == [1, 2]
    kept = DatabaseEventLog().read("task:crash", limit=10)
    assert [stored.offset for stored in kept.events] == list(range(1, kept.last_offset + 1))
    assert kept.last_offset == (3 if point == "log.after_commit" else 2)
    again = subprocess.run(command, env=environment, capture_output=True, timeout=100)
    assert again.returncode == 0, again.stderr.decode()
    assert [int(line) for line in again.stdout.split()] == [1, 2, 3, 4, 5, 6]
    assert DatabaseEventLog().read("task:crash", limit=10).last_offset == 6
