"""Commands about topics: publishing, the log, who is there, and remote calls.

Each takes who asks and what was said, and returns the `result`; what is refused raises `BusError`. Rights are
those of the topic's rule, as at every other door.
"""

from __future__ import annotations

import asyncio
import binascii
from base64 import b64decode
from typing import Any

import msgspec

from bus import publishing, retention
from bus.access.permissions import Identity, check
from bus.api.base import error_body
from bus.api.callers import MANAGE_TOPICS, reach, require
from bus.api.shapes import (
    MAX_CHANNELS,
    BroadcastRequest,
    ChannelRequest,
    Content,
    HistoryRequest,
    PublishRequest,
    RpcRequest,
)
from bus.conf import conf
from bus.connections import presence as leases
from bus.doors.remote import METHODS, Caller
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.protocol import frames
from bus.protocol.errors import BadRequest, BusError, LimitExceeded, NotAvailable
from bus.protocol.frames import ClientInfo
from bus.protocol.limits import strict_json
from bus.protocol.positions import Position
from bus.replay import Replay

#: Events in one answer.
MAX_EVENTS = 1_000


async def publish(by: Identity, said: PublishRequest) -> dict[str, Any]:
    """Publish an event; the answer comes after the commit. With a key it may be asked again."""
    return await _publish(by, said.channel, _data(said), said)


async def broadcast(by: Identity, said: BroadcastRequest) -> dict[str, Any]:
    """Publish the same to many topics, each by itself: some may be refused while others are stored."""
    if not said.channels:
        raise BadRequest("channels: name at least one")
    if len(said.channels) > MAX_CHANNELS:
        raise LimitExceeded(f"a broadcast goes to at most {MAX_CHANNELS} channels")
    data = _data(said)
    places = [_try_to_publish(by, channel, data, said) for channel in said.channels]
    return {"responses": await asyncio.gather(*places)}


async def _try_to_publish(by: Identity, channel: str, data: Any, said: Content) -> dict[str, Any]:
    try:
        return {"result": await _publish(by, channel, data, said)}
    except BusError as error:
        return error_body(error)


async def _publish(by: Identity, channel: str, data: Any, said: Content) -> dict[str, Any]:
    rule = check(by, "publish", channel)
    is_logged = rule.delivery != "ephemeral"
    if said.skip_history and is_logged:
        raise NotAvailable("skip_history: the events of this topic are logged")
    if said.idempotency_key and not is_logged:
        raise NotAvailable("idempotency_key: this topic is not logged, so it remembers no keys")
    place = await publishing.apublish_verbatim(
        channel, data, said.idempotency_key or None, by=by, tags=said.tags
    )
    found: dict[str, Any] = {"offset": place.offset, "epoch": place.epoch}
    return {**found, "duplicate": True} if place.duplicate else found


def _data(said: Content) -> Any:
    """Return what is to be published. Raises `BadRequest` and `NotAvailable`."""
    if said.delta or said.version or said.version_epoch:
        raise NotAvailable("delta and version are not offered")
    if "end" in (said.tags or {}):
        raise BadRequest("tags.end: a topic is ended with the call bus.end")
    if said.b64data:
        if said.data is not None:
            raise BadRequest("data or b64data, not both")
        return _decoded(said.b64data)
    if "data" not in said.model_fields_set:
        raise BadRequest("data: say what to publish")
    return said.data


def _decoded(text: str) -> Any:
    try:
        raw = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("b64data: not base64") from None
    try:
        return strict_json(raw, conf().max_message_bytes)
    except BadRequest as error:
        raise BadRequest(f"b64data: events are JSON: {error.message}") from None


async def history(by: Identity, said: HistoryRequest) -> dict[str, Any]:
    """Read the log: 112 if what follows `since` is gone. All of a long topic takes several requests."""
    rule = check(by, "history", said.channel)
    if rule.delivery == "ephemeral":
        raise NotAvailable("this topic is not logged")
    since = Position(epoch=said.since.epoch, offset=said.since.offset) if said.since else None
    page = await Replay(event_log(), page=MAX_EVENTS).history(
        said.channel, since=since, limit=said.limit or 0, reverse=bool(said.reverse)
    )
    found = [msgspec.Raw(frames.publication(e.offset, e.payload, e.tags, e.info)) for e in page.events]
    return {"publications": found, "offset": page.last_offset, "epoch": page.epoch}


async def history_remove(by: Identity, said: ChannelRequest) -> dict[str, Any]:
    """Forget all events of a topic. Offsets go on; who stood before the end cannot recover and is told so."""
    require(by, MANAGE_TOPICS)
    reach(by, said.channel)
    await in_thread(_forget, said.channel)
    return {}


def _forget(topic: str) -> None:
    retention.trim(topic, max_events=0)


async def presence(by: Identity, said: ChannelRequest) -> dict[str, Any]:
    """Tell who is there, on all servers. 108 where the topic's rule keeps no presence."""
    return {"presence": await _present(by, said.channel)}


async def presence_stats(by: Identity, said: ChannelRequest) -> dict[str, Any]:
    """Tell how many are there, on all servers."""
    clients = await _present(by, said.channel)
    return {"num_clients": len(clients), "num_users": len({info.user for info in clients.values()})}


async def _present(by: Identity, topic: str) -> dict[str, ClientInfo]:
    check(by, "presence", topic)
    return await leases.clients(topic)


async def rpc(by: Identity, said: RpcRequest) -> dict[str, Any]:
    """Call a method `bus.*`: publish with an envelope, end a topic, acknowledge, ask who one is."""
    name = by.agent_id or by.user_id
    caller = Caller(
        identity=by, info=ClientInfo(user=name), name=name, session_id="", check_generation=lambda: None
    )
    return {"data": await METHODS.call(caller, said.method, said.params)}
