"""Rows of a model that go by age: planned, soft-deleted batch by batch, brought back, removed after a grace.

A policy over rows goes the way of every policy: a plan with a digest, brakes, approval, expiry, a lease. Its
items are rows, named `app_label.Model/key`, each with its stamp as the identity it was planned with. A batch
is one transaction: rows that are as they were planned are soft-deleted, the others are told of, and every one
has its audit entry. There is nothing on a disk, so there is nothing to recover.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Exists, F, OuterRef, Q

from cleanup.conf import conf
from cleanup.engine.audit import AuditRecord
from cleanup.engine.faults import crash_point
from cleanup.engine.plan import Member, Plan, PlanItem, Store
from cleanup.engine.policy import Policy, judge_row, policy_to_json
from cleanup.engine.reasons import Reason
from cleanup.models import CleanupItem, CleanupRun, ItemState, PlanBatch, StagedFile
from cleanup.operations.outcomes import OperationRefused
from cleanup.operations.runs import actor_of
from cleanup.softdelete import DEFAULT_GRACE_PERIOD
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.items import version_label
from cleanup.stores.leases import advance
from cleanup.stores.plans import chosen_of
from cleanup.stores.registry import WITH_FILE
from cleanup.stores.rows import (
    RowModel,
    aged,
    check_rows,
    find_model,
    key_of,
    living,
    matching,
    name_of,
    remove,
    soft_delete_models,
    stamp_ns,
    still_planned,
    take,
)
from cleanup.stores.sql import IN_LIST, chunks, database_now

logger = logging.getLogger(__name__)

Beat = Callable[[int], None]

#: Rows between two looks at the clock of whoever waits for the plan.
_BEAT = 2_000

#: When rows that had to stay are tried again.
_AGAIN = timedelta(hours=1)

#: A file in one of these states may still have something in the trash.
_IN_TRASH = (
    ItemState.TRASHED,
    ItemState.PURGE_INTENT,
    ItemState.RESTORING,
    ItemState.LOST,
    ItemState.ERROR,
)


# Planning


def plan_rows(policy: Policy, *, now: datetime, store: Store | None = None, beat: Beat | None = None) -> Plan:
    """Plan which rows `policy` would soft-delete at `now`. Nothing is touched.

    Args:
        policy: of the rule `rows`, validated.
        now: against which everything is judged.
        store: takes the items while they are found; without it the plan holds them.
        beat: called every few thousand rows with their number; what it raises ends the planning.

    Raises:
        PolicyInvalid: the model cannot obey the policy.
    """
    check_rows(policy)
    model = find_model(policy.model)
    items = _items(policy, model, now, beat)
    listed = tuple(items) if store is None else ()
    stored = None if store is None else store(items)
    found = stored.items if stored is not None else len(listed)
    scanned, kept = _kept(policy, model, found, now)
    return Plan(
        policy_json=policy_to_json(policy), area_uuid=policy.model, created_at=now,
        expires_at=now + conf().plan_lifetime, items=listed, stored=stored, scanned=scanned, kept=kept,
    )  # fmt: skip


def _items(policy: Policy, model: RowModel, now: datetime, beat: Beat | None) -> Iterator[PlanItem]:
    for count, (key, stamp) in enumerate(aged(policy, now=now)):
        if beat is not None and count % _BEAT == 0:
            beat(count)
        name = name_of(model, key).encode()
        verdict = judge_row(policy, name, stamp, now=now)
        if verdict.action == "trash":
            yield PlanItem(name, (Member(name, 0, 0, 0, stamp_ns(stamp)),), 0, verdict.reason)


def _kept(policy: Policy, model: RowModel, found: int, now: datetime) -> tuple[int, dict[str, int]]:
    """How many rows live, and how many of them stay by which reason."""
    stamp = policy.stamp_field
    total, fitting = model.objects.count(), matching(policy).count()
    unknown = matching(policy).filter(**{f"{stamp}__isnull": True}).count()
    kept = {
        str(Reason.NOT_INCLUDED): total - fitting,
        str(Reason.UNKNOWN_TIMESTAMP): unknown,
        str(Reason.YOUNGER_THAN_AGE): fitting - unknown - found,
    }
    return total, {reason: count for reason, count in kept.items() if count > 0}


# Carrying out


def carry_out_rows(
    run: CleanupRun, batch: PlanBatch, items: Sequence[PlanItem], *, policy: Policy, token: int, now: datetime
) -> None:
    """Soft-delete the rows of one batch that are as they were planned, and tell of the others.

    Raises:
        LeaseLost: the run has passed to another worker; nothing was changed.
    """
    model = find_model(policy.model)
    by_key = {key_of(model, item.shown): item for item in items}
    with transaction.atomic():
        stamps = {key: item.members[0].mtime_ns for key, item in by_key.items()}
        going = set(still_planned(policy, stamps))
        staying = living(model, [key for key in by_key if key not in going])
        reason = f"policy {version_label(run.policy_version)}"
        take(model, list(going), at=now, purge_after=now + policy.grace_period, reason=reason)
        skipped = len(by_key) - len(going)
        advance(
            run.pk, token, now=now, next_batch=batch.number + 1,
            trashed=F("trashed") + len(going), skipped=F("skipped") + skipped,
        )  # fmt: skip
        chosen = None if not skipped else [at for at, key in enumerate(by_key) if key in going]
        PlanBatch.objects.filter(pk=batch.pk).update(settled_at=now, chosen=chosen)
        told = {key: "changed" if key in staying else "vanished" for key in by_key if key not in going}
        DatabaseAuditSink().write(
            [_entry(run, item, told.get(key, "row_soft_deleted"), now) for key, item in by_key.items()]
        )
    crash_point("run.after_rows")


def _entry(run: CleanupRun, item: PlanItem, action: str, now: datetime) -> AuditRecord:
    why = {"changed": Reason.CHANGED, "vanished": Reason.VANISHED}.get(action, item.reason)
    return record(
        actor_of(run), action, now=now, run=run.pk, item=item.shown, area=run.scope, path=item.shown,
        policy_version=version_label(run.policy_version), reason=str(why),
    )  # fmt: skip


def count_rows_left(run: CleanupRun, policy: Policy) -> int:
    """Count the rows that the run took, and that live all the same as they were planned."""
    model, left = find_model(policy.model), 0
    for batch in run.batches.filter(settled_at__isnull=False).order_by("number").iterator(chunk_size=20):
        planned = {key_of(model, item.shown): item.members[0].mtime_ns for item in chosen_of(batch)}
        with transaction.atomic():
            left += len(still_planned(policy, planned))
    return left


# Back, and gone for good


@dataclass(slots=True, kw_only=True)
class RowReport:
    """What became of rows."""

    rows: int = 0
    #: Names of rows that had to stay as they are.
    kept: list[str] = field(default_factory=list)


def retire_rows(
    label: str,
    keys: Collection[str],
    *,
    actor: Actor,
    reason: str,
    grace: timedelta = DEFAULT_GRACE_PERIOD,
    dry_run: bool = False,
) -> RowReport:
    """Soft-delete living rows of a model; until their grace is over `restore_rows` brings them back.

    What is no living row is kept. No file is touched: one whose row is retired is an orphan.

    Raises:
        PolicyInvalid: there is no such soft-delete model.
        OperationRefused: no reason is given, or a key is none of this model.
    """
    if not reason.strip():
        raise OperationRefused("retiring rows needs a reason")
    model, report = find_model(label), RowReport()
    for part in chunks(dict.fromkeys(_key(model, key) for key in keys), _together()):
        with transaction.atomic():
            now = database_now()
            found = model.objects.select_for_update().filter(pk__in=part).order_by("pk")
            going = list(found.values_list("pk", flat=True))
            if not dry_run:
                why = f"retired by {actor.name}: {reason}"
                take(model, going, at=now, purge_after=now + grace, reason=why)
                _write(model, going, "row_soft_deleted", actor, reason=reason)
        report.rows += len(going)
        report.kept += [name_of(model, key) for key in part if key not in going]
    return report


def restore_rows(label: str, keys: Collection[str] | None = None, *, actor: Actor) -> RowReport:
    """Bring soft-deleted rows of a model back: all of them, or those of `keys`.

    A row whose file is in the trash is kept: it comes back with the file.

    Raises:
        PolicyInvalid: there is no such soft-delete model.
        OperationRefused: a key is none of this model.
    """
    model, report = find_model(label), RowReport()
    rows = model.all_objects.deleted()
    wanted = _keys(rows) if keys is None else iter([_key(model, key) for key in keys])
    for part in chunks(wanted, _together()):
        with transaction.atomic():
            free, kept = _parted(rows, part)
            model.all_objects.filter(pk__in=free).restore()
            _write(model, free, "row_restored", actor)
        report.rows += len(free)
        report.kept += [name_of(model, key) for key in kept]
    return report


def count_restorable(label: str, keys: Collection[str] | None = None) -> int:
    """How many rows `restore_rows` would look at."""
    model = find_model(label)
    rows = model.all_objects.deleted()
    if keys is not None:
        rows = rows.filter(pk__in=[_key(model, key) for key in keys])
    return int(rows.count())


def _key(model: RowModel, text: str) -> Any:
    try:
        return key_of(model, f"/{text}")
    except (ValidationError, ValueError, TypeError, ArithmeticError) as error:
        raise OperationRefused(f"{text!r} is no key of {model._meta.label}") from error


def purge_due_rows(
    now: datetime, *, limit: int = 20_000, models: Sequence[RowModel] | None = None
) -> RowReport:
    """Remove for good the soft-deleted rows whose grace is over, batch by batch with audit.

    A row on which another depends that must stay is kept, told of, and tried again in an hour. The row of a
    file that is still in the trash goes when the file does.

    Args:
        now: the database's time.
        limit: look at no more rows of each model than this: whoever ticks has more to do.
        models: of these only; every soft-delete model unless given.
    """
    report = RowReport()
    for model in soft_delete_models() if models is None else models:
        for part in chunks(islice(_keys(_due(model, now)), limit), _together()):
            try:
                removed, kept = _remove_part(model, part, now)
            except IntegrityError as error:
                # A reference came in this very moment: nothing was removed, and all is tried again.
                logger.warning("rows of %s were not removed: %s", model._meta.label, error)
                removed, kept = 0, part
            report.rows += removed
            report.kept += [name_of(model, key) for key in kept]
    if report.kept:
        logger.warning("%s rows are due and must stay, such as %s", len(report.kept), report.kept[0])
    return report


def _remove_part(model: RowModel, part: Sequence[Any], now: datetime) -> tuple[int, list[Any]]:
    with transaction.atomic():
        free, _ = _parted(_due(model, now), part)
        kept = remove(model, free, now=now).kept
        model.all_objects.filter(pk__in=kept).update(purge_after=now + _AGAIN)
        gone = [key for key in free if key not in kept]
        _write(model, gone, "row_purged", Actor.system())
    return len(gone), kept


def _due(model: RowModel, now: datetime) -> Any:
    """The rows whose time has come; those of files in the trash are not among them."""
    due = model.all_objects.due(now)
    return due.exclude(_with_file()) if model is StagedFile else due


def _with_file() -> Q:
    """Rows that follow a file which may still be in the trash."""
    in_trash = CleanupItem.objects.filter(
        area=OuterRef("area"), trashed_at=OuterRef("deleted_at"), state__in=_IN_TRASH
    )
    return Q(Exists(in_trash), delete_reason=WITH_FILE)


def _together() -> int:
    """Rows changed in one transaction, by one statement."""
    return min(conf().batch_size, IN_LIST // 2)


def _keys(rows: Any) -> Iterator[Any]:
    """Yield the keys of `rows`, page by page, whatever becomes of those that were yielded."""
    keys = rows.order_by("pk").values_list("pk", flat=True)
    page = list(keys[:_BEAT])
    while page:
        yield from page
        page = list(keys.filter(pk__gt=page[-1])[:_BEAT])


def _parted(rows: Any, keys: Collection[Any]) -> tuple[list[Any], list[Any]]:
    """Lock those of `keys` that are among `rows`; return which may change, and which follow a file."""
    found = rows.select_for_update().filter(pk__in=keys).order_by("pk")
    locked = list(found.values_list("pk", flat=True))
    if rows.model is not StagedFile:
        return locked, []
    following = StagedFile.all_objects.filter(_with_file(), pk__in=locked)
    kept = set(following.values_list("pk", flat=True))
    return [key for key in locked if key not in kept], sorted(kept)


def _write(
    model: RowModel, keys: Iterable[Any], action: str, actor: Actor, *, reason: str | None = None
) -> None:
    """Write an audit entry for each row, in the transaction of the caller."""
    now = database_now()
    names = [name_of(model, key) for key in keys]
    label = model._meta.label
    DatabaseAuditSink().write(
        [record(actor, action, now=now, item=name, area=label, path=name, reason=reason) for name in names]
    )
