"""Plans in the database: compressed batches, read back whole to compare the digest, or one at a time to act.

A batch also carries the intent of its move: which of its items, to which place in the trash, to be purged not
before when. The intent is committed before anything moves and settled with the outcomes, so that what a crash
left open is found by one indexed query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from uuid import UUID

from django.db.models import Q

from cleanup.conf import conf
from cleanup.engine.errors import PlanTampered
from cleanup.engine.plan import Plan, PlanItem, decode_items, encode_items
from cleanup.models import CleanupRun, PlanBatch
from cleanup.stores.sql import chunks

#: An intent that no outcome has settled.
OPEN = Q(intent_at__isnull=False, settled_at__isnull=True)


def packed(run_id: UUID, plan: Plan) -> list[PlanBatch]:
    """Cut a plan into batches and compress them: the slow part, to be done before the transaction."""
    return [
        PlanBatch(run_id=run_id, number=number, items=len(items), body=encode_items(items))
        for number, items in enumerate(chunks(plan.items, conf().batch_size))
    ]


def save_plan(run_id: UUID, batches: Sequence[PlanBatch]) -> None:
    """Store the batches of a plan in place of an earlier attempt's."""
    PlanBatch.objects.filter(run_id=run_id).delete()
    PlanBatch.objects.bulk_create(batches, batch_size=50)


def load_plan(run: CleanupRun, *, policy_json: str) -> Plan:
    """Read the plan of `run` back.

    Raises:
        PlanTampered: a batch is missing or cannot be read.
    """
    if run.plan_created_at is None or run.plan_expires_at is None:
        raise PlanTampered(f"run {run.pk} has no plan")
    items: list[PlanItem] = []
    for number, batch in enumerate(run.batches.order_by("number").iterator(chunk_size=20)):
        if batch.number != number:
            raise PlanTampered(f"batch {number} of the plan is missing")
        items.extend(items_of(batch))
    return Plan(
        policy_json=policy_json,
        area_uuid=str(run.tree().uuid),
        created_at=run.plan_created_at,
        expires_at=run.plan_expires_at,
        items=tuple(items),
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
    batch: PlanBatch, *, chosen: Sequence[int], trash_batch: str, now: datetime, purge_after: datetime
) -> None:
    """Note that the items at `chosen` are about to be moved to `trash_batch`."""
    batch.chosen = None if len(chosen) == batch.items else list(chosen)
    batch.trash_batch, batch.intent_at, batch.purge_after = trash_batch, now, purge_after
    batch.save(update_fields=["chosen", "trash_batch", "intent_at", "purge_after"])


def drop_intent(batch: PlanBatch) -> None:
    """Take an intent back of which nothing was carried out."""
    batch.chosen, batch.trash_batch, batch.intent_at, batch.purge_after = None, "", None, None
    batch.save(update_fields=["chosen", "trash_batch", "intent_at", "purge_after"])


def open_intents(area_id: int) -> list[PlanBatch]:
    """Batches of an area whose move a crash has interrupted, oldest first."""
    found = PlanBatch.objects.filter(OPEN, run__area_id=area_id).select_related("run__policy_version__policy")
    return list(found.order_by("intent_at"))
