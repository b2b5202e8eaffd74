"""Who is there: leases of (topic, connection) for topics whose rule keeps presence.

A lease begins with the subscription and ends with it. When the connection itself is lost the lease goes on
for `BUS["PRESENCE_GRACE"]`, so that a quick reconnect does not make anybody flap; then, and only then, the
leave is told. Whoever takes the state and applies each join and leave told since has the state of now. Leases
of a dead server are ended by whoever takes its rows away (`bus.connections.reaper`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from bus import layer
from bus.access.permissions import rule_of
from bus.conf import conf
from bus.connections.gathering import Gathering
from bus.faults import fault
from bus.log.threads import in_thread
from bus.models import Presence, ServerInstance
from bus.protocol.errors import NotAvailable
from bus.protocol.frames import ClientInfo
from bus.protocol.topics import group_name

#: Connections that this process has lost, each with the end of its grace in steady seconds: the wall clock
#: may jump meanwhile.
_lost: dict[str, float] = {}


async def join(topic: str, info: ClientInfo) -> None:
    """Note that a client is there, and tell those who want to know."""
    rule = rule_of(topic)
    if rule.presence:
        await _entering.submit((topic, info))
    if rule.join_leave:
        _tell("join", topic, info)


async def leave(topic: str, info: ClientInfo) -> None:
    """Note that a client has left by its own will, and tell."""
    rule = rule_of(topic)
    if rule.presence:
        await _leaving.submit((topic, info.client))
    if rule.join_leave:
        _tell("leave", topic, info)


async def lost(client_id: str, topics: Iterable[str]) -> None:
    """Let the leases of a connection that is gone end after the grace period."""
    if not any(rule_of(topic).presence or rule_of(topic).join_leave for topic in topics):
        return
    grace = conf().presence_grace
    _lost[client_id] = time.monotonic() + grace.total_seconds()
    await _ending.submit((client_id, timezone.now() + grace))


async def end_leases() -> None:
    """End the leases of this server whose grace is over."""
    now = time.monotonic()
    due = [client_id for client_id, end in _lost.items() if end <= now]
    if due:
        await in_thread(_end_lost, due)
        for client_id in due:
            _lost.pop(client_id, None)


async def clients(topic: str) -> dict[str, ClientInfo]:
    """Return who is there, by client id.

    Raises:
        NotAvailable: the topic's rule keeps no presence.
    """
    if not rule_of(topic).presence:
        raise NotAvailable
    return await in_thread(_clients, topic)


def end_orphans() -> int:
    """End leases whose server is gone; return how many."""
    alive = ServerInstance.objects.values("name")
    return _end(Presence.objects.exclude(server_instance__in=alive))


def _end_lost(client_ids: list[str]) -> int:
    return _end(Presence.objects.filter(client_id__in=client_ids))


def _end(rows: QuerySet[Presence]) -> int:
    ended = 0
    for row in rows:
        # Two processes may be here at once: whoever deletes the row tells of it.
        if Presence.objects.filter(pk=row.pk).delete()[0]:
            ended += 1
            fault("presence.ended")
            _tell_end(row)
    return ended


def _enter(joins: Sequence[tuple[str, ClientInfo]]) -> list[None]:
    now = timezone.now()
    # By topic and client: whoever came, left and came again meanwhile has one row.
    rows = {
        (topic, info.client): Presence(
            topic=topic,
            client_id=info.client,
            user=info.user,
            info="" if info.conn_info is msgspec.UNSET else msgspec.json.encode(info.conn_info).decode(),
            server_instance=layer.INSTANCE,
            since=now,
        )
        for topic, info in joins
    }
    Presence.objects.bulk_create(
        [rows[place] for place in sorted(rows)],
        update_conflicts=True,
        unique_fields=["topic", "client_id"],
        update_fields=["leaves_at"],
    )
    fault("presence.entered")
    return [None] * len(joins)


def _remove(places: Sequence[tuple[str, str]]) -> list[None]:
    clients: dict[str, list[str]] = {}
    for topic, client_id in places:
        clients.setdefault(topic, []).append(client_id)
    with transaction.atomic():
        for topic in sorted(clients):
            Presence.objects.filter(topic=topic, client_id__in=clients[topic]).delete()
    return [None] * len(places)


def _set_end(ends: Sequence[tuple[str, datetime]]) -> list[None]:
    # They came within one transaction of each other, so the latest moment does for all.
    latest = max(moment for _, moment in ends)
    Presence.objects.filter(client_id__in=[client_id for client_id, _ in ends]).update(leaves_at=latest)
    return [None] * len(ends)


_entering = Gathering(_enter)
_leaving = Gathering(_remove)
_ending = Gathering(_set_end)


def _clients(topic: str) -> dict[str, ClientInfo]:
    return {row.client_id: _info_of(row) for row in Presence.objects.filter(topic=topic)}


def _info_of(row: Presence) -> ClientInfo:
    said = msgspec.Raw(row.info.encode()) if row.info else msgspec.UNSET
    return ClientInfo(user=row.user, client=row.client_id, conn_info=said)


def _tell(kind: str, topic: str, info: ClientInfo) -> None:
    data = msgspec.Raw(msgspec.json.encode(info))
    layer.control(kind, group=group_name(topic), topic=topic, client_id=info.client, data=data)


def _tell_end(row: Presence) -> None:
    if rule_of(row.topic).join_leave:
        _tell("leave", row.topic, _info_of(row))
