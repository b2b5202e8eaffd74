"""Heartbeats of a server: one statement each for its lease and for the rows of all its connections.

A row that was taken away meanwhile, because this process stood still for longer than its lease, is written
again, and with it who is present. A connection that leaves while the statement runs must not come back by
it, so what has left since is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bus import layer
from bus.connections import leases, presence
from bus.connections.leases import Pulse
from bus.connections.live import Live
from bus.log.threads import in_thread
from bus.protocol.frames import ClientInfo


def pulses(connections: Iterable[Live]) -> list[Pulse]:
    """Return what the heartbeat of connections says."""
    return [
        Pulse(
            details=live.details,
            generation=live.generation,
            last_activity=live.last_activity,
            topics=live.topics(),
            pending_bytes=live.pending_bytes(),
        )
        for live in connections
    ]


async def beat(connections: Mapping[str, Live], *, loop_lag_ms: float, layer_up: bool) -> int:
    """Renew the lease of this server and of its connections; return how many all servers have.

    Args:
        connections: by client id; looked at again afterwards.
        loop_lag_ms: delay of the event loop.
        layer_up: whether the canary comes back.

    Raises:
        DatabaseError: nothing is renewed.
    """
    now_alive = pulses(connections.values())
    was_given_up = bool(now_alive) and not await in_thread(leases.is_known, layer.INSTANCE)
    total = await in_thread(
        leases.beat, layer.INSTANCE, now_alive, loop_lag_ms=loop_lag_ms, layer_up=layer_up
    )
    left = [each.details.client_id for each in now_alive if each.details.client_id not in connections]
    if left:
        await in_thread(leases.remove, left)
    if was_given_up:
        await _be_there_again(list(connections.values()))
    return total


async def _be_there_again(connections: Iterable[Live]) -> None:
    """Write and tell again who is where: it was told that they had left."""
    for live in connections:
        info = getattr(live.connection, "info", None)
        if isinstance(info, ClientInfo):
            for topic in live.topics():
                await presence.join(topic, info)
