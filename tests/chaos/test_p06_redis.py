"""P6: Redis is a hint. Killed, frozen, emptied, replaced or slow, no event is lost and none comes late."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from tests.chaos.conftest import SETTINGS
from tests.figures import figure
from tests.harness import Site
from tests.history import late, percentile
from tests.proxy import TcpProxy
from tests.servers import Valkey, wait_until
from tests.swarm import Feeder, Reader, Swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

#: Seconds for which the server is gone, frozen or slow.
FROZEN, AWAY = figure(5.0, 30.0), figure(2.0, 30.0)
#: The log is asked once a second; half a second more for a busy machine. The very worst may take twice that.
LATE = 1.5
#: So soon after the server is back hints flow again (s), which is seen in events that come faster than the
#: log is asked.
NORMAL, QUICK = 5.0, 0.3
#: A slow server takes longer for an answer (s) than its callers wait.
SLOW = 1.5


class Broken:
    """A site whose layer can be broken, a publisher on one of its servers, and a reader on each."""

    def __init__(self, site: Site, proxy: TcpProxy) -> None:
        self.site = site
        self.proxy = proxy

    @property
    def valkey(self) -> Valkey:
        return self.site.valkey

    def kill(self) -> None:
        """It dies and comes back empty."""
        self.valkey.kill()
        time.sleep(AWAY)
        self.valkey.start()

    def freeze(self) -> None:
        """It takes calls and answers none."""
        self.valkey.freeze()
        time.sleep(FROZEN)
        self.valkey.thaw()

    def empty(self) -> None:
        """It forgets everything."""
        with redis.Redis.from_url(self.valkey.url) as client:
            client.flushall()

    def replace(self) -> None:
        """It dies, and another one stands in its place at once."""
        self.valkey.kill()
        self.valkey.start()

    def slow(self) -> None:
        """Each piece takes longer than a caller waits."""
        self.proxy.delay = SLOW
        time.sleep(AWAY)
        self.proxy.delay = 0.0


@pytest.fixture(scope="module")
def broken() -> Iterator[Broken]:
    site = Site(web=2, **SETTINGS)
    with TcpProxy(site.valkey.port) as proxy:
        site.environment["REDIS_URL"] = f"redis://127.0.0.1:{proxy.port}/0"
        yield Broken(site.start(), proxy)
        site.stop()


@pytest.mark.parametrize("fault", ["kill", "freeze", "empty", "replace", "slow"])
def test_p06_no_event_is_lost_or_late_while_redis_is_down(broken: Broken, fault: str) -> None:
    topic, site = f"{fault}:redis", broken.site
    with Swarm() as swarm:
        readers = [
            swarm.read([web.socket], [topic], site.token(f"{fault}-{web.port}"), name=web.name)
            for web in site.web
        ]
        feeder = swarm.feed(
            [site.web[0].socket],
            topic,
            site.token(f"feeds-{fault}", "publish"),
            series=fault,
            count=100_000,
            rate=60,
            window=100,
        )
        swarm.wait_connected()
        feeder.wait_for(20)
        getattr(broken, fault)()
        back_at = time.time()
        quick_from = wait_until(lambda: quick_since(back_at, feeder, readers), what="hints that flow")
        normal_after = quick_from - back_at
        feeder.enough()
        swarm.assert_sound(lambda: site.log(fault))
        delays = late(swarm.acks, swarm.readings)
        answers = sorted(ack.acked_at - ack.sent_at for ack in swarm.acks)
        assert not any(reader.losses for reader in readers)
    assert percentile(delays, 0.99) <= LATE
    assert delays[-1] <= 2 * LATE
    assert percentile(answers, 0.99) <= LATE
    assert normal_after <= NORMAL


def quick_since(moment: float, feeder: Feeder, readers: list[Reader]) -> float | None:
    """When twenty events in a row, sent since then, had come everywhere, each at once."""
    recent = [ack for ack in list(feeder.acks) if ack.sent_at > moment]
    came = [{event.offset: event.at for event in list(reader.reading.seen)} for reader in readers]
    row: list[float] = []
    for ack in recent:
        if any(ack.offset not in one for one in came):
            return None
        arrived = max(one[ack.offset] for one in came)
        row = [*row, arrived] if arrived - ack.acked_at < QUICK else []
        if len(row) == 20:
            return max(row)
    return None
