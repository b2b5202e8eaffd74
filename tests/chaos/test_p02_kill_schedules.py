"""P2: `kill -9` of any one process at any crash point loses no acknowledged event."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from bus.faults import POINTS
from tests.chaos.conftest import SETTINGS
from tests.chaos.kills import Stage, Visitor, schedules
from tests.figures import figure
from tests.harness import Site
from tests.history import problems
from tests.swarm import Swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(figure(1_500, 10_000))]

SCHEDULES = figure(20, 500)
#: Events so large that no hint carries them, and of which a few are more than one answer of a recovery.
LARGE = 70_000


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A site with everything; its leases are short, so that each schedule sees them renewed and over."""
    leases = {"BUS_HEARTBEAT_INTERVAL": "1", "BUS_INSTANCE_LEASE": "5", "BUS_PRESENCE_GRACE": "1"}
    site = Site(web=2, own_postgres=True, **SETTINGS, **leases).start()
    site.start_worker()
    site.start_beat()
    stage = Stage(site)
    yield stage
    stage.clerk.kill()
    site.stop()


def test_p02_no_acknowledged_event_is_lost_whoever_is_killed_and_where(
    stage: Stage, dice: random.Random
) -> None:
    site = stage.site
    urls = [web.socket for web in site.web]
    with Swarm() as swarm:
        populate(swarm, site, urls)
        stage.clerk.start()
        for schedule in schedules(dice, SCHEDULES, webs=2, others=sorted(stage.killers)):
            stage.play(schedule)
        stage.heal()
        for feeder in swarm.feeders:
            feeder.enough()
        stage.clerk.kill()
        swarm.assert_sound(lambda: site.log("storm", "order"))
        assert len(swarm.acks) > SCHEDULES * 10
        check_cursors(site, swarm)
    check_orders(stage)
    print(f"{len(stage.reached)} crash points reached, missed: {stage.missed}")  # noqa: T201
    assert len(stage.reached) >= min(25, SCHEDULES), (sorted(POINTS - stage.reached), stage.missed)


def populate(swarm: Swarm, site: Site, urls: list[str]) -> None:
    """Readers on both servers, publishers of small and of large events, and visitors that come and go."""
    for number in range(4):
        ways = urls if number % 2 else urls[::-1]
        topics = ["storm:small", "storm:large", "order:all"]
        swarm.read(ways, topics, site.token(f"reader-{number}"), name=f"reader {number}")
    for series, topic, pace in (
        ("small", "storm:small", {"rate": 30, "window": 20}),
        ("other", "storm:small", {"rate": 30, "window": 1}),
        ("large", "storm:large", {"rate": 2, "window": 4, "padding": LARGE}),
    ):
        token = site.token(f"feeds-{series}", "publish")
        swarm.feed(urls, topic, token, series=series, count=10**6, **pace)
    for number in range(4):
        name = f"visitor-{number}"
        topic = ("storm:small", "storm:large")[number % 2]
        swarm.add(Visitor(name, urls[number // 2 :] + urls[: number // 2], site.token(name), topic))


def check_cursors(site: Site, swarm: Swarm) -> None:
    """An ack that was confirmed is in the cursor."""
    rows = site.sql('SELECT consumer, "offset" FROM bus_cursor')
    cursors = dict(rows)
    visitors = [client for client in swarm.others if isinstance(client, Visitor)]
    assert any(visitor.confirmed for visitor in visitors)
    behind = {v.name: v.confirmed for v in visitors if cursors.get(v.name, 0) < v.confirmed}
    assert not behind, f"acks were lost: {behind}, the cursors are {cursors}"


def check_orders(stage: Stage) -> None:
    """Business rows and events were committed together, and what was called committed is there."""
    log = stage.site.log("order")
    assert not problems(log=log)
    books = {name for (name,) in stage.site.sql("SELECT name FROM auth_group")}
    assert {event.key for event in log} == books
    kept = {event.key: event.offset for event in log}
    told = stage.orders()
    assert told
    assert [number for number, offset in told if kept.get(f"order-{number}") != offset] == []
