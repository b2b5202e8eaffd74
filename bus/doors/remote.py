"""The remote methods `bus.*`: what the bus offers beyond the protocol of the stock SDKs.

`bus.publish`, `bus.ack`, `bus.cursor`, `bus.end` and `bus.whoami`. Every SDK can call them; the plain sockets
use the same code. Cursors belong to whoever keeps them: nobody can name another one's.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from bus import acks, publishing
from bus.access.permissions import Identity, check
from bus.cursors import CursorState
from bus.drafts import Draft, Options, draft
from bus.log import Appended
from bus.log.threads import in_thread
from bus.metrics import ACK_LATENCY
from bus.protocol.errors import BadRequest, BusError, MethodNotFound, UnknownTopic
from bus.protocol.frames import ClientInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever calls."""

    identity: Identity
    #: Who it is, as subscribers are told.
    info: ClientInfo
    #: The name of its own cursors.
    name: str
    session_id: str
    #: Raises `StaleGeneration` once it has been replaced.
    check_generation: Callable[[], None]


class PublishCall(msgspec.Struct, kw_only=True):
    """Arguments of `bus.publish`."""

    topic: str
    event_type: str
    data: Any = None
    key: str | None = None
    run_id: str | None = None
    session_id: str | None = None


class AckCall(msgspec.Struct, kw_only=True):
    """Arguments of `bus.ack`."""

    topic: str
    offset: int
    epoch: str = ""
    cursor: str = ""


class CursorCall(msgspec.Struct, kw_only=True):
    """Arguments of `bus.cursor`."""

    topic: str
    cursor: str = ""


class EndCall(msgspec.Struct, kw_only=True):
    """Arguments of `bus.end`."""

    topic: str
    status: str = "completed"
    data: Any = None
    key: str | None = None


ArgumentsT = TypeVar("ArgumentsT")


def draft_of(call: PublishCall, by: Options) -> Draft:
    """Draft the event of `bus.publish`; `by` says who publishes, and whether the call was checked."""
    said: Options = {
        "run_id": call.run_id,
        "session_id": call.session_id,
        "tags": {"key": call.key} if call.key else None,
    }
    return draft(call.topic, call.event_type, call.data, call.key, {**said, **by})


async def publish(caller: Caller, call: PublishCall) -> dict[str, Any]:
    """Publish an event and say where it is, once it is committed."""
    began = time.perf_counter()
    caller.check_generation()
    (result,) = await publishing.publish_together(
        [draft_of(call, {"by": caller.identity, "info": caller.info})]
    )
    if isinstance(result, BusError):
        raise result
    ACK_LATENCY.observe(time.perf_counter() - began)
    return place_of(result)


async def end(caller: Caller, call: EndCall) -> dict[str, Any]:
    """Publish the final event of a topic."""
    caller.check_generation()
    place = await publishing.aend(
        call.topic, call.status, call.data, call.key, by=caller.identity, info=caller.info
    )
    return place_of(place)


async def ack(caller: Caller, call: AckCall) -> dict[str, Any]:
    """Acknowledge everything up to an offset."""
    caller.check_generation()
    check(caller.identity, "subscribe", call.topic)
    consumer = _consumer(caller, call.cursor)
    owner = caller.name if call.cursor else ""
    state = await acks.aack(consumer, call.topic, call.offset, epoch=call.epoch, owner=owner)
    return _cursor(state, call.cursor or caller.name)


async def cursor(caller: Caller, call: CursorCall) -> dict[str, Any]:
    """Say how far a cursor is."""
    check(caller.identity, "subscribe", call.topic)
    state = await in_thread(acks.cursor_of, _consumer(caller, call.cursor), call.topic)
    if state is None:
        raise UnknownTopic
    return _cursor(state, call.cursor or caller.name)


async def whoami(caller: Caller, _: Any) -> dict[str, Any]:
    """Say who the caller is, as the bus sees it."""
    return {
        "client": caller.info.client,
        "user": caller.info.user,
        "agent_id": caller.identity.agent_id,
        "session_id": caller.session_id or None,
    }


def place_of(place: Appended) -> dict[str, Any]:
    """Return the place of an event as clients are told."""
    return {
        "topic": place.topic,
        "epoch": place.epoch,
        "offset": place.offset,
        "id": place.event_id,
        "duplicate": place.duplicate,
    }


def _consumer(caller: Caller, chosen: str) -> str:
    if not caller.name:
        raise BadRequest("who has no name keeps no cursor")
    return f"{caller.name}/{chosen}" if chosen else caller.name


def _cursor(state: CursorState, name: str) -> dict[str, Any]:
    return {
        "topic": state.topic,
        "cursor": name,
        "epoch": state.epoch,
        "offset": state.offset,
        "lag": state.lag,
    }


class Methods:
    """The methods by name, each with the type of its arguments."""

    def __init__(self) -> None:
        self._methods: dict[str, tuple[type, Callable[[Caller, Any], Awaitable[dict[str, Any]]]]] = {
            "bus.publish": (PublishCall, publish),
            "bus.ack": (AckCall, ack),
            "bus.cursor": (CursorCall, cursor),
            "bus.end": (EndCall, end),
            "bus.whoami": (dict, whoami),
        }

    @property
    def names(self) -> list[str]:
        """The names of all methods."""
        return list(self._methods)

    def arguments_of(self, name: str) -> type:
        """The type of the arguments of a method."""
        return self._methods[name][0]

    async def call(self, caller: Caller, name: str, data: Any) -> dict[str, Any]:
        """Call a method.

        Raises:
            MethodNotFound: there is none of that name.
            BadRequest: the arguments do not fit.
        """
        try:
            kind, method = self._methods[name]
        except KeyError:
            raise MethodNotFound from None
        return await method(caller, arguments(kind, data))


def arguments(kind: type[ArgumentsT], data: Any) -> ArgumentsT:
    """Return the arguments of a call in their type. Raises `BadRequest`."""
    try:
        return msgspec.convert(data or {}, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from None


METHODS = Methods()
