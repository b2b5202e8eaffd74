"""One batch of a plan into the trash: ask again, commit the intent, move, commit the outcomes.

    screen    holds and verifiers are asked again: hours may lie between the plan and its approval
    intend    one transaction: the batch's row says what is about to move, and where to
    move      the engine: manifest, renames, a look at what arrived
    settle    one transaction: item rows, audit entries, totals, the counters of the run

A crash anywhere in between leaves an open intent, which `recovery` finishes. From `intend` to `settle` the
caller holds the area's lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

import msgspec
from django.db import transaction
from django.db.models import F

from cleanup.engine.area import AreaHandle
from cleanup.engine.audit import AuditRecord
from cleanup.engine.faults import crash_point
from cleanup.engine.names import escape
from cleanup.engine.plan import PlanItem, ask_about
from cleanup.engine.policy import Policy
from cleanup.engine.reasons import Reason
from cleanup.engine.states import ItemState, purge_after
from cleanup.engine.trash import Header, Moved, move, prepare, trash_ids
from cleanup.engine.verify import Answer
from cleanup.models import CleanupRun, PlanBatch
from cleanup.operations.areas import active_holds, held_by
from cleanup.operations.company import Still
from cleanup.stores import DatabaseAuditSink
from cleanup.stores.audit import micros
from cleanup.stores.items import NewItem, add_totals, insert_items, new_ids, version_label
from cleanup.stores.leases import advance
from cleanup.stores.plans import set_intent
from cleanup.stores.registry import registered
from cleanup.verifiers import Asker

_NOT_TOGETHER = "its bundle or its group is not what was planned any more"

#: What the engine's word for a move makes of the row: its state, and the reason if it is not the plan's.
_MOVED: dict[str, tuple[ItemState, str | None]] = {
    "trashed": (ItemState.TRASHED, None),
    "changed": (ItemState.CHANGED, Reason.CHANGED),
    "vanished": (ItemState.VANISHED, Reason.VANISHED),
    "locked": (ItemState.SKIPPED, Reason.LOCKED),
    "in_use": (ItemState.SKIPPED, Reason.IN_USE),
    "error": (ItemState.ERROR, Reason.IO_ERROR),
}


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What became of one item of a batch."""

    item: PlanItem
    state: ItemState
    reason: str
    detail: str = ""
    trash_id: str = ""
    #: What the verifiers said about it, by name.
    evidence: Mapping[str, str] = {}


def outcome_of(item: PlanItem, moved: Moved, evidence: Mapping[str, str] | None = None) -> Outcome:
    """What the engine's answer means for the row."""
    state, reason = _MOVED[moved.outcome]
    # An error may have left bytes in the trash: the id is how they are brought back.
    trash_id = moved.trash_id if state in (ItemState.TRASHED, ItemState.ERROR) else ""
    detail = moved.detail or (item.detail if state is ItemState.TRASHED else "")
    return Outcome(
        item=item, state=state, reason=str(reason or item.reason), detail=detail, trash_id=trash_id,
        evidence=evidence or {},
    )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Screened:
    """Which items of a batch may still go, and what keeps the others."""

    chosen: list[int] = field(default_factory=list)
    #: Those that stay, by index.
    barred: dict[int, Outcome] = field(default_factory=dict)
    #: What the verifiers said about those that may go, by index.
    evidence: dict[int, dict[str, str]] = field(default_factory=dict)

    def percent_unknown(self) -> int:
        """The share of files about which no verifier could tell, in percent, rounded up."""
        asked = len(self.chosen) + sum(one.state is ItemState.SKIPPED for one in self.barred.values())
        unknown = sum(one.reason == Reason.UNVERIFIED for one in self.barred.values())
        return -(-100 * unknown // asked) if asked else 0


def screen(
    items: Sequence[PlanItem],
    *,
    area_id: int,
    area_uuid: str,
    ask: Asker | None,
    now: datetime,
    still: Still | None = None,
) -> Screened:
    """Ask holds and verifiers about planned items once more.

    Args:
        items: of one batch.
        area_id: of their area's row.
        area_uuid: of their area.
        ask: asks the verifiers; None if there is none.
        now: the database's time.
        still: tells whether an item's bundle or group is what was planned; None: items stand alone.
    """
    holds, known = active_holds(area_id, now=now), _registered(items, area_id)
    if not holds and not known and ask is None and still is None:
        return Screened(chosen=list(range(len(items))))
    screened, free = Screened(), list[int]()
    for index, item in enumerate(items):
        if still is not None and not still(item):
            screened.barred[index] = Outcome(
                item=item, state=ItemState.CHANGED, reason=str(Reason.CHANGED), detail=_NOT_TOGETHER
            )
            continue
        hold = held_by(holds, [escape(member.path) for member in item.members]) if holds else None
        if hold is None and item.shown in known:
            screened.barred[index] = Outcome(
                item=item, state=ItemState.SKIPPED, reason=str(Reason.REGISTERED)
            )
        elif hold is None:
            free.append(index)
        else:
            screened.barred[index] = Outcome(
                item=item, state=ItemState.HELD, reason=str(Reason.HELD), detail=hold
            )
    if ask is None:
        screened.chosen = free
        return screened
    answers = ask_about(ask, [items[index] for index in free], area_uuid)
    for index, checked in zip(free, answers, strict=True):
        if checked.answer is Answer.PASS:
            screened.chosen.append(index)
            screened.evidence[index] = dict(checked.evidence)
        else:
            reason = Reason.VERIFIER_FAILED if checked.answer is Answer.FAIL else Reason.UNVERIFIED
            detail = "; ".join(f"{name} {text}" for name, text in checked.evidence.items())
            screened.barred[index] = Outcome(
                item=items[index], state=ItemState.SKIPPED, reason=str(reason), detail=detail
            )
    return screened


def _registered(items: Sequence[PlanItem], area_id: int) -> set[str]:
    """Those of orphans that have a row by now: a plan has one rule, so its first item tells."""
    orphans = bool(items) and items[0].reason is Reason.ORPHANED
    return registered(area_id, [item.shown for item in items]) if orphans else set()


def carry_out(
    handle: AreaHandle,
    run: CleanupRun,
    batch: PlanBatch,
    items: Sequence[PlanItem],
    screened: Screened,
    *,
    policy: Policy,
    token: int,
    now: datetime,
) -> None:
    """Move one screened batch into the trash.

    Raises:
        LeaseLost: nothing was committed after the token was lost; recovery finishes what was begun.
        OSError: the trash could not be prepared, or not be made durable.
    """
    chosen = [items[index] for index in screened.chosen]
    ids = trash_ids(uuid4(), len(chosen), day=now.date())
    _intend(run, batch, screened, ids, policy=policy, token=token, now=now)
    if not chosen:
        return
    crash_point("run.after_intent")
    prepared = prepare(handle, chosen, ids=ids, header=header_of(run, batch))
    moved = move(handle, prepared, skip_in_use=policy.skip_in_use)
    crash_point("run.after_move")
    said = [screened.evidence.get(index) for index in screened.chosen]
    settle(
        run, batch, [outcome_of(*one) for one in zip(chosen, moved, said, strict=True)], now=now, token=token
    )
    crash_point("run.after_settle")


def header_of(run: CleanupRun, batch: PlanBatch) -> Header:
    """What the manifest of a batch with an intent says about all of it."""
    if batch.intent_at is None or batch.purge_after is None:
        raise ValueError(f"batch {batch} has no intent")
    return Header(
        policy=run.policy_version.policy.name,
        policy_version=version_label(run.policy_version),
        run=str(run.pk),
        trashed_at=batch.intent_at,
        purge_after=batch.purge_after,
    )


def _intend(
    run: CleanupRun,
    batch: PlanBatch,
    screened: Screened,
    ids: Sequence[str],
    *,
    policy: Policy,
    token: int,
    now: datetime,
) -> None:
    scribe, stay = _Scribe(run, now), _rows(list(screened.barred.values()))
    entries = [scribe.entry(one, outcome) for one, outcome in stay]
    with transaction.atomic():
        skipped = sum(len(one.item.members) for one, _ in stay)
        changes = {} if ids else {"next_batch": batch.number + 1}
        advance(run.pk, token, now=now, skipped=F("skipped") + skipped, **changes)
        insert_items(
            [one for one, _ in stay],
            run_id=run.pk,
            area=run.tree(),
            now=now,
            trashed_at=None,
            purge_after=None,
        )
        if ids:
            due = purge_after(now, policy.grace_period)
            trash_batch = ids[0].rpartition("/")[0]
            floor = None if policy.floor is None else min(now + policy.floor, due)
            set_intent(
                batch, chosen=screened.chosen, trash_batch=trash_batch, now=now, purge_after=due,
                purge_floor=floor,
            )  # fmt: skip
            evidence = {"batch": batch.number, "items": len(ids), "trash": trash_batch}
            entries.append(scribe.record("intent", evidence=evidence))
        else:
            PlanBatch.objects.filter(pk=batch.pk).update(settled_at=now)
        DatabaseAuditSink().write(entries)


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[NewItem, Outcome]]:
    return [
        (
            NewItem(id, one.item, one.state, one.reason, one.detail, one.trash_id, shown=one.item.shown),
            one,
        )
        for id, one in zip(new_ids(len(outcomes)), outcomes, strict=True)
    ]


def settle(
    run: CleanupRun,
    batch: PlanBatch,
    outcomes: Sequence[Outcome],
    *,
    now: datetime,
    token: int | None,
) -> None:
    """Commit what became of a batch, all of it or nothing.

    Args:
        run: of the batch, with area and policy.
        batch: with its intent.
        outcomes: of the items that were to be moved.
        now: the database's time.
        token: of the lease; None for recovery, which may finish what a run that is over has begun.

    Raises:
        LeaseLost: the token is no longer the run's; nothing was committed.
    """
    scribe, rows = _Scribe(run, now), _rows(outcomes)
    entries = [scribe.entry(one, outcome) for one, outcome in rows]
    counts = _run_counts(outcomes)
    changes: dict[str, Any] = {name: F(name) + count for name, count in counts.items()}
    changes["next_batch"] = batch.number + 1
    with transaction.atomic():
        if token is None:
            CleanupRun.objects.filter(pk=run.pk).update(**changes)
        else:
            advance(run.pk, token, now=now, **changes)
        insert_items(
            [one for one, _ in rows], run_id=run.pk, area=run.tree(), now=now,
            trashed_at=batch.intent_at, purge_after=batch.purge_after, purge_floor=batch.purge_floor,
        )  # fmt: skip
        PlanBatch.objects.filter(pk=batch.pk).update(settled_at=now)
        if counts["trashed"]:
            add_totals(
                run.scope, run.policy_version.policy.name,
                files_trashed=counts["trashed"], bytes_trashed=counts["trashed_bytes"],
            )  # fmt: skip
        DatabaseAuditSink().write(entries)


def _run_counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    counts = dict.fromkeys(("trashed", "trashed_bytes", "skipped", "errors"), 0)
    for one in outcomes:
        files = len(one.item.members)
        if one.state is ItemState.TRASHED:
            counts["trashed"] += files
            counts["trashed_bytes"] += one.item.bytes
        else:
            counts["errors" if one.state is ItemState.ERROR else "skipped"] += files
    return counts


class _Scribe:
    """Describes many things of one run: like `stores.record`, without cutting what cannot be too long."""

    def __init__(self, run: CleanupRun, now: datetime) -> None:
        self.same: dict[str, Any] = {
            "at_us": micros(now), "actor": run.actor, "actor_kind": run.actor_kind, "run": str(run.pk),
            "area": run.scope, "policy_version": version_label(run.policy_version),
        }  # fmt: skip

    def entry(self, row: NewItem, outcome: Outcome) -> AuditRecord:
        said: dict[str, Any] = {}
        if outcome.evidence:
            said["verifiers"] = dict(outcome.evidence)
        if outcome.detail:
            said["detail"] = outcome.detail
        if outcome.trash_id:
            said["trash"] = outcome.trash_id
        return AuditRecord(
            action=str(row.state), item=str(row.id), path=row.shown, size=row.item.bytes,
            reason=row.reason, evidence=said, **self.same,
        )  # fmt: skip

    def record(self, action: str, **fields: Any) -> AuditRecord:
        return AuditRecord(action=action, **self.same, **fields)
