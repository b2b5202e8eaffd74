"""Path A: `/connection/websocket`, the Centrifugo client protocol, for every stock SDK.

    frame --> Session (what does it mean?) --> action --> here (do it) --> Session (how is that said?) -->
    frame

Answers come in the order of their commands. Publishes do not wait for each other's commit: many are under way
at once and answered in order as they come out of the log; any other command waits until those before it are
answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from django.utils import timezone

from bus import credentials, presence, publishing
from bus.acks import position
from bus.conf import conf
from bus.feeds import Form, publication
from bus.hub import Subscribed
from bus.layer import INSTANCE, Control
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.metrics import ACK_LATENCY
from bus.permissions import check
from bus.pipeline import Pipeline
from bus.protocol import frames, session
from bus.protocol.errors import (
    Disconnect,
    DisconnectCode,
    Expired,
    TokenExpired,
    Unauthorized,
    UnrecoverablePosition,
    UnsubscribeCode,
)
from bus.protocol.frames import (
    ConnectRequest,
    ConnectResult,
    RefreshResult,
    SubRefreshResult,
    SubscribeResult,
)
from bus.protocol.positions import BEGINNING, Position
from bus.protocol.session import Session, SessionLimits
from bus.remote import METHODS, Caller
from bus.replay import Replay
from bus.sockets import Receive, Scope, Send, Socket, as_bus_error
from bus.tokens import read_subscription_token

#: What the connect answer gives as the server's version.
VERSION = "xnai 0.1"
#: A token that has expired may still be replaced by a new one for so long (s).
EXPIRY_GRACE = 25.0
#: Seconds for which a close waits for the answer to connect.
SETTLE = 0.5
#: Methods that publish: they are pipelined as the publish command is.
PIPELINED = frozenset({"bus.publish"})


class ConnectData(msgspec.Struct):
    """What a client may say of itself when it connects."""

    agent_id: str = ""
    session_id: str | None = None
    task_id: str | None = None


class ClientSocket(Socket):
    """One client of the Centrifugo protocol."""

    form = Form.CENTRIFUGO
    transport = "centrifugo"

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self._loop = asyncio.get_running_loop()
        self._session = Session(_limits(), now=self._loop.time())
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        #: Topics to which the server has subscribed it.
        self._server_side: set[str] = set()
        #: Topics whose joins and leaves it wants.
        self._watched: set[str] = set()
        #: Subscriptions that a token granted, each with the timer of its end.
        self._granted: dict[str, asyncio.TimerHandle | None] = {}
        self._pipeline = Pipeline(self._send_answers)
        #: Not set while connect is being answered.
        self._settled = asyncio.Event()
        self._settled.set()

    async def begin(self) -> None:
        """Start the clock: a client that says nothing is closed."""
        self._arm()

    async def received(self, data: str | bytes) -> None:
        """Carry out the commands of a frame, in order."""
        for action in self._session.receive(data, self._loop.time()):
            if self._ending is not None:
                return
            await self._carry_out(action)

    def goodbye(self, end: Disconnect) -> bytes | None:
        """Push the disconnect: SDKs read it there, for the reason of a close is not always told to them."""
        self._session.close(end)
        return None if int(end.code) == 1000 else frames.push_disconnect(int(end.code), end.reason)

    def stopped(self) -> None:
        """Stop the timers."""
        for timer in (self._timer, self._expiry, *self._granted.values()):
            if timer is not None:
                timer.cancel()
        self._granted.clear()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._session.next_due(), self._on_time)

    def _on_time(self) -> None:
        due = self._session.due(self._loop.time())
        if isinstance(due, session.Fail):
            self.soon(self.end(due.disconnect))
        elif not self._session.is_closed:
            if due is not None:
                self.queue.send(frames.PING)
            self._arm()

    async def _carry_out(self, action: session.Action) -> None:
        if isinstance(action, session.Publish) or (
            isinstance(action, session.Rpc) and action.method in PIPELINED
        ):
            await self._pipeline.add(self._published(action), partial(self._word, action))
            return
        if not isinstance(action, session.Pong):
            await self._pipeline.drain()
        match action:
            case session.Fail(disconnect):
                raise disconnect
            case session.Reply(data):
                self.queue.send(data)
            case session.Pong() | session.Send():
                pass
            case session.Connect():
                await self._connect(action)
            case _:
                await self._answer(action)

    async def _answer(self, action: session.Request) -> None:
        try:
            await _HANDLERS[type(action)](self, action)
        except Disconnect:
            raise
        except Exception as error:  # noqa: BLE001  (as_bus_error logs what is not ours)
            self.queue.send(self._session.failed(action, as_bus_error(error)))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close; a client that is just connecting gets its answer first, if that does not take long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE):
                await self._settled.wait()
        await super().close(code, reason)

    async def _connect(self, action: session.Connect) -> None:
        self._settled.clear()
        try:
            await self._authenticate(action)
            await self._welcome(action)
        finally:
            self._settled.set()

    async def _authenticate(self, action: session.Connect) -> None:
        request = action.request
        said = _connect_data(request)
        try:
            proof = await credentials.prove(self.scope, request.token)
        except TokenExpired as error:
            self.queue.send(self._session.failed(action, error))
            raise Disconnect(DisconnectCode.EXPIRED, error.message) from error
        except (Unauthorized, Expired) as error:
            raise credentials.refusal_of(error) from error
        await self.enter(
            proof,
            agent_id=said.agent_id,
            session_id=said.session_id or "",
            task_id=said.task_id or "",
        )

    async def _welcome(self, action: session.Connect) -> None:
        """Subscribe the client to its own topics and answer."""
        request = action.request
        subscribed: list[Subscribed] = []
        results: dict[str, SubscribeResult] = {}
        for topic in self.own_topics():
            since = await self._since(request, topic)
            found = await self.subscribe(topic, since)
            subscribed.append(found)
            self._server_side.add(topic)
            results[topic] = _result(found, since is not None)
        self.queue.send(self._session.connected(action, self._connected(results), self._loop.time()))
        for found in subscribed:
            self.hub.release(found)
        self._arm()
        self._await_expiry()
        for topic in results:
            self.soon(self.join(topic))

    def _connected(self, subs: dict[str, SubscribeResult]) -> ConnectResult:
        options = conf()
        return ConnectResult(
            client=self.details.client_id,
            version=VERSION,
            ping=round(options.ping_interval.total_seconds()),
            pong=True,
            node=INSTANCE,
            subs=subs,
            data={"volatile": True} if options.volatile else msgspec.UNSET,
            **self._term(),
        )

    def _term(self) -> dict[str, Any]:
        """Return when a token has to be refreshed. Sessions and keys end too, but cannot be refreshed."""
        proof = self.proof
        if proof is None or proof.expires_at is None or proof.identity.kind != "token":
            return {}
        return {"expires": True, "ttl": max(1, round((proof.expires_at - timezone.now()).total_seconds()))}

    def _await_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if self.proof is not None and self.proof.expires_at is not None:
            left = (self.proof.expires_at - timezone.now()).total_seconds() + EXPIRY_GRACE
            end = Disconnect(DisconnectCode.EXPIRED)
            self._expiry = self._loop.call_later(min(left, 10**6), lambda: self.soon(self.end(end)))

    async def _since(self, request: ConnectRequest, topic: str) -> Position | None:
        """Return where a server-made subscription begins: where the client says, or at the agent's cursor."""
        given = request.subs.get(topic)
        if given is not None and given.recover:
            return _position(given.epoch, given.offset)
        if topic == f"agent:{self.identity.agent_id}" and not conf().volatile:
            # An inbox that nobody has written to is read from its beginning: its first event may come now.
            return await in_thread(position, self.name, topic) or BEGINNING
        return None

    async def _refresh(self, action: session.Refresh) -> None:
        try:
            proof = await credentials.prove({}, action.token)
        except TokenExpired:
            raise
        except (Unauthorized, Expired) as error:
            raise credentials.refusal_of(error) from error
        if proof.identity.user_id != self.identity.user_id:
            raise Disconnect(DisconnectCode.INVALID_TOKEN)
        self.proof = proof
        self._await_expiry()
        result = RefreshResult(client=self.details.client_id, version=VERSION, **self._term())
        self.queue.send(self._session.refreshed(action, result))

    async def _subscribe(self, action: session.Subscribe) -> None:
        request = action.request
        ttl = self._grant(action.topic, request.token)
        await self.join(action.topic)
        since = _position(request.epoch, request.offset) if request.recover else None
        found = await self.subscribe(action.topic, since)
        if request.recover and not found.recovered and request.rejects_unrecovered:
            await self.unsubscribe(action.topic)
            raise UnrecoverablePosition
        if request.join_leave:
            self._watched.add(action.topic)
        result = _result(found, request.recover, ttl=ttl)
        self.queue.send(self._session.subscribed(action, result))
        self.hub.release(found)

    def _grant(self, topic: str, token: str) -> int:
        """Check the right to read a topic; return for how many seconds a token grants it, 0: without end."""
        if not token:
            check(self.identity, "subscribe", topic)
            return 0
        expires_at = read_subscription_token(token, topic=topic, subject=self.identity.user_id)
        former = self._granted.pop(topic, None)
        if former is not None:
            former.cancel()
        if expires_at is None:
            return 0
        left = (expires_at - timezone.now()).total_seconds()
        end = partial(self._end_grant, topic)
        self._granted[topic] = self._loop.call_later(min(left + EXPIRY_GRACE, 10**6), end)
        return max(1, round(left))

    def _end_grant(self, topic: str) -> None:
        self.hub.unsubscribe(self, topic)
        self.unsubscribed(topic, UnsubscribeCode.EXPIRED)

    async def _sub_refresh(self, action: session.SubRefresh) -> None:
        ttl = self._grant(action.topic, action.token)
        result = SubRefreshResult(expires=bool(ttl), ttl=ttl)
        self.queue.send(self._session.sub_refreshed(action, result))

    async def _unsubscribe(self, action: session.Unsubscribe) -> None:
        self._watched.discard(action.topic)
        await self.unsubscribe(action.topic)
        self.queue.send(self._session.unsubscribed(action))

    def unsubscribed(self, topic: str, code: UnsubscribeCode) -> None:
        """Tell the client that the server has ended a subscription."""
        super().unsubscribed(topic, code)
        self._watched.discard(topic)
        if topic in self._server_side and int(code) >= 2500:
            # No SDK subscribes again to what the server had subscribed; a new connection does.
            self.soon(self.end(Disconnect(DisconnectCode.INSUFFICIENT_STATE)))
            return
        self.queue.send(self._session.server_unsubscribed(topic, int(code), code.reason))

    def somebody_came_or_went(self, order: Control) -> None:
        """Tell of joins and leaves, where the client asked for them."""
        if order.topic not in self._watched or not order.data:
            return
        info = msgspec.json.decode(order.data, type=frames.ClientInfo)
        push = frames.push_join if order.kind == "join" else frames.push_leave
        self.queue.send(push(order.topic, info))

    async def _presence(self, action: session.Presence) -> None:
        check(self.identity, "presence", action.topic)
        self.queue.send(self._session.presence(action, await presence.clients(action.topic)))

    async def _presence_stats(self, action: session.PresenceStats) -> None:
        check(self.identity, "presence", action.topic)
        clients = await presence.clients(action.topic)
        users = len({info.user for info in clients.values()})
        self.queue.send(self._session.presence_stats(action, len(clients), users))

    async def _history(self, action: session.History) -> None:
        check(self.identity, "history", action.topic)
        request = action.request
        since = _position(request.since.epoch, request.since.offset) if request.since else None
        replay = Replay(event_log(), page=conf().replay_page)
        page = await replay.history(action.topic, since=since, limit=request.limit, reverse=request.reverse)
        found = [frames.publication(e.offset, e.payload, e.tags, e.info) for e in page.events]
        self.queue.send(self._session.history(action, found, page.epoch, page.last_offset))

    async def _rpc(self, action: session.Rpc) -> None:
        answer = await METHODS.call(self._caller(), action.method, action.data)
        self.queue.send(self._session.called(action, answer))

    def _caller(self) -> Caller:
        return Caller(
            identity=self.identity,
            info=self.info,
            name=self.name,
            session_id=self.details.session_id,
            check_generation=self.check_generation,
        )

    async def send_json(self, data: Any) -> None:
        """Send a message outside of all topics."""
        self.queue.send(frames.push_message(data))

    def _published(self, action: session.Publish | session.Rpc) -> Coroutine[Any, Any, Any]:
        if isinstance(action, session.Rpc):
            return METHODS.call(self._caller(), action.method, action.data)
        return self._publish(action)

    async def _publish(self, action: session.Publish) -> None:
        began = time.perf_counter()
        self.check_generation()
        await publishing.apublish_verbatim(action.topic, action.data, by=self.identity, info=self.info)
        ACK_LATENCY.observe(time.perf_counter() - began)

    def _word(self, action: session.Publish | session.Rpc, task: asyncio.Task[Any]) -> bytes:
        error = task.exception()
        if isinstance(error, Exception):
            return self._session.failed(action, as_bus_error(error))
        if isinstance(action, session.Rpc):
            return self._session.called(action, task.result())
        return self._session.published(action)

    def _send_answers(self, words: bytes) -> None:
        if self._ending is None:
            self.queue.send(words)


_HANDLERS: dict[type, Callable[[ClientSocket, Any], Awaitable[None]]] = {
    session.Subscribe: ClientSocket._subscribe,
    session.Unsubscribe: ClientSocket._unsubscribe,
    session.Presence: ClientSocket._presence,
    session.PresenceStats: ClientSocket._presence_stats,
    session.History: ClientSocket._history,
    session.Rpc: ClientSocket._rpc,
    session.Refresh: ClientSocket._refresh,
    session.SubRefresh: ClientSocket._sub_refresh,
}


def _limits() -> SessionLimits:
    options = conf()
    return SessionLimits(
        max_bytes=options.max_message_bytes,
        max_subscriptions=options.max_subscriptions,
        command_rate=options.command_rate,
        command_burst=options.command_burst,
        ping_interval=options.ping_interval.total_seconds(),
        pong_timeout=options.pong_timeout.total_seconds(),
    )


def _connect_data(request: ConnectRequest) -> ConnectData:
    """Return what the client says of itself; SDKs send any JSON there, so what is not ours is left alone."""
    try:
        return msgspec.convert(request.data or {}, ConnectData)
    except msgspec.ValidationError as error:
        raise Disconnect(DisconnectCode.BAD_REQUEST, f"bad request: {error}") from None


def _position(epoch: str, offset: int) -> Position:
    """Return a client's position. Our answers name an epoch, so one without can only be a beginning."""
    return Position(epoch=epoch or ("none" if offset else ""), offset=offset)


def _result(found: Subscribed, was_recovering: bool, *, ttl: int = 0) -> SubscribeResult:
    is_logged = found.subscription.feed.is_logged
    missed = [msgspec.Raw(publication(event)) for event in found.events]
    return SubscribeResult(
        expires=bool(ttl),
        ttl=ttl,
        recoverable=is_logged,
        positioned=is_logged,
        epoch=found.epoch,
        offset=found.offset,
        publications=missed or msgspec.UNSET,
        was_recovering=was_recovering,
        recovered=was_recovering and found.recovered,
    )
