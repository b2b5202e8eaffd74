# ruff: noqa: S608 - statements of our own making, nobody else's text is in them
"""Rows by the million for the lists of the console: trashed files, events and audit entries.

The database makes them itself, by one statement a table, with its indexes put aside meanwhile. They are
spread as in life: a big area and a tiny one, one long topic and many short ones, entries by the clock and
a few by people. The hashes are none: such an audit is never sound.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from django.db import connection, models
from django.utils import timezone

from bus.models import Event, Topic
from cleanup.models import (
    AuditEntry,
    AuditHead,
    CleanupItem,
    CleanupRun,
    PolicyVersion,
    RetentionPolicy,
    StagingArea,
)

#: Share of the rows in percent, by area; the last has what is left.
AREAS = ("results", "uploads", "attic")
RUNS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How many rows of each."""

    items: int = 1_000_000
    events: int = 1_000_000
    entries: int = 10_000_000


def fill(amount: Amount) -> None:
    """Fill the three tables of an installation that has none of these rows.

    Raises:
        ValueError: there is something in it.
    """
    if any(model.objects.exists() for model in (CleanupItem, Event, AuditEntry)):
        raise ValueError("the database has rows already: rows are made only where there are none")
    _parents()
    topics = max(2, min(2_000, amount.events // 50))
    Topic.objects.bulk_create([
        Topic(name=f"task:{number}" if number else "broadcast", epoch="e" * 8) for number in range(topics)
    ])  # fmt: skip
    for model, number, text in (
        (CleanupItem, amount.items, _items()),
        (Event, amount.events, _events(topics)),
        (AuditEntry, amount.entries, _entries()),
    ):
        make(model, number, text)
    AuditHead.objects.update_or_create(pk=1, defaults={"seq": amount.entries, "hash": "0" * 64})
    _set_offsets()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE" if connection.vendor == "postgresql" else "SELECT 1")


def _set_offsets() -> None:
    """Say of every topic which events it keeps."""
    kept = 'SELECT {}("offset") FROM bus_event WHERE topic_id = bus_topic.id'
    first, last = (f"COALESCE(({kept.format(word)}), 0)" for word in ("MIN", "MAX"))
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE bus_topic SET first_offset = {first}, last_offset = {last}")


def _parents() -> None:
    """Areas, a policy and the runs that the files went in."""
    areas = [StagingArea.objects.create(name=name, path=f"/srv/{name}") for name in AREAS]
    policy = RetentionPolicy.objects.create(name="old", area=areas[0])
    version = PolicyVersion.objects.create(policy=policy, number=1, document={}, created_by="anna")
    CleanupRun.objects.bulk_create([
        CleanupRun(pk=UUID(int=number), policy_version=version, area=areas[0], state="done", actor="beat")
        for number in range(1, RUNS + 1)
    ])  # fmt: skip


def make(model: type[models.Model], number: int, text: str) -> None:
    """Insert `number` rows, each from `n` = 1, 2, 3 …, and build the indexes of the model afterwards."""
    # Within a transaction, as in a test, SQLite's schema stays as it is.
    kept = [] if connection.in_atomic_block else list(model._meta.indexes)
    _change_indexes(model, kept, "remove_index")
    numbers = (
        f"generate_series(1::bigint, {number}) AS s(n)"
        if connection.vendor == "postgresql"
        else "(WITH RECURSIVE s(n) AS "
        f"(SELECT 1 UNION ALL SELECT n + 1 FROM s LIMIT {number}) SELECT n FROM s)"
    )
    with connection.cursor() as cursor:
        cursor.execute(text.replace("NUMBERS", numbers).replace("TOTAL", str(number)))
    _change_indexes(model, kept, "add_index")
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql" and not connection.in_atomic_block:
            cursor.execute(f"VACUUM ANALYZE {connection.ops.quote_name(model._meta.db_table)}")


def _change_indexes(model: type[models.Model], indexes: list[models.Index], verb: str) -> None:
    if not indexes:
        return
    with connection.schema_editor() as editor:
        for index in indexes:
            getattr(editor, verb)(model, index)


def is_postgresql() -> bool:
    return connection.vendor == "postgresql"


def _uuid(prefix: str, number: str) -> str:
    """A UUID that sorts by nothing in particular, as text of the database."""
    if is_postgresql():
        return f"md5('{prefix}' || {number})::uuid"
    return f"printf('%08x%08x%016x', (({number}) * 2654435761) % 4294967296, {ord(prefix)}, {number})"


def _text_uuid(prefix: str, number: str) -> str:
    return f"({_uuid(prefix, number)})::text" if is_postgresql() else _uuid(prefix, number)


def run_id(number: str) -> str:
    if is_postgresql():
        return f"lpad(to_hex({number}), 32, '0')::uuid"
    return f"printf('%032x', {number})"


def moment(seconds_ago: str) -> str:
    """A moment as the column has it; those of a thousand rows are equal, as those of a batch are."""
    now = timezone.now() + timedelta(minutes=1)
    if is_postgresql():
        return f"timestamptz '{now.isoformat()}' - ({seconds_ago}) * interval '1 second'"
    return f"datetime('{now:%Y-%m-%d %H:%M:%S}', printf('%+d seconds', -({seconds_ago}))) || '.000001'"


def _area(number: str) -> str:
    ids = list(StagingArea.objects.order_by("pk").values_list("pk", flat=True)[:3])
    return (
        f"CASE WHEN {number} % 1000 = 7 THEN {ids[2]} WHEN {number} % 4 = 0 THEN {ids[1]} ELSE {ids[0]} END"
    )


def _items() -> str:
    """One in ten is purged already; all went within ten days."""
    back = "(TOTAL - n) / 1000 * (864000.0 / (TOTAL / 1000 + 1))"
    back = f"CAST({back} AS integer)"
    members = "json_build_array()" if is_postgresql() else "'[]'"
    return f"""
        INSERT INTO cleanup_cleanupitem (id, run_id, area_id, path, members, size, state, reason, detail,
            task_id, trash_id, restore_to, trashed_at, purge_after, purge_floor, changed_at)
        SELECT {_uuid("i", "n")}, {run_id(f"1 + n * {RUNS} / (TOTAL + 1)")}, {_area("n")},
            'in/' || (n % 997) || '/result-' || n || '.json', {members}, 1000 + n % 100000,
            CASE WHEN n % 10 = 3 THEN 'purged' ELSE 'trashed' END,
            CASE WHEN n % 10000 = 11 THEN 'orphaned' WHEN n % 10 = 1 THEN 'expired' ELSE 'older_than_age' END,
            '', '', 'trash/' || n, '', {moment(back)}, {moment(f"{back} - 604800")}, NULL, {moment(back)}
        FROM NUMBERS
    """


def _events(topics: int) -> str:
    """Two of five in one topic, the others in many; the last of a type that is rare."""
    first = Topic.objects.order_by("pk").values_list("pk", flat=True)[0]
    return f"""
        INSERT INTO bus_event (topic_id, "offset", event_type, payload, tags, info, key, publisher,
            created_at)
        SELECT CASE WHEN n % 5 < 2 THEN {first} ELSE {first} + 1 + n % {topics - 1} END, n,
            CASE WHEN n % 100000 = 17 THEN 'task.failed' ELSE 'task.progress' END,
            '{{"data": {{"done": ' || n || ', "total": 1000000, "step": "reading"}}}}', '', '', NULL,
            'agent:a' || n % 50,
            {moment("TOTAL - n")}
        FROM NUMBERS
    """


def _entries() -> str:
    """Mostly by the clock; one in fifty by a person; a person, an area and an action that are rare."""
    digest = "md5(n::text) || md5(n::text)" if is_postgresql() else "printf('%064x', n)"
    ago = f"{int(timezone.now().timestamp() * 1_000_000)} - (TOTAL - n) * 60000"
    person = "n % 50 = 9"
    return f"""
        INSERT INTO cleanup_auditentry (seq, at_us, actor, actor_kind, action, run, item, area, path, size,
            policy_version, reason, evidence, prev_hash, hash)
        SELECT n, {ago},
            CASE WHEN n % 300000 = 59 THEN 'bob' WHEN {person} THEN 'anna' ELSE 'cleanup' END,
            CASE WHEN {person} OR n % 300000 = 59 THEN 'user' ELSE 'system' END,
            CASE WHEN n % 500000 = 4 THEN 'hold_added' WHEN n % 100 = 5 THEN 'restored'
                WHEN n % 2 = 0 THEN 'trashed' ELSE 'purged' END,
            {_text_uuid("r", "1 + n / 50000")}, {_text_uuid("t", "n / 2")},
            CASE WHEN n % 400000 = 6 THEN 'attic' WHEN n % 4 = 0 THEN 'uploads' ELSE 'results' END,
            'in/' || (n % 997) || '/result-' || n || '.json', 1000 + n % 100000, 'old@1', 'older_than_age',
            '{{"inode": ' || n || ', "verifiers": [{{"kind": "redis_task", "answer": "done"}}]}}',
            {digest}, {digest}
        FROM NUMBERS
    """
