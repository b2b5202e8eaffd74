"""Plans in the database: compressed batches, written while the plan is made and read one at a time.

The digest runs over the batches as they are stored, so a plan of any length is made, checked and carried out
without ever being in memory as a whole. A batch also carries the intent of its move: which of its items, to
which place in the trash, to be purged not before when. The intent is committed before anything moves and
settled with the outcomes, so that what a crash left open is found by one indexed query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from heapq import nlargest
from operator import attrgetter
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from cleanup.conf import conf
from cleanup.engine.errors import PlanTampered
from cleanup.engine.packing import Counting, Hashing, Tally, decode_items, squeeze
from cleanup.engine.plan import Plan, PlanItem
from cleanup.models import CleanupRun, PlanBatch
from cleanup.stores.leases import advance
from cleanup.stores.sql import database_now

#: An intent that no outcome has settled.
OPEN = Q(intent_at__isnull=False, settled_at__isnull=True)

#: Items of a plan that are remembered as its biggest.
BIGGEST = 20

#: Batches written in one transaction: few enough to be small in memory, many enough to make commits rare.
_TOGETHER = 8


class PlanWriter:
    """Stores the items of a run's plan while they are found, in place of an earlier attempt's.

    Every write renews the lease in the same transaction, so that a planner whose run has passed to another
    adds nothing to the other's plan.
    """

    def __init__(self, run_id: UUID, token: int) -> None:
        """Write for the holder of `token`."""
        self.run_id, self.token = run_id, token
        #: Of the plan that was written last.
        self.biggest: list[PlanItem] = []

    def __call__(self, items: Iterable[PlanItem]) -> Tally:
        """Store all of `items`.

        Raises:
            LeaseLost: the run has passed to another worker.
        """
        with transaction.atomic():
            advance(self.run_id, self.token, now=database_now())
            PlanBatch.objects.filter(run_id=self.run_id).delete()
        counting, waiting = Counting(), list[PlanBatch]()
        self.biggest = []
        for number, batch in enumerate(_cut(items, conf().batch_size)):
            self.biggest = nlargest(BIGGEST, [*self.biggest, *batch], key=attrgetter("bytes"))
            body = squeeze(counting.add(batch))
            waiting.append(PlanBatch(run_id=self.run_id, number=number, items=len(batch), body=body))
            if len(waiting) == _TOGETHER:
                self._write(waiting)
                waiting = []
        self._write(waiting)
        return counting.tally()

    def _write(self, batches: Sequence[PlanBatch]) -> None:
        with transaction.atomic():
            advance(self.run_id, self.token, now=database_now())
            PlanBatch.objects.bulk_create(batches)


def _cut(items: Iterable[PlanItem], files: int) -> Iterator[list[PlanItem]]:
    """Cut `items` into batches of so many files: a bundle may have thousands, and is moved whole."""
    batch, left = list[PlanItem](), files
    for item in items:
        batch.append(item)
        left -= len(item.members)
        if left <= 0:
            yield batch
            batch, left = [], files
    if batch:
        yield batch


def stored_plan(run: CleanupRun, *, policy_json: str) -> Plan:
    """Read the stored plan of `run` through, and return it without its items, for `Plan.check`.

    Raises:
        PlanTampered: a batch is missing or cannot be read.
    """
    if run.plan_created_at is None or run.plan_expires_at is None:
        raise PlanTampered(f"run {run.pk} has no plan")
    hashing, items = Hashing(), 0
    for number, batch in enumerate(run.batches.order_by("number").iterator(chunk_size=20)):
        if batch.number != number:
            raise PlanTampered(f"batch {number} of the plan is missing")
        hashing.add(bytes(batch.body))
        items += batch.items
    return Plan(
        policy_json=policy_json,
        area_uuid=str(run.area.uuid) if run.area else run.rows_of,
        created_at=run.plan_created_at,
        expires_at=run.plan_expires_at,
        items=(),
        stored=Tally(items=items, files=run.planned_files, bytes=run.planned_bytes, digest=hashing.digest()),
    )


def items_of(batch: PlanBatch) -> tuple[PlanItem, ...]:
    """The items of one batch."""
    return decode_items(bytes(batch.body))


def chosen_of(batch: PlanBatch) -> list[PlanItem]:
    """The items that the batch's intent names."""
    items = items_of(batch)
    return list(items) if batch.chosen is None else [items[index] for index in batch.chosen]


def planned(run: CleanupRun, *, limit: int | None = None) -> Iterator[PlanItem]:
    """Yield the items of a run's plan in order, at most `limit`."""
    left = limit
    for batch in run.batches.order_by("number").iterator(chunk_size=20):
        items = items_of(batch)[:left]
        yield from items
        if left is not None and (left := left - len(items)) <= 0:
            return


def set_intent(
    batch: PlanBatch,
    *,
    chosen: Sequence[int],
    trash_batch: str,
    now: datetime,
    purge_after: datetime,
    purge_floor: datetime | None = None,
) -> None:
    """Note that the items at `chosen` are about to be moved to `trash_batch`."""
    batch.chosen = None if len(chosen) == batch.items else list(chosen)
    batch.trash_batch, batch.intent_at = trash_batch, now
    batch.purge_after, batch.purge_floor = purge_after, purge_floor
    batch.save(update_fields=["chosen", "trash_batch", "intent_at", "purge_after", "purge_floor"])


def drop_intent(batch: PlanBatch) -> None:
    """Take an intent back of which nothing was carried out."""
    batch.chosen, batch.trash_batch = None, ""
    batch.intent_at = batch.purge_after = batch.purge_floor = None
    batch.save(update_fields=["chosen", "trash_batch", "intent_at", "purge_after", "purge_floor"])


def open_intents(area_id: int) -> list[PlanBatch]:
    """Batches of an area whose move a crash has interrupted, oldest first."""
    found = PlanBatch.objects.filter(OPEN, run__area_id=area_id).select_related("run__policy_version__policy")
    return list(found.order_by("intent_at"))
