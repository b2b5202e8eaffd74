"""What a subscriber that comes back is given: all it missed, or the word that it cannot be."""

from __future__ import annotations

import pytest

from bus.log import NewEvent
from bus.log.memory import MemoryEventLog
from bus.log.threads import close, in_thread
from bus.protocol.errors import UnrecoverablePosition
from bus.protocol.positions import Position
from bus.replay import Replay


@pytest.fixture(autouse=True)
def _ended_threads():
    yield
    close()


@pytest.fixture
def log() -> MemoryEventLog:
    log = MemoryEventLog()
    fill(log, 25)
    return log


def fill(log: MemoryEventLog, count: int) -> str:
    events = [NewEvent(topic="t", event_type="output", payload=b"{}") for _ in range(count)]
    return log.append(events)[-1].epoch


def epoch_of(log: MemoryEventLog) -> str:
    return log.states(["t"])["t"].epoch


def at(log: MemoryEventLog, offset: int) -> Position:
    return Position(epoch=epoch_of(log), offset=offset)


async def test_who_has_no_position_starts_at_the_top(log):
    found = await Replay(log).recover("t", None)
    assert (found.recovered, found.events, found.position) == (False, [], at(log, 25))
    assert found.is_complete


async def test_who_missed_a_page_or_less_gets_it_at_once(log):
    found = await Replay(log).recover("t", at(log, 20))
    assert found.recovered
    assert [event.offset for event in found.events] == [21, 22, 23, 24, 25]
    assert (found.position.offset, found.is_complete) == (25, True)


async def test_who_missed_nothing_is_recovered_too(log):
    found = await Replay(log).recover("t", at(log, 25))
    assert (found.recovered, found.events, found.position.offset) == (True, [], 25)


async def test_who_missed_more_than_a_page_gets_the_rest_in_pages(log):
    replay = Replay(log, page=10)
    found = await replay.recover("t", at(log, 2))
    assert (found.recovered, found.position.offset, found.top, found.is_complete) == (True, 12, 25, False)
    pages = [page async for page in replay.pages("t", found.position, found.top)]
    offsets = [event.offset for page in [found.events, *pages] for event in page]
    assert offsets == list(range(3, 26))
    assert [len(page) for page in pages] == [10, 3]


@pytest.mark.parametrize("offset", range(27))
async def test_at_every_offset_around_the_trimmed_part_it_is_all_or_the_word(log, offset):
    log.trim("t", max_age=None, max_events=10)
    found = await Replay(log).recover("t", at(log, offset))
    assert found.recovered is (15 <= offset <= 25)
    assert [event.offset for event in found.events] == (
        list(range(offset + 1, 26)) if found.recovered else []
    )
    assert found.position == at(log, 25)


async def test_a_position_of_a_former_epoch_is_not_recovered(log):
    old = at(log, 5)
    log.remove("t")
    fill(log, 9)
    found = await Replay(log).recover("t", old)
    assert (found.recovered, found.events, found.position) == (False, [], at(log, 9))


async def test_a_topic_that_does_not_exist_yet_is_recovered_from_its_beginning_alone():
    replay = Replay(MemoryEventLog())
    assert (await replay.recover("t", Position(epoch="", offset=0))).recovered
    assert not (await replay.recover("t", Position(epoch="e", offset=0))).recovered
    assert not (await replay.recover("t", Position(epoch="", offset=3))).recovered


async def test_pages_that_are_trimmed_away_meanwhile_are_told(log):
    replay = Replay(log, page=10)
    found = await replay.recover("t", at(log, 0))
    log.trim("t", max_age=None, max_events=2)
    with pytest.raises(UnrecoverablePosition):
        [page async for page in replay.pages("t", found.position, found.top)]


async def test_a_topic_that_begins_anew_between_pages_is_told(log):
    replay = Replay(log, page=10)
    found = await replay.recover("t", at(log, 0))
    log.remove("t")
    fill(log, 40)
    with pytest.raises(UnrecoverablePosition):
        [page async for page in replay.pages("t", found.position, found.top)]


async def test_a_gap_is_filled_exactly_or_not_at_all(log):
    replay = Replay(log, page=4)
    filled = await replay.fill("t", at(log, 3), 14)
    assert [event.offset for event in filled] == list(range(4, 15))
    assert await replay.fill("t", at(log, 5), 5) == []
    with pytest.raises(UnrecoverablePosition):
        await replay.fill("t", at(log, 20), 26)
    log.trim("t", max_age=None, max_events=20)
    with pytest.raises(UnrecoverablePosition):
        await replay.fill("t", at(log, 3), 14)


async def test_history_speaks_the_terms_of_the_protocol(log):
    replay = Replay(log, page=10)
    position = await replay.history("t", since=None, limit=0)
    assert (position.events, position.last_offset) == ([], 25)
    everything = await replay.history("t", since=None, limit=-1)
    assert [event.offset for event in everything.events] == list(range(1, 11))
    newest = await replay.history("t", since=None, limit=2, reverse=True)
    assert [event.offset for event in newest.events] == [25, 24]
    some = await replay.history("t", since=at(log, 3), limit=2)
    assert [event.offset for event in some.events] == [4, 5]
    before = await replay.history("t", since=at(log, 3), limit=9, reverse=True)
    assert [event.offset for event in before.events] == [2, 1]


async def test_history_from_an_unreachable_position_is_an_error(log):
    replay = Replay(log)
    log.trim("t", max_age=None, max_events=10)
    for since in (at(log, 3), at(log, 99), Position(epoch="former", offset=20)):
        with pytest.raises(UnrecoverablePosition):
            await replay.history("t", since=since, limit=5)
    with pytest.raises(UnrecoverablePosition):
        await replay.history("t", since=Position(epoch="former", offset=20), limit=5, reverse=True)
    assert (await replay.history("t", since=at(log, 15), limit=1)).events[0].offset == 16


async def test_what_fails_in_a_thread_fails_in_the_coroutine():
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)
    assert await in_thread(divmod, 7, 2) == (3, 1)
