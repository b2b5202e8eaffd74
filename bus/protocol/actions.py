"""What a frame asks the driver of a session to do.

`session.Session.receive` returns these in order. Those with an id are requests: each wants one answer, by the
method of `Session` that its text names, or by `failed`. Topics in them are well-formed names; data has passed
`limits.strict_json`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from msgspec import Struct

from bus.protocol.errors import Disconnect
from bus.protocol.frames import ConnectRequest, HistoryRequest, SubscribeRequest


class Connect(Struct, frozen=True):
    """Authenticate, then answer with `connected`."""

    id: int
    request: ConnectRequest


class Subscribe(Struct, frozen=True):
    """Check the right and the position, subscribe, then answer with `subscribed`."""

    id: int
    topic: str
    request: SubscribeRequest


class Unsubscribe(Struct, frozen=True):
    """Let go of a topic, subscribed or not, then answer with `unsubscribed`."""

    id: int
    topic: str


class Publish(Struct, frozen=True):
    """Publish `data` as it is, then answer with `published` once it is committed."""

    id: int
    topic: str
    data: Any


class Presence(Struct, frozen=True):
    """Answer with `presence`."""

    id: int
    topic: str


class PresenceStats(Struct, frozen=True):
    """Answer with `presence_stats`."""

    id: int
    topic: str


class History(Struct, frozen=True):
    """Read the log, answer with `history`."""

    id: int
    topic: str
    request: HistoryRequest


class Rpc(Struct, frozen=True):
    """Call a method, answer with `called`."""

    id: int
    method: str
    data: Any


class Refresh(Struct, frozen=True):
    """Take a new connection token, answer with `refreshed`."""

    id: int
    token: str


class SubRefresh(Struct, frozen=True):
    """Take a new subscription token, answer with `sub_refreshed`."""

    id: int
    topic: str
    token: str


class Send(Struct, frozen=True):
    """A message without an answer."""

    data: Any


class Pong(Struct, frozen=True):
    """The client is there."""


class Reply(Struct, frozen=True):
    """Send these bytes; there is nothing else to do."""

    data: bytes
    #: Error code, if they are a refusal.
    code: int = 0


class Fail(Struct, frozen=True):
    """Push the disconnect and close."""

    disconnect: Disconnect


Request: TypeAlias = (
    Connect
    | Subscribe
    | Unsubscribe
    | Publish
    | Presence
    | PresenceStats
    | History
    | Rpc
    | Refresh
    | SubRefresh
)
Action: TypeAlias = Request | Send | Pong | Reply | Fail


class Ping(Struct, frozen=True):
    """Send `frames.PING`."""
