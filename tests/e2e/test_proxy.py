"""The proxy does what it is told: without that, a fault test proves nothing."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from tests.proxy import TcpProxy
from tests.servers import PATIENCE, wait_until

pytestmark = pytest.mark.sqlite_only


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := self.request.recv(65_536):
                self.request.sendall(piece)


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        with TcpProxy(server.server_address[1]) as proxy:
            yield proxy
        server.shutdown()
        thread.join()


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        yield client


def drain(client: socket.socket, into: bytearray) -> None:
    while piece := client.recv(100):
        into += piece


def received(client: socket.socket) -> bytes:
    """All bytes until the end."""
    arrived = bytearray()
    drain(client, arrived)
    return bytes(arrived)


def ask(port: int) -> bytes:
    """Connect, send one byte and return the echo."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(b"x")
        return client.recv(1)


def test_a_cut_by_reset_is_an_error_and_one_by_fin_an_end(proxy: TcpProxy, client: socket.socket) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as other:
        other.sendall(b"x")
        assert other.recv(1) == b"x"
        assert proxy.cut(reset=False) == 2
        assert received(other) == b""
    assert received(client) == b""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as third:
        third.sendall(b"x")
        assert third.recv(1) == b"x"
        wait_until(lambda: proxy.open == 1, what="the end of the first two")
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            third.recv(1)


def test_a_cut_after_so_many_bytes_lets_just_these_through(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.cut_after(1_000)
    client.sendall(b"y" * 5_000)
    arrived = bytearray()
    with pytest.raises(ConnectionResetError):
        drain(client, arrived)
    assert len(arrived) <= 1_000
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as after:
        after.sendall(b"z" * 5_000)
        after.shutdown(socket.SHUT_WR)
        assert received(after) == b"z" * 5_000


def test_a_black_hole_keeps_the_bytes_until_it_is_gone(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.hold()
    client.sendall(b"late")
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.recv(4)
    proxy.release()
    client.settimeout(PATIENCE)
    assert client.recv(4) == b"late"


def test_who_is_refused_gets_nothing_until_the_release(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        received(client)
    with pytest.raises(ConnectionResetError):
        ask(proxy.port)
    proxy.release()
    assert ask(proxy.port) == b"x"
