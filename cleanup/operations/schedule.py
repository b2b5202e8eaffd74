"""What happens by the clock: due policies, abandoned runs, stale plans, interrupted work, old rows, samples.

Any number of ticks may run at once: a policy is claimed by a conditional update in one transaction with its
run, so a due time gives at most one run and is never lost with the process that claimed it; everything else
is safe to do twice. Due times are ours, in SQL, because Celery Beat forgets what it missed; a schedule that
was missed for however long is caught up with once, or not at all, as its policy says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from cleanup.engine.errors import AreaBusy, EngineError, PolicyInvalid
from cleanup.models import CleanupItem, ItemState, Mode, PlanBatch, RetentionPolicy, StagingArea
from cleanup.operations import usage
from cleanup.operations.areas import locked, opened
from cleanup.operations.duetimes import Schedule, is_skipped, parse_schedule
from cleanup.operations.outcomes import OperationRefused, RunActive
from cleanup.operations.recovery import adopt, recover_area
from cleanup.operations.rows import purge_due_rows
from cleanup.operations.runs import expire_plans, start_run, working_runs
from cleanup.stores import Actor
from cleanup.stores.leases import is_dead
from cleanup.stores.plans import OPEN
from cleanup.stores.sql import database_now

logger = logging.getLogger(__name__)

#: A run that was just made is left to whoever made it, who is about to take it up.
_START = timedelta(seconds=15)

#: A policy whose area was busy is tried again after this long.
_AGAIN = timedelta(minutes=1)

#: A tick does not wait for an area: somebody is at work there.
_NO_PATIENCE = timedelta(0)


@dataclass(slots=True, kw_only=True)
class Tick:
    """What a tick found to do."""

    #: Runs to be carried out: started by it, or found without a worker.
    started: list[UUID] = field(default_factory=list)
    reaped: list[UUID] = field(default_factory=list)
    expired: int = 0
    #: Items of interrupted batches, purges and restores.
    recovered: int = 0
    rows_purged: int = 0


def tick(now: datetime | None = None) -> Tick:
    """Do what is due; carrying out runs and purging is left to the caller."""
    now = now or database_now()
    done = Tick()
    done.expired = expire_plans(now)
    done.recovered = recover_all()
    done.started = claim_due(now)
    done.reaped = [run for run in abandoned(now) if run not in done.started]
    done.rows_purged = purge_due_rows(now).rows
    usage.sample(now)
    return done


def claim_due(now: datetime) -> list[UUID]:
    """Start a run of every policy that is due, and note when it is due next."""
    started = []
    for policy in _scheduled():
        try:
            schedule = parse_schedule(policy.schedule)
        except PolicyInvalid as error:
            logger.error("policy %s never runs: %s", policy.name, error)
            continue
        if policy.next_due_at is None or schedule.is_out_of_reach(policy.next_due_at, now):
            # Never claimed, or claimed by a clock that was ahead and has been set back since.
            _move(policy, schedule.after(now))
        elif policy.next_due_at <= now and (run := _claim(policy, schedule, now)):
            started.append(run)
    return started


def due_policies(now: datetime) -> list[RetentionPolicy]:
    """The policies that a tick would start now."""
    return [
        policy
        for policy in _scheduled()
        if policy.next_due_at is not None and policy.next_due_at <= now and not is_skipped(policy, now)
    ]


def _scheduled() -> list[RetentionPolicy]:
    governed = Q(area__isnull=True) | Q(area__enabled=True)
    return list(RetentionPolicy.objects.select_related("area").filter(governed).exclude(mode=Mode.OFF))


def _claim(policy: RetentionPolicy, schedule: Schedule, now: datetime) -> UUID | None:
    """Move the due time on and make the run, both or neither. None if another tick did, or nothing runs."""
    following = schedule.after(now, anchor=policy.next_due_at)
    with transaction.atomic():
        if not _move(policy, following):
            return None
        if is_skipped(policy, now):
            logger.info("policy %s was missed, and is not caught up with", policy.name)
            return None
        try:
            return start_run(policy, Actor.system("schedule")).pk
        except RunActive:
            RetentionPolicy.objects.filter(pk=policy.pk).update(next_due_at=min(now + _AGAIN, following))
        except OperationRefused as refusal:
            logger.warning("policy %s was due and did not run: %s", policy.name, refusal)
    return None


def _move(policy: RetentionPolicy, following: datetime) -> bool:
    """Move the due time on, unless another tick has done so or the schedule was edited meanwhile."""
    mine = RetentionPolicy.objects.filter(
        pk=policy.pk, next_due_at=policy.next_due_at, schedule=policy.schedule
    )
    return bool(mine.update(next_due_at=following))


def abandoned(now: datetime) -> list[UUID]:
    """Runs with work to do that nobody is doing."""
    found = []
    for run in working_runs():
        waiting = run.lease_until is None and run.created_at < now - _START
        overdue = run.lease_until is not None and run.lease_until < now
        if waiting or overdue or (run.lease_owner and is_dead(run.lease_owner)):
            found.append(run.pk)
    return found


def recover_all(*, with_adoption: bool = False) -> int:
    """Finish what crashes have interrupted, in every area that nobody is working in; return how many items.

    Args:
        with_adoption: also look through the trash for what no row knows.
    """
    recovered = 0
    for area in StagingArea.objects.all() if with_adoption else _areas_with_open_work():
        try:
            with opened(area) as handle, locked(handle, patience=_NO_PATIENCE):
                recovered += recover_area(handle, area).total()
                recovered += adopt(handle, area) if with_adoption else 0
        except AreaBusy:
            continue
        except (EngineError, OSError) as error:
            logger.warning("area %s cannot be recovered: %s", area.name, error)
    return recovered


def _areas_with_open_work() -> list[StagingArea]:
    moves = PlanBatch.objects.filter(OPEN).values("run__area")
    rows = CleanupItem.objects.filter(state__in=[ItemState.PURGE_INTENT, ItemState.RESTORING]).values("area")
    return list(StagingArea.objects.filter(Q(pk__in=moves) | Q(pk__in=rows)))


Execute = Callable[[UUID], object]


def run_inline(done: Tick, execute: Execute) -> None:
    """Carry out what a tick found, one run after the other, where there is no worker to do it."""
    for run_id in [*done.started, *done.reaped]:
        try:
            execute(run_id)
        except AreaBusy as busy:
            logger.warning("run %s waits: %s", run_id, busy)
