"""What our server adds to Daphne, seen from outside: the gate, floods, clients that do not read, the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from bus.bench.load import frame
from tests.e2e.clients import RawClient
from tests.harness import ROOT, Program, Site, Web
from tests.servers import PATIENCE, free_port, listens, wait_until

pytestmark = pytest.mark.sqlite_only

HANDSHAKE = (
    "GET /connection/websocket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

CODE_OF = "SELECT code FROM bus_connectionsession WHERE user_id = %s AND disconnected_at IS NOT NULL"
ENDS_OF = "SELECT disconnected_at FROM bus_connectionsession WHERE user_id LIKE %s"


@contextmanager
def serving(site: Site, server: str, **environment: str) -> Iterator[tuple[Program, int]]:
    """Another server process on the site's database; yields it and its port."""
    given = {**site.environment, **environment}
    if server == "daphne":
        web: Program = Web("another", given, site.folder / "another.log")
        port = web.port  # type: ignore[attr-defined]
    else:
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--port", str(port), "--ws", "websockets-sansio"]
        command += ["--lifespan", "off", "--log-level", "warning", "xnai_site.asgi:application"]
        web = Program("uvicorn", command, given, site.folder / "uvicorn.log")
    web.start()
    try:
        wait_until(lambda: listens(port), timeout=100, what=server)
        yield web, port
    finally:
        web.kill()


class Silent:
    """A client that sends and never reads."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(HANDSHAKE.encode())
        assert b" 101 " in self.socket.recv(600)

    def send(self, *commands: dict[str, Any]) -> None:
        self.socket.sendall(frame("\n".join(map(json.dumps, commands)).encode(), binary=False))

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def traceback_in(program: Program) -> bool:
    return program.said("Traceback") or program.said("took too long")


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_connects_beyond_the_rate_are_refused_before_the_handshake(site: Site, server: str) -> None:
    with serving(site, server, BUS_CONNECT_RATE="0.01", BUS_CONNECT_BURST="2") as (web, port):
        url = f"ws://127.0.0.1:{port}/connection/websocket"
        with connect(url, proxy=None), connect(url, proxy=None):
            with pytest.raises(InvalidStatus) as refusal:
                connect(url, proxy=None)
            response = refusal.value.response
            assert response.status_code == 503
            assert 1 <= int(response.headers["Retry-After"]) <= 100
            assert response.body == b"too many connects\n"
        assert not traceback_in(web)


@pytest.mark.parametrize("flood", ["ping", "pong"])
def test_a_flood_of_pings_or_pongs_is_closed_and_says_why(site: Site, flood: str) -> None:
    with (
        connect(site.web[0].socket, proxy=None, close_timeout=2) as client,
        pytest.raises(ConnectionClosed) as end,
    ):
        _flood(client, flood)
    assert end.value.rcvd is not None
    assert (end.value.rcvd.code, end.value.rcvd.reason) == (3013, "too many requests")


def _flood(client: Any, flood: str) -> None:
    for number in range(2_000):
        getattr(client, flood)(str(number).encode())
    client.recv(timeout=PATIENCE)


def test_answers_that_nobody_reads_do_not_pile_up_in_the_server(site: Site) -> None:
    topic = "lab:large"
    with RawClient(site.web[0].socket) as client, Silent(site.web[0].port) as silent:
        client.call("connect", token=site.token("writer", "publish"))
        for _ in range(20):
            client.call("publish", channel=topic, data="x" * 200_000)
        before = resident(site.web[0].pid)
        silent.send({"id": 1, "connect": {"token": site.token("reader")}})
        # 4 MB for each of these, were it answered; and 10 MB that nobody takes in.
        for number in range(200):
            silent.send({"id": 2 + number, "history": {"channel": topic, "limit": -1}})
        silent.socket.setblocking(False)
        sent, words = (
            0,
            frame(json.dumps({"id": 900, "rpc": {"method": "x" * 50_000}}).encode(), binary=False),
        )
        for _ in range(200):
            try:
                sent += silent.socket.send(words)
            except BlockingIOError:
                time.sleep(0.005)
        assert client.call("presence_stats", channel=topic) is not None
        assert resident(site.web[0].pid) - before < 60_000_000


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_one_client_that_never_reads_blocks_nobody(site: Site, server: str) -> None:
    topic, count = f"lab:stuck-{server}", 1_500
    with serving(site, server) as (web, port):
        url = f"ws://127.0.0.1:{port}/connection/websocket"
        with RawClient(url) as writer, RawClient(url) as reader, Silent(port) as stuck:
            stuck.send(
                {"id": 1, "connect": {"token": site.token(f"stuck-{server}"), "data": {}}},
                {"id": 2, "subscribe": {"channel": topic}},
            )
            writer.call("connect", token=site.token("w", "publish"))
            reader.call("connect", token=site.token("r"))
            reader.call("subscribe", channel=topic)
            _wait_for_subscribers(site, topic)
            offsets: list[int] = []
            while len(offsets) < count:
                writer.send(
                    *({"id": 10 + n, "publish": {"channel": topic, "data": "x" * 8_000}} for n in range(25))
                )
                wanted = len(offsets) + 25
                while len(offsets) < wanted:
                    push = reader.receive().get("push", {})
                    offsets += [push["pub"]["offset"]] if "pub" in push else []
            assert offsets == list(range(1, count + 1))
            wait_until(
                lambda: (
                    site.sql(
                        CODE_OF,
                        f"stuck-{server}",
                    )
                    == [(3008,)]
                ),
                what="the close of the stuck client",
            )
            # Once it reads it comes to an end, and may come again: it is not left hanging.
            with contextlib.suppress(ConnectionResetError):
                while stuck.socket.recv(1_000_000):
                    pass
        assert not traceback_in(web)


def _wait_for_subscribers(site: Site, topic: str) -> None:
    query = "SELECT count(*) FROM bus_presence WHERE topic = %s"
    wait_until(lambda: site.sql(query, topic) == [(2,)], what="the one who reads and the one who does not")


def test_a_server_that_ends_answers_what_is_under_way_and_sends_its_clients_away(site: Site) -> None:
    with serving(site, "daphne", BUS_SHUTDOWN_SPREAD="1") as (web, port):
        url = f"ws://127.0.0.1:{port}/connection/websocket"
        clients = [RawClient(url) for _ in range(12)]
        try:
            for number, client in enumerate(clients):
                client.call("connect", token=site.token(f"end-{number}", "publish"))
            clients[0].send(
                *({"id": 100 + n, "publish": {"channel": "lab:end", "data": n}} for n in range(200))
            )
            os.kill(web.pid, signal.SIGTERM)
            endings = [client.ending() for client in clients]
        finally:
            for client in clients:
                client.close()
        assert {ending[1:] for ending in endings} == {(3001, "shutdown")}
        answers = [message for message in endings[0][0] if "id" in message]
        (stored,) = site.sql("SELECT last_offset FROM bus_topic WHERE name = %s", "lab:end") or [(0,)]
        assert len(answers) == stored[0] in (0, 200)
        assert web.process is not None
        assert web.process.wait(PATIENCE) == 0
        assert not traceback_in(web)
    assert not site.sql("SELECT 1 FROM bus_activeconnection WHERE user_id LIKE 'end-%%'")
    codes = site.sql("SELECT DISTINCT code FROM bus_connectionsession WHERE user_id LIKE 'end-%%'")
    assert codes == [(3001,)]


def test_a_second_sigterm_is_a_hurry(site: Site) -> None:
    with serving(site, "daphne", BUS_SHUTDOWN_SPREAD="5") as (web, port):
        clients = [Silent(port) for _ in range(90)]
        try:
            for number, client in enumerate(clients):
                client.send({"id": 1, "connect": {"token": site.token(f"hurry-{number}")}})
            for client in clients:
                assert client.socket.recv(100)
            os.kill(web.pid, signal.SIGTERM)
            wait_until(lambda: not listens(port), what="the port to be closed")
            os.kill(web.pid, signal.SIGTERM)
            assert web.process is not None
            assert web.process.wait(PATIENCE) == 0
            # In order it would have taken 50 ms for each client: 4.5 s by the clock of the server itself.
            ends = [datetime.fromisoformat(str(end)) for (end,) in site.sql(ENDS_OF, "hurry-%")]
            assert len(ends) == 90
            assert max(ends) - min(ends) < timedelta(seconds=4)
        finally:
            for client in clients:
                client.socket.close()
        assert not traceback_in(web)


class Wire:
    """Remembers whether it is read."""

    def __init__(self) -> None:
        self.is_read = True

    def pauseProducing(self) -> None:
        self.is_read = False

    def resumeProducing(self) -> None:
        self.is_read = True


MAILBOX = """
import asyncio
from bus.transport import UNREAD, UNREAD_BYTES, Mailbox
from tests.integration.test_transport import Wire

async def main():
    wire = Wire()
    box = Mailbox(wire)
    waiting = asyncio.ensure_future(box.get())
    await asyncio.sleep(0)
    for number in range(UNREAD + 2):
        box.put_nowait({"text": str(number)})
    assert (await waiting)["text"] == "0"
    assert not wire.is_read
    for number in range(1, UNREAD + 2):
        assert not wire.is_read
        assert (await box.get())["text"] == str(number)
    assert wire.is_read
    box.put_nowait({"bytes": bytes(UNREAD_BYTES + 1)})
    assert not wire.is_read
    await box.get()
    assert wire.is_read
    lost = asyncio.ensure_future(box.get())
    await asyncio.sleep(0)
    lost.cancel()
    await asyncio.gather(lost, return_exceptions=True)
    box.put_nowait({"text": "kept"})
    assert (await box.get())["text"] == "kept"

asyncio.run(main())
"""


def test_a_socket_is_not_read_while_its_messages_are_not_taken() -> None:
    # In a process of its own: the module installs Twisted's reactor.
    done = subprocess.run(
        [sys.executable, "-c", MAILBOX], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
