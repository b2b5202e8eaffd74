"""Items on their way through the trash: written once with their outcome, then moved by compare-and-set.

A row is inserted when its batch is settled. From then on it changes state only by a statement that names the
state it is in; of two that want to restore and to purge the same file, one finds no row. Moves that the
engine's table does not allow are refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import msgspec
from django.db import DEFAULT_DB_ALIAS, connection, models
from django.db.models import F, QuerySet
from django.db.models.base import ModelState
from django.utils.timezone import localdate

from cleanup.engine.names import escape, unescape
from cleanup.engine.plan import Member, PlanItem
from cleanup.engine.reasons import Reason
from cleanup.engine.states import ItemState, can_move
from cleanup.models import (
    CleanupItem,
    CleanupRun,
    CleanupTotal,
    DailyTotal,
    PolicyVersion,
    StagingArea,
)
from cleanup.stores.registry import follow_trashed
from cleanup.stores.sql import among, as_time, as_uuid, insert_rows, is_postgresql, time_of, uuid_of

_FIELDS = (
    "id", "run", "area", "path", "members", "size", "state", "reason", "detail", "task_id", "trash_id",
    "restore_to", "trashed_at", "purge_after", "purge_floor", "changed_at",
)  # fmt: skip

_DETAIL = 500
_TASK_ID = 200


def new_ids(count: int) -> list[UUID]:
    """Draw `count` ids that sort by time: random ones would scatter the inserts all over the index."""
    stamp = time.time_ns() // 1_000_000 << 80
    random = int.from_bytes(os.urandom(10), "big") >> 24 << 24
    return [UUID(int=stamp | (random + number)) for number in range(count)]


class NewItem(msgspec.Struct, frozen=True, gc=False):
    """One row to be inserted."""

    id: UUID
    item: PlanItem
    state: ItemState
    reason: str
    detail: str = ""
    trash_id: str = ""
    #: The path of the item as text, which several columns and the audit want.
    shown: str = ""


def insert_items(
    new: Sequence[NewItem],
    *,
    run_id: UUID | None,
    area: StagingArea,
    now: datetime,
    trashed_at: datetime | None,
    purge_after: datetime | None,
    purge_floor: datetime | None = None,
) -> None:
    """Insert the rows of one batch; only trashed ones carry the three times.

    The registry's rows of trashed files go along: in a transaction of the caller.
    """
    run_value = None if run_id is None else as_uuid(run_id)
    now_value = as_time(now)
    in_trash = (as_time(trashed_at), as_time(purge_after), as_time(purge_floor))
    nowhere = (None, None, None)
    rows = [
        (
            as_uuid(one.id), run_value, area.pk, one.shown or one.item.shown,
            members_json(one.item, one.shown), one.item.bytes,
            str(one.state), one.reason, one.detail[:_DETAIL], (one.item.task_id or "")[:_TASK_ID],
            one.trash_id, "", *(in_trash if one.state is ItemState.TRASHED else nowhere), now_value,
        )
        for one in new
    ]  # fmt: skip
    insert_rows(CleanupItem, _FIELDS, rows)
    if trashed_at is not None and purge_after is not None:
        gone = (escape(m.path) for one in new if one.state is ItemState.TRASHED for m in one.item.members)
        follow_trashed(area.pk, gone, at=trashed_at, purge_after=purge_after)


class _MemberRow(msgspec.Struct, gc=False):
    """A member as the column holds it."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode


def members_json(item: PlanItem, shown: str = "") -> str:
    """The members of an item, as the column holds them; `shown` is its path as text if that is at hand."""
    rows = [
        _MemberRow(
            shown if shown and m.path == item.path else escape(m.path), m.device, m.inode, m.size, m.mtime_ns
        )
        for m in item.members
    ]
    return _encode(rows).decode()


def plan_item(row: CleanupItem) -> PlanItem:
    """The item as it stood in its plan, for the engine to compare with the disk."""
    members = tuple(
        Member(unescape(m["path"]), m["device"], m["inode"], m["size"], m["mtime_ns"]) for m in row.members
    )
    # The reason takes no part in the comparison, and a row's may be one of another version of the engine.
    reason = Reason.OLDER_THAN_AGE
    return PlanItem(members[0].path, members, row.size, reason, row.detail, row.task_id or None)


def move_rows(ids: Collection[UUID], old: ItemState, new: ItemState, *, now: datetime, **changes: Any) -> int:
    """Move those rows that are in state `old`; return how many were.

    Raises:
        ValueError: the engine's table has no such move.
    """
    if not can_move(old, new):
        raise ValueError(f"no item goes from {old} to {new}")
    rows = _among(ids, old)
    return rows.update(state=new, changed_at=now, **changes) if ids else 0


def _among(ids: Collection[UUID], state: ItemState) -> QuerySet[CleanupItem]:
    where, given = among(CleanupItem, ids, state=str(state))
    return CleanupItem.objects.extra(where=where, params=given).order_by()  # noqa: S610 - no text of others


def claim_rows(
    ids: Collection[UUID], old: ItemState, new: ItemState, *, now: datetime, **conditions: Any
) -> list[UUID]:
    """Move rows from `old` to `new` if `conditions` hold too; return the ids that this call has moved."""
    # Locked where the database has row locks, so that nobody moves one between the two statements.
    rows = _among(ids, old).select_for_update().filter(**conditions)
    found = list(rows.values_list("pk", flat=True)) if ids else []
    move_rows(found, old, new, now=now)
    return found


def load(ids: Collection[UUID], *, area: StagingArea) -> list[CleanupItem]:
    """Read rows of one area in the order of the trash, each with its area and its run's policy at hand.

    Whole rows, made without the ORM's own way of making them, which takes ten times as long. Runs are fetched
    once for all rows.
    """
    found = _fetch(ids, area) if ids else []
    wanted = {run_id for run_id in map(uuid_of, {values[_RUN] for values in found}) if run_id is not None}
    runs = CleanupRun.objects.select_related("policy_version__policy").in_bulk(wanted)
    # Of thousands of rows that went together the moments are the same.
    moment, run_key = cache(time_of), cache(uuid_of)
    rows = [_made(values, area, runs, moment, run_key) for values in found]
    return sorted(rows, key=lambda row: row.trash_id)


#: Every column of a row, by the name of its attribute.
_COLUMNS = tuple(field.attname for field in CleanupItem._meta.concrete_fields)
_RUN = _COLUMNS.index("run_id")
_TIMES = tuple(
    field.attname for field in CleanupItem._meta.concrete_fields if isinstance(field, models.DateTimeField)
)


def _fetch(ids: Collection[UUID], area: StagingArea) -> list[tuple[Any, ...]]:
    where, given = among(CleanupItem, ids, area=area.pk)
    quote = connection.ops.quote_name
    # As an expression a column has no declared type: SQLite's driver leaves the text of a moment as it is.
    plus = "" if is_postgresql() else "+"
    columns = ", ".join(
        f"{plus if field.attname in _TIMES else ''}{quote(str(field.column))}"
        for field in CleanupItem._meta.concrete_fields
    )
    table = quote(CleanupItem._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {columns} FROM {table} WHERE {' AND '.join(where)}",  # noqa: S608 - our own names
            given,
        )
        return list(cursor.fetchall())


def _made(
    values: Sequence[Any],
    area: StagingArea,
    runs: Mapping[UUID, CleanupRun],
    moment: Callable[[Any], datetime | None],
    run_key: Callable[[Any], UUID | None],
) -> CleanupItem:
    """Make a row as if the ORM had read it."""
    fields = dict(zip(_COLUMNS, values, strict=True))
    run_id = run_key(fields["run_id"])
    fields["id"], fields["run_id"] = uuid_of(fields["id"]), run_id
    fields["members"] = (
        _decode(fields["members"]) if isinstance(fields["members"], str) else fields["members"]
    )
    for name in _TIMES:
        fields[name] = moment(fields[name])
    state = ModelState()
    state.db, state.adding = DEFAULT_DB_ALIAS, False
    state.fields_cache = {"area": area, "run": runs[run_id] if run_id is not None else None}
    row = CleanupItem.__new__(CleanupItem)
    row.__dict__.update(fields, _state=state)
    return row


def add_totals(area: str, policy: str, **counts: int) -> None:
    """Add to the counters of one area and policy that outlast every process, and to those of this day."""
    day = localdate()
    CleanupTotal.objects.get_or_create(area=area, policy=policy)
    DailyTotal.objects.get_or_create(area=area, day=day)
    changes = {name: F(name) + count for name, count in counts.items()}
    CleanupTotal.objects.filter(area=area, policy=policy).update(**changes)
    DailyTotal.objects.filter(area=area, day=day).update(**changes)


def policy_name(row: CleanupItem) -> str:
    """The policy that trashed the item; empty for one that was found in the trash without a row."""
    return row.run.policy_version.policy.name if row.run is not None else ""


def version_name(row: CleanupItem) -> str:
    """The policy and the version of it that trashed the item."""
    return version_label(row.run.policy_version) if row.run is not None else ""


def version_label(version: PolicyVersion) -> str:
    """A version of a policy as audit entries and manifests name it."""
    return f"{version.policy.name} v{version.number}"


def files_of(rows: Iterable[CleanupItem]) -> int:
    """How many files the rows stand for; a result with its metadata counts two."""
    return sum(len(row.members) for row in rows)
