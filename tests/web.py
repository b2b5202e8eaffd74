"""A web server for tests: each path is answered by a function of the test's own, on loopback."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

#: What sources may be fetched from in tests beside the internet.
LOOPBACK = ("127.0.0.0/8",)

Answer = Callable[["Visit"], None]


class Visit(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """Note who asks, and have the test's function answer."""
        web = self.server.web
        web.seen.append((self.path, dict(self.headers)))
        self.close_connection = True
        answer = web.answers.get(self.path.partition("?")[0], _nothing)
        with suppress(OSError):  # whoever asked has hung up, which is what some tests are about
            answer(self)

    def reply(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        """A whole answer; headers in words joined by `_`. `Content_Length` may lie."""
        self.send_response(status)
        given = {"Content_Length": str(len(body)), **headers}
        for name, value in given.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    web: Web

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class Web:
    """Runs until the block ends; `seen` holds path and headers of each request."""

    def __init__(self, trust: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        #: Set when the server ends: for answers that wait.
        self.over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Visit)
        self._server.web = self
        if trust is not None:
            self._server.socket = trust.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str = "/notes.txt", host: str = "127.0.0.1", scheme: str = "http") -> str:
        """The address of `path` here."""
        return f"{scheme}://{host}:{self.port}{path}"

    def serve(self, path: str, body: bytes, **headers: str) -> None:
        """Answer `path` with these bytes from now on."""
        self.answers[path] = lambda visit: visit.reply(body, **headers)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _nothing(visit: Visit) -> None:
    visit.reply(b"not here", status=404)
