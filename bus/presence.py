"""Who is there: leases of (topic, connection) for topics whose rule keeps presence.

A lease begins with the subscription and ends with it. When the connection itself is lost the lease goes on
for `BUS["PRESENCE_GRACE"]`, so that a quick reconnect does not make anybody flap; then, and only then, the
leave is told. Whoever takes the state and applies each join and leave told since has the state of now. Leases
of a dead server are ended by beat.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from django.utils import timezone

from bus import layer
from bus.conf import conf
from bus.log.threads import in_thread
from bus.models import Presence, ServerInstance
from bus.permissions import rule_of
from bus.protocol.errors import NotAvailable
from bus.protocol.frames import ClientInfo
from bus.protocol.topics import group_name

#: How often a process looks for leases whose grace is over (s).
LOOK_INTERVAL = 1.0


@dataclass(slots=True)
class _Watch:
    """What this process knows without asking: until when leases may have to be ended, and when it looked."""

    until: float = 0.0
    looked: float = 0.0


_watch = _Watch()


async def join(topic: str, info: ClientInfo) -> None:
    """Note that a client is there, and tell those who want to know."""
    rule = rule_of(topic)
    if rule.presence:
        await in_thread(_enter, topic, info)
    if rule.join_leave:
        _tell("join", topic, info)


async def leave(topic: str, info: ClientInfo) -> None:
    """Note that a client has left by its own will, and tell."""
    rule = rule_of(topic)
    if rule.presence:
        await in_thread(_remove, topic, info.client)
    if rule.join_leave:
        _tell("leave", topic, info)


async def lost(client_id: str, topics: Iterable[str]) -> None:
    """Let the leases of a connection that is gone end after the grace period."""
    if not any(rule_of(topic).presence or rule_of(topic).join_leave for topic in topics):
        return
    grace = conf().presence_grace
    _watch.until = time.monotonic() + grace.total_seconds() + 10 * LOOK_INTERVAL
    await in_thread(_set_end, client_id, timezone.now() + grace)


async def end_leases() -> None:
    """End the leases of this server whose grace is over."""
    now = time.monotonic()
    if now > _watch.until or now - _watch.looked < LOOK_INTERVAL:
        return
    _watch.looked = now
    await in_thread(end_due, timezone.now(), layer.INSTANCE)


async def clients(topic: str) -> dict[str, ClientInfo]:
    """Return who is there, by client id.

    Raises:
        NotAvailable: the topic's rule keeps no presence.
    """
    if not rule_of(topic).presence:
        raise NotAvailable
    return await in_thread(_clients, topic)


def end_due(now: datetime, server: str | None = None) -> int:
    """End leases whose grace is over: those of one server, or of all. Returns how many."""
    due = Presence.objects.filter(leaves_at__lte=now)
    if server is not None:
        due = due.filter(server_instance=server)
    ended = 0
    for row in due:
        # Two processes may be here at once: whoever deletes the row tells of it.
        if Presence.objects.filter(pk=row.pk).delete()[0]:
            ended += 1
            _tell_end(row)
    return ended


def end_of_dead(now: datetime) -> int:
    """Set the end of leases whose server is gone; return how many."""
    alive = ServerInstance.objects.values("name")
    orphans = Presence.objects.filter(leaves_at=None).exclude(server_instance__in=alive)
    return orphans.filter(since__lt=now - timedelta(seconds=1)).update(leaves_at=now)


def _enter(topic: str, info: ClientInfo) -> None:
    row = Presence(
        topic=topic,
        client_id=info.client,
        user=info.user,
        server_instance=layer.INSTANCE,
        since=timezone.now(),
    )
    Presence.objects.bulk_create(
        [row], update_conflicts=True, unique_fields=["topic", "client_id"], update_fields=["leaves_at"]
    )


def _remove(topic: str, client_id: str) -> None:
    Presence.objects.filter(topic=topic, client_id=client_id).delete()


def _set_end(client_id: str, moment: datetime) -> None:
    Presence.objects.filter(client_id=client_id).update(leaves_at=moment)


def _clients(topic: str) -> dict[str, ClientInfo]:
    rows = Presence.objects.filter(topic=topic).values_list("client_id", "user")
    return {client: ClientInfo(user=user, client=client) for client, user in rows}


def _tell(kind: str, topic: str, info: ClientInfo) -> None:
    data = msgspec.Raw(msgspec.json.encode(info))
    layer.control(kind, group=group_name(topic), topic=topic, client_id=info.client, data=data)


def _tell_end(row: Presence) -> None:
    if rule_of(row.topic).join_leave:
        _tell("leave", row.topic, ClientInfo(user=row.user, client=row.client_id))
