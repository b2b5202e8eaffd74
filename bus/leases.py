"""The rows of servers and connections: who is connected where, for as long as somebody renews it.

A server holds a lease and renews it with the heartbeats of all its connections in one go; what is not renewed
is taken away by `reap`, which beat calls, so nothing depends on a process saying goodbye. An agent's
generation is drawn here under its row lock: of two connections of one agent the higher generation is the
owner, on whichever server it is. All functions are plain SQL and block: coroutines call them in a thread.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from django.db import connection, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from bus.conf import conf
from bus.log.dialect import dialect_of
from bus.models import ActiveConnection, Agent, ConnectionSession, ServerInstance
from bus.protocol.errors import DisconnectCode

#: Reason of a session whose server or heartbeat was lost.
LOST = "lost"

_NEXT_GENERATION = (
    "INSERT INTO bus_agent (agent_id, generation, first_seen_at, last_seen_at, connects) "
    "VALUES (%s, 1, %s, %s, 1) "
    "ON CONFLICT (agent_id) DO UPDATE SET generation = bus_agent.generation + 1, "
    "connects = bus_agent.connects + 1, last_seen_at = excluded.last_seen_at RETURNING generation"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Who is connected, and how."""

    client_id: str
    agent_id: str = ""
    user_id: str = ""
    session_id: str = ""
    task_id: str = ""
    transport: str = "plain"
    address: str = ""
    user_agent: str = ""
    connected_at: datetime
    #: Prefix of the API key it came with, or empty.
    key_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """One connection at a heartbeat."""

    details: Details
    generation: int
    last_activity: datetime
    topics: list[str]
    pending_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Farewell:
    """How a connection ended."""

    client_id: str
    code: int
    reason: str
    events_in: int = 0
    events_out: int = 0


def enter(details: Details, server: str) -> int:
    """Write the rows of a new connection; return the agent's generation that it holds, 0 without an agent.

    Rows of the agent's former connections are closed as replaced; their servers close the sockets.
    """
    now = timezone.now()
    with transaction.atomic():
        _renew(server, now, loop_lag_ms=0.0, layer_up=None)
        generation = _next_generation(details.agent_id, now) if details.agent_id else 0
        if details.agent_id:
            former = ActiveConnection.objects.filter(agent_id=details.agent_id)
            _close(former, now, DisconnectCode.REPLACED, DisconnectCode.REPLACED.reason)
        _row(details, server, generation, now).save(force_insert=True)
        ConnectionSession.objects.create(
            client_id=details.client_id,
            agent_id=details.agent_id,
            user_id=details.user_id,
            server_instance=server,
            transport=details.transport,
            address=details.address,
            connected_at=details.connected_at,
        )
    return generation


def leave(farewell: Farewell) -> None:
    """Remove the row of a connection and write how it ended."""
    now = timezone.now()
    with transaction.atomic():
        ActiveConnection.objects.filter(client_id=farewell.client_id).delete()
        ConnectionSession.objects.filter(client_id=farewell.client_id, disconnected_at=None).update(
            disconnected_at=now, code=farewell.code, reason=farewell.reason[:200]
        )
        ConnectionSession.objects.filter(client_id=farewell.client_id).update(
            events_in=farewell.events_in, events_out=farewell.events_out
        )


def beat(server: str, pulses: Iterable[Pulse], *, loop_lag_ms: float, layer_up: bool) -> int:
    """Renew the lease of a server and all its connections; return how many there are on all servers.

    A row that was taken away meanwhile, for this process was frozen, is written again, unless its agent has
    moved on.
    """
    now = timezone.now()
    alive = list(pulses)
    current = generations({pulse.details.agent_id for pulse in alive if pulse.details.agent_id})
    rows = [
        _row(pulse.details, server, pulse.generation, now, pulse)
        for pulse in alive
        if pulse.generation >= current.get(pulse.details.agent_id, 0)
    ]
    with transaction.atomic():
        _renew(server, now, loop_lag_ms=loop_lag_ms, layer_up=layer_up)
        ActiveConnection.objects.bulk_create(
            rows,
            update_conflicts=True,
            unique_fields=["client_id"],
            update_fields=["last_heartbeat", "last_activity", "topics", "pending_bytes"],
        )
    return ActiveConnection.objects.count()


def generations(agent_ids: Collection[str]) -> dict[str, int]:
    """Return the highest generation of each of these agents."""
    if not agent_ids:
        return {}
    return dict(Agent.objects.filter(agent_id__in=agent_ids).values_list("agent_id", "generation"))


def to_close(server: str) -> list[tuple[str, int, str]]:
    """Return client id, code and reason of those connections of a server that somebody wants closed."""
    rows = ActiveConnection.objects.filter(server_instance=server, close_code__isnull=False)
    return [
        (client, code or 0, reason)
        for client, code, reason in rows.values_list("client_id", "close_code", "close_reason")
    ]


def request_close(wanted: Q, code: int, reason: str) -> list[str]:
    """Note that connections are to be closed; return their client ids."""
    with transaction.atomic():
        clients = list(ActiveConnection.objects.filter(wanted).values_list("client_id", flat=True))
        ActiveConnection.objects.filter(client_id__in=clients).update(
            close_code=code, close_reason=reason[:120]
        )
    return clients


def close_server(server: str, code: int, reason: str) -> None:
    """Remove the rows of a server that ends in good order."""
    now = timezone.now()
    with transaction.atomic():
        _close(ActiveConnection.objects.filter(server_instance=server), now, code, reason)
        ServerInstance.objects.filter(name=server).delete()


def reap(now: datetime) -> tuple[int, list[str]]:
    """Take away servers whose lease is over and connections whose heartbeat is too old.

    Returns:
        How many connections went, and the names of the servers that went.
    """
    with transaction.atomic():
        dead = list(ServerInstance.objects.filter(lease_until__lt=now).values_list("name", flat=True))
        stale = Q(server_instance__in=dead) | Q(last_heartbeat__lt=now - conf().stale_after)
        went = _close(ActiveConnection.objects.filter(stale), now, None, LOST)
        ServerInstance.objects.filter(name__in=dead).delete()
        _close_orphaned_sessions(now)
    return went, dead


def _close_orphaned_sessions(now: datetime) -> None:
    """Close sessions that have no connection any more: their server wrote neither a heartbeat nor an end."""
    open_sessions = ConnectionSession.objects.filter(
        disconnected_at=None, connected_at__lt=now - conf().stale_after
    )
    live = ActiveConnection.objects.values("client_id")
    open_sessions.exclude(client_id__in=live).update(disconnected_at=now, reason=LOST)


def _close(rows: QuerySet[ActiveConnection], now: datetime, code: int | None, reason: str) -> int:
    clients = list(rows.values_list("client_id", flat=True))
    if clients:
        ConnectionSession.objects.filter(client_id__in=clients, disconnected_at=None).update(
            disconnected_at=now, code=code, reason=reason
        )
        ActiveConnection.objects.filter(client_id__in=clients).delete()
    return len(clients)


def _next_generation(agent_id: str, now: datetime) -> int:
    moment = dialect_of(connection).to_column(now)
    with connection.cursor() as cursor:
        cursor.execute(_NEXT_GENERATION, [agent_id, moment, moment])
        ((generation,),) = cursor.fetchall()
    return int(generation)


def _renew(server: str, now: datetime, *, loop_lag_ms: float, layer_up: bool | None) -> None:
    known = ["lease_until"] if layer_up is None else ["lease_until", "loop_lag_ms", "layer_up"]
    row = ServerInstance(
        name=server,
        hostname=socket.gethostname(),
        pid=os.getpid(),
        started_at=now,
        lease_until=now + conf().instance_lease,
        loop_lag_ms=loop_lag_ms,
        layer_up=bool(layer_up),
    )
    ServerInstance.objects.bulk_create(
        [row], update_conflicts=True, unique_fields=["name"], update_fields=known
    )


def _row(
    details: Details, server: str, generation: int, now: datetime, pulse: Pulse | None = None
) -> ActiveConnection:
    return ActiveConnection(
        client_id=details.client_id,
        server_instance_id=server,
        agent_id=details.agent_id,
        generation=generation,
        user_id=details.user_id,
        session_id=details.session_id,
        task_id=details.task_id,
        transport=details.transport,
        address=details.address,
        user_agent=details.user_agent,
        connected_at=details.connected_at,
        last_heartbeat=now,
        last_activity=pulse.last_activity if pulse else now,
        topics=pulse.topics if pulse else [],
        pending_bytes=pulse.pending_bytes if pulse else 0,
    )
