"""What a hub does each second for all its readers at once: look after their send queues, make the figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bus import layer
from bus.connections.manager import connection_manager
from bus.fanout.feeds import Feed
from bus.fanout.sending import STUCK
from bus.layer import LiveEvent
from bus.metrics import SEND_QUEUE_BYTES
from bus.publishing import encode_event

#: Topic of the live figures, which each process makes for those who read it there.
STATS_TOPIC = "sys:stats"


def tend_queues(feeds: Iterable[Feed], now: float) -> None:
    """Send what was kept back and has room now; close who has taken nothing for long.

    Such a client is slow however little it is owed, and however well it answers pings.
    """
    owed = 0
    for subscriber in {reader for feed in feeds for reader in feed.subscriptions}:
        queue = subscriber.queue
        if not queue.owes:
            continue
        owed += queue.pending_bytes
        if queue.tend(now) >= STUCK:
            subscriber.too_slow()
    SEND_QUEUE_BYTES.set(owed)


def figures(*, topics: int, events_per_second: float, lag: float, layer_up: bool) -> LiveEvent:
    """Return the live figures of this server as an event, not logged."""
    stats: dict[str, Any] = {
        "server": layer.INSTANCE,
        "connections": connection_manager.count,
        "max_connections": connection_manager.max_connections,
        "all_connections": connection_manager.count_everywhere,
        "topics": topics,
        "events_per_s": round(events_per_second, 1),
        "loop_lag_ms": round(lag * 1000, 1),
        "layer_up": layer_up,
    }
    return LiveEvent(0, "stats", encode_event("stats", stats))
