"""Redis is a hint: killed, frozen, emptied or slow, no event is lost and none comes late."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from tests.e2e.clients import StockClient
from tests.e2e.publisher import Ack, Publisher
from tests.harness import Site
from tests.servers import Valkey, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

COUNT = 250
#: A little slower than the servers can go, so that the fault falls into the middle.
PAUSE = 0.01
#: The log is asked once a second; half a second more for a busy machine.
LATE = 1.5


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site(web=2)
    yield site.start()
    site.stop()


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return site.api_key()


def kill(server: Valkey) -> None:
    server.kill()


def freeze(server: Valkey) -> None:
    server.freeze()


def empty(server: Valkey) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


def revive(server: Valkey) -> None:
    """Undo whatever was done to the server."""
    if server.process is None:
        server.start()
    server.thaw()


@pytest.mark.parametrize("fault", [kill, freeze, empty])
def test_no_event_is_lost_or_late_while_redis_is_down(
    site: Site, key: str, fault: Callable[[Valkey], None]
) -> None:
    topic = f"storm:{fault.__name__}"
    publisher = Publisher([site.web[0].url], key=key, topic=topic, count=COUNT, pause=PAUSE)
    with StockClient("python") as near, StockClient("python") as far:
        for client, web in ((near, site.web[0]), (far, site.web[1])):
            client.connect(web.socket, site.token(f"{fault.__name__}-{web.port}"))
            client.do("subscribe", topic=topic, positioned=True, recoverable=True)
        publisher.start()
        try:
            publisher.wait_for(50)
            fault(site.valkey)
            publisher.wait_for(150)
            revive(site.valkey)
            acks = publisher.finish()
        finally:
            publisher.stop()
            revive(site.valkey)
        for client in (near, far):
            client.wait("publication", topic=topic, count=COUNT, timeout=10)
            assert client.offsets(topic) == list(range(1, COUNT + 1))
            assert not client.seen("disconnected")
            assert delays(client, topic, acks)[-1] <= LATE
    assert max(ack.acked_at - ack.sent_at for ack in acks) <= LATE


def test_hints_flow_again_soon_after_redis_is_back(site: Site, key: str) -> None:
    topic = "storm:back"
    with StockClient("python") as far:
        far.connect(site.web[1].socket, site.token("patient"))
        far.do("subscribe", topic=topic, positioned=True, recoverable=True)
        site.valkey.kill()
        Publisher([site.web[0].url], key=key, topic=topic, count=5).run()
        far.wait("publication", topic=topic, count=5, timeout=5)
        site.valkey.start()
        sent = 5

        def is_quick() -> bool:
            """Whether ten events in a row came faster than the log is asked."""
            nonlocal sent
            publisher = Publisher([site.web[0].url], key=key, topic=topic, count=10, series=f"{sent}")
            publisher.run()
            sent += 10
            far.wait("publication", topic=topic, count=sent, timeout=5)
            return delays(far, topic, publisher.acks)[-1] < 0.2

        wait_until(is_quick, timeout=10, what="hints")


def delays(client: StockClient, topic: str, acks: list[Ack]) -> list[float]:
    """Seconds from ack to arrival of these events, the shortest first; 0 if it arrived before its ack."""
    arrived = {entry["offset"]: entry["at"] for entry in client.seen("publication", topic=topic)}
    return sorted(max(0.0, arrived[ack.offset] - ack.acked_at) for ack in acks)
