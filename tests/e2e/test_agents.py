"""Agents on two servers: one live connection each, a limit that says so, an inbox that waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.clients import RawClient, StockClient
from tests.harness import Site
from tests.servers import PATIENCE, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

#: Longer than the reconnect delays of the SDKs, so that a client that came back would be seen.
WATCHED = 2.5


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site(web=2)
    yield site.start()
    site.stop()


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return site.api_key("publish:agent", "publish")


def send(site: Site, key: str, topic: str, numbers: range) -> None:
    """Publish numbered events over HTTP, through both servers in turn."""
    with httpx.Client(headers={"X-API-Key": key}, timeout=PATIENCE) as http:
        for number in numbers:
            url = f"{site.web[number % 2].url}/api/publish"
            answer = http.post(url, json={"channel": topic, "data": {"n": number}})
            assert answer.json()["result"]["offset"] == number, answer.text


def owners(site: Site, agent: str) -> list[str]:
    """Client ids of the live connections of an agent, by the rows."""
    return [
        row[0] for row in site.sql("SELECT client_id FROM bus_activeconnection WHERE agent_id = %s", agent)
    ]


@pytest.mark.parametrize("sdk", ["javascript", "python"])
def test_the_newest_connection_wins_across_servers_and_the_former_stays_away(
    site: Site, key: str, sdk: str
) -> None:
    agent = f"twice-{sdk}"
    with StockClient(sdk) as first, StockClient(sdk) as second:
        first.connect(site.web[0].socket, site.token(agent), agent_id=agent)
        winner = second.connect(site.web[1].socket, site.token(agent), agent_id=agent)
        ended = first.wait("disconnected")
        assert (ended["code"], ended["reason"]) == (4501, "replaced")
        send(site, key, f"agent:{agent}", range(1, 4))
        second.wait("publication", topic=f"agent:{agent}", count=3)
        came_back = len(first.seen("connecting"))
        with pytest.raises(AssertionError):
            first.wait("connecting", count=came_back + 1, timeout=WATCHED)
        assert not first.seen("publication")
        assert not second.seen("disconnected")
        assert owners(site, agent) == [winner["client"]]


def test_the_replaced_connection_hears_why_before_it_is_closed(site: Site) -> None:
    with RawClient(site.web[0].socket) as first, RawClient(site.web[1].socket) as second:
        first.call("connect", token=site.token("pushed"), data={"agent_id": "pushed"})
        second.call("connect", token=site.token("pushed"), data={"agent_id": "pushed"})
        messages, code, reason = first.ending()
        assert messages[-1] == {"push": {"disconnect": {"code": 4501, "reason": "replaced"}}}
        assert (code, reason) == (4501, "replaced")


def test_two_servers_racing_for_one_agent_end_with_one_owner(site: Site) -> None:
    agents = [f"raced-{number}" for number in range(12)]

    def attach(agent: str, server: int) -> RawClient:
        client = RawClient(site.web[server].socket)
        with suppress(ConnectionClosed):  # it has lost the race already
            client.call("connect", token=site.token(agent), data={"agent_id": agent})
        return client

    def is_open(client: RawClient) -> bool:
        try:
            client.call("rpc", method="bus.whoami", data={})
        except ConnectionClosed:
            return False
        return True

    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        pairs = [(pool.submit(attach, agent, 0), pool.submit(attach, agent, 1)) for agent in agents]
        sockets = [[stack.enter_context(attempt.result()) for attempt in pair] for pair in pairs]
        for agent, pair in zip(agents, sockets, strict=True):
            wait_until(
                lambda pair=pair: sum(is_open(client) for client in pair) == 1, what=f"one owner of {agent}"
            )
            assert len(owners(site, agent)) == 1


def test_messages_to_an_absent_agent_arrive_when_it_is_back(site: Site, key: str) -> None:
    agent, inbox = "away", "agent:away"
    with StockClient("python") as before:
        before.connect(site.web[0].socket, site.token(agent), agent_id=agent)
        send(site, key, inbox, range(1, 11))
        before.wait("publication", topic=inbox, count=10)
        acked = before.do("rpc", method="bus.ack", data={"topic": inbox, "offset": 7})
        assert (acked["offset"], acked["lag"]) == (7, 3)
        before.do("disconnect")
    send(site, key, inbox, range(11, 61))
    for sdk, server in (("javascript", 1), ("python", 0)):
        with StockClient(sdk) as after:
            after.connect(site.web[server].socket, site.token(agent), agent_id=agent)
            after.wait("publication", topic=inbox, count=53)
            assert after.offsets(inbox) == list(range(8, 61))
            assert [payload["n"] for payload in after.payloads(inbox)] == list(range(8, 61))
            if sdk == "python":
                assert after.do("rpc", method="bus.ack", data={"topic": inbox, "offset": 60})["lag"] == 0
    with StockClient("python") as done:
        done.connect(site.web[1].socket, site.token(agent), agent_id=agent)
        send(site, key, inbox, range(61, 62))
        done.wait("publication", topic=inbox)
        assert done.offsets(inbox) == [61]


def test_an_agent_reads_nobody_elses_inbox_whatever_it_claims(site: Site) -> None:
    with RawClient(site.web[0].socket) as client:
        client.send(
            {"id": 1, "connect": {"token": site.token("honest"), "data": {"agent_id": "somebody-else"}}}
        )
        messages, code, _ = client.ending()
        assert code in (3500, 3507), messages


@pytest.fixture
def crowd() -> Iterator[Site]:
    """Servers with room for 100 each, and a worker and beat that tidy up. Nobody has to answer pings."""
    site = Site(web=2, BUS_PING_INTERVAL="300")
    site.start()
    site.start_worker()
    site.start_beat()
    yield site
    site.stop()


def test_the_101st_is_refused_and_a_killed_server_is_forgotten_within_a_minute(crowd: Site) -> None:
    doomed, server = crowd.web
    with RawClient(doomed.socket) as lost:
        lost.call("connect", token=crowd.token("lost"), data={"agent_id": "lost"})
        assert len(owners(crowd, "lost")) == 1
        doomed.kill()
        killed_at = time.monotonic()
    with ExitStack() as stack:
        sockets = [stack.enter_context(RawClient(server.socket)) for _ in range(100)]
        for number, socket in enumerate(sockets):
            socket.call("connect", token=crowd.token(f"seat-{number}"), data={"agent_id": f"seat-{number}"})
        refused = stack.enter_context(RawClient(server.socket))
        refused.send({"id": 1, "connect": {"token": crowd.token("late"), "data": {"agent_id": "late"}}})
        messages, code, reason = refused.ending()
        assert (code, reason.startswith("connection limit")) == (3504, True)
        assert messages[-1]["push"]["disconnect"]["code"] == 3504
        sockets[0].close()
        wait_until(lambda: not owners(crowd, "seat-0"), what="a free seat")
        late = stack.enter_context(RawClient(server.socket))
        late.call("connect", token=crowd.token("late"), data={"agent_id": "late"})
        wait_until(
            lambda: not owners(crowd, "lost"),
            timeout=60 - (time.monotonic() - killed_at),
            interval=0.25,
            what="the purge of the rows of a killed server",
        )
        query = "SELECT reason FROM bus_connectionsession WHERE agent_id = %s"
        wait_until(lambda: crowd.sql(query, "lost") == [("lost",)], what="the reason of the session's end")
        assert len(crowd.sql("SELECT 1 FROM bus_activeconnection")) == 100
        wait_until(lambda: len(crowd.sql("SELECT 1 FROM bus_serverinstance")) == 1, what="the row's end")
