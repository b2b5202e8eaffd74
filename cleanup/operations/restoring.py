"""Bringing files back from the trash: by a person at any time until they are purged, never over another file.

First a hold is put on the names that they return to, for as long as their policy's grace period, so that the
next run does not take at once what somebody has just brought back. The rows are claimed in one transaction,
so of a restore and a purge of the same file one finds nothing to do; then the engine renames; then the
outcomes are committed. A crash in between leaves rows in state `restoring`, which recovery finishes. What
could not be brought back stays in the trash, as it was. A restore that is queued is such a claim alone: a
worker, or the next tick, finishes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from uuid import UUID

import msgspec
from django.db import transaction

from cleanup.engine.area import AreaHandle
from cleanup.engine.audit import AuditRecord
from cleanup.engine.errors import AreaBusy, AreaRefused, ManifestInvalid, PolicyInvalid
from cleanup.engine.expiry import RESULT_SUFFIX, companion_name
from cleanup.engine.faults import crash_point
from cleanup.engine.listing import Looker
from cleanup.engine.names import escape, is_below, is_internal, unescape
from cleanup.engine.plan import PlanItem
from cleanup.engine.states import Decision, InTrash, ItemState, Observation, recover
from cleanup.engine.trash import Restored, observe, observe_all, restore_batch
from cleanup.engine.trash import restore as engine_restore
from cleanup.models import CleanupItem, StagingArea
from cleanup.operations.areas import locked, opened
from cleanup.operations.keeping import check_rename, keep_restored, narrow, renamed
from cleanup.operations.outcomes import Conflict, OperationRefused, RestoreReport
from cleanup.operations.purging import tidy_batches
from cleanup.operations.runs import send
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.items import (
    add_totals,
    claim_rows,
    files_of,
    load,
    move_rows,
    plan_item,
    policy_name,
    version_name,
)
from cleanup.stores.registry import follow_restored
from cleanup.stores.sql import chunks, database_now

#: Items brought back under one hold of the area's lock.
_BATCH = 2_000

#: Items that one recovery finishes: a queue may hold any number, and others wait for the area's lock.
_AT_ONCE = 5 * _BATCH

#: Bytes of one name, and of a path: what Linux takes. The engine opens paths from the area on.
_LONGEST_NAME, _LONGEST_PATH = 255, 4_095

#: By name, since tasks stand above operations.
_RESTORE = "cleanup.tasks.restore"

#: From which a restore may start; an error may have left its bytes in the trash.
_RESTORABLE = (ItemState.TRASHED, ItemState.ERROR)


#: Stands for what is not known before the engine was asked.
_GOES_ON = Restored("error", "", "the restore goes on")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    row: CleanupItem
    #: The state it was in before, and goes back to if it cannot be restored.
    before: ItemState
    restored: Restored


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """How a person wants items back."""

    actor: Actor
    #: Another path, for one item; None: the old ones.
    to: str | None = None
    #: Added to the name of an item whose old name is taken; empty: it stays in the trash.
    rename: str = ""
    #: Said in the audit with each item.
    evidence: Mapping[str, str]


def restore(
    item_ids: Collection[UUID],
    *,
    actor: Actor,
    to: str | None = None,
    rename: str = "",
    evidence: Mapping[str, str] | None = None,
) -> RestoreReport:
    """Bring items back under their old names, or one item under the escaped path `to` below its area.

    Items that are not in the trash are passed over. A taken name, old or new, is a conflict: the item stays
    in the trash, or comes back under another name (`renamed`) if `rename` is given and that one is free. What
    could not be made durable is an error in the report, and left to recovery.

    Args:
        item_ids: of any areas.
        actor: who wants it.
        to: another path, for one item.
        rename: what is added to taken names.
        evidence: said in the audit with each item.

    Raises:
        OperationRefused: `to` is given for more than one item or for a bundle, or is no place below the area,
            or too long; `rename` cannot be a part of a name.
        AreaRefused, AreaBusy: an area cannot be worked in; items of areas before it are back.
    """
    report = RestoreReport()
    if to is not None:
        to = _target(item_ids, to)
    check_rename(rename)
    wish = _Wish(actor=actor, to=to, rename=rename, evidence=evidence or {})
    for area, ids in _by_area(item_ids).items():
        with opened(area) as handle:
            _restore_in(handle, area, ids, wish, report)
    return report


def queue_restore(item_ids: Collection[UUID], *, actor: Actor) -> int:
    """Have a worker bring items back under their old names; return how many.

    They are claimed and their names are held at once. What cannot be brought back returns to the trash, with
    the reason in its row and in the audit. Without a worker the next tick does it.
    """
    queued = 0
    for area, ids in _by_area(item_ids).items():
        keep_restored(area, ids, actor, to=None)
        for part in chunks(ids, _BATCH):
            queued += _queue_part(area, part, actor)
    transaction.on_commit(partial(send, _RESTORE), robust=True)
    return queued


def _queue_part(area: StagingArea, ids: Sequence[UUID], actor: Actor) -> int:
    now = database_now()
    with transaction.atomic():
        claimed = sum(len(claim_rows(ids, state, ItemState.RESTORING, now=now)) for state in _RESTORABLE)
        entry = record(actor, "restore_queued", now=now, area=area.name, evidence={"items": claimed})
        DatabaseAuditSink().write([entry])
    return claimed


def taken_names(item_ids: Collection[UUID]) -> list[str]:
    """The old names that other files have now, of items that could be restored; a look, for few items.

    Raises:
        AreaRefused, OSError: an area cannot be looked at.
    """
    taken: list[str] = []
    for area, ids in _by_area(item_ids).items():
        with opened(area) as handle, Looker(handle) as looker:
            paths = [member["path"] for row in load(ids, area=area) for member in row.members]
            taken += [path for path in paths if not looker.is_gone(unescape(path))]
    return taken


def is_waiting() -> bool:
    """Whether a restore was queued, or interrupted, and is not finished."""
    return CleanupItem.objects.filter(state=ItemState.RESTORING).exists()


def _restore_in(
    handle: AreaHandle,
    area: StagingArea,
    ids: Sequence[UUID],
    wish: _Wish,
    report: RestoreReport,
) -> None:
    kept, back = keep_restored(area, ids, wish.actor, to=wish.to, rename=wish.rename), list[str]()
    for part in chunks(ids, _BATCH):
        try:
            with locked(handle):
                done = _restore_part(handle, area, part, wish)
        except AreaBusy:
            narrow(kept, back, wish.actor)
            raise
        except OSError as error:
            report.errors.append(f"area {area.name}: {error}; recovery will finish what was begun")
            return
        _report(done, report)
        went = (one.row for one in done if one.restored.outcome == "restored")
        back += [path for row in went for path in _paths(row, row.restore_to or None)]
    narrow(kept, back, wish.actor)


def _paths(row: CleanupItem, to: str | None) -> list[str]:
    """The names under which the files of a row came back."""
    return [escape(member.path) for member in _restored_item(row, to).members]


def can_be_named(row: CleanupItem) -> bool:
    """Whether an item may come back under another path: one file, or a result with its metadata."""
    names = [unescape(member["path"]) for member in row.members]
    return len(names) == 1 or (len(names) == 2 and companion_name(names[0]) == names[1])


def _target(item_ids: Collection[UUID], to: str) -> str:
    """The path `to` in its one spelling, if the one item may have it."""
    if len(item_ids) != 1:
        raise OperationRefused("another name can be given for one item only")
    try:
        path = unescape(to)
    except PolicyInvalid as error:
        raise OperationRefused(str(error)) from error
    if not is_below(path) or is_internal(path):
        raise OperationRefused(f"{to!r} is no place below the area")
    if len(path) > _LONGEST_PATH or any(len(part) > _LONGEST_NAME for part in path.split(b"/")):
        raise OperationRefused(
            f"a name has at most {_LONGEST_NAME} bytes, a path below an area {_LONGEST_PATH}"
        )
    row = CleanupItem.objects.filter(pk__in=item_ids).first()
    if row is not None and not can_be_named(row):
        raise OperationRefused("a bundle goes back under its old names only")
    if row is not None and len(row.members) == 2 and companion_name(path) is None:
        raise OperationRefused(f"a result goes back under a name that ends in {RESULT_SUFFIX.decode()}")
    return escape(path)


def _by_area(item_ids: Collection[UUID]) -> dict[StagingArea, list[UUID]]:
    found: dict[int, list[UUID]] = {}
    for part in chunks(item_ids):
        rows = CleanupItem.objects.filter(pk__in=part, state__in=_RESTORABLE).exclude(trash_id="")
        for area_id, pk in rows.order_by("area_id", "trash_id").values_list("area_id", "pk"):
            found.setdefault(area_id, []).append(pk)
    areas = StagingArea.objects.in_bulk(found)
    return {areas[area_id]: ids for area_id, ids in found.items()}


def _restore_part(handle: AreaHandle, area: StagingArea, ids: Sequence[UUID], wish: _Wish) -> list[_Done]:
    now, to = database_now(), wish.to
    with transaction.atomic():
        before = {
            pk: state for state in _RESTORABLE for pk in claim_rows(ids, state, ItemState.RESTORING, now=now)
        }
        if to is not None:
            CleanupItem.objects.filter(pk__in=before).update(restore_to=to)
    rows = load(before, area=area)
    restored = [_restore_to(handle, row, to) for row in rows] if to else _restore_rows(handle, rows)
    if wish.rename:
        restored = _restore_renamed(handle, rows, restored, wish)
    done = [
        _Done(row=row, before=before[row.pk], restored=one) for row, one in zip(rows, restored, strict=True)
    ]
    crash_point("restore.before_commit")
    _commit(area, done, wish.actor, wish.evidence)
    return done


def _restore_renamed(
    handle: AreaHandle, rows: Sequence[CleanupItem], restored: Sequence[Restored], wish: _Wish
) -> list[Restored]:
    """Try those whose names are taken again under others. The rows say so first: a crash may come."""
    taken = [row for row, one in zip(rows, restored, strict=True) if one.outcome == "conflict"]
    for row in taken:
        row.restore_to = renamed(wish.to or row.path, wish.rename)
    CleanupItem.objects.bulk_update(taken, ["restore_to"], batch_size=500)
    return [
        _restore_to(handle, row, row.restore_to) if one.outcome == "conflict" else one
        for row, one in zip(rows, restored, strict=True)
    ]


def _restore_rows(handle: AreaHandle, rows: Sequence[CleanupItem]) -> list[Restored]:
    return restore_batch(handle, [row.trash_id for row in rows])


def _restore_to(handle: AreaHandle, row: CleanupItem, to: str) -> Restored:
    try:
        return engine_restore(handle, row.trash_id, to=unescape(to))
    except (ManifestInvalid, AreaRefused) as error:
        return Restored("error", row.path, str(error))


def _commit(
    area: StagingArea, done: Sequence[_Done], actor: Actor, evidence: Mapping[str, str] | None = None
) -> None:
    """Write the outcomes: rows, totals and audit entries together."""
    now = database_now()
    with transaction.atomic():
        for (state, detail), ids in _by_fate(done).items():
            move_rows(ids, ItemState.RESTORING, state, now=now, restore_to="", detail=detail)
        for name, rows in _by_policy(one.row for one in done if one.restored.outcome == "restored").items():
            size = sum(row.size for row in rows)
            add_totals(area.name, name, files_restored=files_of(rows), bytes_restored=size)
        back = [one.row for one in done if one.restored.outcome == "restored"]
        follow_restored(area.pk, ((row, _paths(row, row.restore_to or None)) for row in back))
        DatabaseAuditSink().write([_entry(area, one, actor, now, evidence or {}) for one in done])


def _by_fate(done: Sequence[_Done]) -> dict[tuple[ItemState, str], list[UUID]]:
    """The ids of the rows by their new state and what is to be said about them."""
    found: dict[tuple[ItemState, str], list[UUID]] = {}
    for one in done:
        state = {"restored": ItemState.RESTORED, "lost": ItemState.LOST}.get(one.restored.outcome, one.before)
        found.setdefault((state, one.restored.detail[:500]), []).append(one.row.pk)
    return found


def _by_policy(rows: Iterable[CleanupItem]) -> dict[str, list[CleanupItem]]:
    found: dict[str, list[CleanupItem]] = {}
    for row in rows:
        found.setdefault(policy_name(row), []).append(row)
    return found


def _entry(
    area: StagingArea, one: _Done, actor: Actor, now: datetime, said: Mapping[str, str]
) -> AuditRecord:
    row, restored = one.row, one.restored
    action = restored.outcome if restored.outcome in ("restored", "lost") else f"restore_{restored.outcome}"
    evidence = {"trash": row.trash_id, **said}
    if restored.path and restored.path != row.path:
        evidence["to"] = restored.path
    return record(
        actor, action, now=now, run=row.run_id, item=row.pk, area=area.name, path=row.path, size=row.size,
        policy_version=version_name(row), reason=restored.detail, evidence=evidence,
    )  # fmt: skip


def _report(done: Sequence[_Done], report: RestoreReport) -> None:
    for one in done:
        row, restored = one.row, one.restored
        match restored.outcome:
            case "restored":
                report.restored += len(row.members)
                report.bytes += row.size
            case "conflict":
                path = restored.path or row.path
                report.conflicts.append(Conflict(item=str(row.pk), path=path, detail=restored.detail))
            case "lost":
                report.lost += len(row.members)
            case _:
                report.errors.append(f"{row.path}: {restored.detail}")


# After a crash


def finish_restores(handle: AreaHandle, area: StagingArea, actor: Actor) -> int:
    """Go on with interrupted and queued restores, at most `_AT_ONCE` items; return how many.

    The caller holds the area's lock.
    """
    waiting = CleanupItem.objects.filter(area=area, state=ItemState.RESTORING).order_by("trash_id")
    ids = list(waiting.values_list("pk", flat=True)[:_AT_ONCE])
    finished = 0
    for part in chunks(ids, _BATCH):
        rows = load(part, area=area)
        seen = observe_all(handle, [(_restored_item(row, row.restore_to), row.trash_id) for row in rows])
        done = [_decided(row, observation) for row, observation in zip(rows, list(seen), strict=True)]
        done = _go_on(handle, done)
        _commit(area, done, actor)
        tidy_batches(handle, rows)
        finished += len(rows)
    return finished


def _decided(row: CleanupItem, seen: Observation) -> _Done:
    """What is to be said of a row; `_GOES_ON` where that is not known yet."""
    path = row.restore_to or row.path
    match recover(ItemState.RESTORING, seen):
        case Decision.RESTORE_ON:
            return _Done(row=row, before=ItemState.TRASHED, restored=_GOES_ON)
        case Decision.RESTORED:
            return _Done(row=row, before=ItemState.TRASHED, restored=Restored("restored", path))
        case Decision.LOST:
            return _Done(row=row, before=ItemState.TRASHED, restored=Restored("lost", path))
    detail = f"after a crash: {seen.source} at its place, {seen.trash} in the trash"
    return _Done(row=row, before=ItemState.ERROR, restored=Restored("error", path, detail))


def _go_on(handle: AreaHandle, done: Sequence[_Done]) -> list[_Done]:
    """Restore what the crash left in the trash, all that goes to its old name together."""
    waiting = [one.row for one in done if one.restored is _GOES_ON]
    plain = [row for row in waiting if not row.restore_to]
    back = dict(zip((row.pk for row in plain), _restore_rows(handle, plain), strict=True))
    back |= {row.pk: _restore_to(handle, row, row.restore_to) for row in waiting if row.restore_to}
    return [_after(handle, one, back[one.row.pk]) if one.row.pk in back else one for one in done]


def _after(handle: AreaHandle, one: _Done, restored: Restored) -> _Done:
    """Where a row that could not be restored goes back to: only what is whole may be purged by time."""
    if restored.outcome in ("restored", "lost"):
        return replace(one, restored=restored)
    whole = observe(handle, plan_item(one.row), one.row.trash_id).trash is InTrash.WHOLE
    return replace(one, restored=restored, before=ItemState.TRASHED if whole else ItemState.ERROR)


def _restored_item(row: CleanupItem, to: str | None) -> PlanItem:
    """The item under the names that the restore is to give it."""
    item = plan_item(row)
    if not to:
        return item
    first = unescape(to)
    names = [first, companion_name(first) or first]
    members = tuple(
        msgspec.structs.replace(member, path=name) for member, name in zip(item.members, names, strict=False)
    )
    return msgspec.structs.replace(item, path=first, members=members)
