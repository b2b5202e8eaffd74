"""P11: servers that are stopped in turn under load lose nothing, and their clients are soon elsewhere."""

from __future__ import annotations

import pytest

from tests.e2e.clients import StockClient
from tests.figures import figure
from tests.harness import Site, Web
from tests.servers import wait_until
from tests.swarm import Reader, Swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CLIENTS = figure(100, 1_000)
BACK = 10.0
SHUTDOWN = 3001


def test_p11_a_rolling_restart_loses_nothing(site: Site) -> None:
    topic = "rolling:all"
    urls = [web.socket for web in site.web]
    with Swarm() as swarm:
        for number in range(CLIENTS):
            agent = f"rolled-{number}"
            ways = urls if number % 2 else urls[::-1]
            swarm.read(ways, [topic], site.token(agent), name=agent)
        for number in range(2):
            swarm.feed(
                urls,
                topic,
                site.token(f"roller-{number}", "publish"),
                series=f"s{number}",
                count=100_000,
                window=20,
                rate=25,
            )
        swarm.wait_connected()
        for web in site.web:
            roll(site, web, swarm)
        for feeder in swarm.feeders:
            feeder.enough()
        swarm.assert_sound(lambda: site.log("rolling"))
        assert not [reader.name for reader in swarm.readers if len(reader.reading.starts) > 1]
        # The second server had all clients when it was stopped.
        assert sum(len(reader.losses) for reader in swarm.readers) >= CLIENTS * 3 // 2
        ways = {close.code for reader in swarm.readers for close in reader.losses}
        assert ways <= {SHUTDOWN, 1006}, ways
        assert slowest_return(swarm.readers) <= BACK


def roll(site: Site, web: Web, swarm: Swarm) -> None:
    """Stop a server in order, start it again, and wait until everybody is served."""
    before = len(swarm.acks)
    assert web.terminate() == 0
    wait_until(
        lambda: all(client.is_up for client in swarm.readers), timeout=2 * BACK, what="everybody elsewhere"
    )
    web.restart()
    wait_until(lambda: len(swarm.acks) > before + 20, timeout=BACK, what="publishes that go on")
    assert not site.sql(
        "SELECT 1 FROM bus_activeconnection WHERE server_instance_id LIKE %s", f"%.{web.pid}.%"
    )


def slowest_return(clients: list[Reader]) -> float:
    """The longest time (s) from the end of a connection to the next one that was answered."""
    returns = [
        min((at for at in client.connected_at if at > close.at), default=float("inf")) - close.at
        for client in clients
        for close in client.closes
        if close.code == SHUTDOWN
    ]
    return max(returns)


@pytest.mark.parametrize("sdk", ["javascript", "python"])
def test_p11_a_server_that_is_stopped_says_so_and_the_sdk_goes_on(site: Site, sdk: str) -> None:
    topic, web, agent = f"rolling:{sdk}", site.web[0], f"rolled-{sdk}"
    with StockClient(sdk) as client, Swarm() as swarm:
        client.connect(web.socket, site.token(agent), agent_id=agent)
        client.do("subscribe", topic=topic, positioned=True, recoverable=True)
        feeder = swarm.feed(
            [site.web[1].socket],
            topic,
            site.token(f"feeds-{sdk}", "publish"),
            series=sdk,
            count=150,
            window=5,
            rate=50,
        )
        feeder.wait_for(30)
        assert web.terminate() == 0
        assert client.wait("connecting", code=SHUTDOWN, timeout=5)["reason"] == "shutdown"
        assert not site.sql("SELECT 1 FROM bus_activeconnection WHERE agent_id = %s", agent)
        web.restart()
        feeder.finish()
        client.wait("publication", topic=topic, count=150)
        assert client.offsets(topic) == list(range(1, 151))
        assert client.seen("subscribed", topic=topic)[-1]["recovered"]
