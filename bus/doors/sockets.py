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
from msgspec import UNSET

from bus.access import credentials
from bus.access.permissions import ANONYMOUS, Identity, allows, rule_of
from bus.access.proofs import Proof
from bus.access.revocation import Revocations
from bus.conf import BusSettings, conf
from bus.connections import admission, orders, presence
from bus.connections.leases import Details
from bus.connections.live import Live
from bus.connections.manager import connection_manager
from bus.doors.remote import Caller
from bus.fanout.feeds import Form, Subscribed
from bus.fanout.hub import hub
from bus.fanout.sending import STUCK, PlainOutlet, PreparedOutlet, SendQueue
from bus.layer import Control
from bus.metrics import ERRORS
from bus.protocol.errors import (
    BusError,
    Disconnect,
    DisconnectCode,
    InternalError,
    NotAvailable,
    StaleGeneration,
    TooManyRequests,
    UnsubscribeCode,
    unsubscribe_reason,
)
from bus.protocol.frames import ClientInfo
from bus.protocol.positions import Position
from bus.protocol.topics import is_agent_id

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
        self.queue = _queue(scope, send, options)
        self.hub = hub()
        self.identity: Identity = ANONYMOUS
        self.proof: Proof | None = None
        self.live: Live | None = None
        self._subscribed: set[str] = set()
        self._ending: Disconnect | None = None
        #: The task that serves it, and whether that was cancelled by ourselves.
        self._serving: asyncio.Task[Any] | None = None
        self._is_cut = False
        headers = credentials.headers_of(scope)
        self.details = Details(
            client_id=str(uuid.uuid4()),
            transport=self.transport,
            address=address_of(scope),
            user_agent=headers.get("user-agent", "")[:300],
            connected_at=timezone.now(),
        )

    @classmethod
    def as_asgi(cls) -> Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]:
        """Return the application: one socket for each connection."""

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            if wait := admission.gate().wait(address_of(scope)):
                await receive()
                await admission.refuse(scope, send, wait)
                return
            await cls(scope, receive, send).run()

        return application

    async def run(self) -> None:
        """Serve the connection from its first message to its last."""
        code = int(DisconnectCode.CONNECTION_CLOSED)
        await self._receive()
        await self._send({"type": "websocket.accept"})
        self._serving = asyncio.current_task()
        try:
            code = await self._serve()
        except asyncio.CancelledError:
            if not self._is_cut:
                raise
        finally:
            # Whoever cancels a socket does not cancel what it leaves in order.
            await asyncio.shield(asyncio.ensure_future(self._gone(code)))

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
            while not self.queue.is_relaxed and self._ending is None:
                await self._wait_for_the_client()

    async def _wait_for_the_client(self) -> None:
        """Take no more commands from a client that does not take our answers: they have to go somewhere."""
        if self.queue.tend(asyncio.get_running_loop().time()) >= STUCK:
            self.too_slow()
        # No socket tells when it has taken something.
        await asyncio.sleep(0.02)

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
        try:
            await self.queue.outlet.close(int(end.code), end.reason)
        except TimeoutError:
            # It does not even take its close: return, and the server ends the connection.
            self._is_cut = True
            if self._serving is not None:
                self._serving.cancel()

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
        # Leases of a server that ends are ended together, once its row is gone.
        if self._subscribed and not connection_manager.is_closing:
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
            subscribe=lambda order: self.soon(self.take_in(order.topic, orders.start_of(order))),
        )
        # At once: whatever interrupts the next line, `leave` finds what there is to undo.
        self.live = live
        await connection_manager.enter(live)

    @property
    def name(self) -> str:
        """The name of its own cursors."""
        return self.identity.agent_id or self.identity.user_id

    @property
    def info(self) -> ClientInfo:
        """Who it is, for others."""
        return ClientInfo(
            user=self.identity.user_id or self.identity.agent_id,
            client=self.details.client_id,
            conn_info=UNSET if self.proof is None else self.proof.info,
        )

    def caller(self) -> Caller:
        """Who calls a remote method."""
        return Caller(
            identity=self.identity,
            info=self.info,
            name=self.name,
            session_id=self.details.session_id,
            check_generation=self.check_generation,
        )

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

    async def take_in(self, topic: str, since: Position | None) -> None:
        """Begin to read a topic because somebody has ordered it. Raises `BusError` if it may not."""
        raise NotAvailable

    async def unsubscribe(self, topic: str) -> None:
        """Read it no more."""
        if topic in self._subscribed:
            self._subscribed.discard(topic)
            self.hub.unsubscribe(self, topic)
            await presence.leave(topic, self.info)

    def unsubscribed(self, topic: str, code: int) -> None:
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
        own = dict.fromkeys([*inbox, "broadcast", *named])
        found = [topic for topic in own if self.may_read(topic)]
        if len(found) > conf().max_subscriptions:
            raise Disconnect(DisconnectCode.TOPIC_LIMIT)
        return found

    def may_read(self, topic: str) -> bool:
        """Tell whether it may read a topic, by the rules or because its token names it."""
        named = self.proof.channels if self.proof else ()
        return allows(self.identity, "subscribe", topic, by_token=named)

    def is_same(self, proof: Proof) -> bool:
        """Tell whether a proof names the one that it is already."""
        former = self.proof.identity if self.proof else ANONYMOUS
        return (proof.identity.kind, proof.identity.user_id, proof.identity.agent_id) == (
            former.kind,
            former.user_id,
            former.agent_id,
        )

    @property
    def can_refresh(self) -> bool:
        """Whether it can bring a new token while it lives."""
        return False

    def rights_changed(self, proof: Proof) -> None:
        """Go on with other rights: leave what they do not allow. Another agent is another connection."""
        try:
            identity = _as_agent(proof.identity, self.details.agent_id)
        except Disconnect as end:
            self.soon(self.end(end))
            return
        self.proof, self.identity = proof, identity
        for topic in [topic for topic in self._subscribed if not self.may_read(topic)]:
            self.let_go(topic, UnsubscribeCode.PERMISSION_DENIED)

    def tokens_revoked(self, revoked: Revocations) -> None:
        """Leave the topics whose subscription tokens were taken back; here are none."""

    def let_go(self, topic: str, code: UnsubscribeCode) -> None:
        """End a subscription and tell the client."""
        self.hub.unsubscribe(self, topic)
        self.unsubscribed(topic, code)

    async def join(self, topic: str) -> None:
        """Be seen there."""
        rule = rule_of(topic)
        if rule.presence or rule.join_leave:
            await presence.join(topic, self.info)


def address_of(scope: Scope) -> str:
    """Return the address of the client, or nothing where the server does not know it."""
    return str((scope.get("client") or ("",))[0])


def _queue(scope: Scope, send: Send, options: BusSettings) -> SendQueue:
    """Return the send queue of a socket, on the best outlet that its server offers."""
    extension = (scope.get("extensions") or {}).get(EXTENSION)
    outlet = PreparedOutlet(extension) if extension else PlainOutlet(send)
    return SendQueue(
        outlet,
        max_bytes=options.send_queue_bytes,
        max_frames=options.send_queue_frames,
        direct=outlet.direct if isinstance(outlet, PreparedOutlet) else None,
    )


def _as_agent(identity: Identity, agent_id: str) -> Identity:
    """Return the identity as the agent that it says it is."""
    if not agent_id or agent_id == identity.agent_id:
        return identity
    if not is_agent_id(agent_id):
        raise Disconnect(DisconnectCode.BAD_REQUEST, "bad request: not an agent id")
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


def end_for(code: int) -> Disconnect:
    """Return the close of a socket that has lost its own topic: final where the unsubscribe is."""
    reason = unsubscribe_reason(code)
    if code == UnsubscribeCode.ENDED:
        return Disconnect(1000, reason)  # type: ignore[arg-type]
    if code == UnsubscribeCode.PERMISSION_DENIED:
        return Disconnect(DisconnectCode.PERMISSION_DENIED, reason)
    return Disconnect(DisconnectCode.FORCED if code < 2500 else DisconnectCode.INSUFFICIENT_STATE, reason)


def as_bus_error(error: Exception) -> BusError:
    """Return what a client is told of an error: ours as it is, any other as an internal one.

    Raises:
        Disconnect: it was told often enough that this is too fast.
    """
    if not isinstance(error, BusError):
        logger.error("a command failed", exc_info=error)
        error = InternalError()
    ERRORS.labels(str(error.code)).inc()
    if isinstance(error, TooManyRequests) and error.is_stubborn:
        raise Disconnect(DisconnectCode.TOO_MANY_REQUESTS) from error
    return error
