"""P14: clocks that jump by hours and years, forwards and back, do no harm.

libfaketime sets the wall clock of single processes, its steady clock is left alone. Nothing may be forgotten
early, change its order, or be taken for dead; and when the clocks are right again everything goes on.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import SETTINGS
from tests.e2e.clients import RawClient
from tests.harness import ROOT, Program, Site
from tests.servers import wait_until
from tests.swarm import Swarm

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime (apt-get install faketime)"),
]

#: By how much the clock is off, one after the other.
JUMPS = ("+3h", "-2h", "+400d", "-30d", "+0")
#: Shorter than any jump; a heartbeat a second, so that each jump falls between two of them.
LEASES = {"BUS_INSTANCE_LEASE": "25", "BUS_HEARTBEAT_INTERVAL": "1", "BUS_PRESENCE_GRACE": "1"}
#: Tokens that hold whatever year it is.
FOR_EVER = 100 * 365 * 86_400.0
AGENTS = 6
REAP = "Task bus.tasks.reap_connections["


class Clock:
    """The wall clock of some processes."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set("+0")

    def set(self, off: str) -> None:
        """Set it; whoever goes by it sees that at once."""
        new = self.file.with_suffix(".new")
        new.write_text(off)
        new.rename(self.file)

    def rule(self, *programs: Program) -> None:
        """Have these programs go by this clock from their next start on."""
        for program in programs:
            program.environment = {
                **program.environment,
                "LD_PRELOAD": str(LIBRARY),
                "FAKETIME_TIMESTAMP_FILE": str(self.file),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "DONT_FAKE_MONOTONIC": "1",
                "PYTHONPATH": str(Path(__file__).parent / "faketime"),
            }


@pytest.fixture
def wrong() -> Iterator[tuple[Site, Clock]]:
    """Two servers, of which one, with worker and beat, goes by a clock that the test sets."""
    site = Site(web=2, **SETTINGS, **LEASES)
    clock = Clock(site.folder / "clock")
    clock.rule(site.web[0], site.worker, site.beat)
    yield site.start(), clock
    site.stop()


def test_p14_a_server_whose_clock_jumps_loses_and_swaps_nothing(wrong: tuple[Site, Clock]) -> None:
    site, clock = wrong
    with Swarm() as swarm:
        populate(swarm, site)
        wait_until(lambda: here(site) == AGENTS, what="everybody present")
        since = in_order(site)
        for off in JUMPS:
            clock.set(off)
            time.sleep(1.5)  # a heartbeat, and a look at the leases
            wait_for_acks(swarm, at=off)
            assert here(site) == AGENTS, f"not everybody is present at {off}"
        for feeder in swarm.feeders:
            feeder.enough()
        swarm.assert_sound(lambda: site.log("jump"))
        assert not [client.losses for client in (*swarm.readers, *swarm.feeders) if client.losses]
        assert in_order(site) > since
        lost = site.sql("SELECT agent_id FROM bus_connectionsession WHERE reason = 'lost'")
        assert lost == []


def populate(swarm: Swarm, site: Site) -> None:
    """Agents on both servers, and a publisher on each, to one topic."""
    for number in range(AGENTS):
        agent = f"jumper-{number}"
        token = site.token(agent, ttl=FOR_EVER)
        swarm.read([site.web[number % 2].socket], ["jump:all"], token, name=agent)
    for web in site.web:
        token = site.token(f"feeds-{web.port}", "publish", ttl=FOR_EVER)
        swarm.feed([web.socket], "jump:all", token, series=f"from-{web.port}", count=10**6, window=9, rate=20)
    swarm.wait_connected()


def wait_for_acks(swarm: Swarm, *, at: str) -> None:
    """Wait until both publishers go on."""
    for feeder in swarm.feeders:
        moved = len(feeder.acks)
        wait_until(
            lambda feeder=feeder, moved=moved: len(feeder.acks) > moved + 5, timeout=20, what=f"acks at {at}"
        )


def here(site: Site) -> int:
    """How many agents are present, as the server with the right clock says."""
    with RawClient(site.web[1].socket) as watcher:
        watcher.call("connect", token=site.token("watcher", ttl=FOR_EVER))
        found = watcher.call("presence", channel="jump:all")["presence"]
    return len([info for info in found.values() if info["user"].startswith("jumper-")])


def in_order(site: Site) -> int:
    """How many events the log holds; they are without a gap."""
    offsets = sorted(event.offset for event in site.log("jump"))
    assert offsets == list(range(1, len(offsets) + 1))
    return len(offsets)


def test_p14_a_worker_and_a_beat_that_are_years_ahead_forget_and_reap_nothing(
    wrong: tuple[Site, Clock],
) -> None:
    site, clock = wrong
    with Swarm() as swarm:
        populate(swarm, site)
        wait_until(lambda: here(site) == AGENTS, what="everybody present")
        before = in_order(site)
        clock.set("+400d")
        site.start_worker()
        site.start_beat()
        wait_until(lambda: has_succeeded(site, REAP), timeout=120, what="a tick of beat")
        assert forgotten(site) == "0 0"
        assert here(site) == AGENTS
        assert in_order(site) >= before
        # The clock is right again: beat, whose last runs lie in the future now, goes on at once.
        clock.set("+0")
        wait_until(lambda: site.beat.said("set back"), what="beat to see it")
        since = site.worker.log.stat().st_size
        wait_until(lambda: has_succeeded(site, REAP, since), timeout=120, what="a tick after that")
        for feeder in swarm.feeders:
            feeder.enough()
        swarm.assert_sound(lambda: site.log("jump"))
        assert not [client.losses for client in (*swarm.readers, *swarm.feeders) if client.losses]
        assert here(site) == AGENTS


def forgotten(site: Site) -> str:
    """What the tasks that forget old things have found, in a process with the clock of the worker."""
    code = "from bus import tasks; print(tasks.trim_log(), tasks.purge_sessions())"
    command = [sys.executable, str(ROOT / "manage.py"), "shell", "--no-imports", "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=site.worker.environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def has_succeeded(site: Site, task: str, since: int = 0) -> bool:
    """Whether the worker says that such a task has succeeded."""
    lines = site.worker.log.read_bytes()[since:].decode(errors="replace").splitlines()
    return any(task in line and "succeeded" in line for line in lines)
