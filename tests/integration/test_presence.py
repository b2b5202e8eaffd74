"""Presence: the state and the joins and leaves told since give the state of now."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from django.utils import timezone

from bus import layer, tasks
from bus.connections import leases, presence
from bus.fanout.hub import Hub
from bus.log.threads import in_thread
from bus.models import Presence, ServerInstance
from bus.protocol.errors import NotAvailable
from bus.protocol.frames import ClientInfo
from tests.integration.readers import Reader

pytestmark = pytest.mark.django_db(transaction=True)

ONE, TWO = ClientInfo(user="u1", client="c1"), ClientInfo(user="u2", client="c2")


async def told(reader: Reader, count: int) -> list[tuple[str, ClientInfo]]:
    async with asyncio.timeout(60):
        while len(reader.orders) < count:
            await asyncio.sleep(0.005)
    return [(order.kind, msgspec.json.decode(order.data, type=ClientInfo)) for order in reader.orders]


@pytest.fixture
def short_grace(settings: Any) -> None:
    settings.BUS = {**settings.BUS, "PRESENCE_GRACE": timedelta(milliseconds=300)}


async def serve() -> None:
    """Write this server's row, as its first heartbeat does."""
    await in_thread(leases.beat, layer.INSTANCE, [], loop_lag_ms=0.0, layer_up=True)


async def test_who_joins_is_seen_and_told_of_until_it_leaves(own_hub: Hub) -> None:
    watcher = Reader(own_hub)
    await watcher.read("hall:1")
    await presence.join("hall:1", ONE)
    await presence.join("hall:1", TWO)
    assert await presence.clients("hall:1") == {"c1": ONE, "c2": TWO}
    await presence.leave("hall:1", ONE)
    assert await presence.clients("hall:1") == {"c2": TWO}
    assert await told(watcher, 3) == [("join", ONE), ("join", TWO), ("leave", ONE)]


async def test_a_lost_connection_stays_for_the_grace_period_and_leaves_once(
    own_hub: Hub, short_grace: None
) -> None:
    await serve()
    watcher = Reader(own_hub)
    await watcher.read("hall:1")
    await presence.join("hall:1", ONE)
    await presence.lost("c1", ["hall:1"])
    assert await presence.clients("hall:1") == {"c1": ONE}
    assert await told(watcher, 2) == [("join", ONE), ("leave", ONE)]
    assert await presence.clients("hall:1") == {}
    assert await in_thread(presence.end_orphans) == 0


async def test_a_quick_reconnect_is_there_before_its_former_self_has_left(
    own_hub: Hub, short_grace: None
) -> None:
    await serve()
    watcher = Reader(own_hub)
    await watcher.read("hall:1")
    await presence.join("hall:1", ONE)
    await presence.lost("c1", ["hall:1"])
    again = ClientInfo(user="u1", client="c1b")
    await presence.join("hall:1", again)
    seen = {info.client: info for kind, info in await told(watcher, 3) if kind == "join"}
    for kind, info in await told(watcher, 3):
        if kind == "leave":
            del seen[info.client]
    assert seen == await presence.clients("hall:1") == {"c1b": again}


async def test_presence_of_a_dead_server_is_ended_by_beat(own_hub: Hub) -> None:
    watcher = Reader(own_hub)
    await watcher.read("hall:1")
    await in_thread(
        Presence.objects.create,
        topic="hall:1",
        client_id="c1",
        user="u1",
        server_instance="dead",
        since=timezone.now() - timedelta(minutes=1),
    )
    await serve()
    await presence.join("hall:1", TWO)
    await in_thread(tasks.reap_connections)
    assert await presence.clients("hall:1") == {"c2": TWO}
    assert ("leave", ONE) in await told(watcher, 2)
    assert await in_thread(ServerInstance.objects.filter(name=layer.INSTANCE).exists)


async def test_a_topic_without_presence_says_so(own_hub: Hub) -> None:
    await presence.join("broadcast", ONE)
    with pytest.raises(NotAvailable):
        await presence.clients("broadcast")
