"""Between the words of the Centrifugo protocol and those of the bus: requests read, answers put together.

Used by `bus.doors.consumers` alone; nothing here does anything. What a client may say of itself, where it
stands, and what it is told of a subscription.
"""

from __future__ import annotations

import msgspec

from bus.conf import conf
from bus.fanout.feeds import Subscribed, publication
from bus.protocol.errors import Disconnect, DisconnectCode
from bus.protocol.frames import ConnectRequest, SubscribeResult
from bus.protocol.positions import Position
from bus.protocol.session import SessionLimits


class ConnectData(msgspec.Struct):
    """What a client may say of itself when it connects."""

    agent_id: str = ""
    session_id: str | None = None
    task_id: str | None = None
    #: Requests that it gave up after its last retry, since it was connected before.
    retries_failed: int = 0


def connect_data(request: ConnectRequest) -> ConnectData:
    """Return what the client says of itself; SDKs send any JSON there, so what is not ours is left alone.

    Raises:
        Disconnect: a field of ours has another type.
    """
    try:
        return msgspec.convert(request.data or {}, ConnectData)
    except msgspec.ValidationError as error:
        raise Disconnect(DisconnectCode.BAD_REQUEST, f"bad request: {error}") from None


def limits() -> SessionLimits:
    """Return what one client may do, by the settings."""
    options = conf()
    return SessionLimits(
        max_bytes=options.max_message_bytes,
        max_subscriptions=options.max_subscriptions,
        command_rate=options.command_rate,
        command_burst=options.command_burst,
        ping_interval=options.ping_interval.total_seconds(),
        pong_timeout=options.pong_timeout.total_seconds(),
    )


def position_of(epoch: str, offset: int) -> Position:
    """Return a client's position. Our answers name an epoch, so one without can only be a beginning."""
    return Position(epoch=epoch or ("none" if offset else ""), offset=offset)


def subscribe_result(found: Subscribed, was_recovering: bool, *, ttl: int = 0) -> SubscribeResult:
    """Return what a client is told of its subscription, with the first of what it has missed.

    Args:
        found: what the hub says.
        was_recovering: whether it came with a position.
        ttl: for how many seconds its token is good; 0: there is no end.
    """
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
