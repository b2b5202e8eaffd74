"""Removing files from the trash for good: when their grace is over, or before that by a person who says why.

Holds and verifiers are asked once more (`clearing`); what they keep stays in the trash and is asked about
again later. Rows are claimed in one transaction, then the engine unlinks inside the trash only, then the
outcomes are committed. A crash in between leaves rows in state `purge_intent`, which recovery finishes. The
clock is the database's.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from itertools import accumulate
from operator import or_
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F, Q, QuerySet
from msgspec.structs import replace

from cleanup.engine.area import AreaHandle
from cleanup.engine.audit import AuditRecord
from cleanup.engine.errors import AreaBusy, AreaRefused
from cleanup.engine.faults import crash_point
from cleanup.engine.shelf import batch_of
from cleanup.engine.states import Decision, ItemState, recover
from cleanup.engine.trash import Purged, observe_all, purge_batch, tidy
from cleanup.models import CleanupItem, StagingArea
from cleanup.operations.areas import locked, opened
from cleanup.operations.clearing import Clearing, count_put_off
from cleanup.operations.outcomes import OperationRefused, PurgeReport
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
from cleanup.stores.quiet import collecting_later
from cleanup.stores.registry import follow_grace, follow_purged
from cleanup.stores.sql import chunks, database_now
from cleanup.stores.waiting import is_asked_at

logger = logging.getLogger(__name__)

#: Items purged under one hold of the area's lock: as many as a run moves under one.
_BATCH = 2_000

_STATES = {"purged": ItemState.PURGED, "lost": ItemState.LOST, "error": ItemState.ERROR}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What is to be purged, by whom and why."""

    actor: Actor
    reason: str
    #: Only items whose grace is over at this moment; None: whatever their grace.
    due_at: datetime | None
    #: The disk is full: what an item was promised then is its floor, which may be shorter than its grace.
    under_pressure: bool = False
    #: Said in the audit with each item.
    evidence: Mapping[str, str] | None = None

    def claims(self) -> list[dict[str, Any]]:
        """Conditions of which an item has to meet one."""
        if self.due_at is None:
            return [{}]
        grace: dict[str, Any] = {"purge_after__lte": self.due_at}
        return [grace, {"purge_floor__lte": self.due_at}] if self.under_pressure else [grace]


def purge_due(
    *,
    now: datetime | None = None,
    area: StagingArea | None = None,
    slice_length: timedelta | None = None,
    under_pressure: bool = False,
    until_freed: int | None = None,
) -> PurgeReport:
    """Purge what has been in the trash for the length of its grace period.

    Args:
        now: the database's time unless given.
        area: this one only.
        slice_length: stop after about this long.
        under_pressure: the disk is full: the oldest first, and each from its floor on. What was kept before
            and is not asked about again yet is reported as kept too.
        until_freed: purge no more than it takes to free so many bytes.

    An area that cannot be worked in is an error in the report; the others are purged, but for disabled ones.
    """
    due_at = now or database_now()
    if due_at.tzinfo is None:
        raise ValueError("now needs a time zone")
    deadline = None if slice_length is None else time.monotonic() + slice_length.total_seconds()
    reason = "the disk is full, and the floor is over" if under_pressure else "grace period over"
    order = _Order(actor=Actor.system(), reason=reason, due_at=due_at, under_pressure=under_pressure)
    report, clearing = PurgeReport(), Clearing(now=due_at)
    if under_pressure:
        count_put_off(_may_go(order, area=area, put_off=True), report)
    for one in _areas_with_due(order, area):
        try:
            with opened(one) as handle:
                for ids in _due(one, order, left=lambda: _left(until_freed, report)):
                    if deadline is not None and time.monotonic() >= deadline:
                        report.unfinished = True
                        return report
                    report.add(_purge_part(handle, one, ids, order, clearing))
        except (AreaRefused, AreaBusy, OSError) as error:
            logger.warning("area %s was not purged: %s", one.name, error)
            report.errors.append(f"area {one.name}: {error}")
    return report


def has_due(now: datetime) -> bool:
    """Whether anything in the trash has served its grace period."""
    due = CleanupItem.objects.filter(is_asked_at(now), state=ItemState.TRASHED, purge_after__lte=now)
    return due.filter(area__enabled=True).exists()


def count_due(*, now: datetime | None = None, area: StagingArea | None = None) -> list[CleanupItem]:
    """The items that a purge would consider now, for a dry run."""
    due_at = now or database_now()
    found = CleanupItem.objects.filter(is_asked_at(due_at), state=ItemState.TRASHED, purge_after__lte=due_at)
    return list(found if area is None else found.filter(area=area))


def _may_go(
    order: _Order, *, area: StagingArea | None = None, put_off: bool = False
) -> QuerySet[CleanupItem]:
    """What the order allows to be purged now, as far as time is concerned.

    Args:
        order: which items are due.
        area: this one only.
        put_off: those that are put off instead of those that are not.
    """
    conditions = (Q(**condition) for condition in order.claims())
    found = CleanupItem.objects.filter(reduce(or_, conditions), state=ItemState.TRASHED, area__enabled=True)
    if order.due_at is not None:
        asked = is_asked_at(order.due_at)
        found = found.filter(~asked if put_off else asked)
    return found if area is None else found.filter(area=area)


def _areas_with_due(order: _Order, area: StagingArea | None) -> list[StagingArea]:
    if area is not None:
        return [area] if _may_go(order, area=area).exists() else []
    return list(StagingArea.objects.filter(pk__in=_may_go(order).order_by().values("area")))


def _due(area: StagingArea, order: _Order, *, left: Callable[[], int | None]) -> Iterator[list[UUID]]:
    """Yield the ids of due items, oldest first; those that are kept are met once.

    Args:
        area: whose trash it is.
        order: which items are due.
        left: asked before each part: how many bytes are still wanted; None: all there are.
    """
    rows = _may_go(order, area=area)
    field = "trashed_at" if order.under_pressure else "purge_after"
    after: tuple[datetime | None, str] | None = None
    while True:
        page = rows
        if after is not None:
            # The first condition says nothing that the second does not, but it is one that an index serves.
            page = rows.filter(**{f"{field}__gte": after[0]})
            page = page.filter(Q(**{f"{field}__gt": after[0]}) | Q(trash_id__gt=after[1]))
        found = list(page.order_by(field, "trash_id").values_list("pk", "size", field, "trash_id")[:_BATCH])
        if not found:
            return
        after = (found[-1][2], found[-1][3])
        while found and (wanted := left()) != 0:
            count = _enough([size for _, size, *_ in found], wanted)
            yield [pk for pk, *_ in found[:count]]
            del found[:count]
        if found:
            return


def _left(until_freed: int | None, report: PurgeReport) -> int | None:
    return None if until_freed is None else max(until_freed - report.bytes, 0)


def _enough(sizes: Sequence[int], wanted: int | None) -> int:
    """How many of the first items come to `wanted` bytes; all of them if they do not."""
    if wanted is None:
        return len(sizes)
    sums = accumulate(sizes)
    return next((number for number, total in enumerate(sums, 1) if total >= wanted), len(sizes))


def purge_now(
    item_ids: Collection[UUID], *, reason: str, actor: Actor, evidence: Mapping[str, str] | None = None
) -> PurgeReport:
    """Purge items before their grace is over. Holds and verifiers still keep them.

    With each item the audit says `evidence`.

    Raises:
        OperationRefused: no reason is given.
        AreaRefused, AreaBusy: an area cannot be worked in; items of areas before it are purged.
    """
    if not reason.strip():
        raise OperationRefused("purging before the end of the grace period needs a reason")
    order = _Order(actor=actor, reason=reason, due_at=None, evidence=evidence)
    report, clearing = PurgeReport(), Clearing(now=database_now(), by_person=True)
    for area, ids in _by_area(item_ids).items():
        with opened(area) as handle:
            for part in chunks(ids, _BATCH):
                report.add(_purge_part(handle, area, part, order, clearing))
    return report


def extend_grace(
    item_ids: Collection[UUID], *, by: timedelta, actor: Actor, evidence: Mapping[str, str] | None = None
) -> int:
    """Keep items in the trash for longer; return how many. With each the audit says `evidence`.

    Raises:
        OperationRefused: `by` is not above zero: a grace is never shortened.
    """
    if by <= timedelta(0):
        raise OperationRefused("a grace period can be extended, not shortened")
    extended = 0
    for area, ids in _by_area(item_ids).items():
        for part in chunks(ids, _BATCH):
            with transaction.atomic():
                extended += _extend_part(area, part, by, actor, evidence or {})
    return extended


def _extend_part(
    area: StagingArea, ids: Sequence[UUID], by: timedelta, actor: Actor, said: Mapping[str, str]
) -> int:
    now, found = database_now(), list[UUID]()
    for chunk in chunks(ids):
        rows = CleanupItem.objects.filter(pk__in=chunk, state=ItemState.TRASHED).order_by()
        locked_ids = list(rows.select_for_update().values_list("pk", flat=True))
        later = CleanupItem.objects.filter(pk__in=locked_ids)
        later.update(purge_after=F("purge_after") + by, purge_floor=F("purge_floor") + by, changed_at=now)
        found += locked_ids
    evidence = {"seconds": int(by.total_seconds()), **said}
    rows_now = load(found, area=area)
    follow_grace(area.pk, rows_now)
    scribe = _Scribe(area, actor, now)
    DatabaseAuditSink().write([scribe.entry(row, "grace_extended", evidence=evidence) for row in rows_now])
    return len(found)


def _by_area(item_ids: Collection[UUID]) -> dict[StagingArea, list[UUID]]:
    found: dict[StagingArea, list[UUID]] = defaultdict(list)
    for part in chunks(item_ids):
        rows = CleanupItem.objects.filter(pk__in=part, state=ItemState.TRASHED).select_related("area")
        for row in rows.only("pk", "area").order_by("area_id", "trash_id"):
            found[row.area].append(row.pk)
    return found


@collecting_later()
def _purge_part(
    handle: AreaHandle, area: StagingArea, ids: Sequence[UUID], order: _Order, clearing: Clearing
) -> PurgeReport:
    report = PurgeReport()
    cleared = clearing.clear(load(ids, area=area), area, handle, report)
    with locked(handle):
        rows = _claim(cleared.free, area, order, clearing, report)
        crash_point("run.after_purge_intent")
        done = purge_batch(handle, [row.trash_id for row in rows]) if rows else []
        crash_point("run.after_purge")
        _commit(area, rows, done, order, evidence=cleared.evidence)
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


def _claim(
    given: Sequence[CleanupItem], area: StagingArea, order: _Order, clearing: Clearing, report: PurgeReport
) -> list[CleanupItem]:
    """Commit the intent to purge what no hold keeps. In one transaction with the look at the holds."""
    now = database_now()
    with transaction.atomic():
        free = [row.id for row in clearing.not_held(given, area, report)]
        claimed = set[UUID]()
        for conditions in order.claims():
            claimed.update(claim_rows(free, ItemState.TRASHED, ItemState.PURGE_INTENT, now=now, **conditions))
        rows = list(given) if len(claimed) == len(given) else [row for row in given if row.id in claimed]
        if rows:
            evidence = {"items": len(rows), "bytes": sum(row.size for row in rows)}
            entry = record(
                order.actor, "purge_intent", now=now, area=area.name, reason=order.reason, evidence=evidence
            )
            DatabaseAuditSink().write([entry])
    return rows


def _commit(
    area: StagingArea,
    rows: Sequence[CleanupItem],
    done: Sequence[Purged],
    order: _Order,
    *,
    evidence: Mapping[UUID, Mapping[str, str]] | None = None,
) -> None:
    """Write the outcomes: rows, totals and audit entries together."""
    if not rows:
        return
    now = database_now()
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    names = {run_id: policy_name(row) for run_id, row in {row.run_id: row for row in rows}.items()}
    by_outcome: dict[tuple[str, str | None], list[UUID]] = defaultdict(list)
    for row, purged in zip(rows, done, strict=True):
        # Why it was kept for a while is no longer so.
        before = "" if row.ask_again_at is not None else None
        by_outcome[purged.outcome, purged.detail[:500] or before].append(row.id)
        if purged.outcome == "purged":
            total = totals[names[row.run_id]]
            total[0] += len(row.members)
            total[1] += purged.bytes
    scribe, said = _Scribe(area, order.actor, now), evidence or {}
    entries = [
        scribe.entry(
            row,
            _ACTIONS[purged.outcome],
            reason=purged.detail or order.reason,
            evidence=_said(said.get(row.id), order.evidence) if said or order.evidence else None,
        )
        for row, purged in zip(rows, done, strict=True)
    ]
    with transaction.atomic():
        for (outcome, detail), ids in by_outcome.items():
            changes = {} if detail is None else {"detail": detail}
            move_rows(ids, ItemState.PURGE_INTENT, _STATES[outcome], now=now, **changes)
        for name, (files, freed) in totals.items():
            add_totals(area.name, name, files_purged=files, bytes_purged=freed)
        gone = (row for row, one in zip(rows, done, strict=True) if one.outcome == "purged")
        follow_purged(area.pk, gone, now=now)
        DatabaseAuditSink().write(entries)


def _said(verifiers: Mapping[str, str] | None, besides: Mapping[str, str] | None) -> dict[str, Any]:
    return {**(besides or {}), **({"verifiers": dict(verifiers)} if verifiers else {})}


_ACTIONS = {"purged": "purged", "lost": "lost", "error": "purge_error"}


class _Scribe:
    """Describes many items of one area: what they have in common is said, and cut to its column, once."""

    def __init__(self, area: StagingArea, actor: Actor, now: datetime) -> None:
        self.area, self.actor, self.now = area, actor, now
        self.blanks: dict[tuple[UUID | None, str, str], AuditRecord] = {}

    def entry(
        self, row: CleanupItem, action: str, *, reason: str = "", evidence: dict[str, Any] | None = None
    ) -> AuditRecord:
        key = (row.run_id, action, reason)
        blank = self.blanks.get(key)
        if blank is None:
            blank = self.blanks[key] = record(
                self.actor, action, now=self.now, run=row.run_id, area=self.area.name,
                policy_version=version_name(row), reason=reason,
            )  # fmt: skip
        said = {"trash": row.trash_id, **evidence} if evidence else {"trash": row.trash_id}
        return replace(blank, item=str(row.id), path=row.path or None, size=row.size, evidence=said)


# After a crash


def finish_purges(handle: AreaHandle, area: StagingArea, actor: Actor) -> int:
    """Finish interrupted purges; the caller holds the area's lock. Return how many items."""
    ids = CleanupItem.objects.filter(area=area, state=ItemState.PURGE_INTENT).values_list("pk", flat=True)
    finished = 0
    for part in chunks(list(ids), _BATCH):
        rows = load(part, area=area)
        order = _Order(actor=actor, reason="after a crash", due_at=None)
        _commit(area, rows, _finish(handle, rows), order)
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
