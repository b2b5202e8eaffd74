"""How a request's body reaches the application: as it comes, and no faster than it is taken.

Daphne reads a body to its end, on disk, and then puts all of it into memory before the application begins.
Here the application begins once the head of a request is there: it can refuse what it does not want, keep
what arrived before a connection was cut, and while it takes nothing the socket is not read. An answer may
come before the end of the body; what still follows is then read and thrown away for a moment, for a client
that is cut off while it sends never sees the answer, and the connection ends. Requests without a body take
Daphne's own way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import Any

# Daphne installs Twisted's asyncio reactor when it is imported, so it comes before anything of Twisted.
import daphne.server  # noqa: F401
from daphne.http_protocol import HTTPFactory, WebRequest
from twisted.internet import reactor

#: For so long (s), and so many bytes, is read what a client sends on after its answer.
LINGER, LINGER_BYTES = 5.0, 16 * 1_048_576


def apart(call: Callable[..., Any], *words: Any) -> Any:
    """Call something outside of the context of the request that is being served.

    The event loop hands on the context in which a socket began to be read: the next request of the same
    connection would be served in that of the one before, with its threads, which have gone.
    """
    return Context().run(call, *words)


class _Elsewhere:
    """Stands where Twisted keeps a body: there is none to be had here."""

    #: Tells Daphne not to look for a body.
    closed = True

    def seek(self, *_: int) -> None:
        """Do nothing; there is one place only."""

    def close(self) -> None:
        """Do nothing; nothing is open."""


class BodyRequest(WebRequest):  # type: ignore[misc]
    """A request whose application takes the body as it comes."""

    #: Whether the body goes straight to the application.
    is_streamed = False
    _is_whole = False
    _is_answered = False
    _dropped = 0
    _end: Any = None

    def gotLength(self, length: int | None) -> None:
        """Begin, if there is a body to come: the head is complete."""
        if length == 0 or self.requestHeaders.hasHeader(b"upgrade"):
            super().gotLength(length)
            return
        self.is_streamed = True
        self.content: Any = _Elsewhere()
        channel = self.channel
        self.method, self.uri, self.clientproto = channel._command, channel._path, channel._version
        self.path = self.uri.partition(b"?")[0]
        self.args: dict[bytes, list[bytes]] = {}
        self.process()

    def handleContentChunk(self, data: bytes) -> None:
        """Pass a piece of the body on, or throw it away after the answer."""
        if not self.is_streamed:
            super().handleContentChunk(data)
        elif self._is_answered:
            self._drop(len(data))
        elif self.application_queue is not None:
            self.application_queue.put_nowait({"type": "http.request", "body": data, "more_body": True})

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Tell that the body is whole; go, if the answer was given before."""
        if not self.is_streamed:
            super().requestReceived(command, path, version)
            return
        self._is_whole = True
        if self._is_answered:
            self._go()
        elif self.application_queue is not None:
            self.application_queue.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    def handle_reply(self, message: dict[str, Any]) -> None:
        """Answer; one that comes before the end of the body is the last of its connection."""
        if message.get("type") == "http.response.start" and self._is_early and self.channel is not None:
            self.channel.persistent = False
            self.responseHeaders.setRawHeaders(b"connection", [b"close"])
        apart(super().handle_reply, message)

    @property
    def _is_early(self) -> bool:
        return self.is_streamed and not self._is_whole

    def finish(self) -> None:
        """End the request, once its body has ended, too, or too much of it is still to come."""
        if not self._is_early or self.channel is None:
            super().finish()
        elif not self._is_answered:
            self._is_answered = True
            self._end = reactor.callLater(LINGER, self._cut)  # type: ignore[arg-type]
            self.channel.transport.resumeProducing()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > LINGER_BYTES:
            self._cut()

    def _cut(self) -> None:
        if self.channel is not None:
            self.channel.loseConnection()

    def _go(self) -> None:
        self._forget_end()
        super().finish()

    def _forget_end(self) -> None:
        if self._end is not None and self._end.active():
            self._end.cancel()

    def connectionLost(self, reason: Any) -> None:
        """Tell the application, if it still listens."""
        self._forget_end()
        super().connectionLost(reason)


class BodyFactory(HTTPFactory):  # type: ignore[misc]
    """Makes connections whose requests are `BodyRequest`s."""

    def buildProtocol(self, addr: Any) -> Any:
        """Build the protocol of a connection."""
        protocol = super().buildProtocol(addr)
        protocol.requestFactory = BodyRequest
        return protocol
