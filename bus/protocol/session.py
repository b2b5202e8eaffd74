"""The state of one client that speaks the Centrifugo protocol, without I/O.

    frame --> Session.receive --> actions --> (driver: log, hub, ...) --> Session.subscribed, ... --> bytes

`receive` turns a frame into actions; the driver carries them out one after the other, in order, and sends
the bytes that the matching answer method returns. That order is the promise of the protocol: the first
command is connect, and answers come in the order of their commands. After `Fail`, or once `is_closed` is
true, the driver closes and carries out nothing more. Time comes in as seconds of any steady clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from msgspec import UNSET
from msgspec.structs import astuple

from bus.protocol import frames
from bus.protocol.actions import (
    Action,
    Connect,
    Fail,
    History,
    Ping,
    Pong,
    Presence,
    PresenceStats,
    Publish,
    Refresh,
    Reply,
    Request,
    Rpc,
    Send,
    SubRefresh,
    Subscribe,
    Unsubscribe,
)
from bus.protocol.errors import (
    AlreadySubscribed,
    BadRequest,
    BusError,
    Disconnect,
    DisconnectCode,
    LimitExceeded,
    MethodNotFound,
    NotAvailable,
    TooManyRequests,
)
from bus.protocol.frames import (
    ClientInfo,
    Command,
    ConnectRequest,
    ConnectResult,
    HistoryRequest,
    Malformed,
    RefreshResult,
    SubRefreshResult,
    SubscribeRequest,
    SubscribeResult,
)
from bus.protocol.limits import MAX_BYTES, MAX_DEPTH, TokenBucket
from bus.protocol.topics import is_topic

__all__ = [
    "Action",
    "Connect",
    "Fail",
    "History",
    "Ping",
    "Pong",
    "Presence",
    "PresenceStats",
    "Publish",
    "Refresh",
    "Reply",
    "Request",
    "Rpc",
    "Send",
    "Session",
    "SessionLimits",
    "SubRefresh",
    "Subscribe",
    "Unsubscribe",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """What one client may do. Durations are seconds here, for they are compared with `now`."""

    max_bytes: int = MAX_BYTES
    max_depth: int = MAX_DEPTH
    max_subscriptions: int = 128
    #: Commands a second and at once.
    command_rate: float = 500.0
    command_burst: int = 2_000
    #: So many more commands refused with 111 than let pass, and the connection is closed with 3013.
    refusals: int = 200
    #: 25 s: below the 30 s idle cut of common proxies.
    ping_interval: float = 25.0
    pong_timeout: float = 8.0
    #: A client that has not connected by then is closed with 3502.
    connect_timeout: float = 15.0


class _State(Enum):
    NEW = auto()
    CONNECTING = auto()
    CONNECTED = auto()
    CLOSED = auto()


class Session:
    """One client from its first frame to its last.

    Args:
        limits: what it may do.
        now: seconds of a steady clock, the same as in every later call.
    """

    def __init__(self, limits: SessionLimits, *, now: float) -> None:
        self.limits = limits
        self._state = _State.NEW
        #: Topic to the id of the subscribe that holds it; 0 where the server subscribed.
        self._topics: dict[str, int] = {}
        self._bucket = TokenBucket(rate=limits.command_rate, burst=limits.command_burst, now=now)
        self._refused = 0
        self._opened_at = now
        self._ping_at = now
        #: When the client must have answered the last ping, or None when it has.
        self._pong_by: float | None = None

    @property
    def is_connected(self) -> bool:
        """Whether connect was answered and the connection goes on."""
        return self._state is _State.CONNECTED

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is to be carried out."""
        return self._state is _State.CLOSED

    @property
    def topics(self) -> frozenset[str]:
        """Topics that are subscribed, or about to be."""
        return frozenset(self._topics)

    def is_current(self, action: Subscribe) -> bool:
        """Tell whether `action` still holds its topic; if not, the server subscribed: refuse it with 105."""
        return self._topics.get(action.topic) == action.id

    def receive(self, frame: bytes | str, now: float) -> list[Action]:
        """Turn a frame into what has to be done, in order. After a `Fail` nothing follows."""
        actions: list[Action] = []
        if self.is_closed:
            return actions
        for command in frames.decode(frame, max_bytes=self.limits.max_bytes, max_depth=self.limits.max_depth):
            action = self._action(command, now)
            actions.append(action)
            if isinstance(action, Fail):
                break
        return actions

    def _action(self, command: Command | Malformed, now: float) -> Action:
        try:
            if isinstance(command, Malformed):
                raise command.error
            method = _method(command)
            self._check_order(method)
            if method is None:
                return self._pong(now)
            self._check_rate(now)
            return self._request(method, command)
        except BusError as error:
            return self._refusal(command.id, error)
        except Disconnect as end:
            return self.close(end)

    def _check_order(self, method: str | None) -> None:
        if (self._state is _State.NEW) is not (method == "connect"):
            raise Disconnect(DisconnectCode.BAD_REQUEST)

    def _check_rate(self, now: float) -> None:
        wait = self._bucket.take(now)
        if not wait:
            # One by one: of a flood a few always pass, and would clear the count of all that did not.
            self._refused = max(0, self._refused - 1)
            return
        self._refused += 1
        if self._refused > self.limits.refusals:
            raise Disconnect(DisconnectCode.TOO_MANY_REQUESTS)
        raise TooManyRequests(retry_after=wait)

    def _refusal(self, command_id: int, error: BusError) -> Action:
        """Answer with the error, or close: before connect, and where no id says which command it was."""
        if self._state is _State.NEW or not command_id:
            rate = isinstance(error, TooManyRequests)
            code = DisconnectCode.TOO_MANY_REQUESTS if rate else DisconnectCode.BAD_REQUEST
            return self.close(Disconnect(code, f"{code.reason}: {error.message}"))
        return Reply(frames.error_reply(command_id, error), error.code)

    def _request(self, method: str, command: Command) -> Action:
        if method == "send":
            return Send(getattr(command, method).data)
        if not command.id:
            raise BadRequest("a command needs an id")
        build: Callable[[Session, int, Any], Action] = _BUILDERS[method]
        return build(self, command.id, getattr(command, method))

    def _connect(self, command_id: int, request: ConnectRequest) -> Action:
        if len(request.subs) > self.limits.max_subscriptions:
            raise Disconnect(DisconnectCode.TOPIC_LIMIT)
        for topic in request.subs:
            _topic(topic)
        self._state = _State.CONNECTING
        return Connect(command_id, request)

    def _subscribe(self, command_id: int, request: SubscribeRequest) -> Action:
        topic = _topic(request.channel)
        _require_stream(request.type)
        if request.tf is not None:
            # Without it the client would get events that it believes to be left out.
            raise NotAvailable("filters by tags are not available")
        if topic in self._topics:
            raise AlreadySubscribed
        if len(self._topics) >= self.limits.max_subscriptions:
            raise LimitExceeded(f"more than {self.limits.max_subscriptions} subscriptions")
        self._topics[topic] = command_id
        return Subscribe(command_id, topic, request)

    def _unsubscribe(self, command_id: int, request: frames.ChannelRequest) -> Action:
        topic = _topic(request.channel)
        self._topics.pop(topic, None)
        return Unsubscribe(command_id, topic)

    def _publish(self, command_id: int, request: frames.PublishRequest) -> Action:
        if request.data is UNSET:
            raise BadRequest("publish needs data")
        _require_stream(request.type)
        return Publish(command_id, _topic(request.channel), request.data)

    def _presence(self, command_id: int, request: frames.ChannelRequest) -> Action:
        return Presence(command_id, _topic(request.channel))

    def _presence_stats(self, command_id: int, request: frames.ChannelRequest) -> Action:
        return PresenceStats(command_id, _topic(request.channel))

    def _history(self, command_id: int, request: HistoryRequest) -> Action:
        return History(command_id, _topic(request.channel), request)

    def _rpc(self, command_id: int, request: frames.RpcRequest) -> Action:
        return Rpc(command_id, request.method, request.data)

    def _refresh(self, command_id: int, request: frames.RefreshRequest) -> Action:
        return Refresh(command_id, request.token)

    def _sub_refresh(self, command_id: int, request: frames.SubRefreshRequest) -> Action:
        topic = _topic(request.channel)
        if topic not in self._topics:
            raise BadRequest("not subscribed")
        _require_stream(request.type)
        return SubRefresh(command_id, topic, request.token)

    def _ping(self, command_id: int, _: frames.PingRequest) -> Action:
        return Reply(frames.reply(command_id, "ping"))

    def _pong(self, now: float) -> Action:
        """Take the answer to a ping. Only unasked ones count against the rate."""
        if self._pong_by is None:
            self._check_rate(now)
        self._pong_by = None
        return Pong()

    # Answers: each returns the bytes to send.

    def connected(self, action: Connect, result: ConnectResult, now: float) -> bytes:
        """Answer connect. The topics in `result.subs` are subscribed from now on; pings start."""
        self._state = _State.CONNECTED
        self._ping_at = now
        for topic in result.subs:
            self._topics[topic] = 0
        return frames.reply(action.id, "connect", frames.encode(result))

    def subscribed(self, action: Subscribe, result: SubscribeResult) -> bytes:
        """Answer subscribe."""
        return frames.reply(action.id, "subscribe", frames.encode(result))

    def unsubscribed(self, action: Unsubscribe) -> bytes:
        """Answer unsubscribe."""
        return frames.reply(action.id, "unsubscribe")

    def published(self, action: Publish) -> bytes:
        """Answer publish. To be called after the commit, never before."""
        return frames.reply(action.id, "publish")

    def presence(self, action: Presence, clients: Mapping[str, ClientInfo]) -> bytes:
        """Answer presence: client id to who it is."""
        return frames.reply(action.id, "presence", frames.presence_result(clients))

    def presence_stats(self, action: PresenceStats, clients: int, users: int) -> bytes:
        """Answer presence_stats."""
        return frames.reply(action.id, "presence_stats", frames.presence_stats_result(clients, users))

    def history(self, action: History, publications: Iterable[bytes], epoch: str, offset: int) -> bytes:
        """Answer history; publications come from `frames.publication`, `offset` is the top of the topic."""
        return frames.reply(action.id, "history", frames.history_result(publications, epoch, offset))

    def called(self, action: Rpc, data: Any) -> bytes:
        """Answer rpc."""
        return frames.reply(action.id, "rpc", frames.encode({"data": data}))

    def refreshed(self, action: Refresh, result: RefreshResult) -> bytes:
        """Answer refresh."""
        return frames.reply(action.id, "refresh", frames.encode(result))

    def sub_refreshed(self, action: SubRefresh, result: SubRefreshResult) -> bytes:
        """Answer sub_refresh."""
        return frames.reply(action.id, "sub_refresh", frames.encode(result))

    def failed(self, action: Request, error: BusError) -> bytes:
        """Answer with an error. A failed subscribe frees its topic; a failed connect closes the session."""
        if isinstance(action, Connect):
            self._state = _State.CLOSED
        elif isinstance(action, Subscribe) and self.is_current(action):
            del self._topics[action.topic]
        return frames.error_reply(action.id, error)

    # What the server does unasked.

    def server_subscribed(self, topic: str, result: SubscribeResult) -> bytes:
        """Subscribe the client to a topic while it is connected; returns the push."""
        self._topics[topic] = 0
        return frames.push_subscribe(topic, result)

    def server_unsubscribed(self, topic: str, code: int, reason: str) -> bytes:
        """End a subscription; returns the push. From 2500 the client subscribes again by itself."""
        self._topics.pop(topic, None)
        return frames.push_unsubscribe(topic, code, reason)

    def close(self, end: Disconnect) -> Fail:
        """Close the session; the driver pushes `frames.push_disconnect` and closes the socket."""
        self._state = _State.CLOSED
        return Fail(end)

    def due(self, now: float) -> Ping | Fail | None:
        """Return what time alone asks for: a ping, the end of a silent client, or nothing yet."""
        if self._state is _State.CLOSED or now < self.next_due():
            return None
        if self._state is not _State.CONNECTED:
            return self.close(Disconnect(DisconnectCode.STALE))
        if self._pong_by is not None and now >= self._pong_by:
            return self.close(Disconnect(DisconnectCode.NO_PONG))
        self._ping_at = now
        if self._pong_by is None:
            self._pong_by = now + self.limits.pong_timeout
        return Ping()

    def next_due(self) -> float:
        """Return the time at which `due` has to be asked next."""
        if self._state is not _State.CONNECTED:
            return self._opened_at + self.limits.connect_timeout
        next_ping = self._ping_at + self.limits.ping_interval
        return next_ping if self._pong_by is None else min(self._pong_by, next_ping)


_METHODS = tuple(name for name in Command.__struct_fields__ if name != "id")

_BUILDERS: Mapping[str, Any] = {name: getattr(Session, f"_{name}") for name in _METHODS if name != "send"}


def _method(command: Command) -> str | None:
    """Return the name of the one body of a command, or None for a pong."""
    bodies = astuple(command)[1:]
    given = len(bodies) - bodies.count(None)
    if given > 1:
        raise BadRequest("more than one command in a message")
    if not given and command.id:
        raise MethodNotFound
    return _METHODS[next(place for place, body in enumerate(bodies) if body is not None)] if given else None


def _require_stream(kind: int) -> None:
    if kind:
        raise NotAvailable("a topic is a stream of events, there is no other kind")


def _topic(name: str) -> str:
    if not is_topic(name):
        raise BadRequest(f"not a topic name: {name[:40]!r}")
    return name
