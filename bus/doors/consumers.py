"""Path A: `/connection/websocket`, the Centrifugo client protocol, for every stock SDK.

    frame --> Session (what does it mean?) --> action --> here (do it) --> Session (how is that said?) -->
    frame

Answers come in the order of their commands. Publishes do not wait for each other's commit: many are under way
at once and answered in order as they come out of the log; any other command waits until those before it are
answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
from django.utils import timezone

from bus.access import credentials, revocation
from bus.access.grants import FAR, Grants
from bus.access.permissions import allows, check, rule_of
from bus.access.proofs import Proof
from bus.acks import position
from bus.conf import conf
from bus.connections import presence
from bus.doors.pipeline import Pipeline
from bus.doors.remote import METHODS
from bus.doors.sockets import Receive, Scope, Send, Socket, as_bus_error
from bus.doors.wording import connect_data, limits, position_of, subscribe_result
from bus.fanout.feeds import Form, Subscribed
from bus.faults import fault
from bus.layer import INSTANCE, VERSION, Control
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.metrics import ERRORS, RETRIES_FAILED
from bus.protocol import frames, session
from bus.protocol.errors import (
    AlreadySubscribed,
    BusError,
    Disconnect,
    DisconnectCode,
    Expired,
    TokenExpired,
    Unauthorized,
    UnrecoverablePosition,
    UnsubscribeCode,
    unsubscribe_reason,
)
from bus.protocol.frames import (
    ConnectRequest,
    ConnectResult,
    RefreshResult,
    SubRefreshResult,
    SubscribeResult,
)
from bus.protocol.positions import BEGINNING, Position
from bus.protocol.session import Session
from bus.replay import Replay

#: Seconds for which a close waits for answers under way.
SETTLE = 0.5
#: No client is believed to have given up more requests than this between two connections.
MOST_REPORTED = 100_000


class ClientSocket(Socket):
    """One client of the Centrifugo protocol."""

    form = Form.CENTRIFUGO
    transport = "centrifugo"

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self._loop = asyncio.get_running_loop()
        self._session = Session(limits(), now=self._loop.time())
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        #: Topics to which the server has subscribed it.
        self._server_side: set[str] = set()
        #: Topics whose joins and leaves it wants.
        self._watched: set[str] = set()
        self._grants = Grants(self._loop, self._grant_ended)
        self._pipeline = Pipeline(self._session, send=self._send_answers, caller=self.caller)
        #: Not set while connect is being answered.
        self._settled = asyncio.Event()
        self._settled.set()

    async def begin(self) -> None:
        """Start the clock: a client that says nothing is closed."""
        self._arm()

    async def received(self, data: str | bytes) -> None:
        """Carry out the commands of a frame, in order."""
        publishes: list[session.Publish | session.Rpc] = []
        for action in self._session.receive(data, self._loop.time()):
            if self._ending is not None:
                return
            if Pipeline.takes(action):
                publishes.append(action)
                continue
            await self._pipeline.publish(publishes)
            publishes = []
            await self._carry_out(action)
        await self._pipeline.publish(publishes)

    def goodbye(self, end: Disconnect) -> bytes | None:
        """Push the disconnect: SDKs read it there, for the reason of a close is not always told to them."""
        self._session.close(end)
        return None if int(end.code) == 1000 else frames.push_disconnect(int(end.code), end.reason)

    def stopped(self) -> None:
        """Stop the timers."""
        for timer in (self._timer, self._expiry):
            if timer is not None:
                timer.cancel()
        self._grants.clear()

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
        if not isinstance(action, session.Pong):
            await self._pipeline.drain()
        match action:
            case session.Fail(disconnect):
                raise disconnect
            case session.Reply(data, code):
                if code:
                    ERRORS.labels(str(code)).inc()
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
        """Close; connect and publishes under way are answered first, if that does not take long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE):
                await self._settled.wait()
                await self._pipeline.drain()
        await super().close(code, reason)

    async def _connect(self, action: session.Connect) -> None:
        self._settled.clear()
        try:
            await self._authenticate(action)
            fault("connect.entered")
            await self._welcome(action)
            fault("connect.answered")
        except BusError as error:
            self.queue.send(self._session.failed(action, error))
            code = DisconnectCode.SERVER_ERROR if error.retryable else DisconnectCode.BAD_REQUEST
            raise Disconnect(code, f"{code.reason}: {error.message}") from error
        finally:
            self._settled.set()

    async def _authenticate(self, action: session.Connect) -> None:
        request = action.request
        said = connect_data(request)
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
        RETRIES_FAILED.inc(min(max(said.retries_failed, 0), MOST_REPORTED))

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
            if rule_of(topic).join_leave:
                self._watched.add(topic)
            results[topic] = subscribe_result(found, since is not None)
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
        if proof is None or proof.expires_at is None or not self.can_refresh:
            return {}
        return {"expires": True, "ttl": max(1, round((proof.expires_at - timezone.now()).total_seconds()))}

    def _await_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if self.proof is not None and self.proof.expires_at is not None and self.can_refresh:
            left = (self.proof.expires_at - timezone.now() + conf().expiry_grace).total_seconds()
            end = Disconnect(DisconnectCode.EXPIRED)
            self._expiry = self._loop.call_later(min(left, FAR), lambda: self.soon(self.end(end)))

    async def _since(self, request: ConnectRequest, topic: str) -> Position | None:
        """Return where a server-made subscription begins: where the client says, or at the agent's cursor."""
        given = request.subs.get(topic)
        if given is not None and given.recover:
            return position_of(given.epoch, given.offset)
        if topic == f"agent:{self.identity.agent_id}":
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
        if not self.is_same(proof):
            raise Disconnect(DisconnectCode.INVALID_TOKEN)
        self.rights_changed(proof)
        result = RefreshResult(client=self.details.client_id, version=VERSION, **self._term())
        self.queue.send(self._session.refreshed(action, result))

    async def _subscribe(self, action: session.Subscribe) -> None:
        request = action.request
        if action.topic in self._server_side:
            # Sent in one frame with connect, before anybody could know that the server would subscribe.
            raise AlreadySubscribed
        ttl = await self._grant(action.topic, request.token)
        try:
            found = await self._read(action)
        except BaseException:
            self._grants.forget(action.topic)
            await self.unsubscribe(action.topic)
            raise
        if request.join_leave:
            self._watched.add(action.topic)
        result = subscribe_result(found, request.recover, ttl=ttl)
        self.queue.send(self._session.subscribed(action, result))
        self.hub.release(found)

    async def _read(self, action: session.Subscribe) -> Subscribed:
        """Begin to read a topic, and be seen there."""
        request = action.request
        since = position_of(request.epoch, request.offset) if request.recover else None
        found = await self.subscribe(action.topic, since)
        if request.recover and not found.recovered and request.rejects_unrecovered:
            raise UnrecoverablePosition
        await self.join(action.topic)
        return found

    async def _grant(self, topic: str, token: str) -> int:
        """Check the right to read a topic; return for how many seconds a token grants it, 0: without end."""
        revoked = await revocation.arecent()
        return self._grants.take(self.identity, topic, token, client=self.details.client_id, revoked=revoked)

    def _grant_ended(self, topic: str) -> None:
        self.let_go(topic, UnsubscribeCode.EXPIRED)

    @property
    def can_refresh(self) -> bool:
        """Whether its end is watched here, a grace later, for a new token may come."""
        return self.proof is not None and self.proof.identity.kind == "token"

    def may_read(self, topic: str) -> bool:
        """Tell whether it may go on to read a topic."""
        return super().may_read(topic) or allows(self.identity, "subscribe", topic, by_token=self._grants)

    def rights_changed(self, proof: Proof) -> None:
        """Go on with other rights, until another time."""
        super().rights_changed(proof)
        self._await_expiry()

    def tokens_revoked(self, revoked: revocation.Revocations) -> None:
        """Leave the topics whose subscription tokens were taken back."""
        for topic in self._grants.revoked(revoked, self.identity):
            self.let_go(topic, UnsubscribeCode.PERMISSION_DENIED)

    async def take_in(self, topic: str, since: Position | None) -> None:
        """Subscribe the client to a topic, as ordered, and tell it; a subscription of its own stays."""
        check(self.identity, "subscribe", topic)
        if topic in self._subscribed or self._ending is not None:
            return
        found = await self.subscribe(topic, since)
        self._server_side.add(topic)
        if rule_of(topic).join_leave:
            self._watched.add(topic)
        # The push carries a position and no events: those that were missed follow it.
        result = subscribe_result(found, False)
        if since is not None and found.recovered:
            result = msgspec.structs.replace(result, offset=since.offset)
        self.queue.send(self._session.server_subscribed(topic, result))
        found.subscription.send_events(found.events)
        self.hub.release(found)
        await self.join(topic)

    async def _sub_refresh(self, action: session.SubRefresh) -> None:
        ttl = await self._grant(action.topic, action.token)
        result = SubRefreshResult(expires=bool(ttl), ttl=ttl)
        self.queue.send(self._session.sub_refreshed(action, result))

    async def _unsubscribe(self, action: session.Unsubscribe) -> None:
        self._forget(action.topic)
        await self.unsubscribe(action.topic)
        self.queue.send(self._session.unsubscribed(action))

    def _forget(self, topic: str) -> None:
        self._watched.discard(topic)
        self._server_side.discard(topic)
        self._grants.forget(topic)

    def unsubscribed(self, topic: str, code: int) -> None:
        """Tell the client that the server has ended a subscription."""
        super().unsubscribed(topic, code)
        server_side = topic in self._server_side
        self._forget(topic)
        if server_side and int(code) >= 2500:
            # No SDK subscribes again to what the server had subscribed; a new connection does.
            self.soon(self.end(Disconnect(DisconnectCode.INSUFFICIENT_STATE)))
            return
        self.queue.send(self._session.server_unsubscribed(topic, int(code), unsubscribe_reason(code)))

    def somebody_came_or_went(self, order: Control) -> None:
        """Tell of joins and leaves, where the client asked for them."""
        if order.topic not in self._watched or not order.data or order.client_id == self.details.client_id:
            return
        info = msgspec.json.decode(order.data, type=frames.ClientInfo)
        push = frames.push_join if order.kind == "join" else frames.push_leave
        self.queue.send(push(order.topic, info))

    async def _presence(self, action: session.Presence) -> None:
        check(self.identity, "presence", action.topic, by_token=self._grants)
        self.queue.send(self._session.presence(action, await presence.clients(action.topic)))

    async def _presence_stats(self, action: session.PresenceStats) -> None:
        check(self.identity, "presence", action.topic, by_token=self._grants)
        clients = await presence.clients(action.topic)
        users = len({info.user for info in clients.values()})
        self.queue.send(self._session.presence_stats(action, len(clients), users))

    async def _history(self, action: session.History) -> None:
        check(self.identity, "history", action.topic, by_token=self._grants)
        request = action.request
        since = position_of(request.since.epoch, request.since.offset) if request.since else None
        replay = Replay(event_log(), page=conf().replay_page)
        page = await replay.history(action.topic, since=since, limit=request.limit, reverse=request.reverse)
        found = [frames.publication(e.offset, e.payload, e.tags, e.info) for e in page.events]
        self.queue.send(self._session.history(action, found, page.epoch, page.last_offset))

    async def _rpc(self, action: session.Rpc) -> None:
        answer = await METHODS.call(self.caller(), action.method, action.data)
        self.queue.send(self._session.called(action, answer))

    async def send_json(self, data: Any) -> None:
        """Send a message outside of all topics."""
        self.queue.send(frames.push_message(data))

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
