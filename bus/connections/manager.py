"""Who is connected: the single source of truth, one `ConnectionManager` in each process.

It counts and limits, writes rows and heartbeats (`bus.connections.leases`), keeps one live connection for
each agent id, and reaches the connections of other processes through the log and the channel layer. The
newest connection of an agent is the owner, wherever it is: the former is closed with 4501. It never accepts a
socket, and takes any object that has async `send_json` and `close`. Every method runs in one event loop and
changes its tables without awaiting between, so concurrent tasks cannot disturb each other.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from django.db import DatabaseError
from django.db.models import Q
from django.utils import timezone

from bus import layer, publishing
from bus.access.rights import Watch
from bus.conf import conf
from bus.connections import heartbeats, leases
from bus.connections.gathering import Gathering
from bus.connections.leases import Details, Farewell
from bus.connections.live import Connection, Inbox, Live, is_meant
from bus.connections.messages import Messages
from bus.connections.places import Places
from bus.layer import Control
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.metrics import CONNECTION_SECONDS, CONNECTIONS, DISCONNECTIONS, RECONNECTIONS
from bus.models import ActiveConnection
from bus.protocol.errors import BusError, Disconnect, DisconnectCode
from bus.protocol.positions import Position

logger = logging.getLogger(__name__)

#: A connection that is replaced has this long to take its goodbye.
GOODBYE = 1.0
#: Events in one read of a replay.
REPLAY_PAGE = 1_000


class ConnectionManager(Messages):
    """See the module.

    Args:
        max_connections: live connections of this process; by default `BUS["MAX_CONNECTIONS"]`.
    """

    def __init__(self, max_connections: int | None = None) -> None:
        self._max_connections = max_connections
        self._live: dict[str, Live] = {}
        self._agents: dict[str, Live] = {}
        self._places = Places(lambda: self.max_connections)
        self._arrivals = Gathering(partial(leases.enter_all, server=layer.INSTANCE))
        self._departures = Gathering(leases.leave_all)
        self._elsewhere = 0
        self._rights = Watch()
        self._is_closing = False

    async def connect(self, connection: Connection, agent_id: str, session_id: str | None = None) -> bool:
        """Take charge of an accepted connection of an agent; its former one is closed as replaced.

        Returns:
            False if there are too many connections, or a newer one of the agent came in between.
        """
        details = Details(
            client_id=str(uuid.uuid4()),
            agent_id=agent_id,
            session_id=session_id or "",
            connected_at=timezone.now(),
        )
        live = Live(connection, details)
        try:
            await self.enter(live)
            if open_inbox is not None:
                live.inbox = await open_inbox(live, self)
        except (Disconnect, BusError) as refusal:
            logger.warning("a connection of %s was refused: %s", agent_id, refusal)
            await self.leave(live, DisconnectCode.SERVER_ERROR, "refused")
            return False
        return True

    async def enter(self, live: Live) -> None:
        """Take charge of a connection whose details are known.

        Raises:
            Disconnect: it has to be closed with this: a limit, a shutdown, or a newer one of the same agent.
        """
        if self._is_closing:
            raise Disconnect(DisconnectCode.SHUTDOWN)
        details = live.details
        self._places.take(details, replaces=bool(details.agent_id) and details.agent_id in self._agents)
        try:
            live.generation = await self._write_rows(details)
            self._install(live)
        except BaseException:
            self._places.free(details)
            raise
        await self._replace(live)

    async def _write_rows(self, details: Details) -> int:
        writing = asyncio.ensure_future(self._arrivals.submit(details))
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            self._soon(self._take_back(writing, details))
            raise
        except DatabaseError as error:
            logger.exception("the rows of a connection could not be written")
            raise Disconnect(DisconnectCode.SERVER_ERROR) from error

    async def _take_back(self, writing: Awaitable[int], details: Details) -> None:
        """Remove the rows of a connection that was lost while they were written."""
        with suppress(DatabaseError):
            await writing
            code = DisconnectCode.CONNECTION_CLOSED
            farewell = Farewell(client_id=details.client_id, code=code, reason="connection lost")
            await self._departures.submit(farewell)

    def _install(self, live: Live) -> None:
        agent_id = live.details.agent_id
        former = self._agents.get(agent_id) if agent_id else None
        if former is not None and former.generation > live.generation:
            raise Disconnect(DisconnectCode.REPLACED)
        self._live[live.details.client_id] = live
        CONNECTIONS.labels(live.details.transport).inc()
        if not agent_id:
            return
        self._agents[agent_id] = live
        live.former = former
        if live.generation > 1:
            RECONNECTIONS.inc()

    async def _replace(self, live: Live) -> None:
        """Have the former connections of an agent closed, here and elsewhere."""
        if live.generation > 1:
            layer.control("replaced", agent_id=live.details.agent_id, generation=live.generation)
        former, live.former = live.former, None
        if former is not None:
            await self._dismiss(former, DisconnectCode.REPLACED, DisconnectCode.REPLACED.reason)

    async def disconnect(self, agent_id: str) -> None:
        """Let go of an agent's connection in this process; the socket is its owner's to close."""
        live = self._agents.get(agent_id)
        if live is not None:
            await self.leave(live, 1000, "disconnected")

    async def leave(self, live: Live, code: int, reason: str) -> None:
        """Forget a connection that has ended, and write how. A second call does nothing."""
        if not self._forget(live, code):
            return
        farewell = Farewell(
            client_id=live.details.client_id,
            code=code,
            reason=reason,
            events_in=live.events_in,
            events_out=live.events_out,
        )
        if self._is_closing:
            return  # the rows of all go in one statement
        try:
            await self._departures.submit(farewell)
        except DatabaseError:
            logger.exception("the end of a connection could not be written; beat will take its row away")

    def _forget(self, live: Live, code: int) -> bool:
        if self._live.pop(live.details.client_id, None) is not live:
            return False
        if self._agents.get(live.details.agent_id) is live:
            del self._agents[live.details.agent_id]
        self._places.free(live.details)
        if live.inbox is not None:
            live.inbox.end()
        DISCONNECTIONS.labels(str(code)).inc()
        CONNECTION_SECONDS.observe(time.monotonic() - live.began)
        return True

    async def _dismiss(self, live: Live, code: int, reason: str) -> None:
        """Close a connection that is not to be ours any more."""
        try:
            async with asyncio.timeout(GOODBYE):
                await live.connection.close(code=code, reason=reason)
        except Exception as error:  # noqa: BLE001  (any object may be behind it, and it is being thrown away)
            logger.info("a connection did not take its close: %r", error)
        await self.leave(live, code, reason)

    @property
    def max_connections(self) -> int:
        """Live connections that this process takes."""
        return self._max_connections or conf().max_connections

    @property
    def is_closing(self) -> bool:
        """Whether this process ends: its rows go in one statement."""
        return self._is_closing

    @property
    def count(self) -> int:
        """Live connections of this process."""
        return len(self._live)

    @property
    def count_everywhere(self) -> int:
        """Live connections of all processes, as of the last heartbeat."""
        return self._elsewhere + len(self._live)

    def is_connected(self, agent_id: str) -> bool:
        """Tell whether the agent is connected to this process."""
        return agent_id in self._agents

    def get_websocket(self, agent_id: str) -> Connection | None:
        """Return the agent's connection in this process, if there is one."""
        live = self._agents.get(agent_id)
        return live.connection if live else None

    def sockets(self) -> dict[str, Connection]:
        """Return the connections of this process by agent id, as they are now."""
        return {agent_id: live.connection for agent_id, live in self._agents.items()}

    async def get_stats(self) -> dict[str, Any]:
        """Return how many are connected to this process, how many may be, and which agents."""
        return {
            "active_connections": self.count,
            "max_connections": self.max_connections,
            "connections": list(self._agents),
        }

    async def send_event(
        self, task_id: str, event_type: str, data: dict[str, Any], queue_if_disconnected: bool = True
    ) -> bool:
        """Send an event to an agent, wherever it is connected.

        Args:
            task_id: the agent id, or whatever id the connection was made with.
            event_type: type of the event.
            data: what it says.
            queue_if_disconnected: store it in the agent's inbox first, so that it also arrives later.

        Returns:
            Whether it is stored, or was sent.
        """
        if queue_if_disconnected:
            try:
                place = await publishing.apublish(f"agent:{task_id}", event_type, data, run_id=task_id)
            except BusError as error:
                logger.warning("an event for %s was not stored: %s", task_id, error)
                return False
            live = self._agents.get(task_id)
            if live is not None and live.inbox is not None:
                await live.inbox.until(place.topic, place.offset)
            return True
        payload = publishing.encode_event(event_type, data, run_id=task_id)
        return await self.send_json(task_id, msgspec.json.decode(payload))

    async def send_json(self, task_id: str, data: dict[str, Any]) -> bool:
        """Send an object to an agent that is connected, to whichever process. Nothing is stored."""
        live = self._agents.get(task_id)
        if live is not None:
            return await self._send_here(live, data)
        if not await in_thread(_is_connected_anywhere, task_id):
            return False
        layer.control("message", agent_id=task_id, data=msgspec.Raw(msgspec.json.encode(data)))
        return True

    async def _send_here(self, live: Live, data: Any) -> bool:
        live.last_activity = timezone.now()
        try:
            await live.connection.send_json(data)
        except Exception as error:  # noqa: BLE001  (any object may be behind it; it is of no use any more)
            logger.warning("a message to %s was not sent: %r", live.details.agent_id, error)
            await self.leave(live, DisconnectCode.CONNECTION_CLOSED, "send failed")
            return False
        return True

    async def broadcast(self, message: Any) -> None:
        """Say something to all who are connected.

        Raises:
            BusError: it was not stored.
        """
        place = await publishing.apublish("broadcast", "agent.message", {"message": message})
        for inbox in [live.inbox for live in self._agents.values() if live.inbox is not None]:
            await inbox.until(place.topic, place.offset)

    async def replay_missed_events(self, task_id: str, since_timestamp: float | None = None) -> int:
        """Send an agent that is connected here what its inbox holds, or what came after a time.

        Args:
            task_id: the agent id.
            since_timestamp: seconds since 1970; None for all.

        Returns:
            How many events were sent.
        """
        live = self._agents.get(task_id)
        oldest = -1.0 if since_timestamp is None else since_timestamp
        sent, since = 0, None
        while live is not None:
            page = await in_thread(event_log().read, f"agent:{task_id}", since, limit=REPLAY_PAGE)
            for event in page.events:
                since = Position(epoch=page.epoch, offset=event.offset)
                if event.created_at.timestamp() > oldest and await self._send_here(
                    live, msgspec.json.decode(event.payload)
                ):
                    sent += 1
            if len(page.events) < REPLAY_PAGE:
                break
        return sent

    async def disconnect_client(
        self,
        *,
        client_id: str = "",
        agent_id: str = "",
        user_id: str = "",
        code: int = DisconnectCode.FORCED,
        reason: str = DisconnectCode.FORCED.reason,
        actor: str = "",
    ) -> list[str]:
        """Have connections closed, on whichever server they are; return their client ids.

        It is noted in their rows, so that it happens within a second even without a channel layer.
        """
        wanted = Q(client_id=client_id) if client_id else Q()
        wanted &= Q(agent_id=agent_id) if agent_id else Q()
        wanted &= Q(user_id=user_id) if user_id else Q()
        if not wanted:
            raise ValueError("disconnect whom? give a client, agent or user id")
        clients = await in_thread(leases.request_close, wanted, int(code), reason)
        for client in clients:
            layer.control("disconnect", client_id=client, code=int(code), reason=reason)
        logger.info("%s asked to disconnect %s with %d (%s)", actor or "somebody", clients, code, reason)
        return clients

    async def message(self, agent_id: str, data: Any) -> bool:
        """Send a message of a person to an agent's inbox."""
        return await self.send_personal_message(data, agent_id)

    def hear(self, order: Control) -> None:
        """Carry out an order of any process about connections of this one."""
        for live in list(self._live.values()):
            if not is_meant(order, live):
                continue
            if order.kind == "replaced" and live.generation < order.generation:
                self._soon(self._dismiss(live, DisconnectCode.REPLACED, DisconnectCode.REPLACED.reason))
            elif order.kind in ("disconnect", "revoke"):
                self._soon(self._dismiss(live, order.code, order.reason))
            elif order.kind == "subscribe" and live.subscribe is not None:
                live.subscribe(order)
            elif order.kind == "message" and order.data:
                self._soon(self._send_here(live, msgspec.json.decode(order.data)))

    def let_go(self, live: Live, code: DisconnectCode, reason: str) -> None:
        """Close and forget a connection soon."""
        if live.details.client_id in self._live:
            self._soon(self._dismiss(live, code, reason))

    def _soon(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        _running.add(task)
        task.add_done_callback(_running.discard)

    async def beat_for_ever(self, health: Callable[[], tuple[float, bool]]) -> None:
        """Renew the lease of this server and of all its connections, in one statement each.

        Args:
            health: gives the delay of the event loop (ms) and whether the channel layer is up.
        """
        # By then the canary is back, and the first row tells the truth about the layer.
        await asyncio.sleep(1.0)
        while True:
            loop_lag_ms, layer_up = health()
            try:
                total = await heartbeats.beat(self._live, loop_lag_ms=loop_lag_ms, layer_up=layer_up)
                self._elsewhere = max(0, total - len(self._live))
            except DatabaseError as error:
                logger.warning("a heartbeat was not written: %s", error)
            except Exception:
                # Without heartbeats the others would take this server for dead, for good.
                logger.exception("a heartbeat failed")
            await asyncio.sleep(conf().heartbeat_interval.total_seconds())

    async def check(self) -> None:
        """Find what no order told of: newer connections elsewhere, wishes to close, changed rights."""
        if not self._live:
            layer.set_alone(False)  # nobody looks from now on
            return
        layer.set_alone(not await in_thread(leases.has_peers, layer.INSTANCE))
        newest = await in_thread(leases.generations, list(self._agents))
        for agent_id, generation in newest.items():
            live = self._agents.get(agent_id)
            if live is not None and live.generation < generation:
                self._soon(self._dismiss(live, DisconnectCode.REPLACED, DisconnectCode.REPLACED.reason))
        for client_id, code, reason in await in_thread(leases.to_close, layer.INSTANCE):
            self.hear(Control(layer.INSTANCE, "disconnect", client_id=client_id, code=code, reason=reason))
        connections = {client_id: live.connection for client_id, live in self._live.items()}
        await self._rights.look(connections, self._close_by_rights)

    def _close_by_rights(self, client_id: str, end: Disconnect) -> None:
        if (live := self._live.get(client_id)) is not None:
            self._soon(self._dismiss(live, end.code, end.reason))

    async def close_all(
        self, code: DisconnectCode, *, spread: float, hurry: asyncio.Event | None = None
    ) -> None:
        """Close all connections, spread over so many seconds, and take no new ones.

        Args:
            code: what they are told.
            spread: seconds from the first to the last.
            hurry: once set, the rest are told at once.
        """
        self._is_closing = True
        everyone = list(self._live.values())
        step = min(0.05, spread / max(1, len(everyone)))
        closing = []
        for live in everyone:
            closing.append(asyncio.ensure_future(self._dismiss(live, code, code.reason)))
            if hurry is None or not hurry.is_set():
                await asyncio.sleep(step)
        if closing:
            await asyncio.wait(closing)

    async def remove_rows(self) -> None:
        """Remove the rows of this server, which ends."""
        code = DisconnectCode.SHUTDOWN
        await in_thread(leases.close_server, layer.INSTANCE, int(code), code.reason)
        self._is_closing = False


def _is_connected_anywhere(agent_id: str) -> bool:
    return ActiveConnection.objects.filter(agent_id=agent_id).exists()


#: Begins to read inbox and broadcasts for an object that was given to `connect`; set by `inboxes`.
open_inbox: Callable[[Live, ConnectionManager], Awaitable[Inbox]] | None = None

#: Tasks under way; the event loop itself keeps only weak references.
_running: set[asyncio.Future[Any]] = set()

connection_manager = ConnectionManager()
