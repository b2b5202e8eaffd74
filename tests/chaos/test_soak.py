"""P26: after a long time of mixed load the server is what it was before: nothing has leaked.

Every day for a minute; ten minutes, with its table, by
`TEST_DEEP=1 .venv/bin/python -m pytest tests/chaos/test_soak.py -s -p no:randomly`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.chaos.kills import Visitor
from tests.figures import figure
from tests.harness import Site
from tests.history import Seen, Start
from tests.servers import wait_until
from tests.sleepers import Sleeper, put_to_sleep, wake
from tests.swarm import Reader, Swarm

pytestmark = [pytest.mark.e2e, pytest.mark.sqlite_only, pytest.mark.timeout(figure(900, 1_800))]

#: Seconds of load, and of the first load that fills caches and pools, which the measurement begins behind.
DURATION, WARM_UP = figure((60, 10), (600, 30))
#: Connections: steady readers, visitors that come and go, publishers; slow clients come on top.
READERS, VISITORS, PUBLISHERS = 430, 60, 10
TOPICS = 20
SLEEPERS = 5
#: How often clients fall asleep, and how often Valkey is killed and comes back (s).
SLEEP_EVERY, FAULT_EVERY = 15.0, figure(25.0, 120.0)
#: What may stay: a tenth of the memory and what an allocator keeps besides; a file, a task or two that are
#: under way at any moment. The event loop's pool starts a thread whenever none is idle, up to its size.
MEMORY_SHARE, MEMORY_SLACK = 1.10, 24.0
POOL = min(32, (os.cpu_count() or 1) + 4)
FEW = {"files": 4, "tasks": 3, "threads": POOL, "database": 1, "redis": 2, "rows": 0}


class LeanReader(Reader):
    """A reader that judges at once and keeps only where it stands."""

    def __init__(self, name: str, urls: Sequence[str], token: str, topics: Sequence[str]) -> None:
        super().__init__(name, urls, token, topics)
        self.count = 0
        self.faults: list[str] = []

    def _see(self, topic: str, epoch: str, pub: dict[str, Any]) -> None:
        steps = self.readings[topic].steps
        last = steps[-1] if steps else Start(epoch=epoch, offset=0)
        if pub["offset"] != last.offset + 1 or epoch != last.epoch:
            self.faults.append(f"{topic}: {last.offset}, then {pub['offset']}")
        steps[:] = [Seen(epoch=epoch, offset=pub["offset"], key="")]
        self.count += 1


class Gauge:
    """What a server holds."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.process = Path(f"/proc/{site.web[0].pid}")

    def read(self) -> dict[str, float]:
        files = [str(link) for link in self._links()]
        ((rows,),) = self.site.sql("SELECT count(*) FROM bus_activeconnection")
        with redis.Redis.from_url(self.site.valkey.url) as client:
            clients = len(client.client_list()) - 1
        return {
            "memory": int((self.process / "statm").read_text().split()[1]) * 4_096 / 2**20,
            "files": len(files),
            "database": sum(name.endswith("db.sqlite3") for name in files),
            "threads": len(list((self.process / "task").iterdir())),
            "tasks": self._tasks(),
            "redis": clients,
            "rows": rows,
        }

    def _links(self) -> Iterator[Path]:
        for entry in (self.process / "fd").iterdir():
            try:
                yield entry.readlink()
            except FileNotFoundError:
                continue  # closed meanwhile

    def _tasks(self) -> float:
        text = httpx.get(f"{self.site.web[0].url}/metrics", timeout=60).text
        found = re.search(r"^bus_event_loop_tasks(?:\{.*?\})? ([\d.e+]+)$", text, re.MULTILINE)
        assert found is not None, text
        return float(found[1])


@pytest.fixture(scope="module")
def long() -> Iterator[Site]:
    site = Site(BUS_MAX_CONNECTIONS="1000", BUS_PRESENCE_GRACE="1")
    yield site.start()
    site.stop()


def test_p26_nothing_leaks_under_a_long_mixed_load(long: Site) -> None:
    gauge = Gauge(long)
    run(long, gauge, WARM_UP)
    before = at_rest(gauge)
    peak, delivered = run(long, gauge, DURATION)
    at_rest(gauge)
    after = settled(gauge, before)
    print(table(before, peak, after, delivered))  # noqa: T201
    assert after["memory"] <= before["memory"] * MEMORY_SHARE + MEMORY_SLACK
    assert above(after, before) == set()
    assert peak["rows"] >= READERS + PUBLISHERS


def run(site: Site, gauge: Gauge, seconds: float) -> tuple[dict[str, float], int]:
    """Load the site; return the highest figures and how many events were delivered."""
    sleepers: list[Sleeper] = []
    with Swarm() as swarm:
        readers = populate(swarm, site)
        swarm.wait_connected(timeout=180)
        wait_until(lambda: all(reader.is_up for reader in readers), timeout=180, what="all readers")
        peak = play(swarm, site, gauge, seconds, sleepers)
        for feeder in swarm.feeders:
            feeder.enough()
        swarm.call(wake(sleepers))
        delivered = sum(reader.count for reader in readers)
        faults = [f"{reader.name}: {fault}" for reader in readers for fault in reader.faults]
    assert not faults, faults[:5]
    assert delivered > seconds * READERS
    return peak, delivered


def populate(swarm: Swarm, site: Site) -> list[LeanReader]:
    url = site.web[0].socket
    readers = []
    for number in range(READERS):
        agent = f"steady-{number}"
        readers.append(LeanReader(agent, [url], site.token(agent), [f"soak:{number % TOPICS}"]))
        swarm.add(readers[-1])
    for number in range(VISITORS):
        agent = f"visits-{number}"
        swarm.add(Visitor(agent, [url], site.token(agent), "soak:visited", stay=2.0, depth=100))
    for number in range(PUBLISHERS):
        topics = ("soak:visited", "soak:heavy")
        topic = topics[number] if number < 2 else f"soak:{number}"
        pace = {"rate": 10, "window": 10, "padding": 20_000 if topic == "soak:heavy" else 200}
        token = site.token(f"feeds-{number}", "publish")
        # A series of its own for each run: keys are known for as long as the events are.
        series = f"soak-{number}-{time.monotonic_ns()}"
        swarm.feed([url], topic, token, series=series, count=10**6, **pace)
    return readers


def play(swarm: Swarm, site: Site, gauge: Gauge, seconds: float, sleepers: list[Sleeper]) -> dict[str, float]:
    """Let it go on, with clients that fall asleep and a Valkey that dies; return the highest figures."""
    peak: dict[str, float] = {}
    began = time.monotonic()
    sleeps, faults = began, began + FAULT_EVERY
    while (now := time.monotonic()) < began + seconds:
        if now >= sleeps:
            sleeps += SLEEP_EVERY
            names = [f"sleeps-{number}" for number in range(SLEEPERS)]
            tokens = {name: site.token(name) for name in names}
            sleepers += swarm.call(put_to_sleep(site.web[0].socket, tokens, "soak:heavy"))
        if now >= faults:
            faults += FAULT_EVERY
            site.valkey.kill()
            site.valkey.start()
        for name, value in gauge.read().items():
            peak[name] = max(peak.get(name, 0.0), value)
        time.sleep(1)
    return peak


def at_rest(gauge: Gauge) -> dict[str, float]:
    """The figures once all have left."""
    wait_until(lambda: gauge.read()["rows"] == 0, timeout=120, interval=0.5, what="nobody")
    time.sleep(6)  # the last leases of presence end, and a tick tells of the tasks
    return gauge.read()


def settled(gauge: Gauge, like: dict[str, float]) -> dict[str, float]:
    """The figures once they have come down to earlier ones, or after a while in any case."""
    with suppress(TimeoutError):
        wait_until(lambda: not above(gauge.read(), like), timeout=60, interval=1, what="rest")
    return gauge.read()


def above(found: dict[str, float], like: dict[str, float]) -> set[str]:
    """Names of the figures that are higher than before by more than a few."""
    return {name for name, few in FEW.items() if found[name] > like[name] + few}


def table(before: dict[str, float], peak: dict[str, float], after: dict[str, float], delivered: int) -> str:
    """The figures side by side."""
    lines = [f"\n{'':10}{'before':>10}{'peak':>10}{'after':>10}"]
    lines += [f"{name:10}{before[name]:10.1f}{peak[name]:10.1f}{after[name]:10.1f}" for name in before]
    return "\n".join([*lines, f"{delivered} events delivered in {DURATION} s; memory in MiB"])
