"""Sockets and HTTP exchanges that end: by a deadline, and after so many bytes.

A time-out for each call is not enough: a server that sends a byte now and then never lets one pass, and one
that sends without end fills the memory. Here every call waits at most for what is left of the batch, and what
was received is counted. Redirects are not followed and no proxy is asked.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import select
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cleanup.conf import conf
from cleanup.engine.verify import Deadline
from cleanup.verifiers.values import MAX_DOCUMENT

#: Received in one exchange: a document, and the headers that http.client puts up with.
_MAX_RECEIVED = 4 * MAX_DOCUMENT


class TooMuch(OSError):
    """More was received than an answer may hold."""


class BoundedSocket:
    """A connected socket with a deadline and a limit; what it does not do itself the socket does."""

    def __init__(self, sock: socket.socket, deadline: Deadline, limit: int) -> None:
        """Wait in each call for the setting's time-out or what is left of the batch, whichever is less."""
        self._sock, self._deadline, self._left = sock, deadline, limit
        self._timeout: float | None = None

    def __getattr__(self, name: str) -> Any:
        """Pass on what is not bounded."""
        return getattr(self._sock, name)

    def settimeout(self, value: float | None) -> None:
        """Wait no longer than `value` either; 0 is a mere look whether something is there."""
        self._timeout = value

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive; raises TimeoutError when time is over and TooMuch when it was too much."""
        self._wait()
        data = self._sock.recv(size, flags)
        self._count(len(data))
        return data

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        """Receive into `buffer`, like `recv`."""
        self._wait()
        count = self._sock.recv_into(buffer, size, flags)
        self._count(count)
        return count

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """Send; raises TimeoutError when time is over."""
        self._wait()
        self._sock.sendall(data, flags)

    def makefile(self, mode: str = "rb") -> io.BufferedReader:
        """A reader for `http.client`; closing it leaves the socket open."""
        return io.BufferedReader(_Reader(self))

    def _wait(self) -> None:
        longest = patience(self._deadline)
        self._sock.settimeout(longest if self._timeout is None else min(self._timeout, longest))

    def _count(self, received: int) -> None:
        self._left -= received
        if self._left < 0:
            raise TooMuch("the answer is too large")


class _Reader(io.RawIOBase):
    def __init__(self, sock: BoundedSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._sock.recv_into(buffer)


def patience(deadline: Deadline) -> float:
    """Seconds that one call may wait."""
    return min(conf().verifier_timeout.total_seconds(), deadline.left())


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    body: bytes
    headers: list[tuple[str, str]]


def may_be_reached(host: str, address: str) -> bool:
    """Whether a listed host may be at this address.

    A host is listed by name, so it may well be a private one; but no name leads to where a cloud keeps its
    credentials (link-local) or to what is no host at all. Who means that writes the address.
    """
    if host == address:
        return True
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped  # the kernel connects to that one
    return not (ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved)


class Exchanger:
    """One connection to one server, kept from one exchange to the next while the server allows."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: bool,
        deadline: Deadline,
        permitted: Callable[[str, str], bool] | None = None,
    ) -> None:
        """Connect with the first exchange.

        Args:
            host: name or address.
            port: of the server.
            tls: whether to speak https.
            deadline: of all exchanges together.
            permitted: told host and address before connecting; None permits all.
        """
        self.host, self.port, self.tls, self.deadline = host, port, tls, deadline
        self.permitted = permitted
        self._sock: socket.socket | None = None

    def close(self) -> None:
        """End the connection."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def exchange(
        self, method: str, target: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request and read the whole answer.

        Raises:
            OSError: no connection, no answer in time (TimeoutError), or too much of one.
            http.client.HTTPException: no HTTP, a part of an answer, or one without a known end.
        """
        sock = self._connected()
        try:
            sock.sendall(self._request(method, target, body, headers or {}))
            response = http.client.HTTPResponse(sock, method=method)  # type: ignore[arg-type]
            try:
                reply = _read(response)
            finally:
                response.close()
        except BaseException:
            self.close()
            raise
        if response.will_close:
            self.close()
        return reply

    def _request(self, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.tls else 80
        lines = {
            "Host": host if self.port == default else f"{host}:{self.port}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "xnai-cleanup",
            **headers,
        }
        if body:
            lines["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("ascii") + body

    def _connected(self) -> BoundedSocket:
        # Bytes that nobody asked for, or the end of the connection: either way not one to go on with.
        if self._sock is not None and _has_something(self._sock):
            self.close()
        if self._sock is None:
            self._sock = self._connect()
        return BoundedSocket(self._sock, self.deadline, _MAX_RECEIVED)

    def _connect(self) -> socket.socket:
        plain = self._connect_any()
        if not self.tls:
            return plain
        try:
            plain.settimeout(patience(self.deadline))
            return ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def _connect_any(self) -> socket.socket:
        """Connect to the first address that answers; those that are not permitted are not tried."""
        problem: OSError = OSError(f"{self.host} has no address that may be reached")
        for family, kind, _, _, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            if self.permitted is not None and not self.permitted(self.host, str(address[0])):
                continue
            sock = socket.socket(family, kind)
            try:
                sock.settimeout(patience(self.deadline))
                sock.connect(address)
                return sock
            except OSError as error:
                sock.close()
                problem = error
        raise problem


def _has_something(sock: socket.socket) -> bool:
    """Whether there is something to receive, or the other side has hung up."""
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return True
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _read(response: http.client.HTTPResponse) -> Reply:
    response.begin()
    if response.length is None and not response.chunked:
        # The end of the connection would be the end of the answer: a part could not be told from the whole.
        raise http.client.HTTPException("an answer without a length")
    body = response.read()
    if len(body) > MAX_DOCUMENT:
        raise TooMuch("the answer is too large")
    return Reply(response.status, body, response.getheaders())
