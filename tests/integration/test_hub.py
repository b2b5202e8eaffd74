"""The hub: every subscriber gets offset after offset, or is told that it cannot."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import pytest

from bus.fanout import tending
from bus.fanout.hub import Hub
from bus.log import NewEvent
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.protocol.errors import UnsubscribeCode
from bus.protocol.positions import Position
from bus.publishing import aend, apublish
from bus.replay import Replay
from tests.integration.readers import Reader

pytestmark = pytest.mark.django_db(transaction=True)


async def fill(topic: str, count: int) -> str:
    """Store events behind the hub's back, as another process does whose hint is lost; returns the epoch."""
    events = [NewEvent(topic=topic, event_type="output", payload=b'{"n":%d}' % n) for n in range(count)]
    return (await in_thread(event_log().append, events))[-1].epoch


async def test_a_subscriber_gets_what_is_published_from_now_on_in_order(own_hub: Hub) -> None:
    await fill("lab:1", 3)
    reader = Reader(own_hub)
    found = await reader.read("lab:1")
    assert (found.offset, found.recovered) == (3, False)
    for number in range(5):
        await apublish("lab:1", "output", {"n": number})
    assert await reader.until(5) == [4, 5, 6, 7, 8]


async def test_a_new_topic_has_an_epoch_before_its_first_event(own_hub: Hub) -> None:
    reader = Reader(own_hub)
    found = await reader.read("lab:new")
    assert found.epoch
    place = await apublish("lab:new", "output", 1)
    assert (place.epoch, place.offset) == (found.epoch, 1)
    assert await reader.until(1) == [1]


async def test_recovery_gives_exactly_what_was_missed(own_hub: Hub) -> None:
    epoch = await fill("lab:1", 10)
    reader = Reader(own_hub)
    found = await reader.read("lab:1", Position(epoch=epoch, offset=7))
    assert found.recovered
    assert reader.offsets() == [8, 9, 10]


async def test_more_than_a_page_follows_as_pushes_before_what_is_new(own_hub: Hub) -> None:
    epoch = await fill("lab:long", 2_500)
    reader = Reader(own_hub)
    found = await reader.read("lab:long", Position(epoch=epoch, offset=0))
    assert found.recovered
    assert len(found.events) == 1_000
    await apublish("lab:long", "output", "new")
    assert await reader.until(2_501) == list(range(1, 2_502))


async def test_a_position_that_is_gone_is_not_recovered_and_gives_no_old_events(own_hub: Hub) -> None:
    epoch = await fill("lab:1", 10)
    await in_thread(event_log().trim, "lab:1", max_age=None, max_events=3)
    for since in (Position(epoch=epoch, offset=2), Position(epoch="another", offset=9)):
        reader = Reader(own_hub)
        found = await reader.read("lab:1", since)
        assert (found.recovered, found.offset, reader.offsets()) == (False, 10, [])


async def test_what_no_hint_told_of_arrives_within_a_tick(own_hub: Hub) -> None:
    reader = Reader(own_hub)
    await reader.read("lab:1")
    await fill("lab:1", 1_500)
    assert await reader.until(1_500) == list(range(1, 1_501))


async def no_tick(feeds: object) -> None:
    """As if it were never time to compare with the log."""


async def test_a_hint_ahead_of_its_predecessors_is_filled_up_from_the_log(own_hub: Hub) -> None:
    reader = Reader(own_hub)
    found = await reader.read("lab:1")
    own_hub._compare = no_tick
    await fill("lab:1", 5)
    own_hub.hear_hint("lab:1", found.epoch, 5, 5, [])
    assert await reader.until(5) == [1, 2, 3, 4, 5]


async def test_hints_that_come_twice_or_late_are_passed_on_once(own_hub: Hub) -> None:
    reader = Reader(own_hub)
    found = await reader.read("lab:1")
    await apublish("lab:1", "output", 1)
    await apublish("lab:1", "output", 2)
    await reader.until(2)
    own_hub.hear_hint("lab:1", found.epoch, 1, 2, [])
    await apublish("lab:1", "output", 3)
    assert await reader.until(3) == [1, 2, 3]


async def test_joining_while_events_flow_loses_none_and_repeats_none(own_hub: Hub) -> None:
    dice = random.Random(7)
    epoch = await fill("lab:flow", 50)
    readers: list[tuple[Reader, int]] = []

    async def publish() -> None:
        for number in range(400):
            await apublish("lab:flow", "output", number)

    async def join() -> None:
        for number in range(40):
            reader, start = Reader(own_hub, f"r{number}"), dice.randrange(51)
            readers.append((reader, start))
            await reader.read("lab:flow", Position(epoch=epoch, offset=start))
            await asyncio.sleep(dice.random() / 100)

    await asyncio.gather(publish(), join())
    for reader, start in readers:
        assert await reader.until(450 - start) == list(range(start + 1, 451))


async def test_a_large_fan_out_keeps_the_order_of_every_subscriber(own_hub: Hub) -> None:
    readers = [Reader(own_hub, f"r{number}") for number in range(600)]
    for reader in readers:
        await reader.read("lab:crowd")
    await asyncio.gather(*(apublish("lab:crowd", "output", number) for number in range(50)))
    for reader in readers:
        assert await reader.until(50) == list(range(1, 51))


async def test_events_of_one_commit_travel_in_one_frame_shared_by_all(own_hub: Hub) -> None:
    readers = [Reader(own_hub, f"r{number}") for number in range(3)]
    for reader in readers:
        await reader.read("lab:1")
    await asyncio.gather(*(apublish("lab:1", "output", number) for number in range(200)))
    for reader in readers:
        await reader.until(200)
    frames = [reader.outlet.frames for reader in readers]
    assert len(frames[0]) < 50
    assert all(one is other for one, other in zip(frames[0], frames[2], strict=True))


async def test_what_was_committed_together_travels_in_messages_that_clients_take(own_hub: Hub) -> None:
    reader = Reader(own_hub)
    await reader.read("lab:1")
    await asyncio.gather(*(apublish("lab:1", "output", "x" * 100_000) for _ in range(30)))
    assert await reader.until(30) == list(range(1, 31))
    sizes = [len(text) for frame in reader.outlet.frames for text in frame.texts]
    assert max(sizes) < 400_000


async def test_history_answers_with_what_fits_into_a_message(own_hub: Hub) -> None:
    big = NewEvent(topic="lab:big", event_type="output", payload=b'"%b"' % (b"x" * 200_000))
    await in_thread(event_log().append, [big] * 10)
    replay = Replay(event_log())
    first = await replay.history("lab:big", since=None, limit=-1)
    assert [event.offset for event in first.events] == [1, 2, 3]
    since = Position(epoch=first.epoch, offset=3)
    second = await replay.history("lab:big", since=since, limit=-1)
    assert [event.offset for event in second.events] == [4, 5, 6]


async def test_a_reader_that_falls_behind_in_a_fan_out_is_known_to_owe(own_hub: Hub) -> None:
    reader = Reader(own_hub, max_bytes=2_000)
    pending = [0]
    wires: list[bytes] = []

    def direct(wire: bytes) -> int:
        wires.append(wire)
        return pending[0]

    reader.queue.direct = direct
    await reader.read("lab:1")
    await apublish("lab:1", "output", 1)
    assert (len(wires), reader.queue.owes) == (1, False)
    pending[0] = reader.outlet.pending = 1_500
    reader.outlet.is_stuck = True
    await apublish("lab:1", "output", 2)
    assert (len(wires), reader.queue.owes) == (2, True)
    for _ in range(5):
        await apublish("lab:1", "output", "x" * 200)
    assert len(wires) == 2  # what is owed comes first
    assert reader.is_too_slow


async def test_a_topic_begun_anew_is_read_from_its_beginning(own_hub: Hub) -> None:
    reader = Reader(own_hub)
    await apublish("task:1", "task.started")
    first = await reader.read("task:1", Position(epoch="", offset=0))
    await aend("task:1", "completed")
    await reader.until(2)
    await apublish("task:1", "task.started")
    await apublish("task:1", "task.progress", {"done": 1})
    assert await reader.until_ended() == ("task:1", UnsubscribeCode.INSUFFICIENT_STATE)
    again = Reader(own_hub)
    second = await again.read("task:1", Position(epoch=first.epoch, offset=2))
    assert second.epoch != first.epoch
    assert (second.recovered, second.offset) == (False, 0)
    assert await again.until(2) == [1, 2]


async def test_an_ended_task_is_told_and_lets_its_readers_go(own_hub: Hub, settings) -> None:
    settings.BUS = {**settings.BUS, "TASK_LINGER": timedelta(milliseconds=200)}
    reader = Reader(own_hub)
    await reader.read("task:2")
    await apublish("task:2", "task.started")
    await aend("task:2", "failed", {"status": "failed"})
    await reader.until(2)
    assert reader.final == ["task:2"]
    assert await reader.until_ended() == ("task:2", UnsubscribeCode.ENDED)
    late = Reader(own_hub)
    found = await late.read("task:2", Position(epoch="", offset=0))
    assert found.recovered
    assert late.offsets() == [1, 2]


async def test_a_slow_reader_of_a_topic_that_must_arrive_is_closed(own_hub: Hub) -> None:
    slow, quick = Reader(own_hub, "slow", max_bytes=2_000), Reader(own_hub, "quick")
    slow.outlet.is_stuck = True
    for reader in (slow, quick):
        await reader.read("lab:1")
    for _ in range(30):
        await apublish("lab:1", "output", "x" * 200)
    await quick.until(30)
    assert slow.is_too_slow
    assert slow.outlet.pending < 4_000


async def test_a_slow_reader_of_progress_gets_the_newest_event_when_it_can(own_hub: Hub) -> None:
    slow = Reader(own_hub, max_bytes=2_000)
    slow.outlet.is_stuck = True
    await slow.read("task:3")
    for number in range(40):
        await apublish("task:3", "task.progress", {"done": number, "x": "x" * 200}, tags={"key": "progress"})
    assert not slow.is_too_slow
    assert len(slow.offsets()) < 20
    slow.outlet.is_stuck, slow.outlet.pending = False, 0
    slow.queue.tend(0.0)
    assert slow.offsets()[-1] == 40
    await apublish("task:3", "task.progress", {"done": 41}, tags={"key": "progress"})
    await slow.until(len(slow.offsets()) + 1 if slow.offsets()[-1] != 41 else len(slow.offsets()))
    assert slow.offsets()[-1] == 41


async def test_ephemeral_events_have_no_offset_and_are_dropped_when_slow(own_hub: Hub) -> None:
    slow, quick = Reader(own_hub, "slow", max_bytes=500), Reader(own_hub, "quick")
    slow.outlet.is_stuck = True
    for reader in (slow, quick):
        found = await reader.read("sys:test")
        assert (found.epoch, found.offset) == ("", 0)
    for _ in range(20):
        await apublish("sys:test", "note", "x" * 100)
    assert await quick.until(20) == [0] * 20
    assert not slow.is_too_slow
    assert len(slow.offsets()) < 10


async def test_whoever_takes_nothing_for_long_is_slow_however_little_it_is_owed(own_hub: Hub) -> None:
    reader = Reader(own_hub)
    await reader.read("lab:1")
    reader.outlet.is_stuck = True
    await apublish("lab:1", "output", 1)
    await reader.until(1)
    reader.queue.tend(asyncio.get_running_loop().time() - 21)
    tending.tend_queues(own_hub._feeds.values(), asyncio.get_running_loop().time())
    assert reader.is_too_slow


async def test_the_figures_are_made_for_those_who_read_them(own_hub: Hub) -> None:
    reader = Reader(own_hub)
    await reader.read("sys:stats")
    await reader.until(1)
    event = reader.publications()[0]["data"]
    assert event["event_type"] == "stats"
    assert {"connections", "all_connections", "events_per_s", "loop_lag_ms"} <= event["data"].keys()
