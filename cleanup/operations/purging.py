"""Removing files from the trash for good: when their grace is over, or before that by a person who says why.

Holds and verifiers are asked once more; what they keep stays in the trash and is asked about again at the
next purge. Rows are claimed in one transaction, then the engine unlinks inside the trash only, then the
outcomes are committed. A crash in between leaves rows in state `purge_intent`, which recovery finishes. The
clock is the database's.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F, Q

from cleanup.engine.area import AreaHandle
from cleanup.engine.audit import AuditRecord
from cleanup.engine.errors import AreaBusy, AreaRefused
from cleanup.engine.faults import crash_point
from cleanup.engine.reasons import Reason
from cleanup.engine.shelf import batch_of
from cleanup.engine.states import Decision, ItemState, recover
from cleanup.engine.trash import Purged, observe_all, purge_batch, tidy
from cleanup.engine.verify import Answer, Subject
from cleanup.models import CleanupItem, StagingArea
from cleanup.operations.areas import active_holds, held_by, locked, opened
from cleanup.operations.outcomes import OperationRefused, PurgeReport
from cleanup.operations.policies import policy_of
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.items import (
    add_totals,
    claim_rows,
    load,
    move_rows,
    plan_item,
    policy_name,
    version_name,
)
from cleanup.stores.sql import chunks, database_now
from cleanup.verifiers import asker

logger = logging.getLogger(__name__)

#: Items purged under one hold of the area's lock.
_BATCH = 1_000

_STATES = {"purged": ItemState.PURGED, "lost": ItemState.LOST, "error": ItemState.ERROR}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What is to be purged, by whom and why."""

    actor: Actor
    reason: str
    #: Only items whose grace is over at this moment; None: whatever their grace.
    due_at: datetime | None


def purge_due(
    *, now: datetime | None = None, area: StagingArea | None = None, slice_length: timedelta | None = None
) -> PurgeReport:
    """Purge what has been in the trash for the length of its grace period.

    Args:
        now: the database's time unless given.
        area: this one only.
        slice_length: stop after about this long.

    An area that cannot be worked in is an error in the report; the others are purged.
    """
    due_at = now or database_now()
    deadline = None if slice_length is None else time.monotonic() + slice_length.total_seconds()
    order = _Order(actor=Actor.system(), reason="grace period over", due_at=due_at)
    report = PurgeReport()
    for one in _areas_with_due(due_at, area):
        try:
            with opened(one) as handle:
                for ids in _due(one, due_at):
                    if deadline is not None and time.monotonic() >= deadline:
                        report.unfinished = True
                        return report
                    report.add(_purge_part(handle, one, ids, order))
        except (AreaRefused, AreaBusy, OSError) as error:
            logger.warning("area %s was not purged: %s", one.name, error)
            report.errors.append(f"area {one.name}: {error}")
    return report


def has_due(now: datetime) -> bool:
    """Whether anything in the trash has served its grace period."""
    return CleanupItem.objects.filter(state=ItemState.TRASHED, purge_after__lte=now).exists()


def count_due(*, now: datetime | None = None, area: StagingArea | None = None) -> list[CleanupItem]:
    """The items that a purge would consider now, for a dry run."""
    found = CleanupItem.objects.filter(state=ItemState.TRASHED, purge_after__lte=now or database_now())
    return list(found if area is None else found.filter(area=area))


def _areas_with_due(due_at: datetime, area: StagingArea | None) -> list[StagingArea]:
    due = StagingArea.objects.filter(
        items__state=ItemState.TRASHED, items__purge_after__lte=due_at
    ).distinct()
    return list(due if area is None else due.filter(pk=area.pk))


def _due(area: StagingArea, due_at: datetime) -> Iterator[list[UUID]]:
    """Yield the ids of due items, oldest first; those that are kept are met once."""
    rows = CleanupItem.objects.filter(area=area, state=ItemState.TRASHED, purge_after__lte=due_at)
    after: tuple[datetime | None, str] | None = None
    while True:
        page = rows
        if after is not None:
            page = rows.filter(Q(purge_after__gt=after[0]) | Q(purge_after=after[0], trash_id__gt=after[1]))
        found = list(
            page.order_by("purge_after", "trash_id").values_list("pk", "purge_after", "trash_id")[:_BATCH]
        )
        if not found:
            return
        yield [pk for pk, _, _ in found]
        after = (found[-1][1], found[-1][2])


def purge_now(item_ids: Collection[UUID], *, reason: str, actor: Actor) -> PurgeReport:
    """Purge items before their grace is over. Holds and verifiers still keep them.

    Raises:
        OperationRefused: no reason is given.
        AreaRefused, AreaBusy: an area cannot be worked in; items of areas before it are purged.
    """
    if not reason.strip():
        raise OperationRefused("purging before the end of the grace period needs a reason")
    order = _Order(actor=actor, reason=reason, due_at=None)
    report = PurgeReport()
    for area, ids in _by_area(item_ids).items():
        with opened(area) as handle:
            for part in chunks(ids, _BATCH):
                report.add(_purge_part(handle, area, part, order))
    return report


def extend_grace(item_ids: Collection[UUID], *, by: timedelta, actor: Actor) -> int:
    """Keep items in the trash for longer; return how many.

    Raises:
        OperationRefused: `by` is not above zero: a grace is never shortened.
    """
    if by <= timedelta(0):
        raise OperationRefused("a grace period can be extended, not shortened")
    extended = 0
    for area, ids in _by_area(item_ids).items():
        for part in chunks(ids, _BATCH):
            with transaction.atomic():
                extended += _extend_part(area, part, by, actor)
    return extended


def _extend_part(area: StagingArea, ids: Sequence[UUID], by: timedelta, actor: Actor) -> int:
    now, found = database_now(), list[UUID]()
    for chunk in chunks(ids):
        rows = CleanupItem.objects.filter(pk__in=chunk, state=ItemState.TRASHED).order_by()
        locked_ids = list(rows.select_for_update().values_list("pk", flat=True))
        later = CleanupItem.objects.filter(pk__in=locked_ids)
        later.update(purge_after=F("purge_after") + by, changed_at=now)
        found += locked_ids
    evidence = {"seconds": int(by.total_seconds())}
    rows_now = load(found, area=area)
    DatabaseAuditSink().write(
        [_entry(row, "grace_extended", actor, now, evidence=evidence) for row in rows_now]
    )
    return len(found)


def _by_area(item_ids: Collection[UUID]) -> dict[StagingArea, list[UUID]]:
    found: dict[StagingArea, list[UUID]] = defaultdict(list)
    for part in chunks(item_ids):
        rows = CleanupItem.objects.filter(pk__in=part, state=ItemState.TRASHED).select_related("area")
        for row in rows.only("pk", "area").order_by("area_id", "trash_id"):
            found[row.area].append(row.pk)
    return found


def _purge_part(handle: AreaHandle, area: StagingArea, ids: Sequence[UUID], order: _Order) -> PurgeReport:
    report = PurgeReport()
    free = _screen(load(ids, area=area), area, report)
    with locked(handle):
        rows = _claim(free, area, order, report)
        crash_point("run.after_purge_intent")
        done = purge_batch(handle, [row.trash_id for row in rows]) if rows else []
        crash_point("run.after_purge")
        _commit(area, rows, done, order.actor, order.reason)
    for row, purged in zip(rows, done, strict=True):
        _add(report, row, purged)
    return report


def _add(report: PurgeReport, row: CleanupItem, purged: Purged) -> None:
    if purged.outcome == "purged":
        report.purged += len(row.members)
        report.bytes += purged.bytes
    elif purged.outcome == "lost":
        report.lost += len(row.members)
    else:
        report.errors.append(f"{row.path}: {purged.detail}")


def _screen(rows: Sequence[CleanupItem], area: StagingArea, report: PurgeReport) -> list[CleanupItem]:
    """Ask the verifiers of each item's own policy version; return what may go, in the order of the trash."""
    by_version: dict[int | None, list[CleanupItem]] = defaultdict(list)
    for row in rows:
        by_version[row.run.policy_version_id if row.run is not None else None].append(row)
    # Adopted from the trash after the loss of the database: nobody knows whom to ask.
    _keep(report, Reason.UNVERIFIED, by_version.pop(None, []))
    free: set[UUID] = set()
    for together in by_version.values():
        for row, answer in zip(together, _ask(together, area), strict=True):
            if answer is Answer.PASS:
                free.add(row.pk)
            else:
                reason = Reason.VERIFIER_FAILED if answer is Answer.FAIL else Reason.UNVERIFIED
                _keep(report, reason, [row])
    return [row for row in rows if row.pk in free]


def _ask(rows: Sequence[CleanupItem], area: StagingArea) -> list[Answer]:
    run = rows[0].run
    if run is None:
        return [Answer.UNKNOWN] * len(rows)
    ask = asker(policy_of(run.policy_version).verifiers)
    subjects = [
        Subject(path=row.path, task_id=row.task_id or None, size=row.size, area=str(area.uuid))
        for row in rows
    ]
    return [checked.answer for checked in ask(subjects)]


def _keep(report: PurgeReport, reason: Reason, rows: Sequence[CleanupItem]) -> None:
    if not rows:
        return
    files = sum(len(row.members) for row in rows)
    report.kept[str(reason)] = report.kept.get(str(reason), 0) + files


def _claim(
    given: Sequence[CleanupItem], area: StagingArea, order: _Order, report: PurgeReport
) -> list[CleanupItem]:
    """Commit the intent to purge what no hold keeps. In one transaction with the look at the holds."""
    now = database_now()
    with transaction.atomic():
        free = _not_held(given, area, report, now)
        conditions = {} if order.due_at is None else {"purge_after__lte": order.due_at}
        claimed = set(claim_rows(free, ItemState.TRASHED, ItemState.PURGE_INTENT, now=now, **conditions))
        rows = [row for row in given if row.pk in claimed]
        if rows:
            evidence = {"items": len(rows), "bytes": sum(row.size for row in rows)}
            entry = record(
                order.actor, "purge_intent", now=now, area=area.name, reason=order.reason, evidence=evidence
            )
            DatabaseAuditSink().write([entry])
    return rows


def _not_held(
    rows: Sequence[CleanupItem], area: StagingArea, report: PurgeReport, now: datetime
) -> list[UUID]:
    holds = active_holds(area.pk, now=now)
    free = []
    for row in rows:
        if holds and held_by(holds, [member["path"] for member in row.members]) is not None:
            _keep(report, Reason.HELD, [row])
        else:
            free.append(row.pk)
    return free


def _commit(
    area: StagingArea, rows: Sequence[CleanupItem], done: Sequence[Purged], actor: Actor, reason: str
) -> None:
    """Write the outcomes: rows, totals and audit entries together."""
    if not rows:
        return
    now = database_now()
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    by_outcome: dict[tuple[str, str], list[UUID]] = defaultdict(list)
    for row, purged in zip(rows, done, strict=True):
        by_outcome[purged.outcome, purged.detail[:500]].append(row.pk)
        if purged.outcome == "purged":
            totals[policy_name(row)][0] += len(row.members)
            totals[policy_name(row)][1] += purged.bytes
    entries = [
        _entry(row, _ACTIONS[purged.outcome], actor, now, reason=purged.detail or reason)
        for row, purged in zip(rows, done, strict=True)
    ]
    with transaction.atomic():
        for (outcome, detail), ids in by_outcome.items():
            changes = {"detail": detail} if detail else {}
            move_rows(ids, ItemState.PURGE_INTENT, _STATES[outcome], now=now, **changes)
        for name, (files, freed) in totals.items():
            add_totals(area.name, name, files_purged=files, bytes_purged=freed)
        DatabaseAuditSink().write(entries)


_ACTIONS = {"purged": "purged", "lost": "lost", "error": "purge_error"}


def _entry(
    row: CleanupItem,
    action: str,
    actor: Actor,
    now: datetime,
    *,
    reason: str = "",
    evidence: dict[str, Any] | None = None,
) -> AuditRecord:
    return record(
        actor, action, now=now, run=row.run_id, item=row.pk, area=row.area.name, path=row.path, size=row.size,
        policy_version=version_name(row), reason=reason, evidence={"trash": row.trash_id, **(evidence or {})},
    )  # fmt: skip


# After a crash


def finish_purges(handle: AreaHandle, area: StagingArea, actor: Actor) -> int:
    """Finish interrupted purges; the caller holds the area's lock. Return how many items."""
    ids = CleanupItem.objects.filter(area=area, state=ItemState.PURGE_INTENT).values_list("pk", flat=True)
    finished = 0
    for part in chunks(list(ids), _BATCH):
        rows = load(part, area=area)
        _commit(area, rows, _finish(handle, rows), actor, "after a crash")
        tidy_batches(handle, rows)
        finished += len(rows)
    return finished


def tidy_batches(handle: AreaHandle, rows: Sequence[CleanupItem]) -> None:
    """Remove what is left of the batches of `rows` that hold no file any more."""
    for batch in sorted({batch_of(row.trash_id) for row in rows}):
        tidy(handle, batch)


def _finish(handle: AreaHandle, rows: Sequence[CleanupItem]) -> list[Purged]:
    seen = list(observe_all(handle, [(plan_item(row), row.trash_id) for row in rows]))
    decisions = [recover(ItemState.PURGE_INTENT, observation) for observation in seen]
    going_on = [row.trash_id for row, one in zip(rows, decisions, strict=True) if one is Decision.PURGE_ON]
    purged = {one.trash_id: one for one in purge_batch(handle, going_on)}
    return [
        purged.get(row.trash_id) or _decided(row, decision)
        for row, decision in zip(rows, decisions, strict=True)
    ]


def _decided(row: CleanupItem, decision: Decision) -> Purged:
    if decision is Decision.PURGED:
        return Purged(row.trash_id, "purged", row.size)
    return Purged(row.trash_id, "error", 0, "after a crash: something else lies in its place")
