"""P4: a publish that is repeated under its key has one effect, however the first answer was lost."""

from __future__ import annotations

import random

import pytest

from tests.figures import figure
from tests.harness import Site
from tests.proxy import TcpProxy
from tests.swarm import Feeder, Swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

COUNT = figure(2_000, 10_000)
#: Events in flight when the connection is cut: all of them are sent again.
WINDOW = 40


def test_p04_a_retried_publish_with_the_same_key_has_one_effect(site: Site, dice: random.Random) -> None:
    """Two publishers send the same keys, each over the other server, and are cut before acks all the time."""
    with TcpProxy(site.web[0].port) as first, TcpProxy(site.web[1].port) as second, Swarm() as swarm:
        proxies = (first, second)
        # Each goes to both servers in turn, and both send every key: so a key meets itself on two servers.
        feeders = [
            swarm.feed(
                [one.socket, other.socket],
                "retry:keys",
                site.token(f"retrier-{number}", "publish"),
                series="same",
                count=COUNT,
                window=WINDOW,
            )
            for number, (one, other) in enumerate([(first, second), (second, first)])
        ]
        cut_until_done(feeders, proxies, dice)
        stored = site.log("retry")
        # The answers of both tell of the same events; each is stored once.
        assert sorted(ack.key for ack in feeders[0].acks) == sorted(ack.key for ack in feeders[1].acks)
        places = [{ack.key: ack.offset for ack in feeder.acks} for feeder in feeders]
        assert places[0] == places[1] == {event.key: event.offset for event in stored}
        assert sorted(event.offset for event in stored) == list(range(1, COUNT + 1))
        tries = sum(feeder.tries for feeder in feeders)
        assert tries >= 2 * COUNT + 200, f"only {tries - 2 * COUNT} tries were repeated"


def cut_until_done(feeders: list[Feeder], proxies: tuple[TcpProxy, TcpProxy], dice: random.Random) -> None:
    """Let some acks through each time, then reset within a frame."""
    for number in range(WINDOW, COUNT, WINDOW * 4):
        for proxy in proxies:
            proxy.cut_after(dice.randrange(200, 6_000))
        for feeder in feeders:
            feeder.wait_for(number)
    for feeder in feeders:
        feeder.finish()
