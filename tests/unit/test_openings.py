"""The bucket of new topics: one for each reader, refilled by time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bus.connections.leases import Details
from bus.fanout.openings import Openings
from bus.protocol.errors import TooManyRequests


def who(**names: str) -> Details:
    return Details(**{"client_id": "c", **names}, connected_at=datetime(2026, 1, 1, tzinfo=UTC))


def test_a_reader_has_its_share_and_then_waits() -> None:
    openings = Openings(rate=2.0, burst=3)
    for _ in range(3):
        openings.take(who(agent_id="a"), 10.0)
    with pytest.raises(TooManyRequests) as refusal:
        openings.take(who(agent_id="a"), 10.0)
    assert refusal.value.retry_after == 0.5
    openings.take(who(agent_id="a"), 10.5)


def test_all_connections_of_one_reader_share_and_others_do_not() -> None:
    openings = Openings(rate=1.0, burst=1)
    openings.take(who(user_id="u", client_id="c1"), 0.0)
    with pytest.raises(TooManyRequests):
        openings.take(who(user_id="u", client_id="c2"), 0.0)
    openings.take(who(user_id="v", client_id="c1"), 0.0)
    openings.take(who(client_id="c3"), 0.0)
