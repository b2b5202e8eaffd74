"""Daphne, as the bus needs it: `python -m bus.transport [Daphne's arguments] xnai_site.asgi:application`.

Daphne's WebSocket protocol, server and command line are subclassed as far as needed, no further. A socket
offers the application, under `scope["extensions"]["bus.transport"]`: `send_prepared(frame)`, a complete
server frame that goes straight to the operating system while nothing is buffered (a fifth of the cost of the
usual way); `pending_bytes()`, so that a client that does not read is noticed; and `close(code, reason)`, for
plain Daphne drops the reason. Besides: ASGI's own extension `websocket.http.response`, a guard against floods
of pings, a bound to what is read before the application takes it (of requests in `bus.bodies`), a listen
backlog that outlives a reconnect storm, oversize messages refused with 1009, and an orderly end on SIGTERM.
The application stays an ordinary ASGI application without all this.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from inspect import isfunction
from typing import Any, ClassVar, NamedTuple

# Daphne installs Twisted's asyncio reactor when it is imported, so it comes before anything of Twisted.
import daphne.server
from autobahn.websocket.protocol import WebSocketProtocol as State
from autobahn.websocket.protocol import WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny
from daphne.cli import CommandLineInterface
from daphne.http_protocol import WebRequest
from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet import defer, reactor, tcp

from bus.bodies import BodyFactory, apart
from bus.protocol.errors import DisconnectCode
from bus.protocol.limits import MAX_BYTES, TokenBucket

logger = logging.getLogger(__name__)

#: Connections that the operating system accepts before we do. Twisted's 50 is full at once when all clients
#: come back.
BACKLOG = 2_048
#: Pings a second and at once that a client may send; each costs us a pong, and the application never sees
#: them.
PING_RATE, PING_BURST = 10.0, 50.0
#: A joined frame holds many commands; each of them is limited by the protocol.
MAX_MESSAGE = 8 * MAX_BYTES
#: Messages and bytes of a client that the application has not taken yet; beyond them its socket is not read.
UNREAD, UNREAD_BYTES = 256, 1_048_576
#: The same of the body of a request: a hundred uploads at once are to cost little.
UNREAD_BODY = 131_072
#: At most so long (s) are the clients told of a shutdown; within so long everything but requests is over; and
#: so long may those still take. Together below the 10 s after which containers are killed.
MAX_SPREAD, GRACE, LAST_WORDS = 5.0, 8.0, 1.0
#: Objects made until the collector looks at the young ones; a connection makes some hundred that stay.
GARBAGE = 10_000
#: An application whose client is gone may need the database to leave in order: longer than that waits (20 s).
CLOSE_TIMEOUT = 60
#: As in `BusSettings`: below the 30 s idle cut of common proxies, and what a healthy client needs to answer.
PING_INTERVAL, PING_TIMEOUT = 25, 8


class _Request(NamedTuple):
    """What is left of the request of an open socket: Daphne tells it when the socket closes."""

    path: str


class BusProtocol(WebSocketProtocol):  # type: ignore[misc]
    """One WebSocket."""

    #: Options are on the class (see `BusFactory`): autobahn would copy thirty of them to every connection.
    CONFIG_ATTRS: ClassVar[list[str]] = []

    #: The answer that refuses the handshake: status, headers, and the body as far as it has come.
    _refusal: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None
    _pings: TokenBucket | None = None

    def dataReceived(self, data: bytes) -> None:
        """Take bytes. Autobahn would paint a line for its debug log first: a third of a small message."""
        self._dataReceived(data)

    def onOpen(self) -> None:
        """Forget what only the handshake needs; a connection may idle for days."""
        super().onOpen()
        self.http_headers: dict[str, str] = {}
        self.http_request_data = b""
        self.request: Any = _Request(path=self.request.path)
        self.clean_headers: list[tuple[bytes, bytes]] = []

    def handle_reply(self, message: dict[str, Any]) -> None:
        """Do what the application says; it may also refuse a handshake with an answer of its own.

        That is ASGI's extension `websocket.http.response`, which Daphne does not have.
        """
        kind = message.get("type")
        if kind == "websocket.http.response.start":
            self._refusal = (message["status"], list(message.get("headers", [])), b"")
        elif kind == "websocket.http.response.body" and self._refusal is not None:
            status, headers, body = self._refusal
            self._refusal = (status, headers, body + message.get("body", b""))
            if not message.get("more_body", False):
                self._refuse(status)
        else:
            super().handle_reply(message)

    def _refuse(self, status: int) -> None:
        if self.state != State.STATE_CONNECTING:
            return
        refusal = ConnectionDeny(status, HTTPStatus(status).phrase)  # type: ignore[no-untyped-call]
        self.handshake_deferred.errback(refusal)
        del self.handshake_deferred
        self.server.protocol_disconnected(self)

    def sendHttpErrorResponse(self, code: int, reason: str, responseHeaders: Any = None) -> None:
        """Answer a refused handshake, with the application's headers and body where it gave some."""
        if self._refusal is None:
            super().sendHttpErrorResponse(code, reason, responseHeaders)
            return
        _, headers, body = self._refusal
        words = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        words += [("content-length", str(len(body))), ("connection", "close")]
        super().sendHttpErrorResponse(code, reason, words)
        self.sendData(body)

    def extension(self) -> dict[str, Any]:
        """Return what the application may use beyond ASGI."""
        return {
            "send_prepared": _writer(self),
            "pending_bytes": self.pending_bytes,
            "close": self.close_with_reason,
        }

    def pending_bytes(self) -> int:
        """Return what the operating system has not taken yet."""
        return 0 if self.state == State.STATE_CLOSED else _owed(self.transport)

    def close_with_reason(self, code: int, reason: str) -> None:
        """Begin the closing handshake; a client that does not answer it within a second is cut off."""
        if self.state == State.STATE_OPEN:
            self.sendClose(code=code, reason=reason)

    def onPing(self, payload: bytes) -> None:
        """Answer a ping, or close a client that floods us with them."""
        if not self._is_flooded():
            super().onPing(payload)

    def onPong(self, payload: bytes) -> None:
        """Take a pong; one that nobody asked for counts as a ping."""
        if self.autoPingPending is not None or not self._is_flooded():
            super().onPong(payload)

    def _is_flooded(self) -> bool:
        now = time.monotonic()
        if self._pings is None:
            self._pings = TokenBucket(rate=PING_RATE, burst=PING_BURST, now=now)
        if not self._pings.take(now):
            return False
        code = DisconnectCode.TOO_MANY_REQUESTS
        self.close_with_reason(int(code), code.reason)
        return True

    def onAutoPingTimeout(self) -> None:
        """Close a client that does not answer our pings, and say so; that times out within a second."""
        if self.application_queue.is_paused:
            # We do not read what it sends, so its pong may be among that.
            again = self.factory._batched_timer.call_later(self.autoPingTimeout, self.onAutoPingTimeout)
            self.autoPingTimeoutCall: Any = again
            return
        self.autoPingTimeoutCall = None
        self.close_with_reason(int(DisconnectCode.NO_PONG), DisconnectCode.NO_PONG.reason)


def _owed(transport: Any) -> int:
    """Return the bytes that a transport holds for its client."""
    if not isinstance(transport, tcp.Connection):
        return 0
    return len(transport.dataBuffer) - transport.offset + transport._tempDataLen


def _stream_extension(request: WebRequest) -> dict[str, Any]:
    """Return what a stream may use beyond ASGI: see `bus.doors.streams`."""
    transport = request.channel.transport
    return {"pending_bytes": partial(_owed, transport), "abort": transport.abortConnection}


def _writer(protocol: BusProtocol) -> Callable[[bytes], int]:
    """Return `send_prepared` of one socket.

    It sends whole server frames, in order with all sent before, and returns the bytes still pending. It is a
    closure, for looking everything up anew costs as much as all of a delivery but the system call.
    """
    transport, is_open = protocol.transport, State.STATE_OPEN
    send = transport.socket.send if isinstance(transport, tcp.Connection) else None

    def send_prepared(frame: bytes) -> int:
        if protocol.state != is_open:
            return 0
        if send is not None and not (transport.dataBuffer or transport._tempDataBuffer):
            try:
                sent = send(frame)
            except OSError:
                sent = 0  # the transport meets the error again and deals with it
            if sent == len(frame):
                return 0
            frame = frame[sent:]
        transport.write(frame)
        return protocol.pending_bytes()

    return send_prepared


class BusFactory(WebSocketFactory):  # type: ignore[misc]
    """Makes `BusProtocol`s."""

    protocol = BusProtocol

    def setProtocolOptions(self, **options: Any) -> None:
        """Set Daphne's options, but answer errors with a close frame instead of cutting the connection."""
        super().setProtocolOptions(failByDrop=False, **options)
        for name in WebSocketServerProtocol.CONFIG_ATTRS:
            value = getattr(self, name)
            # A function would become a method of the class that holds it.
            setattr(self.protocol, name, staticmethod(value) if isfunction(value) else value)


class Mailbox:
    """What a client has sent and the application has not taken; the socket is not read while it is full.

    It stands where Daphne has an `asyncio.Queue`, which has no bound and weighs 2 KB.

    Args:
        transport: of the connection.
        most: bytes beyond which the socket is not read.
    """

    __slots__ = ("_getter", "_messages", "_most", "_size", "_transport", "is_paused")

    def __init__(self, transport: Any, most: int = UNREAD_BYTES) -> None:
        self._transport = transport
        self._most = most
        self._messages: list[dict[str, Any]] = []
        self._getter: asyncio.Future[None] | None = None
        self._size = 0
        #: Whether the socket is not read for now.
        self.is_paused = False

    def put_nowait(self, message: dict[str, Any]) -> None:
        """Take a message of the client."""
        self._messages.append(message)
        self._size += _size_of(message)
        if self._getter is not None and not self._getter.done():
            self._getter.set_result(None)
        if not self.is_paused and (self._size > self._most or len(self._messages) > UNREAD):
            self.is_paused = True
            self._pause("pauseProducing")

    async def get(self) -> dict[str, Any]:
        """Return the oldest message, once there is one."""
        while not self._messages:
            self._getter = asyncio.get_running_loop().create_future()
            try:
                await self._getter
            finally:
                self._getter = None
        message = self._messages.pop(0)
        self._size -= _size_of(message)
        if self.is_paused and not self._messages:
            self.is_paused = False
            self._pause("resumeProducing")
        return message

    def _pause(self, how: str) -> None:
        # What Daphne answers HTTP on has no such thing, and needs none: its body is read before.
        if (change := getattr(self._transport, how, None)) is not None:
            apart(change)


def _size_of(message: dict[str, Any]) -> int:
    return len(message.get("text") or message.get("bytes") or message.get("body") or b"")


class BusServer(Server):  # type: ignore[misc]
    """Daphne's server with our sockets and an orderly end."""

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Any:
        """Start the application for a connection; sockets and streams offer it our extensions."""
        if isinstance(protocol, BusProtocol):
            scope["extensions"] = {"bus.transport": protocol.extension(), "websocket.http.response": {}}
            return self._start(protocol, scope, Mailbox(protocol.transport))
        if protocol.channel is not None:
            scope.setdefault("extensions", {})["bus.stream"] = _stream_extension(protocol)
            if getattr(protocol, "is_streamed", False):
                return self._start(protocol, scope, Mailbox(protocol.channel.transport, UNREAD_BODY))
        return super().create_application(protocol, scope)

    def _start(self, protocol: Any, scope: dict[str, Any], mailbox: Mailbox) -> Mailbox:
        scope.setdefault("asgi", {"version": "3.0"})
        send = partial(self.handle_reply, protocol)
        application = self.application(scope=scope, receive=mailbox.get, send=send)
        self.connections[protocol]["application_instance"] = asyncio.ensure_future(application)
        return mailbox

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then end in order: exit code 0."""
        self._ports: list[Any] = []
        self._hurry = asyncio.Event()
        # The reactor would raise the signal anew after it has stopped, and so end with it instead of with 0.
        self.signal_handlers = False
        reactor.callWhenRunning(self._handle_signals)
        # What is loaded by now stays: the collector need not look through it whenever many clients come.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE)
        super().run()

    def listen_success(self, port: Any) -> None:
        """Remember what we listen on, to stop it first of all."""
        self._ports.append(port)
        super().listen_success(port)
        if hasattr(port, "getHost"):
            logger.info("listening on %s", port.getHost())

    def _handle_signals(self) -> None:
        loop = asyncio.get_event_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)

    def _end(self) -> None:
        """End in order; who says it twice is in a hurry."""
        if self._is_ending:
            self._hurry.set()
        elif reactor.running:
            self._is_ending = True
            reactor.stop()  # type: ignore[misc]

    _is_ending = False

    def kill_all_applications(self) -> Any:
        """Stop accepting, take leave of the clients, then cancel what still runs. Called before the end."""
        return defer.Deferred.fromFuture(asyncio.ensure_future(self._shut_down()))

    async def _shut_down(self) -> None:
        for port in self._ports:
            await defer.maybeDeferred(port.stopListening).asFuture(asyncio.get_running_loop())
        try:
            # Only now: what they need is there once the application is.
            from bus.conf import conf
            from bus.connections.admission import gate
            from bus.fanout.hub import shut_down

            gate().is_closed = True
            spread = min(MAX_SPREAD, conf().shutdown_spread.total_seconds())
            await asyncio.wait_for(shut_down(spread, self._hurry), GRACE)
        except Exception:
            logger.exception("the bus did not end in order")
        await self._end_applications()

    async def _end_applications(self) -> None:
        """Let requests under way be answered and closed sockets go, for a moment; then cancel them."""
        running = {
            details["application_instance"]
            for details in self.connections.values()
            if "application_instance" in details
        }
        if running and not self._hurry.is_set():
            _, running = await asyncio.wait(running, timeout=LAST_WORDS)
        for application in running:
            application.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class BusCommandLine(CommandLineInterface):  # type: ignore[misc]
    """Daphne's command line; its arguments, other defaults."""

    server_class = BusServer

    def __init__(self) -> None:
        super().__init__()
        self.parser.prog = "python -m bus.transport"
        self.parser.set_defaults(
            # Daphne would close every socket after a day.
            websocket_timeout=-1,
            ping_interval=PING_INTERVAL,
            ping_timeout=PING_TIMEOUT,
            websocket_max_message_size=MAX_MESSAGE,
            websocket_max_frame_size=MAX_MESSAGE,
            application_close_timeout=CLOSE_TIMEOUT,
            verbosity=0,
        )


def main(arguments: list[str]) -> None:
    """Run the server."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "xnai_site.settings")
    daphne.server.WebSocketFactory, daphne.server.HTTPFactory = BusFactory, BodyFactory
    build = daphne.cli.build_endpoint_description_strings

    def with_backlog(**words: Any) -> list[str]:
        return [f"{text}:backlog={BACKLOG}" if text.startswith("tcp:") else text for text in build(**words)]

    daphne.cli.build_endpoint_description_strings = with_backlog
    BusCommandLine().run(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
