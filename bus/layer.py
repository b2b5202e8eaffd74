"""Between processes: hints that something was stored, and orders about connections.

    committed --> hint() --> this process's hub at once, every other process through the Channels layer

The layer is a hint and never the truth: whatever is lost on it, the hubs find in the log within a second. So
nothing here raises, nothing waits longer than `BUS["LAYER_TIMEOUT"]`, and a breaker keeps a dead Redis from
costing every publish that second. A server process attaches a supervised `bus.link.Link`; any other process
(a worker, a command) sends through one background thread. What travels is JSON of the few types below;
anything else is ignored.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from bus.conf import conf
from bus.courier import Courier
from bus.log import StoredEvent
from bus.metrics import HINTS, PUBLISHED
from bus.protocol.topics import group_name, split

#: The group of all server processes.
EVERYONE = "bus.everyone"

#: What servers call their version.
VERSION = "xnai 0.1"

#: Name of this process in rows and messages; no two processes ever share one.
INSTANCE = f"{socket.gethostname()[:60]}.{os.getpid()}.{secrets.token_hex(4)}"


class LiveEvent(Struct, frozen=True, gc=False):
    """What a subscriber gets to see of an event. Offset 0: it is not logged.

    Like the next one it holds texts and numbers only. Were they tracked, the hints of a busy topic would have
    the garbage collector go through the whole heap again and again: most of what a hint costs.
    """

    offset: int
    event_type: str
    payload: bytes
    tags: bytes | None = None
    info: bytes | None = None


class HintEvent(Struct, frozen=True, omit_defaults=True, gc=False):
    """A `LiveEvent` on its way."""

    offset: int
    event_type: str
    payload: Raw
    tags: Raw | UnsetType = UNSET
    info: Raw | UnsetType = UNSET


class Hint(Struct, frozen=True, tag="hint", omit_defaults=True):
    """Events `first` to `last` of a topic are stored. Both are 0 where the topic is not logged."""

    sender: str
    topic: str
    epoch: str
    first: int
    last: int
    #: Empty if they were too large to travel: the reader takes them from the log.
    events: list[HintEvent] = []


class Control(Struct, frozen=True, tag="control", omit_defaults=True):
    """An order to whoever holds the connections or subscriptions it is about."""

    sender: str
    #: `disconnect`, `replaced`, `subscribe`, `unsubscribe`, `revoke`, `message`, `join`, `leave` or
    #: `removed`.
    kind: str
    agent_id: str = ""
    client_id: str = ""
    user_id: str = ""
    key_prefix: str = ""
    topic: str = ""
    code: int = 0
    reason: str = ""
    generation: int = 0
    data: Raw | UnsetType = UNSET
    #: Of an order that also stands in a row: it is carried out once.
    number: int = 0


class Canary(Struct, frozen=True, tag="canary"):
    """A message of a process to itself, to prove that it still hears."""

    sender: str
    number: int


Message: TypeAlias = Hint | Control | Canary

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode
#: How every hint of this process begins.
_OWN_HINT = _encode(Hint(INSTANCE, "", "", 0, 0)).decode().partition(INSTANCE)[0] + INSTANCE + '"'


class Receiver(Protocol):
    """What a server process does with what it hears. Both are called in its event loop and must not block."""

    def hear_hint(self, topic: str, epoch: str, first: int, last: int, events: Sequence[LiveEvent]) -> None:
        """Events were stored; without `events` they are in the log only."""

    def hear_control(self, order: Control) -> None:
        """An order came in."""


class Post(Protocol):
    """A way to the layer, from any thread. Neither blocks for long nor raises."""

    def send(self, group: str, body: str) -> None:
        """Send to all processes that are in `group`."""


class _Server:
    """The end of the layer in a server process."""

    def __init__(self, receiver: Receiver, post: Post) -> None:
        self.receiver = receiver
        self.post = post
        #: No other server lives, so nobody would hear a hint.
        self.is_alone = False
        self.loop = asyncio.get_running_loop()

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Call in the loop: now if this is it, else soon."""
        if _running_loop() is self.loop:
            function(*args)
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function, *args)


_courier = Courier(lambda: conf().layer_timeout)
_server: _Server | None = None


def attach(receiver: Receiver, post: Post) -> None:
    """Make this process a server: what is hinted in it reaches `receiver`, in the running loop, directly."""
    global _server
    _server = _Server(receiver, post)


def detach(receiver: Receiver) -> None:
    """Undo `attach`, unless another receiver has taken its place."""
    global _server
    if _server is not None and _server.receiver is receiver:
        _server = None


def set_alone(is_alone: bool) -> None:
    """Say whether this is the only server, as the leases tell: then hints are not sent.

    A server that has just come is seen within a second; until then its own ticks find what no hint told of.
    """
    if _server is not None:
        _server.is_alone = is_alone


def hint(topic: str, epoch: str, first: int, last: int, events: Sequence[StoredEvent]) -> None:
    """Tell all processes of events that are committed. From any thread; never raises, never waits."""
    server = _server
    if server is not None:
        live = [LiveEvent(e.offset, e.event_type, e.payload, e.tags, e.info) for e in events]
        server.call(server.receiver.hear_hint, topic, epoch, first, last, live)
        if server.is_alone:
            return
    _send(group_name(topic), encode_hint(topic, epoch, first, last, events))


def told(events: Sequence[StoredEvent]) -> None:
    """Hint events of one topic and epoch that were committed together: what `bus.publishing` tells of."""
    PUBLISHED.labels(split(events[0].topic)[0]).inc(len(events))
    hint(events[0].topic, events[0].epoch, events[0].offset, events[-1].offset, events)


def control(kind: str, *, group: str = EVERYONE, **fields: Any) -> None:
    """Order something of all server processes, this one included; `group`: of those with a topic."""
    order = Control(INSTANCE, kind, **fields)
    server = _server
    if server is not None:
        server.call(server.receiver.hear_control, order)
    _send(group, _encode(order).decode())


def encode_hint(topic: str, epoch: str, first: int, last: int, events: Sequence[StoredEvent]) -> str:
    """Return a hint as it travels: with the events while they are small, else with their position only."""
    size = sum(len(event.payload) for event in events)
    carried = [_travelling(event) for event in events] if size <= conf().hint_bytes else []
    return _encode(Hint(INSTANCE, topic, epoch, first, last, carried)).decode()


def encode_canary(number: int) -> str:
    """Return a canary of this process."""
    return _encode(Canary(INSTANCE, number)).decode()


def decode(body: Any) -> Message | None:
    """Return a message, or None for anything that is none of ours."""
    try:
        message: Message = _decode(body)
    except (msgspec.MsgspecError, TypeError, ValueError):
        HINTS.labels("foreign").inc()
        return None
    return message


def is_own_hint(body: Any) -> bool:
    """Tell whether a body is a hint of this process, without reading all of it: it was heard directly."""
    return isinstance(body, str) and body.startswith(_OWN_HINT)


def arrived(event: HintEvent) -> LiveEvent:
    """Return an event that came with a hint."""
    tags = None if event.tags is UNSET else bytes(event.tags)
    info = None if event.info is UNSET else bytes(event.info)
    return LiveEvent(event.offset, event.event_type, bytes(event.payload), tags, info)


def close() -> None:
    """Let go of the background thread, if there is one."""
    _courier.close()


def _travelling(event: StoredEvent) -> HintEvent:
    tags = Raw(event.tags) if event.tags else UNSET
    info = Raw(event.info) if event.info else UNSET
    return HintEvent(event.offset, event.event_type, Raw(event.payload), tags, info)


def _send(group: str, body: str) -> None:
    server = _server
    if server is not None:
        server.post.send(group, body)
    else:
        _courier.send(group, body)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
