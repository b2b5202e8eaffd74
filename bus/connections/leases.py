"""The rows of servers and connections: who is connected where, for as long as somebody renews it.

A server holds a lease and renews it with the heartbeats of all its connections in one go; what is not renewed
is taken away by `reap`, which beat calls, so nothing depends on a process saying goodbye. An agent's
generation is drawn here under its row lock: of two connections of one agent the higher generation is the
owner, on whichever server it is. All functions are plain SQL and block: coroutines call them in a thread.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from bus import layer
from bus.clocks import Watch
from bus.conf import conf
from bus.faults import fault
from bus.log.dialect import dialect_of
from bus.models import ActiveConnection, Agent, ConnectionSession, ServerInstance
from bus.protocol.errors import DisconnectCode

#: The leases of all servers, as this process has seen them.
watch = Watch()

#: Reason of a session whose server or heartbeat was lost.
LOST = "lost"

#: Columns of a new connection and its session, in the order of `_connection` and `_session`.
CONNECTION_COLUMNS = (
    "client_id, server_instance_id, agent_id, generation, user_id, session_id, task_id, transport, address, "
    "user_agent, connected_at, last_heartbeat, last_activity, topics, pending_bytes, close_reason"
)
SESSION_COLUMNS = (
    "client_id, agent_id, user_id, server_instance, transport, address, connected_at, disconnected_at, code, "
    "reason, events_in, events_out"
)


def _insert(table: str, columns: str) -> str:
    marks = ", ".join(["%s"] * (columns.count(",") + 1))
    return f"INSERT INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608  (names of our own)


_INSERT_CONNECTION = _insert("bus_activeconnection", CONNECTION_COLUMNS)
_INSERT_SESSION = _insert("bus_connectionsession", SESSION_COLUMNS)
_END_SESSION = (
    "UPDATE bus_connectionsession SET events_in = %s, events_out = %s, "
    "code = CASE WHEN disconnected_at IS NULL THEN %s ELSE code END, "
    "reason = CASE WHEN disconnected_at IS NULL THEN %s ELSE reason END, "
    "disconnected_at = COALESCE(disconnected_at, %s) WHERE client_id = %s"
)
#: Draws the next generations of agents, as many for each as it has connections.
_GENERATIONS = (
    "INSERT INTO bus_agent (agent_id, generation, first_seen_at, last_seen_at, connects) VALUES {rows} "
    "ON CONFLICT (agent_id) DO UPDATE SET generation = bus_agent.generation + excluded.generation, "
    "connects = bus_agent.connects + excluded.connects, last_seen_at = excluded.last_seen_at "
    "RETURNING agent_id, generation"
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
    """Write the rows of a new connection; return the agent's generation that it holds, 0 without an agent."""
    (generation,) = enter_all([details], server)
    return generation


def enter_all(arrivals: Sequence[Details], server: str) -> list[int]:
    """Write the rows of new connections in one transaction; return the generation that each holds.

    Rows of their agents' former connections are closed as replaced; their servers close the sockets. Of
    several connections of one agent the last is the newest: the others have been replaced already.
    """
    fault("leases.before_enter")
    now = timezone.now()
    with transaction.atomic():
        _renew(server, now, loop_lag_ms=0.0, layer_up=None)
        newest = _next_generations(Counter(each.agent_id for each in arrivals if each.agent_id), now)
        if newest:
            former = ActiveConnection.objects.filter(agent_id__in=newest)
            _close(former, now, DisconnectCode.REPLACED, DisconnectCode.REPLACED.reason)
        generations = _numbered(arrivals, newest)
        _insert_rows(list(zip(arrivals, generations, strict=True)), newest, server, now)
        fault("leases.entered")
    return generations


def _insert_rows(
    arrivals: Sequence[tuple[Details, int]], newest: dict[str, int], server: str, now: datetime
) -> None:
    to_column = dialect_of(connection).to_column
    moment = to_column(now)
    rows, sessions = [], []
    for details, generation in arrivals:
        began = to_column(details.connected_at)
        is_newest = generation == newest.get(details.agent_id, 0)
        sessions.append(_session(details, server, began, None if is_newest else moment))
        if is_newest:
            rows.append(_connection(details, server, generation, began, moment))
    with connection.cursor() as cursor:
        cursor.executemany(_INSERT_CONNECTION, rows)
        cursor.executemany(_INSERT_SESSION, sessions)


def leave(farewell: Farewell) -> None:
    """Remove the row of a connection and write how it ended."""
    leave_all([farewell])


def leave_all(farewells: Sequence[Farewell]) -> list[None]:
    """Remove the rows of connections and write how they ended; a session that has its end keeps it."""
    fault("leases.before_leave")
    moment = dialect_of(connection).to_column(timezone.now())
    ordered = sorted(farewells, key=lambda farewell: farewell.client_id)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.executemany(
                _END_SESSION,
                [
                    (each.events_in, each.events_out, each.code, each.reason[:200], moment, each.client_id)
                    for each in ordered
                ],
            )
        remove([each.client_id for each in ordered])
        fault("leases.left")
    return [None] * len(ordered)


def remove(client_ids: Sequence[str]) -> None:
    """Remove rows of connections that are gone."""
    ActiveConnection.objects.filter(client_id__in=client_ids).delete()


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
        fault("leases.beaten")
    return ActiveConnection.objects.count()


def is_known(server: str) -> bool:
    """Tell whether a server has a lease; a server whose lease was taken away had been given up."""
    return ServerInstance.objects.filter(name=server).exists()


def has_peers(server: str) -> bool:
    """Tell whether there is another server. Its row says so, not its lease: clocks of machines may differ."""
    return ServerInstance.objects.exclude(name=server).exists()


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
        # By its sessions: a row may have gone already, with a heartbeat that saw its connection leave.
        ConnectionSession.objects.filter(server_instance=server, disconnected_at=None).update(
            disconnected_at=now, code=code, reason=reason
        )
        ActiveConnection.objects.filter(server_instance=server).delete()
        ServerInstance.objects.filter(name=server).delete()


def silent_servers() -> list[str]:
    """Return the servers whose lease is over: nobody has renewed it for so long, as this process has seen.

    A process that has just begun to look finds none. It never finds itself: whoever can look is alive, and if
    it was held up for so long (a busy machine, a database that kept it waiting) it will soon renew its lease.
    """
    others = ServerInstance.objects.exclude(name=layer.INSTANCE)
    found = dict(others.values_list("name", "lease_until"))
    allowed = (conf().instance_lease - conf().heartbeat_interval).total_seconds()
    return [name for name, silence in watch.look(found).items() if silence >= allowed]


def clocks_agree(now: datetime, tolerance: timedelta) -> bool:
    """Tell whether `now` is about what the clocks of all servers said at their last heartbeats."""
    ends = ServerInstance.objects.values_list("lease_until", flat=True)
    return all(abs(end - conf().instance_lease - now) <= tolerance for end in ends)


def reap() -> tuple[int, list[str]]:
    """Take away servers whose lease is over, and connections whose server has long left them out.

    Returns:
        How many connections went, and the names of the servers that went.
    """
    now = timezone.now()
    dead = silent_servers()
    # Both times are of the server's own clock, which writes them together at each heartbeat.
    left_out = F("server_instance__lease_until") - (conf().instance_lease + conf().stale_after)
    with transaction.atomic():
        stale = Q(server_instance__in=dead) | Q(last_heartbeat__lt=left_out)
        went = _close(ActiveConnection.objects.filter(stale), now, None, LOST)
        ServerInstance.objects.filter(name__in=dead).delete()
        fault("leases.reaped")
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


def _next_generations(connects: Counter[str], now: datetime) -> dict[str, int]:
    """Draw generations, as many for each agent as it has connections; return the highest of each."""
    if not connects:
        return {}
    moment = dialect_of(connection).to_column(now)
    rows: list[Any] = []
    # In one order everywhere: two servers that lock the same agents cannot wait for each other.
    for agent_id in sorted(connects):
        rows += [agent_id, connects[agent_id], moment, moment, connects[agent_id]]
    with connection.cursor() as cursor:
        marks = ", ".join(["(%s, %s, %s, %s, %s)"] * len(connects))
        cursor.execute(_GENERATIONS.format(rows=marks), rows)
        return {agent_id: int(generation) for agent_id, generation in cursor.fetchall()}


def _numbered(arrivals: Sequence[Details], newest: dict[str, int]) -> list[int]:
    """Return the generation of each connection: the last of an agent has the highest."""
    left = dict(newest)
    generations = []
    for details in reversed(arrivals):
        generations.append(left.get(details.agent_id, 0))
        if details.agent_id:
            left[details.agent_id] -= 1
    return generations[::-1]


def _connection(details: Details, server: str, generation: int, began: Any, now: Any) -> tuple[Any, ...]:
    return (
        details.client_id,
        server,
        details.agent_id,
        generation,
        details.user_id,
        details.session_id,
        details.task_id,
        details.transport,
        details.address,
        details.user_agent,
        began,
        now,
        now,
        "[]",
        0,
        "",
    )


def _session(details: Details, server: str, began: Any, replaced: Any) -> tuple[Any, ...]:
    """Return the row of a session; `replaced` is when that happened, if it has happened already."""
    return (
        details.client_id,
        details.agent_id,
        details.user_id,
        server,
        details.transport,
        details.address,
        began,
        replaced,
        None if replaced is None else int(DisconnectCode.REPLACED),
        "" if replaced is None else DisconnectCode.REPLACED.reason,
        0,
        0,
    )


def _renew(server: str, now: datetime, *, loop_lag_ms: float, layer_up: bool | None) -> None:
    """Write the lease of a server; without `layer_up`, which only a heartbeat knows, if there is none yet."""
    row = ServerInstance(
        name=server,
        hostname=socket.gethostname(),
        pid=os.getpid(),
        started_at=now,
        lease_until=now + conf().instance_lease,
        loop_lag_ms=loop_lag_ms,
        layer_up=bool(layer_up),
    )
    if layer_up is None:
        ServerInstance.objects.bulk_create([row], ignore_conflicts=True)
        return
    known = ["lease_until", "loop_lag_ms", "layer_up"]
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
