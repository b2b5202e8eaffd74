"""The connection manager: limits, one owner for each agent, orders, and what it says."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from django.utils import timezone

from bus import layer
from bus.access import tokens
from bus.access.proofs import Proof
from bus.access.revocation import Revocations
from bus.access.rights import Watch
from bus.connections.manager import ConnectionManager
from bus.layer import Control
from bus.log import NewEvent
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.models import Agent, ServerInstance
from bus.protocol.errors import Disconnect
from tests.integration.plain_connections import Socket, live, rows, session, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("bus_process")]


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
    async with asyncio.timeout(60):
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
