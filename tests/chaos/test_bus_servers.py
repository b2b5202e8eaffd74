"""Servers that are killed, stopped, frozen or cut off: what was acknowledged is there, clients go on."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.clients import RawClient, StockClient
from tests.e2e.publisher import Publisher
from tests.harness import Site, Web
from tests.proxy import TcpProxy
from tests.servers import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

#: Heartbeats that fail fast, so that the tests need not wait for the real ones.
PING, PONG = 2, 1


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site(web=2, BUS_PING_INTERVAL=str(PING), BUS_PONG_TIMEOUT=str(PONG))
    yield site.start()
    site.stop()


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return site.api_key()


def test_what_was_acknowledged_survives_the_death_of_every_process(site: Site, key: str) -> None:
    topic = "crash:all"
    publisher = Publisher([web.url for web in site.web], key=key, topic=topic, count=10_000)
    publisher.start()
    publisher.wait_for(200)
    for program in (*site.web, site.valkey):
        program.kill()
    publisher.stop()
    acked = [(number, ack.offset) for number, ack in enumerate(publisher.acks, 1)]
    site.valkey.start()
    for web in site.web:
        web.restart()
    with RawClient(site.web[0].socket) as client:
        client.call("connect", token=site.token("witness"))
        found = client.call("history", channel=topic, limit=-1)["publications"]
    kept = [(entry["data"]["n"], entry["offset"]) for entry in found]
    assert len(acked) >= 200
    assert kept[: len(acked)] == acked
    #: At most the one that was on its way is there without an ack.
    assert len(kept) <= len(acked) + 1


def test_a_publish_whose_answer_was_lost_is_repeated_without_a_second_effect(site: Site, key: str) -> None:
    topic, count, dice = "lost:answers", 60, random.Random(4)
    with TcpProxy(site.web[0].port) as proxy:
        through = f"http://127.0.0.1:{proxy.port}"
        publisher = Publisher([through, site.web[1].url], key=key, topic=topic, count=count)
        proxy.cut_after(dice.randrange(1, 200))
        publisher.start()
        for number in range(2, count, 2):
            publisher.wait_for(number)
            proxy.cut_after(dice.randrange(1, 200))
        acks = publisher.finish()
    assert [ack.offset for ack in acks] == list(range(1, count + 1))
    assert sum(ack.tries for ack in acks) >= count + 20
    ((events,),) = site.sql(
        "SELECT count(*) FROM bus_event WHERE topic_id = (SELECT id FROM bus_topic WHERE name = %s)", topic
    )
    assert events == count


@pytest.mark.parametrize("sdk", ["javascript", "python"])
def test_a_server_that_is_stopped_says_so_and_its_clients_go_on(site: Site, key: str, sdk: str) -> None:
    topic, web, agent = f"rolling:{sdk}", site.web[0], f"rolled-{sdk}"
    publisher = Publisher([site.web[1].url], key=key, topic=topic, count=150, pause=0.02)
    with StockClient(sdk) as client:
        client.connect(web.socket, site.token(agent), agent_id=agent)
        client.do("subscribe", topic=topic, positioned=True, recoverable=True)
        publisher.start()
        publisher.wait_for(30)
        assert web.terminate() == 0
        assert client.wait("connecting", code=3001, timeout=5)["reason"] == "shutdown"
        assert not site.sql("SELECT 1 FROM bus_activeconnection WHERE agent_id = %s", agent)
        web.restart()
        publisher.finish()
        client.wait("publication", topic=topic, count=150)
        assert client.offsets(topic) == list(range(1, 151))
        assert client.seen("subscribed", topic=topic)[-1]["recovered"]


def test_a_client_in_a_black_hole_is_closed_and_heals(site: Site, key: str) -> None:
    topic, agent = "hole:1", "swallowed"
    with TcpProxy(site.web[0].port) as proxy, StockClient("python") as client:
        lost = client.connect(proxy.socket, site.token(agent), agent_id=agent)["client"]
        client.do("subscribe", topic=topic, positioned=True, recoverable=True)
        proxy.hold()
        Publisher([site.web[0].url], key=key, topic=topic, count=20).run()
        query = "SELECT code FROM bus_connectionsession WHERE client_id = %s AND disconnected_at IS NOT NULL"
        closed = wait_until(lambda: site.sql(query, lost), timeout=2 * (PING + PONG) + 3, what="3012")
        assert closed == [(3012,)]
        assert not client.seen("publication", topic=topic)
        proxy.release()
        client.wait("publication", topic=topic, count=20)
        assert client.offsets(topic) == list(range(1, 21))


def test_an_agent_is_replaced_even_while_redis_is_down(site: Site) -> None:
    site.valkey.kill()
    try:
        with StockClient("python") as first, StockClient("python") as second:
            first.connect(site.web[0].socket, site.token("alone"), agent_id="alone")
            second.connect(site.web[1].socket, site.token("alone"), agent_id="alone")
            ended = first.wait("disconnected", timeout=12)
            assert (ended["code"], ended["reason"]) == (4501, "replaced")
            assert not second.seen("disconnected")
    finally:
        site.valkey.start()


def test_a_server_that_was_frozen_gives_up_the_agents_it_lost(site: Site) -> None:
    frozen, healthy = site.web
    with RawClient(frozen.socket) as former, StockClient("python") as owner:
        former.call("connect", token=site.token("thawed", "publish"), data={"agent_id": "thawed"})
        freeze_between_writes(site, frozen)
        try:
            owner.connect(healthy.socket, site.token("thawed", "publish"), agent_id="thawed")
        finally:
            frozen.thaw()
        with pytest.raises(ConnectionClosed) as end:
            insist(former, until=time.monotonic() + 12)
        assert end.value.rcvd is not None
        assert end.value.rcvd.code == 4501
        assert owner.do("rpc", method="bus.whoami", data={})["agent_id"] == "thawed"
        assert not owner.seen("disconnected")


def freeze_between_writes(site: Site, web: Web) -> None:
    """Freeze a server; not while it holds SQLite's one write lock, for then the whole site stands still."""

    def is_frozen() -> bool:
        web.freeze()
        if not site.is_writable():
            web.thaw()
            return False
        return True

    wait_until(is_frozen, what="a moment without a write")


def insist(client: RawClient, *, until: float) -> None:
    """Keep asking until the server hangs up."""
    while time.monotonic() < until:
        client.call("rpc", method="bus.whoami", data={})


def test_an_operator_disconnects_an_agent_of_any_server(site: Site) -> None:
    with StockClient("javascript") as client:
        client.connect(site.web[1].socket, site.token("unwanted"), agent_id="unwanted")
        site.manage("bus", "disconnect", "unwanted")
        assert client.wait("disconnected")["code"] == 3503
