"""Daphne, as the bus needs it: `python -m bus.transport [Daphne's arguments] xnai_site.asgi:application`.

Daphne's WebSocket protocol, server and command line are subclassed as far as needed, no further. A socket
offers the application, under `scope["extensions"]["bus.transport"]`: `send_prepared(frame)`, a complete
server frame that goes straight to the operating system while nothing is buffered (a fifth of the cost of the
usual way); `pending_bytes()`, so that a client that does not read is noticed; and `close(code, reason)`, for
plain Daphne drops the reason. Besides: a guard against floods of pings, a listen backlog that outlives a
reconnect storm, oversize messages refused with 1009, and an orderly end on SIGTERM. The application stays an
ordinary ASGI application without all this.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from typing import Any

# Daphne installs Twisted's asyncio reactor when it is imported, so it comes before anything of Twisted.
import daphne.server
from autobahn.websocket.protocol import WebSocketProtocol as State
from daphne.cli import CommandLineInterface
from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet import defer, reactor, tcp

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
#: Seconds over which the clients are told of a shutdown, and within which everything has to be over.
SPREAD, GRACE = 3.0, 10.0
#: As in `BusSettings`: below the 30 s idle cut of common proxies, and what a healthy client needs to answer.
PING_INTERVAL, PING_TIMEOUT = 25, 8


class BusProtocol(WebSocketProtocol):  # type: ignore[misc]
    """One WebSocket."""

    def onConnect(self, request: Any) -> Any:
        """Take the request, with a bucket for the client's pings."""
        self._pings = TokenBucket(rate=PING_RATE, burst=PING_BURST, now=time.monotonic())
        return super().onConnect(request)

    def extension(self) -> dict[str, Any]:
        """Return what the application may use beyond ASGI."""
        return {
            "send_prepared": self.send_prepared,
            "pending_bytes": self.pending_bytes,
            "close": self.close_with_reason,
        }

    def send_prepared(self, frame: bytes) -> int:
        """Send whole server frames, in order with all sent before; return the bytes still pending."""
        if self.state != State.STATE_OPEN:
            return 0
        transport = self.transport
        if isinstance(transport, tcp.Connection) and not (transport.dataBuffer or transport._tempDataBuffer):
            try:
                sent = transport.socket.send(frame)
            except OSError:
                sent = 0  # the transport meets the error again and deals with it
            if sent == len(frame):
                return 0
            frame = frame[sent:]
        transport.write(frame)
        return self.pending_bytes()

    def pending_bytes(self) -> int:
        """Return what the operating system has not taken yet."""
        transport = self.transport
        if not isinstance(transport, tcp.Connection):
            return 0
        return len(transport.dataBuffer) - transport.offset + transport._tempDataLen

    def close_with_reason(self, code: int, reason: str) -> None:
        """Begin the closing handshake; a client that does not answer it within a second is cut off."""
        if self.state == State.STATE_OPEN:
            self.sendClose(code=code, reason=reason)

    def onPing(self, payload: bytes) -> None:
        """Answer a ping, or close a client that floods us with them."""
        if self._pings.take(time.monotonic()):
            code = DisconnectCode.TOO_MANY_REQUESTS
            self.close_with_reason(int(code), code.reason)
        else:
            super().onPing(payload)

    def onAutoPingTimeout(self) -> None:
        """Close a client that does not answer our pings, and say so; that times out within a second."""
        self.autoPingTimeoutCall = None
        self.close_with_reason(int(DisconnectCode.NO_PONG), DisconnectCode.NO_PONG.reason)


class BusFactory(WebSocketFactory):  # type: ignore[misc]
    """Makes `BusProtocol`s."""

    protocol = BusProtocol

    def setProtocolOptions(self, **options: Any) -> None:
        """Set Daphne's options, but answer errors with a close frame instead of cutting the connection."""
        super().setProtocolOptions(failByDrop=False, **options)


class BusServer(Server):  # type: ignore[misc]
    """Daphne's server with our sockets and an orderly end."""

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Any:
        """Start the application for a connection; sockets offer it our extension."""
        if isinstance(protocol, BusProtocol):
            scope.setdefault("extensions", {})["bus.transport"] = protocol.extension()
        return super().create_application(protocol, scope)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then end in order: exit code 0."""
        self._ports: list[Any] = []
        # The reactor would raise the signal anew after it has stopped, and so end with it instead of with 0.
        self.signal_handlers = False
        reactor.callWhenRunning(self._handle_signals)
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
        if reactor.running:
            reactor.stop()  # type: ignore[misc]

    def kill_all_applications(self) -> Any:
        """Stop accepting, take leave of the clients, then cancel what still runs. Called before the end."""
        return defer.Deferred.fromFuture(asyncio.ensure_future(self._shut_down()))

    async def _shut_down(self) -> None:
        for port in self._ports:
            await defer.maybeDeferred(port.stopListening).asFuture(asyncio.get_running_loop())
        try:
            from bus.hub import shut_down

            await asyncio.wait_for(shut_down(SPREAD), GRACE)
        except Exception:
            logger.exception("the bus did not end in order")
        running = [
            details["application_instance"]
            for details in self.connections.values()
            if "application_instance" in details
        ]
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
            application_close_timeout=GRACE,
            verbosity=0,
        )


def main(arguments: list[str]) -> None:
    """Run the server."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "xnai_site.settings")
    daphne.server.WebSocketFactory = BusFactory
    build = daphne.cli.build_endpoint_description_strings

    def with_backlog(**words: Any) -> list[str]:
        return [f"{text}:backlog={BACKLOG}" if text.startswith("tcp:") else text for text in build(**words)]

    daphne.cli.build_endpoint_description_strings = with_backlog
    BusCommandLine().run(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
