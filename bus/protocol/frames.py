"""Bytes on the wire: the JSON form of the Centrifugo client protocol v2, and the plain JSON form.

Commands come in joined by line ends, replies and pushes go out one message each; the caller joins them with
`join`. An event's payload, tags and info are bytes that were encoded once, when it was published, and are
embedded as they are. Fields that are zero, false or empty are left out, as the reference server does; `{}`
is ping and pong. Field names follow `definitions/client.proto` of centrifugal/protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from bus.protocol.errors import BadRequest, BusError
from bus.protocol.limits import MAX_BYTES, MAX_DEPTH, sound_lines, strict_json

#: Both directions: "are you there" from the server, "yes" from the client.
PING = b"{}"

#: A command wraps the data of its sender in this many objects.
ENVELOPE_DEPTH = 2

CommandId = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Offset = Annotated[int, Meta(ge=0)]

_to_json = msgspec.json.Encoder().encode


class SincePosition(Struct, frozen=True):
    """Where a history request starts."""

    offset: Offset = 0
    epoch: str = ""


class SubscribeRequest(Struct, frozen=True):
    """Body of `subscribe`, and of each entry of `connect.subs` (there without a channel)."""

    channel: str = ""
    token: str = ""
    recover: bool = False
    epoch: str = ""
    offset: Offset = 0
    data: Any = None
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    #: Compression of events by differences; never granted, so the answer does not name it.
    delta: str = ""
    #: A filter of events by their tags.
    tf: Any = None
    #: 0 is a stream of events, the one kind of subscription that there is here.
    type: int = 0
    #: Bits: 1 asks for numeric channel ids (never granted), 2 for error 112 instead of `recovered: false`.
    flag: int = 0

    @property
    def rejects_unrecovered(self) -> bool:
        """Whether a failed recovery is to be an error rather than a subscription without history."""
        return bool(self.flag & 2)


class ConnectRequest(Struct, frozen=True):
    """Body of `connect`."""

    token: str = ""
    data: Any = None
    subs: dict[str, SubscribeRequest] = {}
    name: str = ""
    version: str = ""
    headers: dict[str, str] = {}
    flag: int = 0


class ChannelRequest(Struct, frozen=True):
    """Body of `unsubscribe`, `presence` and `presence_stats`."""

    channel: str = ""


class PublishRequest(Struct, frozen=True):
    """Body of `publish`. Without `data` there is nothing to publish."""

    channel: str = ""
    data: Any = UNSET
    #: 0 is an event of a stream, see `SubscribeRequest.type`.
    type: int = 0


class HistoryRequest(Struct, frozen=True):
    """Body of `history`. A limit of 0 asks for the position only, a negative one for everything."""

    channel: str = ""
    limit: int = 0
    since: SincePosition | None = None
    reverse: bool = False


class RpcRequest(Struct, frozen=True):
    """Body of `rpc`."""

    method: str = ""
    data: Any = None


class SendRequest(Struct, frozen=True):
    """Body of `send`, the one command without an answer."""

    data: Any = None


class RefreshRequest(Struct, frozen=True):
    """Body of `refresh`."""

    token: str = ""


class SubRefreshRequest(Struct, frozen=True):
    """Body of `sub_refresh`."""

    channel: str = ""
    token: str = ""
    #: 0 is a new token; the other kinds belong to subscriptions that there are not.
    type: int = 0


class PingRequest(Struct, frozen=True):
    """Body of `ping`, which a client may send with an id to measure the way."""


class Command(Struct, frozen=True):
    """One message of a client. At most one body is there; none at all is a pong."""

    id: CommandId = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: ChannelRequest | None = None
    publish: PublishRequest | None = None
    presence: ChannelRequest | None = None
    presence_stats: ChannelRequest | None = None
    history: HistoryRequest | None = None
    ping: PingRequest | None = None
    send: SendRequest | None = None
    rpc: RpcRequest | None = None
    refresh: RefreshRequest | None = None
    sub_refresh: SubRefreshRequest | None = None


_Commands = list[Command]


class Malformed(Struct, frozen=True):
    """A message that is no sound command. With an id its sender can be told; without one it cannot."""

    id: int
    error: BusError


class _OnlyId(Struct):
    id: CommandId = 0


_decode_id = msgspec.json.Decoder(_OnlyId).decode


def decode(
    frame: bytes | str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH
) -> list[Command | Malformed]:
    """Split a frame into its commands, in order. Never raises: what cannot be read comes as `Malformed`.

    Args:
        frame: one WebSocket message.
        max_bytes: limit of each command.
        max_depth: limit of nesting of the data within a command.
    """
    separator = "\n" if isinstance(frame, str) else b"\n"
    lines = frame.split(separator)  # type: ignore[arg-type]
    if len(lines) > 1 and (sound := _all_sound(frame, max_bytes, max_depth)) is not None:
        return [*sound]
    return [_command(line, max_bytes, max_depth) for line in lines if line.strip()]


def _all_sound(frame: bytes | str, max_bytes: int, max_depth: int) -> Sequence[Command] | None:
    """Return all commands if nothing at all is wrong with the frame, which is quickly seen, else None."""
    try:
        data = frame if isinstance(frame, bytes) else frame.encode()
        values = sound_lines(data, max_bytes, max_depth + ENVELOPE_DEPTH)
        return None if values is None else msgspec.convert(values, _Commands)
    except (UnicodeEncodeError, msgspec.ValidationError):
        return None


def _command(line: bytes | str, max_bytes: int, max_depth: int) -> Command | Malformed:
    try:
        value = strict_json(line, max_bytes, max_depth + ENVELOPE_DEPTH)
    except BadRequest as error:
        return Malformed(id=_readable_id(line), error=error)
    try:
        return msgspec.convert(value, Command)
    except msgspec.ValidationError as error:
        return Malformed(id=_readable_id(line), error=BadRequest(str(error)))


def _readable_id(line: bytes | str) -> int:
    try:
        return _decode_id(line).id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return 0


class ClientInfo(Struct, frozen=True, omit_defaults=True):
    """Who a client is, as other clients see it."""

    user: str = ""
    client: str = ""
    conn_info: Any = UNSET
    chan_info: Any = UNSET


class SubscribeResult(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Answer to `subscribe`, and one entry of the answer to `connect`."""

    expires: bool = False
    #: Seconds.
    ttl: int = 0
    recoverable: bool = False
    epoch: str = ""
    #: Missed events, as made by `publication`.
    publications: list[msgspec.Raw] | UnsetType = UNSET
    recovered: bool = False
    offset: int = 0
    positioned: bool = False
    data: Any = UNSET
    was_recovering: bool = False


class ConnectResult(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Answer to `connect`."""

    client: str
    version: str = ""
    expires: bool = False
    #: Seconds.
    ttl: int = 0
    data: Any = UNSET
    subs: dict[str, SubscribeResult] = {}
    #: Seconds between pings, and whether they have to be answered.
    ping: int = 0
    pong: bool = False
    session: str = ""
    node: str = ""


class RefreshResult(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Answer to `refresh`."""

    client: str
    version: str = ""
    expires: bool = False
    ttl: int = 0


class SubRefreshResult(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Answer to `sub_refresh`."""

    expires: bool = False
    ttl: int = 0


def encode(value: Any) -> bytes:
    """Encode a checked value as compact JSON. No line end is ever in it."""
    return _to_json(value)


def join(messages: Iterable[bytes]) -> bytes:
    """Join messages into one frame."""
    return b"\n".join(messages)


def publication(offset: int, payload: bytes, tags: bytes | None = None, info: bytes | None = None) -> bytes:
    """Return one event as it stands in replies and pushes. An offset of 0 (ephemeral) is left out."""
    parts = [b'{"offset":%d,"data":' % offset if offset else b'{"data":', payload]
    if tags:
        parts += (b',"tags":', tags)
    if info:
        parts += (b',"info":', info)
    parts.append(b"}")
    return b"".join(parts)


def push_publication(topic: str, published: bytes) -> bytes:
    """Return the push of an event; `published` comes from `publication`."""
    return b'{"push":{"channel":%b,"pub":%b}}' % (_to_json(topic), published)


class Published(Protocol):
    """An event, as far as subscribers are told of it."""

    @property
    def offset(self) -> int:
        """0: it is not logged."""

    @property
    def payload(self) -> bytes:
        """The event object."""

    @property
    def tags(self) -> bytes | None:
        """JSON object of strings."""

    @property
    def info(self) -> bytes | None:
        """Who has published."""


def push_publications(topic: str, events: Iterable[Published]) -> bytes:
    """Return the pushes of many events of a topic, joined: as `push_publication`, in a third of the time."""
    head = b'{"push":{"channel":%b,"pub":{' % _to_json(topic)
    parts: list[bytes] = []
    for event in events:
        parts += (head, b'"offset":%d,"data":' % event.offset if event.offset else b'"data":', event.payload)
        if event.tags:
            parts += (b',"tags":', event.tags)
        if event.info:
            parts += (b',"info":', event.info)
        parts.append(b"}}}\n")
    return b"".join(parts)[:-1]


def push_join(topic: str, info: ClientInfo) -> bytes:
    """Return the push that a client has joined."""
    return b'{"push":{"channel":%b,"join":{"info":%b}}}' % (_to_json(topic), _to_json(info))


def push_leave(topic: str, info: ClientInfo) -> bytes:
    """Return the push that a client has left."""
    return b'{"push":{"channel":%b,"leave":{"info":%b}}}' % (_to_json(topic), _to_json(info))


def push_subscribe(topic: str, result: SubscribeResult) -> bytes:
    """Return the push of a subscription that the server made. It carries a position, never events."""
    fields = {
        name: value
        for name in ("recoverable", "epoch", "offset", "positioned")
        if (value := getattr(result, name))
    }
    return b'{"push":{"channel":%b,"subscribe":%b}}' % (_to_json(topic), _to_json(fields))


def push_unsubscribe(topic: str, code: int, reason: str) -> bytes:
    """Return the push that ends a subscription. Both fields are always there: the Python SDK needs them."""
    body = {"code": int(code), "reason": reason}
    return b'{"push":{"channel":%b,"unsubscribe":%b}}' % (_to_json(topic), _to_json(body))


def push_disconnect(code: int, reason: str) -> bytes:
    """Return the push that precedes a close. Both fields are always there, as in `push_unsubscribe`."""
    return b'{"push":{"disconnect":%b}}' % _to_json({"code": int(code), "reason": reason})


def push_message(data: Any) -> bytes:
    """Return the push of a message to this one connection, outside of all topics."""
    return b'{"push":{"message":{"data":%b}}}' % _to_json(data)


def reply(command_id: int, method: str, body: bytes = b"{}") -> bytes:
    """Return the answer to a command; `body` is the encoded result."""
    return b'{"id":%d,"%b":%b}' % (command_id, method.encode(), body)


def error_reply(command_id: int, error: BusError) -> bytes:
    """Return the refusal of a command. `temporary` tells a client that the same command may be sent again."""
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.retryable:
        body["temporary"] = True
    if error.data:
        body["data"] = error.data
    return b'{"id":%d,"error":%b}' % (command_id, _to_json(body))


def history_result(publications: Iterable[bytes], epoch: str, offset: int) -> bytes:
    """Return the body of a `history` answer; the publications come from `publication`."""
    return b'{"publications":[%b],"epoch":%b,"offset":%d}' % (
        b",".join(publications),
        _to_json(epoch),
        offset,
    )


def presence_result(clients: Mapping[str, ClientInfo]) -> bytes:
    """Return the body of a `presence` answer: client id to who it is."""
    return b'{"presence":%b}' % _to_json(clients)


def presence_stats_result(clients: int, users: int) -> bytes:
    """Return the body of a `presence_stats` answer. Zeros stay: they are the answer."""
    return b'{"num_clients":%d,"num_users":%d}' % (clients, users)


def plain_event(topic: str, epoch: str, offset: int, payload: bytes) -> bytes:
    """Return an event in the plain JSON form: the event object with `topic`, `offset` and `epoch` added.

    A payload that is no object (a stock SDK may publish any JSON) is wrapped as `data` of a `message` event.
    """
    if not payload.startswith(b"{"):
        payload = b'{"event_type":"message","data":%b}' % payload
    body = payload[1:-1]
    place = b'"topic":%b,"offset":%d,"epoch":%b}' % (_to_json(topic), offset, _to_json(epoch))
    return b"{" + body + (b"," if body else b"") + place


def plain_error(error: BusError) -> bytes:
    """Return an error in the plain JSON form."""
    body = {"code": error.code, "message": error.message, **error.data}
    return _to_json({"event_type": "error", "data": body})
