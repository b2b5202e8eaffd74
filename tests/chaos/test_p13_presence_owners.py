"""P13: who is present is true within a bound, and an agent id has one owner, whatever becomes of servers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.e2e.clients import RawClient, StockClient
from tests.figures import DEEP, figure
from tests.harness import Site, Web
from tests.servers import PATIENCE, wait_until
from tests.swarm import Swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

#: Every day a fifth of the real times: leases of 9 s instead of 45, a heartbeat every 2 s instead of 10.
LEASE, BEAT = figure(9, 45), figure(2, 10)
#: Nobody is taken for present longer than this after the end (s); the rest is for a busy machine, which
#: looks at the leases every 2 s.
STALE = figure(LEASE + 2.0, 45.0)
AGENTS = 8
ROUNDS = figure(20, 300)
REPLACED = 4501


@pytest.fixture(scope="module")
def three() -> Iterator[Site]:
    """Three servers with short leases; no worker and no beat, for it must work without them."""
    leases = {
        "BUS_INSTANCE_LEASE": str(LEASE),
        "BUS_HEARTBEAT_INTERVAL": str(BEAT),
        "BUS_PRESENCE_GRACE": "1",
    }
    site = Site(web=3, **({} if DEEP else leases))
    yield site.start()
    site.stop()


@pytest.fixture
def short(three: Site) -> Iterator[Site]:
    """The three, mended after each test."""
    yield three
    three.mend()


def test_p13_agents_of_a_dead_and_of_a_frozen_server_are_soon_gone(short: Site) -> None:
    killed, frozen, healthy = short.web
    with Swarm() as swarm, RawClient(healthy.socket) as watcher:
        for web in (killed, frozen):
            for number in range(AGENTS):
                agent = f"{web.name.replace(' ', '')}-{number}"
                swarm.read([web.socket], ["hall:all"], short.token(agent), name=agent)
        swarm.wait_connected()
        watcher.call("connect", token=short.token("watcher"))
        wait_until(lambda: present(watcher) == names(AGENTS, "web0", "web1"), what="everybody present")
        time.sleep(BEAT)  # a heartbeat comes in any case: from now on the leases are as long as they can be
        killed.kill()
        freeze_between_writes(short, frozen)
        ended_at = time.monotonic()
        wait_until(lambda: not present(watcher), timeout=2 * STALE, interval=0.1, what="an empty hall")
        assert time.monotonic() - ended_at <= STALE
        gone = short.sql("SELECT agent_id FROM bus_activeconnection WHERE agent_id LIKE 'web%'")
        assert gone == []
        frozen.thaw()
        # They were connected all the time, so they are there again.
        wait_until(
            lambda: present(watcher) == names(AGENTS, "web1"), timeout=2 * BEAT + 5, what="their return"
        )
        reader = swarm.readers[-1]
        assert not reader.closes


def present(watcher: RawClient) -> set[str]:
    found = watcher.call("presence", channel="hall:all")["presence"]
    return {info["user"] for info in found.values()}


def names(count: int, *servers: str) -> set[str]:
    return {f"{server}-{number}" for server in servers for number in range(count)}


class Contender:
    """One of two connections that want to be the same agent."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.answers: dict[int, dict[str, Any]] = {}
        self.close: ConnectionClosed | None = None
        self.changed = asyncio.Event()
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        try:
            async for frame in self.socket:
                for line in str(frame).split("\n"):
                    message = json.loads(line)
                    if message:
                        self.answers[message.get("id", 0)] = message
                    else:
                        await self.socket.send("{}")
                self.changed.set()
        except ConnectionClosed as error:
            self.close = error
        self.changed.set()

    async def ask(self, number: int, method: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Call, and return the answer, or None if the connection ended first."""
        try:
            await self.socket.send(json.dumps({"id": number, method: body}))
        except ConnectionClosed:
            return None
        async with asyncio.timeout(PATIENCE):
            while number not in self.answers and not self.is_over:
                self.changed.clear()
                await self.changed.wait()
        return self.answers.get(number)

    @property
    def is_over(self) -> bool:
        return self.socket.close_code is not None


async def race(urls: list[str], token: str) -> tuple[list[Contender], list[Contender]]:
    """Connect to all servers at the same moment; return who is left, and who was closed."""
    sockets = await asyncio.gather(
        *[connect(url, proxy=None, open_timeout=PATIENCE, ping_interval=None) for url in urls]
    )
    contenders = [Contender(socket) for socket in sockets]
    await asyncio.gather(*[contender.ask(1, "connect", {"token": token}) for contender in contenders])
    async with asyncio.timeout(PATIENCE):
        while sum(not contender.is_over for contender in contenders) > 1:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # if the last one were to fall, too, it would be now
    left = [contender for contender in contenders if not contender.is_over]
    return left, [contender for contender in contenders if contender.is_over]


def test_p13_of_servers_that_race_for_an_agent_exactly_one_owns_it(short: Site) -> None:
    urls = [web.socket for web in short.web[1:]] * 2
    with Swarm() as swarm:
        for number in range(ROUNDS):
            agent = f"raced-{number}"
            left, closed = swarm.call(race(urls, short.token(agent)))
            assert len(left) == 1, f"round {number}: {len(left)} owners"
            codes = {contender.socket.close_code for contender in closed}
            assert codes == {REPLACED}
            answer = swarm.call(left[0].ask(2, "rpc", {"method": "bus.whoami"}))
            assert answer["rpc"]["data"]["agent_id"] == agent
            owner = answer["rpc"]["data"]["client"]
            rows = short.sql("SELECT client_id FROM bus_activeconnection WHERE agent_id = %s", agent)
            assert rows == [(owner,)]
            swarm.call(left[0].socket.close())


def test_p13_an_agent_is_replaced_even_while_redis_is_down(short: Site) -> None:
    short.valkey.kill()
    try:
        with StockClient("python") as first, StockClient("python") as second:
            first.connect(short.web[1].socket, short.token("alone"), agent_id="alone")
            second.connect(short.web[2].socket, short.token("alone"), agent_id="alone")
            ended = first.wait("disconnected", timeout=12)
            assert (ended["code"], ended["reason"]) == (REPLACED, "replaced")
            assert not second.seen("disconnected")
    finally:
        short.valkey.start()


def test_p13_a_server_that_was_frozen_gives_up_the_agents_it_lost(short: Site) -> None:
    frozen, healthy = short.web[1:]
    with RawClient(frozen.socket) as former, StockClient("python") as owner:
        former.call("connect", token=short.token("thawed", "publish"), data={"agent_id": "thawed"})
        freeze_between_writes(short, frozen)
        try:
            owner.connect(healthy.socket, short.token("thawed", "publish"), agent_id="thawed")
        finally:
            frozen.thaw()
        with pytest.raises(ConnectionClosed) as end:
            insist(former, until=time.monotonic() + 12)
        assert end.value.rcvd is not None
        assert end.value.rcvd.code == REPLACED
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
        time.sleep(0.02)  # below the rate at which commands are refused
