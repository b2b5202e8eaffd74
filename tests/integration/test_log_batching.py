"""What keeps the group commit fast: what is committed together, what is not asked of the system each time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence

import pytest

from bus import drafts
from bus.log import Appended, NewEvent
from bus.log.memory import MemoryEventLog
from bus.log.writer import ENOUGH, LogWriter
from bus.protocol.errors import BusError, TooManyRequests, TopicEnded
from tests.servers import wait_until


class CountingLog(MemoryEventLog):
    """The memory log with a list of what was committed together."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def append_each(self, events: Sequence[NewEvent]) -> list[Appended | BusError]:
        self.batches.append(len(events))
        return super().append_each(events)


@pytest.fixture
def log() -> CountingLog:
    return CountingLog()


@pytest.fixture
def writer(log: CountingLog) -> Iterator[LogWriter]:
    made = LogWriter(log)
    made.start()
    idle(made)
    yield made
    made.stop()


def idle(writer: LogWriter) -> None:
    """Wait until the thread waits for events: before, it takes what is there without being woken."""
    wait_until(lambda: writer._changed._waiters, what="the thread to wait")


def event() -> NewEvent:
    return NewEvent(topic="task:1", event_type="output", payload=b"{}")


async def test_what_one_turn_of_the_loop_publishes_is_committed_together(log, writer):
    await asyncio.gather(*[writer.asubmit(event()) for _ in range(ENOUGH - 1)])
    assert log.batches == [ENOUGH - 1]


async def test_a_long_turn_does_not_hold_back_what_is_enough_for_a_commit(log, writer):
    futures = [writer.asubmit(event()) for _ in range(ENOUGH)]
    # Without a turn of this loop: the thread alone commits them.
    done = await asyncio.to_thread(lambda: writer.submit(event()).result(60).offset)
    assert done == ENOUGH + 1
    assert [place.offset for place in await asyncio.gather(*futures)] == list(range(1, ENOUGH + 1))


def test_a_loop_that_ended_before_its_turn_did_keeps_nobody_waiting(log, writer):
    gone = asyncio.new_event_loop()

    async def leave() -> None:
        writer.asubmit(event())
        gone.stop()

    task = gone.create_task(leave())
    gone.run_forever()
    assert task.done()
    gone.close()

    async def publish() -> int:
        async with asyncio.timeout(60):
            return (await writer.asubmit(event())).offset

    assert asyncio.run(publish()) == 2


def test_ids_are_drawn_in_blocks_and_never_twice():
    ids = [drafts._new_id() for _ in range(3 * drafts._IDS_AT_ONCE)]
    assert len(set(ids)) == len(ids)
    assert {len(one) for one in ids} == {16}


def test_a_forked_child_draws_ids_of_its_own():
    drafts._new_id()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, drafts._new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 16).decode()
    os.close(reading)
    os.close(writing)
    assert theirs != drafts._new_id()


async def test_a_group_shares_one_commit_and_one_answer_where_one_is_refused_alone(log, writer):
    log.append([NewEvent(topic="task:over", event_type="output", payload=b"{}", end_status="failed")])
    over = NewEvent(topic="task:over", event_type="output", payload=b"{}")
    first, refused, last = await writer.asubmit_many([event(), over, event()])
    assert (first.offset, last.offset, log.batches) == (1, 2, [3])
    assert isinstance(refused, TopicEnded)


async def test_a_group_that_the_queue_cannot_take_is_refused_whole(log):
    writer = LogWriter(log, queue=4)
    writer.start()
    idle(writer)
    taken = writer.asubmit_many([event() for _ in range(6)])
    with pytest.raises(TooManyRequests):
        writer.asubmit_many([event()])
    assert writer.owed == 6
    assert [place.offset for place in await taken] == [1, 2, 3, 4, 5, 6]
    writer.stop()
