"""After a crash: rows are compared with the disk, and the engine's state table says how to go on.

Called at the start of every run, when a worker starts, and by every tick; the caller holds the area's lock,
so whatever is found open was left by somebody who is gone. Batches in the trash that no row knows are
adopted, which is how the trash survives the loss of the database. Calling it twice changes nothing more.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby
from uuid import UUID

import msgspec
from django.db import transaction

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import ManifestInvalid
from cleanup.engine.plan import PlanItem
from cleanup.engine.reasons import Reason
from cleanup.engine.shelf import batches, files_in, read_manifest
from cleanup.engine.states import Decision, InTrash, ItemState, Observation, recover
from cleanup.engine.trash import Manifest, ManifestItem, Moved, PreparedBatch, move, observe_all, reopen, tidy
from cleanup.models import CleanupItem, CleanupRun, PlanBatch, StagingArea
from cleanup.operations.moving import Outcome, outcome_of, screen, settle
from cleanup.operations.policies import policy_of
from cleanup.operations.purging import finish_purges
from cleanup.operations.restoring import finish_restores
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.items import NewItem, insert_items, load, move_rows, new_ids, plan_item, version_name
from cleanup.stores.leases import WORKING_STATES
from cleanup.stores.plans import chosen_of, drop_intent, open_intents
from cleanup.stores.sql import chunks, database_now
from cleanup.verifiers import asker

logger = logging.getLogger(__name__)

RECOVERY = Actor.system("recovery")


def recover_area(handle: AreaHandle, area: StagingArea) -> Counter[str]:
    """Finish what was begun in an area and never ended; return how many items, by what was open."""
    found: Counter[str] = Counter()
    for batch in open_intents(area.pk):
        found["intent"] += _InterruptedMove(handle, batch).finish()
    found["purge_intent"] = finish_purges(handle, area, RECOVERY)
    found["restoring"] = finish_restores(handle, area, RECOVERY)
    if found.total():
        logger.warning("recovered area %s: %s", area.name, dict(+found))
    return found


class _InterruptedMove:
    """A batch whose intent was committed and whose outcome was not."""

    def __init__(self, handle: AreaHandle, batch: PlanBatch) -> None:
        self.handle, self.batch, self.run = handle, batch, batch.run
        self.policy = policy_of(self.run.policy_version)
        self.items = chosen_of(batch)
        self.ids = [f"{batch.trash_batch}/{number}" for number in range(len(self.items))]
        self.seen = list(observe_all(handle, zip(self.items, self.ids, strict=True)))
        self.outcomes: dict[int, Outcome] = {}

    def finish(self) -> int:
        """Bring rows and disk together; return how many items there were."""
        try:
            prepared = reopen(self.handle, self.batch.trash_batch)
        except ManifestInvalid as error:
            if all(seen.trash is InTrash.NO for seen in self.seen):
                self.let_go()
                return len(self.items)
            prepared = None
            self.without_manifest(str(error))
        if prepared is not None:
            self.go_on(prepared)
        self.commit()
        return len(self.items)

    def let_go(self) -> None:
        """Nothing was ever moved: the batch is as it was planned, for the run to take up again."""
        tidy(self.handle, self.batch.trash_batch)
        with transaction.atomic():
            drop_intent(self.batch)
            self.write("intent_released", len(self.items))

    def without_manifest(self, why: str) -> None:
        """Something lies in the trash and nothing says what: a person must look."""
        for index, (item, trash_id) in enumerate(zip(self.items, self.ids, strict=True)):
            self.outcomes[index] = outcome_of(item, Moved(trash_id, "error", why))

    def go_on(self, prepared: PreparedBatch) -> None:
        """Finish what has arrived, and move what may still go."""
        waiting: list[int] = []
        moving: list[int] = []
        for index, seen in enumerate(self.seen):
            decision = recover(ItemState.INTENT, seen)
            if decision not in (Decision.RETRY, Decision.FINISH):
                self.outcomes[index] = _decided(self.items[index], self.ids[index], decision, seen)
            elif self.ids[index] not in prepared.items:
                # The manifest was written without it: it was no longer the planned file.
                self.outcomes[index] = outcome_of(self.items[index], Moved(self.ids[index], "changed"))
            else:
                (waiting if seen.trash is InTrash.NO else moving).append(index)
        self.move(prepared, sorted(moving + self.permitted(waiting)))

    def permitted(self, waiting: Sequence[int]) -> list[int]:
        """Those that have not been touched yet may only go if the run goes on, and after asking again."""
        if not waiting or self.run.state not in WORKING_STATES:
            return []
        items, area = [self.items[index] for index in waiting], self.run.tree()
        ask = asker(self.policy.verifiers, policy=self.policy.name, area=self.handle)
        screened = screen(items, area_id=area.pk, area_uuid=str(area.uuid), ask=ask, now=database_now())
        for position, outcome in screened.barred.items():
            self.outcomes[waiting[position]] = outcome
        return [waiting[position] for position in screened.chosen]

    def move(self, prepared: PreparedBatch, indices: Sequence[int]) -> None:
        ids = tuple(self.ids[index] for index in indices)
        part = msgspec.structs.replace(prepared, ids=ids, items={id: prepared.items[id] for id in ids})
        done = move(self.handle, part, skip_in_use=self.policy.skip_in_use)
        for index, moved in zip(indices, done, strict=True):
            self.outcomes[index] = outcome_of(self.items[index], moved)

    def commit(self) -> None:
        outcomes = [self.outcomes[index] for index in sorted(self.outcomes)]
        with transaction.atomic():
            settle(self.run, self.batch, outcomes, now=database_now(), token=None)
            self.write("intent_recovered", len(outcomes))

    def write(self, action: str, count: int) -> None:
        evidence = {"batch": self.batch.number, "items": count, "trash": self.batch.trash_batch}
        entry = record(
            RECOVERY, action, now=database_now(), run=self.run.pk, area=self.run.scope, evidence=evidence
        )
        DatabaseAuditSink().write([entry])


def _decided(item: PlanItem, trash_id: str, decision: Decision, seen: Observation) -> Outcome:
    word = {Decision.VANISHED: "vanished", Decision.CHANGED: "changed"}.get(decision, "error")
    detail = (
        f"after a crash: {seen.source} at its place, {seen.trash} in the trash" if word == "error" else ""
    )
    return outcome_of(item, Moved(trash_id, word, detail))  # type: ignore[arg-type]  # one of Outcome's words


# Adoption


def adopt(handle: AreaHandle, area: StagingArea) -> int:
    """Make rows for what lies in the trash and has none, and look for what rows say and the trash lacks.

    The caller holds the area's lock. A batch whose manifest cannot be read is logged and left. What is
    missing becomes `lost`, which is an alarm; what was lost and is back is in the trash again.

    Returns:
        How many rows were made or changed.
    """
    return _adopt_unknown(handle, area) + _check_rows(handle, area)


def _adopt_unknown(handle: AreaHandle, area: StagingArea) -> int:
    adopted = 0
    for names in chunks(batches(handle)):
        known = set(PlanBatch.objects.filter(trash_batch__in=names).values_list("trash_batch", flat=True))
        for name in names:
            if name in known:
                continue
            try:
                manifest = read_manifest(handle, name)
            except ManifestInvalid as error:
                # A crash before anything came leaves a batch that is only a beginning.
                if files_in(handle, name) or not tidy(handle, name):
                    logger.error("area %s: %s", area.name, error)
            else:
                adopted += _adopt_batch(handle, area, manifest)
                tidy(handle, name)
    return adopted


def _adopt_batch(handle: AreaHandle, area: StagingArea, manifest: Manifest) -> int:
    new = list(_without_row(handle, manifest))
    if not new:
        return 0
    run = CleanupRun.objects.filter(pk=UUID(manifest.run)).first() if _is_uuid(manifest.run) else None
    now = database_now()
    entries = [
        record(
            RECOVERY, "adopted", now=now, run=manifest.run, item=one.id, area=area.name, path=one.item.shown,
            size=one.item.bytes, reason=one.reason, policy_version=manifest.policy_version,
            evidence={"trash": one.trash_id, "state": str(one.state)},
        )
        for one in new
    ]  # fmt: skip
    with transaction.atomic():
        insert_items(
            new, run_id=run.pk if run else None, area=area, now=now,
            trashed_at=manifest.trashed_at, purge_after=manifest.purge_after,
        )  # fmt: skip
        DatabaseAuditSink().write(entries)
    return len(new)


def _without_row(handle: AreaHandle, manifest: Manifest) -> Iterator[NewItem]:
    for part in chunks(manifest.items):
        ids = [item.id for item in part]
        known = set(CleanupItem.objects.filter(trash_id__in=ids).values_list("trash_id", flat=True))
        lacking = [item for item in part if item.id not in known]
        pairs = [(item.plan_item(), item.id) for item in lacking]
        for item, (planned, trash_id), seen in zip(lacking, pairs, observe_all(handle, pairs), strict=True):
            decision = recover(None, seen)
            if decision in (Decision.ADOPT, Decision.ADOPT_ERROR):
                yield _adopted(item, planned, trash_id, decision)


def _adopted(item: ManifestItem, plan_item: PlanItem, trash_id: str, decision: Decision) -> NewItem:
    whole = decision is Decision.ADOPT
    state, reason = (ItemState.TRASHED, item.reason) if whole else (ItemState.ERROR, Reason.IO_ERROR)
    detail = item.detail if whole else "found in the trash without a row, and not whole"
    return NewItem(new_ids(1)[0], plan_item, state, reason=str(reason), detail=detail, trash_id=trash_id)


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


# Rows whose files should be in the trash, or should not


def _check_rows(handle: AreaHandle, area: StagingArea) -> int:
    """Compare rows with the names in the trash, and look closer only where these disagree."""
    rows = CleanupItem.objects.filter(area=area, state__in=(ItemState.TRASHED, ItemState.LOST))
    found = rows.order_by("trash_id").values_list("pk", "state", "trash_id").iterator(chunk_size=10_000)
    doubtful: list[UUID] = []
    for batch, group in groupby(found, key=lambda row: row[2].rpartition("/")[0]):
        present = files_in(handle, batch)
        for pk, state, trash_id in group:
            if (trash_id.rpartition("/")[2] in present) is not (state == ItemState.TRASHED):
                doubtful.append(pk)
    return sum(_correct(area, handle, part) for part in chunks(doubtful))


def _correct(area: StagingArea, handle: AreaHandle, ids: Sequence[UUID]) -> int:
    rows, now, changed = load(ids, area=area), database_now(), 0
    seen = observe_all(handle, [(plan_item(row), row.trash_id) for row in rows])
    with transaction.atomic():
        for row, observation in zip(rows, list(seen), strict=True):
            decision = recover(ItemState(row.state), observation)
            if decision in _CORRECTED:
                state, action = _CORRECTED[decision]
                changed += move_rows([row.pk], ItemState(row.state), state, now=now)
                _tell(row, action, observation, now)
    return changed


#: What a decision makes of a row that should be in the trash, and how the audit calls it.
_CORRECTED = {
    Decision.FINISH: (ItemState.TRASHED, "found"),
    Decision.LOST: (ItemState.LOST, "lost"),
    Decision.ERROR: (ItemState.ERROR, "damaged"),
}


def _tell(row: CleanupItem, action: str, seen: Observation, now: datetime) -> None:
    logger.error("%s of area %s: %s (%s in the trash)", row.path, row.area.name, action, seen.trash)
    entry = record(
        RECOVERY, action, now=now, run=row.run_id, item=row.pk, area=row.area.name, path=row.path,
        size=row.size, policy_version=version_name(row),
        evidence={"trash": row.trash_id, "source": str(seen.source), "in_trash": str(seen.trash)},
    )  # fmt: skip
    DatabaseAuditSink().write([entry])
