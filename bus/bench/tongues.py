"""How the load speaks to each server: its address, its greeting, one publish, and what an answer looks like.

Every server gets the same event, over WebSockets. Readers count `MARK` in what arrives and publishers count
the `acked` text in their answers, so the load does no work that grows with the protocol, and frames may be
joined as servers like.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Protocol

#: In every event once, and nowhere else.
MARK = b"~event~"
_EVENT = json.dumps(
    {"event_type": "bench", "data": {"mark": MARK.decode(), "text": "x" * 80}}, separators=(",", ":")
).encode()


class Tongue(Protocol):
    """One server's protocol, for one topic."""

    #: Address of the WebSocket.
    path: str
    #: Whether messages are binary.
    binary: bool
    #: What the answer to a publish contains, once.
    acked: bytes
    #: Whether several publishes may be joined in one frame, and by what.
    joiner: bytes | None

    def hello(self, *, reads: bool) -> list[tuple[bytes, bytes]]:
        """Return the messages that come first, each with what has to arrive before the next step."""

    def publish(self, number: int) -> bytes:
        """Return one publish; `number` differs from all others of the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bus:
    """Our own server: the Centrifugo protocol."""

    topic: str
    token: str
    path: str = "/connection/websocket"
    binary: bool = False
    acked: bytes = b'"publish":{}'
    joiner: bytes | None = b"\n"

    def hello(self, *, reads: bool) -> list[tuple[bytes, bytes]]:
        """Connect, and subscribe in the same frame as the SDKs do."""
        connect = json.dumps({"id": 1, "connect": {"token": self.token}})
        subscribe = json.dumps({"id": 2, "subscribe": {"channel": self.topic}})
        if reads:
            return [(f"{connect}\n{subscribe}".encode(), b'"id":2,"subscribe"')]
        return [(connect.encode(), b'"id":1,"connect"')]

    def publish(self, number: int) -> bytes:
        """The publish command."""
        return b'{"id":%d,"publish":{"channel":"%b","data":%b}}' % (number + 10, self.topic.encode(), _EVENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """The naive Channels application and the server on `ws`: the event as it is, the answer is a word."""

    path: str
    binary: bool = False
    acked: bytes = b"acknowledged"
    joiner: bytes | None = None

    def hello(self, *, reads: bool) -> list[tuple[bytes, bytes]]:
        """Say what this connection is for."""
        return [(b"reader" if reads else b"publisher", b"welcome")]

    def publish(self, number: int) -> bytes:
        """The event alone."""
        return _EVENT


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketIo:
    """socket.io: Engine.IO over a WebSocket from the start."""

    path: str = "/socket.io/?EIO=4&transport=websocket"
    binary: bool = False
    acked: bytes = b"acknowledged"
    joiner: bytes | None = None

    def hello(self, *, reads: bool) -> list[tuple[bytes, bytes]]:
        """Connect to the namespace and, to read, join the room."""
        return [(b"40", b"40{"), (b'420["join"]' if reads else b'420["hello"]', b"welcome")]

    def publish(self, number: int) -> bytes:
        """An emit that asks for an acknowledgement."""
        return b'42%d["publish",%b]' % (number + 10, _EVENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nats:
    """NATS over its WebSocket: core, which answers `+OK`, or JetStream, which answers with the place."""

    topic: str
    stored: bool
    #: Where JetStream answers this connection.
    inbox: str = field(default_factory=lambda: f"answers.{secrets.token_hex(6)}")
    path: str = "/"
    binary: bool = True
    joiner: bytes | None = b""

    @property
    def acked(self) -> bytes:
        """What a publisher counts."""
        return b'"seq":' if self.stored else b"+OK"

    def hello(self, *, reads: bool) -> list[tuple[bytes, bytes]]:
        """Connect; a reader subscribes, a publisher to JetStream makes the stream and hears its answers."""
        quiet = "false" if reads or self.stored else "true"
        said = [f'CONNECT {{"verbose":{quiet},"pedantic":false,"protocol":1}}']
        if reads:
            said += [f"SUB {self.topic} 1", "PING"]
        elif self.stored:
            stream = json.dumps({"name": "BENCH", "subjects": [self.topic], "storage": "file"})
            said += [
                f"SUB {self.inbox} 1",
                f"PUB $JS.API.STREAM.CREATE.BENCH {self.inbox} {len(stream)}\r\n{stream}",
            ]
        else:
            said.append("PING")
        answered = b'"config"' if self.stored and not reads else b"PONG\r\n"
        return [("".join(f"{line}\r\n" for line in said).encode(), answered)]

    def publish(self, number: int) -> bytes:
        """PUB, with where to answer if it is stored."""
        answer = f"{self.inbox} ".encode() if self.stored else b""
        return b"PUB %b %b%d\r\n%b\r\n" % (self.topic.encode(), answer, len(_EVENT), _EVENT)


_KINDS = {"bus": Bus, "plain": Plain, "socket.io": SocketIo, "nats": Nats}


def tongue(kind: str, options: dict[str, str | bool]) -> Tongue:
    """Return a protocol by name, with the options of its class."""
    made: Tongue = _KINDS[kind](**options)
    return made
