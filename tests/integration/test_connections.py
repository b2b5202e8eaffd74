"""The connection manager: limits, one owner for each agent, rows, orders, and what it says."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from bus import clocks, heartbeats, layer, leases, tasks, tokens
from bus.connections import ConnectionManager
from bus.layer import Control
from bus.leases import Details
from bus.live import Live
from bus.log import NewEvent
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.models import ActiveConnection, Agent, ConnectionSession, Presence, ServerInstance
from bus.proofs import Proof
from bus.protocol.errors import Disconnect, DisconnectCode
from bus.revocation import Revocations
from bus.rights import Watch

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("bus_process")]


class Socket:
    """Any object with async `send_json` and `close`."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed: tuple[int, str] | None = None
        self.is_broken = False

    async def send_json(self, data: Any) -> None:
        if self.is_broken:
            raise ConnectionResetError("gone")
        self.sent.append(data)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed = (code, reason)


class Steady:
    """A steady clock, turned by hand."""

    now = 0.0


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Steady:
    """The clock by which this process sees for how long a server has been silent."""
    steady = Steady()
    monkeypatch.setattr(leases, "watch", clocks.Watch(lambda: steady.now))
    return steady


class ProvenSocket(Socket):
    """A connection whose rights are looked after."""

    can_refresh = False

    def __init__(self, proof: Proof) -> None:
        super().__init__()
        self.proof: Proof | None = proof

    def rights_changed(self, proof: Proof) -> None:
        self.proof = proof

    def tokens_revoked(self, revoked: Revocations) -> None:
        pass


def live(client_id: str, **details: Any) -> Live:
    return Live(Socket(), Details(client_id=client_id, connected_at=timezone.now(), **details))


async def rows(**wanted: Any) -> list[ActiveConnection]:
    return await in_thread(lambda: list(ActiveConnection.objects.filter(**wanted)))


async def session(client_id: str) -> ConnectionSession:
    return await in_thread(ConnectionSession.objects.get, client_id=client_id)


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_connection_has_a_row_a_session_and_a_lease() -> None:
    manager = ConnectionManager()
    assert await manager.connect(Socket(), "a1", "s1")
    (row,) = await rows(agent_id="a1")
    assert (row.session_id, row.generation, row.server_instance_id) == ("s1", 1, layer.INSTANCE)
    server = await in_thread(ServerInstance.objects.get)
    assert server.lease_until > timezone.now() + timedelta(seconds=30)
    await manager.disconnect("a1")
    assert not await rows()
    ended = await session(row.client_id)
    assert (ended.code, ended.reason) == (1000, "disconnected")
    assert ended.disconnected_at is not None


async def test_the_newest_connection_of_an_agent_replaces_the_former() -> None:
    manager, first, second = ConnectionManager(), Socket(), Socket()
    await manager.connect(first, "a1")
    await manager.connect(second, "a1")
    assert first.closed == (4501, "replaced")
    assert manager.get_websocket("a1") is second
    assert [row.generation for row in await rows(agent_id="a1")] == [2]
    assert (await in_thread(Agent.objects.get, agent_id="a1")).connects == 2


async def test_of_many_connections_at_once_exactly_one_stays() -> None:
    manager = ConnectionManager()
    sockets = [Socket() for _ in range(20)]
    await asyncio.gather(*(manager.connect(socket, "a1") for socket in sockets))
    stayed = [socket for socket in sockets if socket is manager.get_websocket("a1")]
    assert len(stayed) == 1
    assert manager.count == 1
    (row,) = await rows(agent_id="a1")
    assert row.generation == (await in_thread(Agent.objects.get, agent_id="a1")).generation


async def test_a_connection_whose_rows_were_written_first_loses_even_if_it_arrives_last() -> None:
    manager = ConnectionManager()
    older, newer = live("c1", agent_id="a1"), live("c2", agent_id="a1")
    older.generation, newer.generation = 1, 2
    manager._install(newer)
    with pytest.raises(Disconnect) as refusal:
        manager._install(older)
    assert refusal.value.code == 4501
    assert manager.get_websocket("a1") is newer.connection
    assert newer.connection.closed is None


async def test_the_limit_holds_for_connections_that_come_at_once() -> None:
    manager = ConnectionManager(max_connections=5)
    results = await asyncio.gather(*(manager.connect(Socket(), f"a{number}") for number in range(12)))
    assert results.count(True) == 5
    assert manager.count == len(await rows()) == 5
    # An agent that is there may come again: its former place becomes free.
    assert await manager.connect(Socket(), (await manager.get_stats())["connections"][0])


async def test_a_refusal_says_why() -> None:
    manager = ConnectionManager(max_connections=1)
    await manager.enter(live("c1"))
    with pytest.raises(Disconnect) as refusal:
        await manager.enter(live("c2"))
    assert (refusal.value.code, refusal.value.reason) == (3504, "connection limit: this server takes 1")


async def test_people_and_addresses_have_limits_of_their_own(settings) -> None:
    settings.BUS = {**settings.BUS, "MAX_CONNECTIONS_PER_USER": 2, "MAX_CONNECTIONS_PER_ADDRESS": 3}
    manager = ConnectionManager()
    for number in range(2):
        await manager.enter(live(f"u{number}", user_id="7", address="10.0.0.1"))
    with pytest.raises(Disconnect, match="a user has at most 2"):
        await manager.enter(live("u3", user_id="7", address="10.0.0.1"))
    await manager.enter(live("other", user_id="8", address="10.0.0.1"))
    with pytest.raises(Disconnect, match="an address has at most 3"):
        await manager.enter(live("more", user_id="9", address="10.0.0.1"))


async def test_an_event_is_stored_and_sent_and_waits_for_who_is_away() -> None:
    manager, socket = ConnectionManager(), Socket()
    await manager.connect(socket, "t1")
    assert await manager.send_output("t1", "line")
    assert socket.sent[0]["event_type"] == "output"
    assert socket.sent[0]["data"] == {"message": "line"}
    assert await manager.send_event("away", "output", {"message": "later"})
    assert not await manager.send_event("away", "pong", {}, queue_if_disconnected=False)
    stored = await in_thread(event_log().read, "agent:away", limit=10)
    assert [event.event_type for event in stored.events] == ["output"]


async def test_missed_events_are_replayed_from_a_time_on() -> None:
    manager, socket = ConnectionManager(), Socket()
    await manager.send_status("t1", "running")
    await asyncio.sleep(0.01)
    middle = timezone.now().timestamp()
    await manager.send_error("t1", "ValueError", "no")
    await manager.connect(socket, "t1")
    assert await manager.replay_missed_events("t1", middle) == 1
    assert await manager.replay_missed_events("t1") == 2
    kinds = [event["event_type"] for event in socket.sent]
    assert kinds == ["error", "workflow_state_changed", "error"]


async def test_a_connection_that_cannot_be_sent_to_is_let_go() -> None:
    manager, socket = ConnectionManager(), Socket()
    await manager.connect(socket, "t1")
    socket.is_broken = True
    assert not await manager.send_json("t1", {"x": 1})
    assert not manager.is_connected("t1")
    assert not await rows()


async def test_a_broadcast_reaches_all_who_are_here_and_is_stored() -> None:
    manager = ConnectionManager()
    sockets = [Socket() for _ in range(3)]
    for number, socket in enumerate(sockets):
        await manager.connect(socket, f"a{number}")
    await manager.broadcast("hello")
    assert all(socket.sent[0]["data"] == {"message": "hello"} for socket in sockets)
    assert (await in_thread(event_log().states, ["broadcast"]))["broadcast"].last_offset == 1


async def test_a_wish_to_disconnect_is_found_without_a_layer() -> None:
    manager, socket = ConnectionManager(), Socket()
    await manager.connect(socket, "a1")
    elsewhere = ConnectionManager()
    (client_id,) = await elsewhere.disconnect_client(agent_id="a1", reason="go away", actor="test")
    await manager.check()
    await until(lambda: socket.closed)
    assert socket.closed == (3503, "go away")
    await until(lambda: not manager.is_connected("a1"))
    async with asyncio.timeout(5):
        while (await session(client_id)).code != 3503:
            await asyncio.sleep(0.01)


async def test_nobody_is_disconnected_without_a_name() -> None:
    with pytest.raises(ValueError, match="whom"):
        await ConnectionManager().disconnect_client()


async def test_a_newer_connection_elsewhere_is_found_without_a_layer() -> None:
    here, elsewhere, former = ConnectionManager(), ConnectionManager(), Socket()
    await here.connect(former, "a1")
    await elsewhere.connect(Socket(), "a1")
    await here.check()
    await until(lambda: former.closed)
    assert former.closed == (4501, "replaced")
    assert elsewhere.is_connected("a1")
    assert [row.generation for row in await rows(agent_id="a1")] == [2]


async def test_an_order_about_an_older_generation_leaves_the_newest_alone() -> None:
    manager, socket = ConnectionManager(), Socket()
    await manager.connect(Socket(), "a1")
    await manager.connect(socket, "a1")
    manager.hear(Control("x", "replaced", agent_id="a1", generation=2))
    manager.hear(Control("x", "replaced", agent_id="a1", generation=1))
    await asyncio.sleep(0)
    assert socket.closed is None


async def test_a_revoked_key_closes_its_connections(bus_process: None) -> None:
    manager = ConnectionManager()
    row, key = await in_thread(tokens.create_api_key, "k1")
    held = live("c1", key_prefix=row.prefix)
    held.connection = ProvenSocket(await in_thread(tokens.check_api_key, key))
    await manager.enter(held)
    await manager.check()
    assert held.connection.closed is None
    await in_thread(tokens.revoke_api_key, row)
    manager._rights = Watch()
    await manager.check()
    await until(lambda: held.connection.closed)
    assert held.connection.closed == (
        3500,
        "invalid token: the API key was revoked or has expired",
    )


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


async def test_rows_of_a_dead_server_are_reaped_and_their_sessions_are_lost(watch: Steady) -> None:
    manager = ConnectionManager()
    await manager.enter(live("dead", agent_id="a1"))
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


@pytest.mark.parametrize("ahead", [timedelta(days=400), timedelta(hours=-3)])
async def test_a_server_that_renews_its_lease_lives_whatever_its_clock_says(
    watch: Steady, ahead: timedelta
) -> None:
    manager = ConnectionManager()
    await manager.enter(live("abroad"))
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


async def test_former_names_still_work_and_warn() -> None:
    from bus import compat

    socket = Socket()
    with pytest.warns(DeprecationWarning, match="ws_manager"):
        manager = compat.ws_manager
    with pytest.warns(DeprecationWarning, match="connect"):
        assert await manager.connect(socket, "old")
    event = type("Event", (), {"event_type": "output", "data": {"x": 1}})()
    with pytest.warns(DeprecationWarning, match="send_event"):
        assert await manager.send_event("old", event)
    assert socket.sent[0]["data"] == {"x": 1}
    with pytest.warns(DeprecationWarning, match="disconnect"):
        await manager.disconnect("old")


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
    async with asyncio.timeout(10):
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


async def test_an_object_gets_what_another_process_stores_in_its_inbox() -> None:
    manager, socket = ConnectionManager(), Socket()
    await manager.connect(socket, "t1")
    event = NewEvent(topic="agent:t1", event_type="output", payload=b'{"event_type":"output","data":1}')
    await in_thread(event_log().append, [event])  # no hint: the tick has to find it
    await manager.send_output("t1", "second")
    assert [each["event_type"] for each in socket.sent] == ["output", "output"]
    assert [each["offset"] for each in socket.sent] == [1, 2]
    await manager.disconnect("t1")
    await in_thread(event_log().append, [event])
    await asyncio.sleep(1.2)
    assert len(socket.sent) == 2


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
    sockets = [Socket() for _ in range(60)]
    for number, socket in enumerate(sockets):
        manager._install(Live(socket, Details(client_id=f"c{number}", connected_at=timezone.now())))
    hurry = asyncio.Event()
    hurry.set()
    began = asyncio.get_running_loop().time()
    await manager.close_all(DisconnectCode.SHUTDOWN, spread=60.0, hurry=hurry)
    assert {socket.closed for socket in sockets} == {(3001, "shutdown")}
    assert asyncio.get_running_loop().time() - began < 2.0
