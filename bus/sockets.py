"""What all sockets have in common, whatever they speak: life, identity, subscriptions, publishing.

A `Socket` is an ASGI application for one connection. It accepts, lets the subclass read and answer, and makes
sure that whatever ends it (the client, the manager, slowness, an error) happens once: goodbye, close, rows.
It is what the hub calls a subscriber and the manager a connection. It has no channel layer of its own and
does not look for old database connections at each message: that is work of the process, not of every socket.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from django.utils import timezone

from bus import credentials, presence
from bus.conf import conf
from bus.connections import connection_manager
from bus.feeds import Form
from bus.hub import Subscribed, hub
from bus.layer import Control
from bus.leases import Details
from bus.live import Live
from bus.permissions import ANONYMOUS, Identity, allows, rule_of
from bus.protocol.errors import (
    BusError,
    Disconnect,
    DisconnectCode,
    InternalError,
    StaleGeneration,
    UnsubscribeCode,
)
from bus.protocol.frames import ClientInfo
from bus.protocol.positions import Position
from bus.sending import Outlet, PlainOutlet, PreparedOutlet, SendQueue
from bus.tokens import Proof

logger = logging.getLogger(__name__)

#: Name of the extension that `bus.transport` puts into the scope.
EXTENSION = "bus.transport"

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

#: Tasks under way; the event loop itself keeps only weak references.
_running: set[asyncio.Task[Any]] = set()


class Socket:
    """See the module. Subclasses say how to begin, how to take a message, and how to say goodbye."""

    form: ClassVar[Form]
    transport: ClassVar[str]

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        options = conf()
        self.scope = scope
        self._receive = receive
        self._send = send
        self.queue = SendQueue(
            _outlet(scope, send), max_bytes=options.send_queue_bytes, max_frames=options.send_queue_frames
        )
        self.hub = hub()
        self.identity: Identity = ANONYMOUS
        self.proof: Proof | None = None
        self.live: Live | None = None
        self._subscribed: set[str] = set()
        self._ending: Disconnect | None = None
        headers = credentials.headers_of(scope)
        self.details = Details(
            client_id=str(uuid.uuid4()),
            transport=self.transport,
            address=str((scope.get("client") or ("",))[0]),
            user_agent=headers.get("user-agent", "")[:300],
            connected_at=timezone.now(),
        )

    @classmethod
    def as_asgi(cls) -> Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]:
        """Return the application: one socket for each connection."""

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            await cls(scope, receive, send).run()

        return application

    async def run(self) -> None:
        """Serve the connection from its first message to its last."""
        code = int(DisconnectCode.CONNECTION_CLOSED)
        await self._receive()
        await self._send({"type": "websocket.accept"})
        try:
            code = await self._serve()
        finally:
            await self._gone(code)

    async def _serve(self) -> int:
        """Take messages until the client is gone; return the close code."""
        try:
            await self.begin()
        except Disconnect as end:
            await self.end(end)
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return int(message.get("code") or 1005)
            if self._ending is None:
                await self._take(message)

    async def _take(self, message: dict[str, Any]) -> None:
        if self.live is not None:
            self.live.last_activity = timezone.now()
            self.live.events_in += 1
        try:
            await self.received(message.get("text") or message.get("bytes") or b"")
        except Disconnect as end:
            await self.end(end)
        except Exception:
            logger.exception("a message of a client could not be taken")
            await self.end(Disconnect(DisconnectCode.SERVER_ERROR))

    async def send_json(self, data: Any) -> None:
        """Send one object outside of all topics."""
        raise NotImplementedError

    async def begin(self) -> None:
        """Do what comes before the first message. May raise `Disconnect`."""

    async def received(self, data: str | bytes) -> None:
        """Take a message. May raise `Disconnect`."""
        raise NotImplementedError

    def goodbye(self, end: Disconnect) -> bytes | None:
        """Return what to send before the close."""
        raise NotImplementedError

    def stopped(self) -> None:
        """The connection ends: take no more time."""

    async def end(self, end: Disconnect) -> None:
        """Say goodbye and close. Once: a second reason comes too late."""
        if self._ending is not None:
            return
        self._ending = end
        self._release()
        if (words := self.goodbye(end)) is not None:
            self.queue.send(words)
        await self.queue.outlet.close(int(end.code), end.reason)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close, as the manager wants it."""
        await self.end(Disconnect(code, reason))  # type: ignore[arg-type]

    async def _gone(self, code: int) -> None:
        self._release()
        if self.live is None:
            return
        end = self._ending
        reason = end.reason if end else ("closed by the client" if code != 1006 else "connection lost")
        self.live.events_out = self.queue.events
        await connection_manager.leave(self.live, int(end.code) if end else code, reason)
        if self._subscribed:
            await presence.lost(self.details.client_id, self._subscribed)

    def _release(self) -> None:
        """Stop reading all topics."""
        self.stopped()
        for topic in self._subscribed:
            self.hub.unsubscribe(self, topic)

    def soon(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do something that nobody waits for."""
        task = asyncio.ensure_future(work)
        _running.add(task)
        task.add_done_callback(_finished)

    async def enter(
        self, proof: Proof, *, agent_id: str = "", session_id: str = "", task_id: str = ""
    ) -> None:
        """Become the one that the proof names, and a connection that counts.

        Args:
            proof: who it is.
            agent_id: the agent that the client says it is; a key for all agents lets it choose.
            session_id: its session, for people who look at the rows.
            task_id: its task, likewise.

        Raises:
            Disconnect: it is another agent, or there is no room.
        """
        identity = _as_agent(proof.identity, agent_id)
        self.proof, self.identity = proof, identity
        self.details = replace(
            self.details,
            agent_id=identity.agent_id,
            user_id=identity.user_id,
            session_id=session_id[:200],
            task_id=task_id[:200],
            key_prefix=proof.key_prefix,
        )
        live = Live(
            self,
            self.details,
            reads_inbox=True,
            topics=lambda: sorted(self._subscribed),
            pending_bytes=lambda: self.queue.pending_bytes,
        )
        await connection_manager.enter(live)
        self.live = live

    @property
    def name(self) -> str:
        """The name of its own cursors."""
        return self.identity.agent_id or self.identity.user_id

    @property
    def info(self) -> ClientInfo:
        """Who it is, for others."""
        return ClientInfo(user=self.identity.user_id or self.identity.agent_id, client=self.details.client_id)

    def check_generation(self) -> None:
        """Refuse a write of a connection that was replaced, or is ending.

        Raises:
            StaleGeneration: it may not write any more.
        """
        agent_id = self.details.agent_id
        if agent_id and connection_manager.get_websocket(agent_id) is not self:
            raise StaleGeneration

    async def subscribe(self, topic: str, since: Position | None) -> Subscribed:
        """Read a topic; live events wait for `Hub.release`."""
        self._subscribed.add(topic)
        try:
            return await self.hub.subscribe(self, topic, since)
        except BaseException:
            self._subscribed.discard(topic)
            raise

    async def unsubscribe(self, topic: str) -> None:
        """Read it no more."""
        if topic in self._subscribed:
            self._subscribed.discard(topic)
            self.hub.unsubscribe(self, topic)
            await presence.leave(topic, self.info)

    def unsubscribed(self, topic: str, code: UnsubscribeCode) -> None:
        """The hub has ended a subscription."""
        self._subscribed.discard(topic)
        self.soon(presence.leave(topic, self.info))

    def finished(self, topic: str) -> None:
        """The final event of a topic went out."""

    def somebody_came_or_went(self, order: Control) -> None:
        """Another client joined or left a topic."""

    def too_slow(self) -> None:
        """Close as slow; the client comes again and gets what it missed."""
        self.soon(self.end(Disconnect(DisconnectCode.SLOW)))

    def own_topics(self) -> list[str]:
        """Return the topics to which the server subscribes it: inbox, broadcast, and what the token names."""
        inbox = [f"agent:{self.identity.agent_id}"] if self.identity.agent_id else []
        named = list(self.proof.channels) if self.proof else []
        broadcast = ["broadcast"] if allows(self.identity, "subscribe", "broadcast") else []
        return list(dict.fromkeys(inbox + broadcast + named))

    async def join(self, topic: str) -> None:
        """Be seen there."""
        rule = rule_of(topic)
        if rule.presence or rule.join_leave:
            await presence.join(topic, self.info)


def _outlet(scope: Scope, send: Send) -> Outlet:
    extension = (scope.get("extensions") or {}).get(EXTENSION)
    return PreparedOutlet(extension) if extension else PlainOutlet(send)


def _as_agent(identity: Identity, agent_id: str) -> Identity:
    """Return the identity as the agent that it says it is."""
    if not agent_id or agent_id == identity.agent_id:
        return identity
    if identity.kind == "key" and not identity.agent_id:
        return replace(identity, agent_id=agent_id)
    if identity.kind == "token" and not identity.agent_id and identity.user_id == agent_id:
        return replace(identity, agent_id=agent_id)
    raise Disconnect(DisconnectCode.PERMISSION_DENIED, "permission denied: this is another agent")


def _finished(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if isinstance(error, BusError):
        logger.warning("work for a socket was not done: %s", error)
    elif error is not None:
        logger.error("work for a socket failed", exc_info=error)


def as_bus_error(error: Exception) -> BusError:
    """Return what a client is told of an error: ours as it is, any other as an internal one."""
    if isinstance(error, BusError):
        return error
    logger.error("a command failed", exc_info=error)
    return InternalError()
