"""P8: clients that never read cost the server little, hurt nobody, are closed, and go on where they were."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.chaos.conftest import SETTINGS
from tests.harness import Site
from tests.history import Acked, Reading, percentile, problems
from tests.servers import wait_until
from tests.sleepers import Sleeper, put_to_sleep, wake
from tests.swarm import Feeder, Reader, Swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CLIENTS = 100
#: Bytes of server memory for each, beside what the server needs anyway.
EACH = 1.5 * 2**20
#: What flows: so many events a second of so many bytes, to each of them: 48 MB/s in all.
RATE, SIZE = 20, 24_000
CLOSED_WITHIN = 30.0
SLOW = 3008
#: Others are served at most twice as slowly, judged by the median of the p99 of windows of a second; this
#: much (s) is noise of a machine with two processors and many processes.
TIMES, NOISE = 2.0, 0.025


@pytest.fixture(scope="module")
def flowing() -> Iterator[Site]:
    site = Site(**SETTINGS)
    yield site.start()
    site.stop()


@dataclass(slots=True)
class Memory:
    """The memory of a process while it is looked at (bytes)."""

    before: int
    peak: int = 0

    @property
    def growth(self) -> int:
        return self.peak - self.before


@contextmanager
def memory_of(pid: int) -> Iterator[Memory]:
    """Look at the resident memory of a process ten times a second."""
    memory, over = Memory(rss(pid)), threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            memory.peak = max(memory.peak, rss(pid))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield memory
    finally:
        over.set()
        looking.join(60)


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4_096


@dataclass(slots=True)
class Probe:
    """Small events at a steady pace, and readers that take the time."""

    feeder: Feeder
    readers: list[Reader] = field(default_factory=list)

    def p99(self, since: float) -> float:
        """Median over windows of a second of the 99th percentile of publish -> receive, since a moment."""
        sent = {ack.offset: ack.sent_at for ack in list(self.feeder.acks) if ack.sent_at >= since}
        windows: dict[int, list[float]] = {}
        for event in [event for reader in self.readers for event in list(reader.reading.seen)]:
            if (at := sent.get(event.offset)) is not None:
                windows.setdefault(int(at), []).append(event.at - at)
        return median(percentile(sorted(delays), 0.99) for delays in windows.values())


def test_p08_clients_that_never_read_hurt_nobody_and_resume_whole(flowing: Site) -> None:
    url, web = flowing.web[0].socket, flowing.web[0]
    with Swarm() as swarm:
        probe = start_probe(swarm, flowing)
        heavy = swarm.feed(
            [url],
            "heavy:all",
            flowing.token("feeds-heavy", "publish"),
            series="heavy",
            count=10**6,
            window=50,
            rate=RATE,
            padding=SIZE,
        )
        swarm.read([url], ["heavy:all"], flowing.token("awake"), name="awake")
        swarm.wait_connected()
        heavy.wait_for(RATE)
        began = time.time()
        time.sleep(5)  # a measurement without them
        alone = probe.p99(began)
        with memory_of(web.pid) as memory:
            names = [f"sleeper-{number}" for number in range(CLIENTS)]
            tokens = {name: flowing.token(name) for name in names}
            sleepers = swarm.call(put_to_sleep(url, tokens, "heavy:all"))
            asleep_at = time.time()
            wait_until(lambda: closed(flowing) == CLIENTS, timeout=CLOSED_WITHIN + 15, what="3008 for all")
            took = time.time() - asleep_at
        beside = probe.p99(asleep_at)
        swarm.call(wake(sleepers))
        check_resume(swarm, flowing, sleepers, heavy)
    print(f"closed in {took:.1f} s; p99 {alone:.4f} -> {beside:.4f} s; +{memory.growth / 2**20:.0f} MiB")  # noqa: T201
    assert took <= CLOSED_WITHIN
    assert memory.growth <= CLIENTS * EACH
    assert beside <= TIMES * alone + NOISE


def start_probe(swarm: Swarm, site: Site) -> Probe:
    url = site.web[0].socket
    token = site.token("feeds-probe", "publish")
    probe = Probe(swarm.feed([url], "probe:all", token, series="probe", count=10**6, window=50, rate=50))
    for number in range(5):
        agent = f"probe-{number}"
        probe.readers.append(swarm.read([url], ["probe:all"], site.token(agent), name=agent))
    return probe


def closed(site: Site) -> int:
    """How many sleepers were closed as slow."""
    query = "SELECT count(*) FROM bus_connectionsession WHERE agent_id LIKE %s AND code = %s"
    ((count,),) = site.sql(query, "sleeper-%", SLOW)
    return int(count)


def check_resume(swarm: Swarm, site: Site, sleepers: Sequence[Sleeper], heavy: Feeder) -> None:
    """Some of those who slept come again with their position and get every event since."""
    woken: list[Reading] = []
    for sleeper in sleepers[:10]:
        reader = Reader(sleeper.name, [site.web[0].socket], site.token(sleeper.name), ["heavy:all"])
        reader.reading.steps.append(sleeper.at)
        woken.append(reader.reading)
        swarm.add(reader)
    acks: list[Acked] = heavy.enough()
    top = max(ack.offset for ack in acks)
    wait_until(lambda: all(reading.steps[-1].offset >= top for reading in woken), timeout=60, what="the rest")
    findings: list[Any] = problems(log=site.log("heavy"), acks=acks, readings=woken)
    assert not findings, findings[:5]
    assert all(len(reading.starts) == 1 for reading in woken)
