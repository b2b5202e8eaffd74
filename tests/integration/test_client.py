"""The Python client: identity, events that stop at an end, publishes that are tried until acknowledged."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest

from bus.client import BufferFull, BusClient, BusClientError, Closed, Event, Refused
from tests.harness import Site
from tests.proxy import TcpProxy
from tests.servers import PATIENCE


@pytest.fixture
async def client(site: Site) -> AsyncIterator[BusClient]:
    async with BusClient(
        site.web[0].socket, "a1", site.token("a1", "publish", "publish:task", "publish:agent")
    ) as client:
        yield client


async def take(events: AsyncIterator[Event], count: int) -> list[Event]:
    found = []
    async with asyncio.timeout(PATIENCE):
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
    return found


async def being_read(site: Site, topic: str) -> None:
    """Wait until somebody reads a topic: events from now on will be seen."""
    query = "SELECT count(*) FROM bus_presence WHERE topic = %s"
    async with asyncio.timeout(PATIENCE):
        while site.sql(query, topic) != [(1,)]:
            await asyncio.sleep(0.02)


def test_it_needs_no_django() -> None:
    code = (
        "import sys, bus.client; assert not {'django', 'channels'} & {m.split('.')[0] for m in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_events_come_as_objects_in_order(site: Site, client: BusClient) -> None:
    reading = asyncio.ensure_future(take(client.events("cl:1"), 3))
    await being_read(site, "cl:1")
    places = [await client.publish("cl:1", "output", {"n": n}, run_id="r") for n in range(3)]
    events = await reading
    assert [event.offset for event in events] == [place.offset for place in places] == [1, 2, 3]
    assert [(event.event_type, event.data, event.run_id) for event in events] == [
        ("output", {"n": n}, "r") for n in range(3)
    ]
    assert client.stats.published == 3
    assert client.stats.ack_latency > 0


async def test_iteration_stops_at_the_end_of_a_task(site: Site, client: BusClient) -> None:
    reading = asyncio.ensure_future(take(client.events("task:cl"), 99))
    await being_read(site, "task:cl")
    await client.publish("task:cl", "task.started")
    await client.end("task:cl", "cancelled")
    events = await reading
    assert [event.event_type for event in events] == ["task.started", "task.cancelled"]
    assert events[-1].is_final


async def test_the_inbox_waits_from_the_last_acknowledged_event_on(site: Site, client: BusClient) -> None:
    for number in range(5):
        await client.publish("agent:boxed", "agent.message", number)
    async with BusClient(site.web[0].socket, "boxed", site.token("boxed")) as boxed:
        events = await take(boxed.events("agent:boxed"), 5)
        assert [event.data for event in events] == [0, 1, 2, 3, 4]
        assert await boxed.ack("agent:boxed", events[2].offset) == 2
    async with BusClient(site.web[0].socket, "boxed", site.token("boxed")) as boxed:
        assert [event.offset for event in await take(boxed.events("agent:boxed"), 2)] == [4, 5]
        assert await boxed.cursor("agent:boxed") == 3


async def test_a_key_has_one_effect(client: BusClient) -> None:
    first = await client.publish("cl:2", "output", 1, key="k")
    again = await client.publish("cl:2", "output", 1, key="k")
    assert (first.duplicate, again.duplicate, again.offset) == (False, True, first.offset)


async def test_publishes_and_events_survive_cuts(site: Site) -> None:
    token = site.token("cut", "publish")
    with TcpProxy(site.web[0].port) as proxy:
        async with (
            BusClient(proxy.socket, token=token) as writer,
            BusClient(proxy.socket, token=site.token("reader")) as reader,
        ):
            reading = asyncio.ensure_future(take(reader.events("cl:cut"), 60))
            await being_read(site, "cl:cut")
            for number in range(60):
                if number in (20, 40):
                    proxy.cut()
                await writer.publish("cl:cut", "output", number)
            events = await reading
            assert [event.offset for event in events] == list(range(1, 61))
            assert [event.data for event in events] == list(range(60))
            assert not any(event.after_gap for event in events)
            assert reader.stats.reconnects >= 1


async def test_a_refusal_carries_its_code(client: BusClient) -> None:
    with pytest.raises(Refused) as refusal:
        await client.publish("cleanup:audit", "output")
    assert (refusal.value.code, refusal.value.retryable) == (103, False)
    with pytest.raises(Refused) as refusal:
        await take(client.events("agent:somebody"), 1)
    assert refusal.value.code == 103


async def test_a_durable_cursor_goes_on_where_it_has_acknowledged(client: BusClient) -> None:
    for number in range(1, 6):
        await client.publish("cl:c", "output", number)
    events = await take(client.events("cl:c", cursor="notes"), 5)
    assert [event.data for event in events] == [1, 2, 3, 4, 5]
    assert await client.ack("cl:c", 3, cursor="notes", epoch=events[2].epoch) == 2
    again = asyncio.ensure_future(take(client.events("cl:c", cursor="notes"), 3))
    await client.publish("cl:c", "output", 6)
    assert [(event.data, event.after_gap) for event in await again] == [(4, False), (5, False), (6, False)]
    assert [event.offset for event in await take(client.events("cl:c", cursor="other"), 1)] == [1]
    assert await client.cursor("cl:c", "notes") == 3
    assert client.stats.acked == 1


async def test_a_topic_is_read_from_an_offset_or_from_its_beginning(client: BusClient) -> None:
    fresh = asyncio.ensure_future(take(client.events("cl:later", since=0), 1))  # there is none of it yet
    for number in range(1, 5):
        await client.publish("cl:s", "output", number)
    assert [event.offset for event in await take(client.events("cl:s", since=0), 4)] == [1, 2, 3, 4]
    assert [event.offset for event in await take(client.events("cl:s", since=2), 2)] == [3, 4]
    await client.publish("cl:later", "output", 1)
    assert [event.offset for event in await fresh] == [1]


async def test_what_was_trimmed_below_a_place_is_told_as_a_gap(site: Site, client: BusClient) -> None:
    for number in range(1, 9):
        await client.publish("cl:t", "output", number)
    await client.ack("cl:t", 2, cursor="slow")
    await asyncio.to_thread(site.manage, "bus", "trim", "cl:t", "--max-events", "3")
    events = await take(client.events("cl:t", cursor="slow"), 3)
    assert [(event.offset, event.after_gap) for event in events] == [(6, True), (7, False), (8, False)]
    assert client.stats.gaps == 1
    # Whoever wants what there is misses nothing.
    assert [event.after_gap for event in await take(client.events("cl:t", since=0), 3)] == [False] * 3


async def test_a_place_that_cannot_be_is_refused(client: BusClient) -> None:
    await client.publish("cl:p", "output", 1)
    with pytest.raises(Refused) as refusal:
        await take(client.events("cl:p", since=7), 1)
    assert refusal.value.code == 112
    with pytest.raises(Refused) as refusal:
        await take(client.events("agent:somebody", cursor=""), 1)
    assert refusal.value.code == 103
    with pytest.raises(Refused) as refusal:
        await client.ack("cl:p", 1, epoch="another")
    assert refusal.value.code == 112
    with pytest.raises(ValueError, match="not both"):
        await take(client.events("cl:p", cursor="c", since=0), 1)
    with pytest.raises(ValueError, match="the server chooses"):
        await take(client.events("agent:a1", since=0), 1)


async def test_a_topic_has_one_reader_at_a_time(site: Site, client: BusClient) -> None:
    reading = asyncio.ensure_future(take(client.events("cl:one"), 1))
    await being_read(site, "cl:one")
    with pytest.raises(BusClientError, match="being read already"):
        await take(client.events("cl:one"), 1)
    await client.publish("cl:one", "output", 1)
    await reading


async def test_tokens_are_renewed_before_they_expire(site: Site) -> None:
    asked = 0

    async def get_token() -> str:
        nonlocal asked
        asked += 1
        return site.token("fresh", "publish", ttl=6 if asked == 1 else 3600)

    async with BusClient(site.web[0].socket, "fresh", get_token=get_token) as client:
        async with asyncio.timeout(PATIENCE):
            while asked < 2:
                await asyncio.sleep(0.05)
        await client.publish("cl:fresh", "output", 1)
        assert client.stats.connects == 1


async def test_closing_leaves_no_task_and_ends_whoever_waits(site: Site) -> None:
    with TcpProxy(site.web[0].port) as proxy:
        client = BusClient(proxy.socket, "leaver", site.token("leaver", "publish"))
        await client.connect()
        reading = asyncio.ensure_future(take(client.events("cl:quiet"), 1))
        await client.publish("cl:quiet2", "output", 1)
        proxy.refuse()
        waiting = asyncio.ensure_future(client.publish("cl:quiet2", "output", 2))
        await asyncio.sleep(0.1)
        await client.close()
        assert await reading == []
        with pytest.raises(Closed):
            await waiting
        with pytest.raises(Closed):
            await client.publish("cl:quiet2", "output", 3)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_requests_given_up_are_counted_by_the_server_at_the_next_connection(site: Site) -> None:
    def counted() -> float:
        text = httpx.get(f"{site.web[0].url}/metrics", timeout=60).text
        (line,) = [line for line in text.splitlines() if line.startswith("bus_retries_failed_total")]
        return float(line.rpartition(" ")[2])

    before = counted()
    with TcpProxy(site.web[0].port) as proxy:
        options = {"retry_for": timedelta(seconds=0.5)}
        token = site.token("unlucky", "publish")
        async with BusClient(proxy.socket, "unlucky", token, **options) as client:
            proxy.refuse()
            for number in range(2):
                with pytest.raises(Refused):
                    await client.publish("cl:lost", "output", number)
            assert (client.stats.waiting, client.stats.retries_failed) == (0, 2)
            proxy.release()
            async with asyncio.timeout(PATIENCE):
                while client.stats.reconnects == 0:
                    await asyncio.sleep(0.05)
            assert counted() == before + 2


async def test_being_replaced_ends_it_and_says_so(site: Site) -> None:
    async with BusClient(site.web[0].socket, "twin", site.token("twin")) as first:
        reading = asyncio.ensure_future(take(first.events("agent:twin"), 1))
        async with BusClient(site.web[0].socket, "twin", site.token("twin")):
            with pytest.raises(Closed) as end:
                await reading
        assert (end.value.code, end.value.reason) == (4501, "replaced")


async def test_a_bad_token_is_told_at_once(site: Site) -> None:
    with pytest.raises(Closed) as end:
        async with BusClient(site.web[0].socket, "x", site.token("x") + "x"):
            pass
    assert end.value.code == 3500


async def test_no_more_publishes_wait_than_may(site: Site) -> None:
    with TcpProxy(site.web[0].port) as proxy:
        options = {"buffer": 2, "retry_for": timedelta(seconds=1)}
        async with BusClient(proxy.socket, token=site.token("b", "publish"), **options) as client:
            proxy.refuse()
            waiting = [asyncio.ensure_future(client.publish("cl:3", "output", n)) for n in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(BufferFull):
                await client.publish("cl:3", "output", 2)
            assert (client.stats.waiting, client.stats.overflowed) == (2, 1)
            for result in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(result, Refused)
                assert result.retryable
            assert client.stats.retries_failed == 2
