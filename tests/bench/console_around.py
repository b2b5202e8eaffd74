# ruff: noqa: S608 - statements of our own making, nobody else's text is in them
"""What stands around the million files, events and entries: agents, topics, cursors, connections, runs, rows.

Made as by an installation that is years old: everybody has read the one long topic, one agent has come and
gone a hundred thousand times, one policy was saved nine hundred times.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db import connection
from django.utils import timezone

from bus.history import KEPT
from bus.models import (
    ActiveConnection,
    Agent,
    BusSample,
    ConnectionSession,
    Cursor,
    RunningTask,
    ServerInstance,
    Topic,
)
from cleanup.engine.orphans import Sighting
from cleanup.models import (
    CleanupItem,
    CleanupRun,
    Hold,
    PolicyVersion,
    RetentionPolicy,
    StagedFile,
    StagingArea,
    UsageSample,
    VerifierCheck,
)
from cleanup.operations.policies import check_policy
from cleanup.stores.orphans import Pile, replace
from tests.bench.console_fill import is_postgresql, make, moment

#: An agent that comes and goes; one of the others that has an inbox.
FLAPPING, QUIET = "a7", "a8"
SERVERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """How many rows of each."""

    agents: int = 100_000
    topics: int = 100_000
    cursors: int = 100_000
    sessions: int = 1_000_000
    connections: int = 1_000
    files: int = 1_000_000
    orphans: int = 100_000
    runs: int = 10_000
    versions: int = 1_000
    holds: int = 1_000
    checks: int = 100_000
    #: Of which there is a sample each.
    minutes: int = int(KEPT / timedelta(minutes=1))


def surround(around: Around) -> None:
    """Make these rows in an installation that `console_fill.fill` has filled, and that has none of them."""
    if not CleanupItem.objects.exists() or ConnectionSession.objects.exists():
        raise ValueError("rows are made only around those of a fill, and once")
    make(Agent, around.agents, _agents())
    Topic.objects.filter(name__startswith="task:").update(updated_at=timezone.now())
    make(Topic, around.topics, _topics(around))
    make(Cursor, around.cursors, _cursors(around))
    make(ConnectionSession, around.sessions, _sessions(around))
    _connect(around)
    make(StagedFile, around.files, _files())
    _version(around.versions)
    _run(around.runs)
    _sight(around.orphans)
    _hold(around.holds)
    make(VerifierCheck, around.checks, _checks())
    _sample(around.minutes)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE" if is_postgresql() else "SELECT 1")


def _agents() -> str:
    return f"""
        INSERT INTO bus_agent (agent_id, generation, first_seen_at, last_seen_at, connects)
        SELECT 'a' || n, 1 + n % 100, {moment("9000000")}, {moment("(TOTAL - n) * 20")}, 1 + n % 100
        FROM NUMBERS
    """


def _topics(around: Around) -> str:
    """Half of them inboxes, the others tasks: most have ended, a few are under way or were left."""
    inbox = f"n <= {around.topics // 2}"
    ended = "n % 100 <> 3"
    return f"""
        INSERT INTO bus_topic (name, epoch, first_offset, last_offset, created_at, updated_at, ended_at,
            end_status)
        SELECT CASE WHEN {inbox} THEN 'agent:a' || n ELSE 'task:job-' || n END, 'eeeeeeee', 1, 5,
            {moment("9000000")}, {moment("(TOTAL - n) * 20")},
            CASE WHEN {inbox} OR NOT {ended} THEN NULL ELSE {moment("(TOTAL - n) * 20")} END,
            CASE WHEN {inbox} OR NOT {ended} THEN '' ELSE 'done' END
        FROM NUMBERS
    """


def _cursors(around: Around) -> str:
    """Half of them in inboxes, each its own; the others all in the one long topic."""
    long, inbox = (Topic.objects.get(name=name).pk for name in ("broadcast", "agent:a1"))
    own = f"n <= {min(around.cursors, around.topics) // 2}"
    return f"""
        INSERT INTO bus_cursor (consumer, topic_id, "offset", acked_at)
        SELECT 'a' || n, CASE WHEN {own} THEN {inbox} + n - 1 ELSE {long} END,
            CASE WHEN {own} THEN 1 + n % 5 ELSE (n * 7919) % 1000000 END, {moment("TOTAL - n")}
        FROM NUMBERS
    """


def _sessions(around: Around) -> str:
    others = f"'a' || (n % {around.agents})"
    agent = f"CASE WHEN n % 10 = 7 THEN '{FLAPPING}' WHEN n % 10 = 8 THEN '' ELSE {others} END"
    begun = "(TOTAL - n) * 2.5"
    return f"""
        INSERT INTO bus_connectionsession (client_id, agent_id, user_id, server_instance, transport, address,
            connected_at, disconnected_at, code, reason, events_in, events_out)
        SELECT 'c-' || n, {agent}, CASE WHEN n % 10 = 8 THEN '1' ELSE '' END, 'web-' || n % {SERVERS},
            CASE WHEN n % 100000 = 9 THEN 'sse' WHEN n % 3 = 0 THEN 'plain' ELSE 'centrifugo' END,
            '10.0.0.1', {moment(f"CAST({begun} AS integer)")},
            {moment(f"CAST({begun} - 2 AS integer)")}, 3000, 'gone', n % 17, n % 1009
        FROM NUMBERS
    """


def _connect(around: Around) -> None:
    """Servers that live for an hour more, and who is connected to them."""
    now = timezone.now()
    lease = now + timedelta(hours=1)
    ServerInstance.objects.bulk_create([
        ServerInstance(name=f"web-{number}", hostname="one", pid=number, started_at=now, lease_until=lease)
        for number in range(SERVERS)
    ])  # fmt: skip
    ActiveConnection.objects.bulk_create([
        ActiveConnection(
            client_id=f"c-now-{number}", server_instance_id=f"web-{number % SERVERS}", generation=1,
            agent_id=f"a{number}" if number % 5 else "", user_id="" if number % 5 else "1",
            transport="plain" if number % 3 else "centrifugo", connected_at=now - timedelta(seconds=number),
            last_heartbeat=lease, last_activity=now, topics=["broadcast", f"agent:a{number}"],
            pending_bytes=number * 100,
        )
        for number in range(around.connections)
    ])  # fmt: skip
    RunningTask.objects.bulk_create([
        RunningTask(topic=f"task:{each}", run=f"r{each}", holder="one:1", started_at=now, lease_until=lease)
        for each in range(1, around.connections // 2)
    ])  # fmt: skip


def _files() -> str:
    """One in ten went with its file."""
    areas = list(StagingArea.objects.order_by("pk").values_list("pk", flat=True)[:3])
    area = f"CASE WHEN n % 1000 = 7 THEN {areas[2]} WHEN n % 4 = 0 THEN {areas[1]} ELSE {areas[0]} END"
    gone, later = moment("TOTAL - n"), moment("TOTAL - n - 604800")
    return f"""
        INSERT INTO cleanup_stagedfile (area_id, path, sha256, size, content_type, task_id, uploader,
            created_at, deleted_at, purge_after, delete_reason)
        SELECT {area}, 'in/' || (n % 997) || '/staged-' || n || '.json', '', 1000 + n % 100000, '',
            'job-' || (n / 10), CASE WHEN n % 300000 = 9 THEN 'bob' ELSE 'loader' END, {moment("TOTAL - n")},
            CASE WHEN n % 10 = 3 THEN {gone} END, CASE WHEN n % 10 = 3 THEN {later} END,
            CASE WHEN n % 10 = 3 THEN 'trashed' ELSE '' END
        FROM NUMBERS
    """


def _version(number: int) -> None:
    """Nine in ten are versions of the one policy, the others of others."""
    policy = RetentionPolicy.objects.get(name="old")
    policy.age = "2d"
    policy.save()
    document = check_policy(policy)
    others = RetentionPolicy.objects.bulk_create([
        RetentionPolicy(name=f"rule-{each}", area=policy.area, age="1d") for each in range(number // 10)
    ])  # fmt: skip
    made = [
        PolicyVersion(policy=policy, number=2 + each, document=document | {"age": f"{each}d"})
        for each in range(number - len(others))
    ]
    made += [PolicyVersion(policy=each, number=1, document=document) for each in others]
    PolicyVersion.objects.bulk_create(made, batch_size=500)


def _run(number: int) -> None:
    version, area = PolicyVersion.objects.order_by("pk")[0], StagingArea.objects.order_by("pk")[0]
    now, made = timezone.now(), []
    for each in range(1, number + 1):
        at, state = now - timedelta(minutes=10 * each), "failed" if each % 50 == 0 else "done"
        made.append(CleanupRun(
            pk=UUID(int=10**9 + each), policy_version=version, area=area, state=state, actor="beat",
            started_at=at, finished_at=at, plan_created_at=at, planned_files=each, trashed=each,
        ))  # fmt: skip
    CleanupRun.objects.bulk_create(made, batch_size=500)
    for run in made:
        run.created_at = run.started_at or now
    CleanupRun.objects.bulk_update(made, ["created_at"], batch_size=500)


def _sight(number: int) -> None:
    """Orphans of the first area, as two looks saw them."""
    area, now = StagingArea.objects.order_by("pk")[0], datetime.now(UTC)
    files, rows = Pile(area_id=area.pk, kind="file"), Pile(area_id=area.pk, kind="row")
    seen = [
        Sighting(path=f"in/{each:09}.json", identity=(each, 100, each), first_seen=now)
        for each in range(number)
    ]
    for begin in range(0, number, 5_000):
        files.add(seen[begin : begin + 5_000])
    files.close(total=number * 10)
    rows.close(total=number * 10)
    replace(area.pk, [files, rows], now=now)


def _hold(number: int) -> None:
    area = StagingArea.objects.order_by("pk")[0]
    Hold.objects.bulk_create([
        Hold(area=area, pattern=f"in/{each % 997}/**", reason="audit of the year", created_by="anna")
        for each in range(number)
    ])  # fmt: skip


def _checks() -> str:
    said = json.dumps({"kind": "redis_task", "key": "task:{task_id}:status", "value": "Complete"})
    return f"""
        INSERT INTO cleanup_verifiercheck (verifier, at, sound, detail, milliseconds, asked_by)
        SELECT '{said}', {moment("(TOTAL - n) * 60")}, n % 1000 <> 1, '', 1.5, 'old' FROM NUMBERS
    """


def _sample(number: int) -> None:
    """Each minute, of every disk and of the bus."""
    now = timezone.now().replace(second=0, microsecond=0)
    minutes = [now - timedelta(minutes=each) for each in range(number)]
    BusSample.objects.bulk_create(
        [BusSample(at=at, connections=1_000, agents=800, last_event=each) for each, at in enumerate(minutes)],
        batch_size=500,
    )
    UsageSample.objects.bulk_create(
        [
            UsageSample(area=area, at=at, used_bytes=5 * 10**11 - each * 10**6, total_bytes=10**12)
            for area in StagingArea.objects.order_by("pk")[:3]
            for each, at in enumerate(minutes)
        ],
        batch_size=500,
    )
