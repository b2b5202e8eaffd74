"""Orders on the trash: restore, extend or purge everything that a filter finds, done by a worker in batches.

A person orders what the filter finds at that moment; what comes into the trash later is not meant. Whoever
holds the order's lease goes through the rows in the order in which they were trashed, a batch at a time, by
the same verbs as for single files, so that each file has its audit entry, with the order's id. The batch at
hand is noted before it is begun: after a crash recovery finishes what was begun, the order looks what became
of the batch, and goes on with the rest. So nothing is done twice and everything is counted once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from cleanup.engine.errors import RunStopped
from cleanup.engine.states import ItemState
from cleanup.models import CleanupItem, JobState, OrderVerb, StagingArea, TrashOrder
from cleanup.operations.areas import locked, opened
from cleanup.operations.keeping import check_rename
from cleanup.operations.outcomes import NotFound, OperationRefused, PurgeReport, RestoreReport
from cleanup.operations.purging import extend_grace, purge_now
from cleanup.operations.recovery import recover_area
from cleanup.operations.restoring import restore
from cleanup.operations.runs import send
from cleanup.operations.trash_filters import count, fits, matching
from cleanup.stores import Actor, DatabaseAuditSink, jobs, record
from cleanup.stores.feed import JobFeed
from cleanup.stores.feed import topic_of as topic_of_job
from cleanup.stores.sql import chunks, database_now

logger = logging.getLogger(__name__)

#: By name, since tasks stand above operations.
TASK = "cleanup.tasks.order"

#: Files between two notes of how far it is: one hold of the area's lock, and one hold on names restored.
BATCH = 2_000
#: Rows that are read at once while a rare file is looked for.
_PAGE = 10_000
#: Conflicts that an order remembers by name; all are counted, and stand in the audit.
MOST_CONFLICTS = 100

#: What an item is when the verb has done its work on it.
_DONE = {OrderVerb.RESTORE: ItemState.RESTORED, OrderVerb.PURGE: ItemState.PURGED}
#: A crash leaves items in these; recovery brings them on.
_BETWEEN = (ItemState.RESTORING, ItemState.PURGE_INTENT)


def topic_of(order: TrashOrder) -> str:
    """Where its progress is told."""
    return topic_of_job("order", order.pk)


def find_order(order_id: UUID | str) -> TrashOrder:
    """The order of this id.

    Raises:
        NotFound: there is none.
    """
    try:
        found = TrashOrder.objects.filter(pk=UUID(str(order_id))).first()
    except ValueError as error:
        raise NotFound(f"{order_id!r} is not the id of an order") from error
    if found is None:
        raise NotFound(f"there is no order {order_id}")
    return found


def order(
    verb: OrderVerb,
    found_by: dict[str, Any],
    *,
    actor: Actor,
    reason: str = "",
    by: timedelta | None = None,
    rename: str = "",
    files: int | None = None,
) -> TrashOrder:
    """Have a worker do something to everything in the trash that a filter finds now.

    Args:
        verb: what.
        found_by: the filter, as `trash_filters` knows it.
        actor: who wants it.
        reason: required for a purge.
        by: how much longer, for an extension.
        rename: added to names that are taken, for a restore; empty: those files stay in the trash.
        files: how many the person has read; refused if the filter finds another number by now.

    Raises:
        OperationRefused: something is missing, nothing is found, or the number is not right.
    """
    _check(verb, reason, by, rename)
    found, size, more = count(found_by)
    if not found:
        raise OperationRefused("nothing in the trash is found by this")
    if files is not None and files != found:
        raise OperationRefused(f"the filter finds {found:,} files, not {files:,}")
    now = database_now()
    with transaction.atomic():
        made = TrashOrder.objects.create(
            verb=verb, filter=found_by, reason=reason, by=by, rename=rename, files=found, bytes=size,
            actor=actor.name[:150], actor_kind=actor.kind,
        )  # fmt: skip
        # By the clock that the rows in the trash have: what comes later is not meant.
        TrashOrder.objects.filter(pk=made.pk).update(created_at=now)
        made.created_at = now
        evidence = {"filter": found_by, "files": found, "bytes": size, "more": more}
        _write(made, "order_given", actor, now, evidence)
        wake(made.pk)
    return made


def _check(verb: OrderVerb, reason: str, by: timedelta | None, rename: str) -> None:
    if verb == OrderVerb.PURGE and not reason.strip():
        raise OperationRefused("purging before the end of the grace period needs a reason")
    if verb == OrderVerb.EXTEND and (by is None or by <= timedelta(0)):
        raise OperationRefused("a grace period can be extended, not shortened")
    check_rename(rename)


def wake(order_id: UUID) -> None:
    """Tell the worker, once the open transaction is committed, that an order waits."""
    transaction.on_commit(partial(send, TASK, str(order_id)), robust=True)


def stop_order(given: TrashOrder, *, actor: Actor) -> TrashOrder:
    """End an order: at once if nobody is at it, else after the batch at hand. What is done stays done.

    Raises:
        OperationRefused: it is over.
    """
    now, rows = database_now(), TrashOrder.objects.filter(pk=given.pk)
    with transaction.atomic():
        idle = rows.filter(Q(lease_until__isnull=True) | Q(lease_until__lt=now), state__in=jobs.OPEN_STATES)
        ended = idle.filter(pending=[]).update(
            state=JobState.STOPPED, finished_at=now, message=f"stopped by {actor.name}"
        )
        if not ended and not rows.filter(state__in=jobs.OPEN_STATES).update(stop_requested=True):
            raise OperationRefused("the order is over")
        if ended:
            _tell_end(find_order(given.pk))
        _write(given, "order_stopped" if ended else "order_stop_requested", actor, now, {})
    return find_order(given.pk)


def abandoned_orders(now: datetime) -> list[UUID]:
    """Orders with work to do that nobody is doing."""
    return jobs.abandoned(TrashOrder, now=now)


def carry_out_order(
    order_id: UUID,
    *,
    slice_length: timedelta | None = None,
    on_progress: Callable[[TrashOrder], None] | None = None,
) -> TrashOrder:
    """Carry an order out, for one slice or to its end, and return its row as it is then.

    If somebody else is at it, or it is over, nothing is done.

    Raises:
        AreaBusy: somebody else works in an area; the order waits.
        django.db.DatabaseError: the lease will run out, and the order can be gone on with.
    """
    taken = jobs.take(TrashOrder, order_id, now=database_now())
    if taken is not None:
        deadline = None if slice_length is None else time.monotonic() + slice_length.total_seconds()
        _Worker(taken, deadline, on_progress).run_slice()
    return find_order(order_id)


class _Worker:
    """One slice of one order under one lease."""

    def __init__(
        self, given: TrashOrder, deadline: float | None, on_progress: Callable[[TrashOrder], None] | None
    ) -> None:
        self.order, self.deadline, self.on_progress = given, deadline, on_progress
        self.actor = Actor(name=given.actor, kind=given.actor_kind)
        self.is_meant = fits(given.filter)
        self.feed = JobFeed("order", given.pk)

    def run_slice(self) -> None:
        """Work until the slice or the order is over, and leave the row saying which."""
        with jobs.ended_by(self.order, self.finish):
            if self.work():
                self.finish(JobState.DONE, "")
            else:
                jobs.give_back(self.order)

    def work(self) -> bool:
        """Go on behind the last file that was met; return whether there is none left."""
        if self.order.pending:
            self.settle_interrupted()
        while True:
            self.check_stop()
            ids, position = self.next_batch()
            if position is None:
                return True
            if ids:
                self.note(pending=[str(pk) for pk in ids])
                self.one_batch(ids, position)
            else:
                self.note(position=position)
            self.tell()
            if self.deadline is not None and time.monotonic() >= self.deadline:
                return False

    def settle_interrupted(self) -> None:
        """Find out what a crash left of the batch at hand, count it, and do the rest of it."""
        ids = [UUID(text) for text in self.order.pending]
        _finish_interrupted(ids)
        done, left, behind = [0, 0, 0], list[UUID](), list[CleanupItem]()
        for part in chunks(ids):
            for row in CleanupItem.objects.filter(pk__in=part).order_by("trashed_at", "pk"):
                behind = [max([*behind, row], key=_order_of)]
                if row.state == _DONE.get(OrderVerb(self.order.verb)):
                    done = [done[0] + 1, done[1] + len(row.members), done[2] + row.size]
                elif row.state == ItemState.TRASHED:
                    left.append(row.pk)
        last = _place(behind[0]) if behind else self.order.position
        self.order.seen += len(ids) - len(left)
        self.order.done_files += done[1]
        self.order.done_bytes += done[2]
        lacking = len(ids) - len(left) - done[0]
        _add(self.order.kept, "not in the trash any more", lacking)
        self.note(
            pending=[str(pk) for pk in left], seen=self.order.seen, done_files=self.order.done_files,
            done_bytes=self.order.done_bytes, kept=self.order.kept,
        )  # fmt: skip
        if left:
            self.one_batch(left, last)
        else:
            self.note(position=last)

    def next_batch(self) -> tuple[list[UUID], list[str] | None]:
        """The files that come next, and the place of the last row that was looked at; None: there is none."""
        rows = matching(self.order.filter, before=self.order.created_at)
        if self.order.position:
            moment, pk = datetime.fromisoformat(self.order.position[0]), UUID(self.order.position[1])
            # The first condition says nothing that the second does not, but it is one that an index serves.
            rows = rows.filter(trashed_at__gte=moment)
            rows = rows.filter(Q(trashed_at__gt=moment) | Q(pk__gt=pk))
        page = list(rows.order_by("trashed_at", "pk").only("pk", "path", "trashed_at")[:_PAGE])
        found = list[UUID]()
        for row in page:
            if self.is_meant(row.path):
                found.append(row.pk)
            if len(found) == BATCH:
                return found, _place(row)
        return found, _place(page[-1]) if page else None

    def one_batch(self, ids: Sequence[UUID], position: list[str] | None) -> None:
        """Do it, and note what came of it. An extension and its note are one transaction."""
        evidence = {"order": str(self.order.pk)}
        if self.order.verb == OrderVerb.EXTEND:
            with transaction.atomic():
                by = self.order.by or timedelta(0)
                number = extend_grace(ids, by=by, actor=self.actor, evidence=evidence)
                self.order.done_files += number
                _add(self.order.kept, "not in the trash any more", len(ids) - number)
                self.note_done(ids, position)
            return
        if self.order.verb == OrderVerb.RESTORE:
            self.take_restored(restore(ids, actor=self.actor, rename=self.order.rename, evidence=evidence))
        else:
            self.take_purged(purge_now(ids, reason=self.order.reason, actor=self.actor, evidence=evidence))
        self.note_done(ids, position)

    def note_done(self, ids: Sequence[UUID], position: list[str] | None) -> None:
        self.order.seen += len(ids)
        names = ("seen", "done_files", "done_bytes", "kept", "conflicts")
        self.note(pending=[], position=position, **{name: getattr(self.order, name) for name in names})

    def take_restored(self, report: RestoreReport) -> None:
        self.order.done_files += report.restored
        self.order.done_bytes += report.bytes
        _add(self.order.kept, "the name is taken", len(report.conflicts))
        _add(self.order.kept, "lost", report.lost)
        _add(self.order.kept, "error", len(report.errors))
        room = MOST_CONFLICTS - len(self.order.conflicts)
        self.order.conflicts += [asdict(one) for one in report.conflicts[: max(room, 0)]]

    def take_purged(self, report: PurgeReport) -> None:
        self.order.done_files += report.purged
        self.order.done_bytes += report.bytes
        for reason, number in report.kept.items():
            _add(self.order.kept, reason, number)
        _add(self.order.kept, "lost", report.lost)
        _add(self.order.kept, "error", len(report.errors))

    def note(self, **changes: Any) -> None:
        """Write to the row and renew the lease."""
        jobs.renew(self.order, now=database_now(), **changes)
        for name, value in changes.items():
            setattr(self.order, name, value)

    def check_stop(self) -> None:
        if TrashOrder.objects.filter(pk=self.order.pk, stop_requested=True).exists():
            raise RunStopped("stopped on request")

    def finish(self, state: JobState, message: str) -> None:
        """End the order; if the lease was lost meanwhile, somebody else decides how it ends."""
        now = database_now()
        with transaction.atomic():
            if not jobs.end(self.order, state, now=now, message=message):
                return
            self.order.state, self.order.message = state, message
            _tell_end(self.order)
            names = ("done_files", "done_bytes", "kept")
            evidence = {name: getattr(self.order, name) for name in names}
            _write(self.order, f"order_{state}", self.actor, now, evidence, reason=message)
        if self.on_progress is not None:
            self.on_progress(self.order)

    def tell(self) -> None:
        if self.on_progress is not None:
            self.on_progress(self.order)
        self.feed.tell(_said(self.order))


def _said(given: TrashOrder) -> dict[str, Any]:
    """What is told of an order on its topic."""
    return {
        "order": str(given.pk), "verb": given.verb, "state": given.state, "done": given.seen,
        "total": max(given.files, given.seen), "bytes": given.done_bytes, "message": given.message,
    }  # fmt: skip


def _tell_end(given: TrashOrder) -> None:
    """Tell the last word of an order that is over, and end its topic. In a transaction of the caller."""
    JobFeed("order", given.pk).finish(_said(given))


def _order_of(row: CleanupItem) -> tuple[datetime, UUID]:
    return row.trashed_at or datetime.min.replace(tzinfo=UTC), row.pk


def _place(row: CleanupItem) -> list[str]:
    moment = row.trashed_at
    return ["" if moment is None else moment.isoformat(), str(row.pk)]


def _add(kept: dict[str, int], reason: str, number: int) -> None:
    if number > 0:
        kept[reason] = kept.get(reason, 0) + number


def _finish_interrupted(ids: Sequence[UUID]) -> None:
    """Have recovery finish what is between two states; raises AreaBusy where somebody else works."""
    areas = set[int]()
    for part in chunks(ids):
        between = CleanupItem.objects.filter(pk__in=part, state__in=_BETWEEN).order_by()
        areas.update(between.values_list("area_id", flat=True))
    for area in StagingArea.objects.filter(pk__in=areas):
        with opened(area) as handle, locked(handle):
            recover_area(handle, area)


def _write(
    given: TrashOrder,
    action: str,
    actor: Actor,
    now: datetime,
    evidence: dict[str, Any],
    *,
    reason: str | None = None,
) -> None:
    """Write one audit entry about an order as a whole."""
    said = {"order": str(given.pk), "verb": str(given.verb), **evidence}
    area = str(given.filter.get("area", "")) or None
    entry = record(actor, action, now=now, area=area, reason=reason or given.reason, evidence=said)
    DatabaseAuditSink().write([entry])
