"""No bytes on the wire bring a server down: Daphne with our protocol, and uvicorn.

After every block of cases the server still answers others, has logged no traceback, and in the end holds no
more connections and hardly more memory than before.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.clients import RawClient
from tests.e2e.raw_frames import FRAMES, HANDSHAKES, opening, random_frames, speak
from tests.harness import Site, Web
from tests.property.fuzz import Fuzzer
from tests.servers import PATIENCE, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.sqlite_only,
    pytest.mark.timeout(1_800 if os.environ.get("TEST_DEEP") else 600),
]

DEEP = bool(os.environ.get("TEST_DEEP"))
RANDOM = 3_000 if DEEP else 60
MESSAGES = 30_000 if DEEP else 600
BODIES = 5_000 if DEEP else 200
SCOPES = ("publish", "publish:agent", "publish:task")


class Uvicorn(Web):
    """The same application under a server that knows nothing of us."""

    def __init__(self, like: Web) -> None:
        super().__init__("uvicorn", like.environment, like.log.with_name("uvicorn.log"))
        options = ["--port", str(self.port), "--ws", "websockets-sansio", "--no-access-log"]
        self.command = [sys.executable, "-m", "uvicorn", *options, "xnai_site.asgi:application"]


@pytest.fixture(scope="module")
def both() -> Iterator[dict[str, tuple[Site, Web]]]:
    """One site, served by both."""
    site = Site().start()
    uvicorn = Uvicorn(site.web[0])
    site.web.append(uvicorn)
    uvicorn.restart()
    yield {"daphne": (site, site.web[0]), "uvicorn": (site, uvicorn)}
    site.stop()


@pytest.fixture(params=["daphne", "uvicorn"])
def server(both: dict[str, tuple[Site, Web]], request: pytest.FixtureRequest) -> Iterator[Web]:
    """A server that has to be as well after the test as before."""
    site, web = both[request.param]
    well(site, web)
    process = psutil.Process(web.pid)
    memory = process.memory_info().rss
    yield web
    assert tracebacks(web) == 0, web.tail()
    assert process.memory_info().rss < memory + 64 * 2**20
    well(site, web)
    wait_until(lambda: not held(process, web.port), what="the connections to be closed")


def held(process: psutil.Process, port: int) -> list[Any]:
    """The connections that a server has not let go of."""
    mine = [found for found in process.net_connections("tcp") if found.laddr.port == port]
    return [found for found in mine if found.status != psutil.CONN_LISTEN]


def tracebacks(web: Web) -> int:
    """Tracebacks in the log, but for those with which uvicorn itself reports text that is no UTF-8."""
    log = web.log.read_text(errors="replace")
    return log.count("Traceback") - log.count("Invalid UTF-8 sequence received from client.")


def well(site: Site, web: Web) -> None:
    """The server answers somebody else."""
    with RawClient(web.socket) as client:
        assert client.call("connect", token=site.token("well"))["client"]
        assert client.call("ping") == {}


def all_of(cases: dict[str, bytes], port: int, first: bytes = b"") -> dict[str, bytes]:
    """Send every case on a connection of its own, some at a time."""
    with ThreadPoolExecutor(16) as pool:
        heard = {name: pool.submit(speak, port, said, first=first) for name, said in cases.items()}
        return {name: done.result() for name, done in heard.items()}


def test_frames_that_break_the_rules_end_their_own_connection_alone(server: Web) -> None:
    heard = all_of(FRAMES, server.port, opening())
    assert all(answer.startswith(b"HTTP/1.1 101") for answer in heard.values()), heard
    assert b'"connect"' not in heard["unmasked text"]


def test_frames_that_only_bend_the_rules_are_served(server: Web) -> None:
    """Whoever sends no token is told so in words."""
    words = b'"disconnect":{"code":3500'
    for name in ("a ping between fragments", "a fragment for each byte", "binary that is the protocol"):
        heard = speak(server.port, FRAMES[name], first=opening(), until=words)
        assert words in heard, (name, heard)


def test_handshakes_that_are_none_open_nothing(server: Web) -> None:
    heard = all_of(HANDSHAKES, server.port)
    for name in ("no key", "version x", "no upgrade", "POST", "half a handshake", "noise", "TLS"):
        assert b" 101 " not in heard[name].partition(b"\r\n")[0], (name, heard[name][:200])


def test_frames_of_chance_do_no_harm(server: Web) -> None:
    chance = Random(9)
    all_of({str(number): random_frames(chance) for number in range(RANDOM)}, server.port, opening())


def test_nonsense_in_the_protocol_is_answered_by_a_real_server(
    server: Web, both: dict[str, tuple[Site, Web]]
) -> None:
    site = both["daphne"][0]
    fuzzer = Fuzzer(server.name, broken=0.1)
    sent = 0
    while sent < MESSAGES:
        with RawClient(server.socket) as client:
            client.call("connect", token=site.token("nonsense", *SCOPES))
            sent += talk_nonsense(client, fuzzer, MESSAGES - sent)


def talk_nonsense(client: RawClient, fuzzer: Fuzzer, count: int) -> int:
    """Send up to so many messages, until the server closes; return how many went out."""
    sent = 0
    while sent < count:
        message = fuzzer.frame()
        sent += 1
        if (code := answered(client, message)) is not None:
            assert 3000 <= code < 5000, (code, message)
            break
    return sent


def answered(client: RawClient, message: str | bytes) -> int | None:
    """Send a message and a ping, and wait for its answer; the code if the server has closed instead."""
    socket = client._socket
    try:
        socket.send(message)
        socket.send('{"id":77777,"ping":{}}')
        while "77777" not in str(socket.recv(PATIENCE)):
            """Answers and pushes of what came before."""
    except ConnectionClosed:
        return socket.close_code
    return None


def test_nonsense_over_http_is_the_callers_fault(both: dict[str, tuple[Site, Web]], server: Web) -> None:
    site = both["daphne"][0]
    key = site.api_key("publish", "publish:agent", "publish:broadcast")
    fuzzer = Fuzzer(f"http {server.name}", broken=0.4)
    with httpx.Client(base_url=f"{server.url}/api/", headers={"X-API-Key": key}, timeout=PATIENCE) as http:
        for _ in range(BODIES):
            path, body = fuzzer.method(), fuzzer.body()
            answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code < 500, (path, body, answer.text)
            assert "Traceback" not in answer.text
            if answer.headers["content-type"].startswith("application/json"):
                json.loads(answer.content)
