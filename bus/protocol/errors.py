"""Errors of the bus, and the codes by which a client recognises them.

    BusError                    code, message, retryable
    ├── InternalError           100, retryable
    ├── Unauthorized            101
    ├── UnknownTopic            102
    ├── PermissionDenied        103
    ├── MethodNotFound          104
    ├── AlreadySubscribed       105
    ├── LimitExceeded           106
    ├── BadRequest              107
    ├── NotAvailable            108
    ├── TokenExpired            109
    ├── Expired                 110
    ├── TooManyRequests         111, retryable, knows after how many seconds
    ├── UnrecoverablePosition   112
    ├── TopicEnded              400
    ├── StaleGeneration         401
    └── LogUnavailable          402, retryable
    Disconnect                  code, reason: the connection must end

Codes up to 399 belong to the Centrifugo client protocol, 400 to 1999 are ours. Edges turn these into
replies; nobody else does.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar


class ErrorCode(IntEnum):
    """Code of an error reply: the request failed, the connection lives on."""

    INTERNAL = 100
    UNAUTHORIZED = 101
    UNKNOWN_TOPIC = 102
    PERMISSION_DENIED = 103
    METHOD_NOT_FOUND = 104
    ALREADY_SUBSCRIBED = 105
    LIMIT_EXCEEDED = 106
    BAD_REQUEST = 107
    NOT_AVAILABLE = 108
    TOKEN_EXPIRED = 109
    EXPIRED = 110
    TOO_MANY_REQUESTS = 111
    UNRECOVERABLE_POSITION = 112
    #: The topic has had its final event; a new run starts by removing it.
    TOPIC_ENDED = 400
    #: A newer connection of the same agent exists; this one may not write any more.
    STALE_GENERATION = 401
    #: The log could not commit; nothing was stored, the same request may be sent again.
    LOG_UNAVAILABLE = 402


class UnsubscribeCode(IntEnum):
    """Code of an unsubscribe push: below 2500 it is final, from 2500 the client subscribes again."""

    SERVER = 2000
    #: The task of this topic ended some time ago and nothing more will come.
    ENDED = 2100
    #: The right to read the topic was withdrawn.
    PERMISSION_DENIED = 2101
    INSUFFICIENT_STATE = 2500
    EXPIRED = 2501

    @property
    def reason(self) -> str:
        """The words sent beside the code."""
        return _UNSUBSCRIBE_REASONS[self]


class DisconnectCode(IntEnum):
    """Code of a disconnect push and of the WebSocket close: see `may_reconnect`."""

    CONNECTION_CLOSED = 3000
    SHUTDOWN = 3001
    SERVER_ERROR = 3004
    EXPIRED = 3005
    SLOW = 3008
    INSUFFICIENT_STATE = 3010
    FORCE_RECONNECT = 3011
    NO_PONG = 3012
    TOO_MANY_REQUESTS = 3013
    INVALID_TOKEN = 3500
    BAD_REQUEST = 3501
    #: Nothing was sent in the time in which a client has to connect.
    STALE = 3502
    FORCED = 3503
    CONNECTION_LIMIT = 3504
    PERMISSION_DENIED = 3507
    #: A newer connection of the same agent id took over.
    REPLACED = 4501
    TOPIC_LIMIT = 4502

    @property
    def reason(self) -> str:
        """The words sent beside the code; the JavaScript SDK reads a final code only when there are some."""
        return _DISCONNECT_REASONS[self]


def unsubscribe_reason(code: int) -> str:
    """Return the words sent beside an unsubscribe code, one that an operator made up included."""
    return _UNSUBSCRIBE_REASONS.get(code, "server unsubscribe")


_UNSUBSCRIBE_REASONS: dict[int, str] = {
    UnsubscribeCode.SERVER: "server unsubscribe",
    UnsubscribeCode.ENDED: "topic ended",
    UnsubscribeCode.PERMISSION_DENIED: "permission denied",
    UnsubscribeCode.INSUFFICIENT_STATE: "insufficient state",
    UnsubscribeCode.EXPIRED: "subscription expired",
}

_DISCONNECT_REASONS = {
    DisconnectCode.CONNECTION_CLOSED: "connection closed",
    DisconnectCode.SHUTDOWN: "shutdown",
    DisconnectCode.SERVER_ERROR: "internal server error",
    DisconnectCode.EXPIRED: "connection expired",
    DisconnectCode.SLOW: "slow",
    DisconnectCode.INSUFFICIENT_STATE: "insufficient state",
    DisconnectCode.FORCE_RECONNECT: "force reconnect",
    DisconnectCode.NO_PONG: "no pong",
    DisconnectCode.TOO_MANY_REQUESTS: "too many requests",
    DisconnectCode.INVALID_TOKEN: "invalid token",
    DisconnectCode.BAD_REQUEST: "bad request",
    DisconnectCode.STALE: "stale",
    DisconnectCode.FORCED: "force disconnect",
    DisconnectCode.CONNECTION_LIMIT: "connection limit",
    DisconnectCode.PERMISSION_DENIED: "permission denied",
    DisconnectCode.REPLACED: "replaced",
    DisconnectCode.TOPIC_LIMIT: "topic limit",
}


def may_reconnect(code: int) -> bool:
    """Tell whether a client that is closed with `code` connects again by itself.

    The rule of the Centrifugo protocol: 3500 to 3999 and 4500 to 4999 are final, every other code is not.
    """
    return not (3500 <= code <= 3999 or 4500 <= code <= 4999)


class BusError(Exception):
    """A request that failed. `code`, `message` and `retryable` go to the client as they are."""

    #: What the class means when nothing else is said.
    default_code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    default_message: ClassVar[str] = "internal server error"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self, message: str | None = None, *, code: int | None = None, retryable: bool | None = None
    ) -> None:
        self.message = self.default_message if message is None else message
        self.code = int(self.default_code if code is None else code)
        self.retryable = self.default_retryable if retryable is None else retryable
        super().__init__(self.message)

    @property
    def data(self) -> dict[str, Any]:
        """What a client may use besides the message."""
        return {}

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class InternalError(BusError):
    """Something of ours failed; the request may be sent again."""

    default_retryable = True


class Unauthorized(BusError):
    """Who is asking is not known."""

    default_code = ErrorCode.UNAUTHORIZED
    default_message = "unauthorized"


class UnknownTopic(BusError):
    """There is no such topic, and no rule by which there could be one."""

    default_code = ErrorCode.UNKNOWN_TOPIC
    default_message = "unknown channel"


class PermissionDenied(BusError):
    """The one who asks is known, and may not."""

    default_code = ErrorCode.PERMISSION_DENIED
    default_message = "permission denied"


class MethodNotFound(BusError):
    """A command or RPC method that does not exist."""

    default_code = ErrorCode.METHOD_NOT_FOUND
    default_message = "method not found"


class AlreadySubscribed(BusError):
    """A second subscription of one connection to one topic."""

    default_code = ErrorCode.ALREADY_SUBSCRIBED
    default_message = "already subscribed"


class LimitExceeded(BusError):
    """A number or size that may not grow further."""

    default_code = ErrorCode.LIMIT_EXCEEDED
    default_message = "limit exceeded"


class BadRequest(BusError):
    """The request is malformed; sending it again is of no use."""

    default_code = ErrorCode.BAD_REQUEST
    default_message = "bad request"


class NotAvailable(BusError):
    """The topic's rule does not offer this, for example history of an ephemeral topic."""

    default_code = ErrorCode.NOT_AVAILABLE
    default_message = "not available"


class TokenExpired(BusError):
    """The token is sound but its time is over; the client gets a new one and tries again."""

    default_code = ErrorCode.TOKEN_EXPIRED
    default_message = "token expired"


class Expired(BusError):
    """The connection or subscription is past its time, without a token being involved."""

    default_code = ErrorCode.EXPIRED
    default_message = "expired"


class TooManyRequests(BusError):
    """A rate limit. The same request may be sent again after `retry_after` seconds."""

    default_code = ErrorCode.TOO_MANY_REQUESTS
    default_message = "too many requests"
    default_retryable = True

    def __init__(
        self, message: str | None = None, *, retry_after: float = 1.0, is_stubborn: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        #: Whether this was said so often that nobody listens: a connection is closed then.
        self.is_stubborn = is_stubborn

    @property
    def data(self) -> dict[str, Any]:
        """The wait in seconds."""
        return {"retry_after": round(self.retry_after, 3)}


class UnrecoverablePosition(BusError):
    """The log no longer holds what follows the given position, or the topic is another one now."""

    default_code = ErrorCode.UNRECOVERABLE_POSITION
    default_message = "unrecoverable position"


class TopicEnded(BusError):
    """The topic has had its final event and takes no more."""

    default_code = ErrorCode.TOPIC_ENDED
    default_message = "topic ended"


class StaleGeneration(BusError):
    """A write by a connection that was replaced meanwhile."""

    default_code = ErrorCode.STALE_GENERATION
    default_message = "replaced by a newer connection"


class LogUnavailable(BusError):
    """The log did not commit. Nothing of the request was stored."""

    default_code = ErrorCode.LOG_UNAVAILABLE
    default_message = "log unavailable"
    default_retryable = True


class Disconnect(Exception):
    """The connection must end: push `code` and `reason`, then close with them."""

    def __init__(self, code: DisconnectCode, reason: str | None = None) -> None:
        self.code = code
        #: At most 123 bytes: more does not fit into a WebSocket close frame.
        self.reason = (code.reason if reason is None else reason).encode()[:123].decode(errors="ignore")
        super().__init__(f"{int(code)}: {self.reason}")
