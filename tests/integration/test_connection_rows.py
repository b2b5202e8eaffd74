"""Rows of connections and servers: written together, renewed, taken away when nobody does."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from django.utils import timezone

from bus import clocks, layer, tasks
from bus.connections import heartbeats, leases
from bus.connections.leases import Details
from bus.connections.live import Live
from bus.connections.manager import ConnectionManager
from bus.log.threads import in_thread
from bus.models import ActiveConnection, Agent, ConnectionSession, Presence, ServerInstance
from bus.protocol.errors import Disconnect, DisconnectCode
from tests.integration.plain_connections import Socket, live, rows, session

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("bus_process")]


class Steady:
    """A steady clock, turned by hand."""

    now = 0.0


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Steady:
    """The clock by which this process sees for how long a server has been silent."""
    steady = Steady()
    monkeypatch.setattr(leases, "watch", clocks.Watch(lambda: steady.now))
    return steady


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> ConnectionManager:
    """The connections of another process, on a server of another name."""
    with monkeypatch.context() as other:
        other.setattr(layer, "INSTANCE", "elsewhere")
        return ConnectionManager()


async def test_a_heartbeat_renews_all_rows_and_restores_what_was_taken_away() -> None:
    manager = ConnectionManager()
    for number in range(70):
        await manager.enter(live(f"c{number}"))
    await in_thread(ServerInstance.objects.all().delete)
    assert not await rows()
    total = await in_thread(
        leases.beat, layer.INSTANCE, heartbeats.pulses(manager._live.values()), loop_lag_ms=1.5, layer_up=True
    )
    assert total == len(await rows()) == 70
    server = await in_thread(ServerInstance.objects.get)
    assert (server.layer_up, server.loop_lag_ms) == (True, 1.5)


async def test_a_heartbeat_does_not_restore_a_connection_whose_agent_has_moved_on() -> None:
    here, elsewhere = ConnectionManager(), ConnectionManager()
    await here.connect(Socket(), "a1")
    await elsewhere.connect(Socket(), "a1")
    await in_thread(
        leases.beat, layer.INSTANCE, heartbeats.pulses(here._live.values()), loop_lag_ms=0.0, layer_up=True
    )
    assert [row.generation for row in await rows(agent_id="a1")] == [2]


async def test_rows_of_a_dead_server_are_reaped_and_their_sessions_are_lost(
    watch: Steady, elsewhere: ConnectionManager
) -> None:
    await elsewhere.enter(live("dead", agent_id="a1"))
    await in_thread(
        Presence.objects.create, topic="x", client_id="dead", server_instance="gone", since=timezone.now()
    )
    assert await in_thread(tasks.reap_connections) == 0
    watch.now += 45
    assert await in_thread(tasks.reap_connections) == 1
    assert not await rows()
    assert not await in_thread(ServerInstance.objects.exists)
    ended = await session("dead")
    assert (ended.code, ended.reason) == (None, "lost")


async def test_a_server_that_is_held_up_does_not_take_itself_for_dead(watch: Steady) -> None:
    manager = ConnectionManager()
    await manager.enter(live("here", agent_id="a1"))
    assert await in_thread(tasks.reap_connections) == 0
    watch.now += 3600
    assert await in_thread(tasks.reap_connections) == 0
    assert [row.client_id for row in await rows()] == ["here"]


@pytest.mark.parametrize("ahead", [timedelta(days=400), timedelta(hours=-3)])
async def test_a_server_that_renews_its_lease_lives_whatever_its_clock_says(
    watch: Steady, elsewhere: ConnectionManager, ahead: timedelta
) -> None:
    await elsewhere.enter(live("abroad"))
    for beats in range(5):
        said = timezone.now() + ahead + timedelta(seconds=10 * beats)
        await in_thread(ServerInstance.objects.update, lease_until=said)
        await in_thread(ActiveConnection.objects.update, last_heartbeat=said - timedelta(seconds=45))
        assert await in_thread(tasks.reap_connections) == 0
        watch.now += 10


async def test_a_connection_without_heartbeats_is_reaped_though_its_server_lives() -> None:
    manager = ConnectionManager()
    await manager.enter(live("stale"))
    await manager.enter(live("fresh"))
    old = timezone.now() - timedelta(minutes=6)
    await in_thread(ActiveConnection.objects.filter(client_id="stale").update, last_heartbeat=old)
    assert await in_thread(tasks.reap_connections) == 1
    assert [row.client_id for row in await rows()] == ["fresh"]


async def test_old_sessions_are_forgotten_once_the_clock_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = ConnectionManager()
    held = live("c1")
    await manager.enter(held)
    await manager.leave(held, 1000, "done")
    long_ago = timezone.now() - timedelta(days=31)
    await in_thread(ConnectionSession.objects.update, disconnected_at=long_ago)
    monkeypatch.setattr(tasks, "calm", clocks.Calm(settle=600.0, tolerance=1.0))
    assert await in_thread(tasks.purge_sessions) == 0
    monkeypatch.setattr(tasks, "calm", clocks.Calm(settle=0.0, tolerance=1.0))
    elsewhere = timezone.now() + timedelta(days=1)
    await in_thread(ServerInstance.objects.update, lease_until=elsewhere)
    assert await in_thread(tasks.purge_sessions) == 0
    await in_thread(ServerInstance.objects.all().delete)
    assert await in_thread(tasks.purge_sessions) == 1
    assert await in_thread(tasks.purge_sessions) == 0


async def test_a_server_that_ends_closes_all_and_takes_no_new_ones() -> None:
    manager = ConnectionManager()
    sockets = [Socket() for _ in range(5)]
    for number, socket in enumerate(sockets):
        await manager.connect(socket, f"a{number}")
    await manager.close_all(DisconnectCode.SHUTDOWN, spread=0.05)
    assert {socket.closed for socket in sockets} == {(3001, "shutdown")}
    assert not await manager.connect(Socket(), "late")
    await manager.remove_rows()
    assert not await rows()
    ended = await in_thread(lambda: set(ConnectionSession.objects.values_list("code", flat=True)))
    assert ended == {3001}


async def test_connections_that_come_at_once_share_a_transaction_and_each_agent_has_one_owner() -> None:
    manager = ConnectionManager()
    await manager.connect(Socket(), "a1")
    arrivals = [live(f"c{number}", agent_id=f"a{number % 3}") for number in range(30)]
    done = await asyncio.gather(*(manager.enter(each) for each in arrivals), return_exceptions=True)
    assert {int(end.code) for end in done if isinstance(end, Disconnect)} <= {4501}
    found = await rows()
    assert sorted(row.agent_id for row in found) == ["a0", "a1", "a2"]
    newest = await in_thread(lambda: dict(Agent.objects.values_list("agent_id", "generation")))
    assert newest == {"a0": 10, "a1": 11, "a2": 10}
    assert {row.agent_id: row.generation for row in found} == newest
    assert {each.details.client_id for each in manager._live.values()} == {row.client_id for row in found}
    still_open = await in_thread(ConnectionSession.objects.filter(disconnected_at=None).count)
    assert still_open == 3


async def test_new_rows_name_every_column_that_has_no_default() -> None:
    for model, columns in (
        (ActiveConnection, leases.CONNECTION_COLUMNS),
        (ConnectionSession, leases.SESSION_COLUMNS),
    ):
        wanted = {
            field.column for field in model._meta.concrete_fields if not field.null and not field.auto_created
        }
        assert wanted <= set(columns.split(", ")), model


async def test_a_connection_lost_while_its_rows_are_written_leaves_none() -> None:
    manager = ConnectionManager()
    entering = asyncio.ensure_future(manager.enter(live("c1", agent_id="a1")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    async with asyncio.timeout(60):
        while await rows() or not await in_thread(ConnectionSession.objects.exclude(code=None).exists):
            await asyncio.sleep(0.01)
    assert manager.count == 0
    assert manager._places._taken == 0


async def test_a_row_does_not_come_back_by_a_heartbeat_that_was_under_way() -> None:
    manager = ConnectionManager()
    held = live("c1")
    await manager.enter(held)
    beating = asyncio.ensure_future(heartbeats.beat(manager._live, loop_lag_ms=0.0, layer_up=True))
    await asyncio.sleep(0)
    await manager.leave(held, 1000, "done")
    await beating
    assert not await rows()


async def test_while_a_server_is_alone_it_sends_no_hints() -> None:
    manager = ConnectionManager()
    await manager.connect(Socket(), "a1")
    server = layer._server
    assert server is not None
    await manager.check()
    assert server.is_alone
    lease = timezone.now() + timedelta(seconds=30)
    other = {"name": "other", "hostname": "h", "pid": 1, "started_at": lease, "lease_until": lease}
    await in_thread(ServerInstance.objects.create, **other)
    await manager.check()
    assert not server.is_alone
    await in_thread(ServerInstance.objects.filter(name="other").delete)
    await manager.check()
    assert server.is_alone
    await manager.disconnect("a1")
    await manager.check()
    assert not server.is_alone


async def test_a_shutdown_in_a_hurry_does_not_spread() -> None:
    manager = ConnectionManager()
    sockets = [Socket() for _ in range(400)]
    for number, socket in enumerate(sockets):
        manager._install(Live(socket, Details(client_id=f"c{number}", connected_at=timezone.now())))
    hurry = asyncio.Event()
    hurry.set()
    began = asyncio.get_running_loop().time()
    await manager.close_all(DisconnectCode.SHUTDOWN, spread=60.0, hurry=hurry)
    assert {socket.closed for socket in sockets} == {(3001, "shutdown")}
    # In order it would have taken 50 ms for each.
    assert asyncio.get_running_loop().time() - began < 10.0
