"""Items on their way through the trash: written once with their outcome, then moved by compare-and-set.

A row is inserted when its batch is settled. From then on it changes state only by a statement that names the
state it is in; of two that want to restore and to purge the same file, one finds no row. Moves that the
engine's table does not allow are refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import F

from cleanup.engine.names import escape, unescape
from cleanup.engine.plan import Member, PlanItem
from cleanup.engine.reasons import Reason
from cleanup.engine.states import ItemState, can_move
from cleanup.models import CleanupItem, CleanupRun, CleanupTotal, PolicyVersion, StagingArea
from cleanup.stores.sql import as_json, as_time, as_uuid, chunks, insert_rows

_FIELDS = (
    "id", "run", "area", "path", "members", "size", "state", "reason", "detail", "task_id", "trash_id",
    "restore_to", "trashed_at", "purge_after", "changed_at",
)  # fmt: skip

_DETAIL = 500
_TASK_ID = 200


def new_ids(count: int) -> list[UUID]:
    """Draw `count` ids that sort by time: random ones would scatter the inserts all over the index."""
    stamp = time.time_ns() // 1_000_000 << 80
    random = int.from_bytes(os.urandom(10), "big") >> 24 << 24
    return [UUID(int=stamp | (random + number)) for number in range(count)]


class NewItem:
    """One row to be inserted."""

    __slots__ = ("detail", "id", "item", "reason", "state", "trash_id")

    def __init__(
        self, id: UUID, item: PlanItem, state: ItemState, *, reason: str, detail: str = "", trash_id: str = ""
    ) -> None:
        self.id, self.item, self.state = id, item, state
        self.reason, self.detail, self.trash_id = reason, detail, trash_id


def insert_items(
    new: Sequence[NewItem],
    *,
    run_id: UUID | None,
    area: StagingArea,
    now: datetime,
    trashed_at: datetime | None,
    purge_after: datetime | None,
) -> None:
    """Insert the rows of one batch; only trashed ones carry the two times."""
    run_value = None if run_id is None else as_uuid(run_id)
    now_value = as_time(now)
    in_trash = (as_time(trashed_at), as_time(purge_after))
    rows = [
        (
            as_uuid(one.id), run_value, area.pk, one.item.shown, members_json(one.item), one.item.bytes,
            str(one.state), one.reason, one.detail[:_DETAIL], (one.item.task_id or "")[:_TASK_ID],
            one.trash_id, "", *(in_trash if one.state is ItemState.TRASHED else (None, None)), now_value,
        )
        for one in new
    ]  # fmt: skip
    insert_rows(CleanupItem, _FIELDS, rows)


def members_json(item: PlanItem) -> str:
    """The members of an item, as the column holds them."""
    return as_json(
        [
            {
                "path": escape(m.path),
                "device": m.device,
                "inode": m.inode,
                "size": m.size,
                "mtime_ns": m.mtime_ns,
            }
            for m in item.members
        ]
    )


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
    moved = 0
    for chunk in chunks(ids):
        rows = CleanupItem.objects.filter(pk__in=chunk, state=old)
        moved += rows.update(state=new, changed_at=now, **changes)
    return moved


def claim_rows(
    ids: Collection[UUID], old: ItemState, new: ItemState, *, now: datetime, **conditions: Any
) -> list[UUID]:
    """Move rows from `old` to `new` if `conditions` hold too; return the ids that this call has moved."""
    claimed: list[UUID] = []
    for chunk in chunks(ids):
        # Locked where the database has row locks, so that nobody moves one between the two statements.
        rows = CleanupItem.objects.select_for_update().filter(pk__in=chunk, state=old, **conditions)
        found = list(rows.order_by().values_list("pk", flat=True))
        move_rows(found, old, new, now=now)
        claimed += found
    return claimed


def load(ids: Collection[UUID], *, area: StagingArea) -> list[CleanupItem]:
    """Read rows of one area in the order of the trash, each with its area and its run's policy at hand.

    Runs are fetched once for all rows: a join would build five objects for each of thousands.
    """
    rows = [
        row for chunk in chunks(ids) for row in CleanupItem.objects.filter(pk__in=chunk, area=area).order_by()
    ]
    wanted = {row.run_id for row in rows if row.run_id is not None}
    runs = CleanupRun.objects.select_related("policy_version__policy").in_bulk(wanted)
    for row in rows:
        row.area = area
        if row.run_id is not None:
            row.run = runs[row.run_id]
    return sorted(rows, key=lambda row: row.trash_id)


def add_totals(area: str, policy: str, **counts: int) -> None:
    """Add to the counters of one area and policy that outlast every process."""
    CleanupTotal.objects.get_or_create(area=area, policy=policy)
    CleanupTotal.objects.filter(area=area, policy=policy).update(
        **{name: F(name) + count for name, count in counts.items()}
    )


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
