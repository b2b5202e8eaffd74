"""P12: when a server dies under load all its clients come to the other one at once, and all are served."""

from __future__ import annotations

import time

import pytest

from tests.figures import figure
from tests.harness import Site
from tests.servers import wait_until
from tests.swarm import Reader, Swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CLIENTS = figure(500, 2_000)
BACK = 30.0


def test_p12_a_reconnect_storm_heals(site: Site) -> None:
    topic, (dying, living) = "storm:back", site.web
    with Swarm() as swarm:
        for number in range(CLIENTS):
            agent = f"stormy-{number}"
            swarm.read([dying.socket, living.socket], [topic], site.token(agent), name=agent)
        swarm.feed(
            [living.socket],
            topic,
            site.token("feeds-storm", "publish"),
            series="storm",
            count=100_000,
            window=20,
            rate=20,
        )
        swarm.wait_connected(timeout=90)
        swarm.feeders[0].wait_for(20)
        cut = [reader for reader in swarm.readers if reader.url == dying.socket]
        assert len(cut) >= CLIENTS * 9 // 10
        dying.kill()
        killed_at = time.monotonic()
        dying.start()
        wait_until(
            lambda: all(has_returned(reader, killed_at) for reader in cut), timeout=2 * BACK, what="all"
        )
        back_after = max(first_after(killed_at, reader) for reader in cut) - killed_at
        swarm.feeders[0].enough()
        swarm.assert_sound(lambda: site.log("storm"))
        assert not [reader.name for reader in swarm.readers if len(reader.reading.starts) > 1]
    assert back_after <= BACK


def first_after(killed_at: float, reader: Reader) -> float:
    """When it was first served again."""
    return next(at for at in reader.connected_at if at > killed_at)


def has_returned(reader: Reader, killed_at: float) -> bool:
    """Whether it was served since the server was killed."""
    return reader.connected_at[-1] > killed_at
