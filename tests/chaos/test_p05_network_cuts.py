"""P5: a network that is cut and comes back loses nothing, and the stock SDKs are soon served again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.clients import StockClient
from tests.figures import figure
from tests.harness import Site
from tests.history import percentile
from tests.proxy import TcpProxy
from tests.servers import wait_until
from tests.swarm import Feeder, Swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(figure(600, 7_200))]

#: Cuts of both SDKs together, and how long the network is away (s).
CUTS = figure(30, 200)
SHORTEST, LONGEST = 0.1, figure(1.5, 60.0)
#: Back so soon after the network is (s).
BACK = 2.0
#: Heartbeats that fail fast: pings every 2 s, and an SDK waits a second longer than that.
PING, PONG, PATIENCE = 2, 1, 1.0
#: A client that was told nothing of the end of its connection notices when no ping comes.
UNNOTICED = PING + PATIENCE

KINDS = ("reset", "finish", "hole", "client lost", "server lost")


@dataclass(slots=True)
class Line:
    """A client, and the proxy through which it speaks."""

    client: StockClient
    proxy: TcpProxy

    def cut(self, kind: str) -> None:
        match kind:
            case "reset" | "finish":
                self.proxy.refuse(reset=kind == "reset")
            case "hole":
                self.proxy.hold()
            case _:
                self.proxy.halve(lost=kind.split()[0])

    def last(self) -> str:
        """Whether the SDK's latest word is that it is `connected`, `connecting` or `disconnected`."""
        words = [entry["event"] for entry in list(self.client.events)]
        return next(word for word in reversed(words) if word in ("connected", "connecting", "disconnected"))

    def connected_since(self, moment: float) -> list[float]:
        """When it was connected anew."""
        return [entry["at"] for entry in self.client.seen("connected") if entry["at"] > moment]


@pytest.fixture(scope="module")
def quick() -> Iterator[Site]:
    site = Site(BUS_PING_INTERVAL=str(PING), BUS_PONG_TIMEOUT=str(PONG))
    yield site.start()
    site.stop()


def test_p05_cuts_heal_by_themselves_and_nothing_is_lost(quick: Site, dice: random.Random) -> None:
    topic, web = "cuts:all", quick.web[0]
    with (
        TcpProxy(web.port) as first,
        TcpProxy(web.port) as second,
        StockClient("javascript") as javascript,
        StockClient("python") as python,
        Swarm() as swarm,
    ):
        lines = [Line(javascript, first), Line(python, second)]
        for line in lines:
            connect(line, quick, topic)
        feeder = swarm.feed(
            [web.socket],
            topic,
            quick.token("feeds-cuts", "publish"),
            series="c",
            count=10**6,
            window=9,
            rate=25,
        )
        returns = sorted(cut_all(lines, dice, CUTS // 2))
        check_nothing_is_lost(lines, feeder, topic)
    assert percentile(returns, 0.99) <= BACK, returns[-5:]


def connect(line: Line, site: Site, topic: str) -> None:
    line.client.do(
        "connect", url=line.proxy.socket, token=site.token(f"cut-{line.client.sdk}"), pingDelay=PATIENCE
    )
    line.client.wait("connected")
    line.client.do("subscribe", topic=topic, positioned=True, recoverable=True)


def check_nothing_is_lost(lines: list[Line], feeder: Feeder, topic: str) -> None:
    count = len(feeder.enough())
    expected = [{"n": number} for number in range(1, count + 1)]
    for line in lines:
        line.client.wait("publication", topic=topic, count=count, timeout=20)
        assert line.client.offsets(topic) == list(range(1, count + 1))
        assert [event["data"] for event in line.client.payloads(topic)] == expected
        assert all(entry["recovered"] for entry in line.client.seen("subscribed", topic=topic)[1:])
        assert not line.client.seen("disconnected")


def cut_all(lines: list[Line], dice: random.Random, rounds: int) -> Iterator[float]:
    """Cut both lines again and again, each in its own way; yield how long each took to be back (s)."""
    for number in range(rounds):
        kinds = [KINDS[number % len(KINDS)], dice.choice(KINDS)]
        away = SHORTEST * (LONGEST / SHORTEST) ** dice.random()
        cut_at = time.time()
        for line, kind in zip(lines, kinds, strict=True):
            line.cut(kind)
        time.sleep(away)
        for line in lines:
            line.proxy.release()
        back_at = time.time()
        for line, kind in zip(lines, kinds, strict=True):
            yield until_back(line, kind, cut_at, back_at)


def until_back(line: Line, kind: str, cut_at: float, back_at: float) -> float:
    """Wait until a client is served again; return how long that took since the network is back."""
    if kind == "hole" and back_at - cut_at < PONG:
        return 0.0  # too short for anybody to notice
    if kind == "hole":
        # Whoever noticed has given up the connection; else what was held back has just come.
        wait_until(lambda: line.last() == "connected", timeout=30, what=f"{line.client.sdk} after {kind}")
        return max(0.0, max(line.connected_since(cut_at), default=0.0) - back_at)
    wait_until(lambda: line.connected_since(cut_at), timeout=30, what=f"{line.client.sdk} after {kind}")
    noticed = UNNOTICED if kind == "server lost" else 0.0
    return max(0.0, line.connected_since(cut_at)[0] - max(back_at, cut_at + noticed))


def test_p05_a_client_in_a_black_hole_is_closed_and_heals(quick: Site) -> None:
    topic, agent = "hole:1", "swallowed"
    with TcpProxy(quick.web[0].port) as proxy, StockClient("python") as client, Swarm() as swarm:
        lost = client.connect(proxy.socket, quick.token(agent), agent_id=agent)["client"]
        client.do("subscribe", topic=topic, positioned=True, recoverable=True)
        proxy.hold()
        token = quick.token("feeds-hole", "publish")
        swarm.feed([quick.web[0].socket], topic, token, series="h", count=20).finish()
        query = "SELECT code FROM bus_connectionsession WHERE client_id = %s AND disconnected_at IS NOT NULL"
        closed = wait_until(lambda: quick.sql(query, lost), timeout=2 * (PING + PONG) + 3, what="3012")
        assert closed == [(3012,)]
        assert not client.seen("publication", topic=topic)
        proxy.release()
        client.wait("publication", topic=topic, count=20)
        assert client.offsets(topic) == list(range(1, 21))
