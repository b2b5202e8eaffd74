"""Verbs on runs: start, approve, reject, stop, resume. What a run does is in `execution`.

A run's row is the truth; a message to the worker is only a wake-up, and a lost one is made good by the next
tick.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from celery import current_app
from django.db import IntegrityError, transaction
from kombu.exceptions import OperationalError

from cleanup.models import ACTIVE_STATES, CleanupRun, Mode, RetentionPolicy, RunState, StagingArea
from cleanup.operations.outcomes import NotFound, OperationRefused, RunActive
from cleanup.operations.policies import current_version
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.feed import JobFeed, topic_of
from cleanup.stores.items import version_label
from cleanup.stores.leases import WORKING_STATES, revoke
from cleanup.stores.sql import database_now

logger = logging.getLogger(__name__)

#: By name, since tasks stand above operations.
_CONTINUE = "cleanup.tasks.continue_run"


def find_run(run_id: UUID | str) -> CleanupRun:
    """The run of this id, with its area and policy.

    Raises:
        NotFound: there is none.
    """
    try:
        key = UUID(str(run_id))
    except ValueError as error:
        raise NotFound(f"{run_id!r} is not the id of a run") from error
    run = CleanupRun.objects.select_related("area", "policy_version__policy").filter(pk=key).first()
    if run is None:
        raise NotFound(f"there is no run {run_id}")
    return run


def start_run(policy: RetentionPolicy, actor: Actor, *, dry_run: bool = False) -> CleanupRun:
    """Make a run of the policy's newest version; whoever calls `execute` carries it out.

    A policy in mode `report` only ever reports.

    Raises:
        RunActive: its area has a run that is not over.
        OperationRefused: the policy is off or was never saved, or its area is disabled.
    """
    now = database_now()
    try:
        with transaction.atomic():
            policy = _as_it_is(policy)
            expire_plans(now, **_scope(policy))
            run = CleanupRun.objects.create(
                policy_version=current_version(policy),
                area=policy.area,
                rows_of="" if policy.area else policy.model,
                dry_run=dry_run or policy.mode == Mode.REPORT,
                actor=actor.name[:150],
                actor_kind=actor.kind,
            )
            write_entry(run, "run_started", actor, now=now, evidence={"dry_run": run.dry_run})
    except IntegrityError as error:
        raise RunActive(_active_message(policy)) from error
    return run


def _as_it_is(policy: RetentionPolicy) -> RetentionPolicy:
    """The policy as it is now, kept from being edited, and its area from being disabled, until the commit."""
    rows = RetentionPolicy.objects.select_for_update(no_key=True)
    stored = rows.filter(pk=policy.pk).first()
    if stored is None:
        raise OperationRefused(f"policy {policy.name!r} was never saved, or is gone")
    if stored.mode == Mode.OFF:
        raise OperationRefused(f"policy {stored.name!r} is off")
    if stored.area_id is not None:
        stored.area = StagingArea.objects.select_for_update(no_key=True).get(pk=stored.area_id)
        if not stored.area.enabled:
            raise OperationRefused(f"area {stored.scope!r} is disabled")
    return stored


def _scope(thing: RetentionPolicy | CleanupRun) -> dict[str, Any]:
    """Lookups of the runs that compete with those of `thing`: of its area, or of its model."""
    if thing.area_id is not None:
        return {"area_id": thing.area_id}
    model = thing.model if isinstance(thing, RetentionPolicy) else thing.rows_of
    return {"area__isnull": True, "rows_of": model}


def _active_message(policy: RetentionPolicy) -> str:
    active = CleanupRun.objects.filter(state__in=ACTIVE_STATES, **_scope(policy)).first()
    which = f": run {active.pk}, {active.get_state_display()}" if active else ""
    what = "area" if policy.area else "model"
    return f"{what} {policy.scope!r} has an active run{which}"


def queue_run(policy: RetentionPolicy, *, actor: Actor, dry_run: bool = False) -> CleanupRun:
    """Make a run and hand it to the worker. Raises what `start_run` does."""
    with transaction.atomic():
        run = start_run(policy, actor, dry_run=dry_run)
        wake(run.pk)
    return run


def wake(run_id: UUID) -> None:
    """Tell the worker, once the open transaction is committed, that a run has work to do."""
    transaction.on_commit(partial(send, _CONTINUE, str(run_id)), robust=True)


def send(task: str, *arguments: str) -> None:
    """Send a wake-up. One that cannot be sent is logged: the next tick sends another."""
    try:
        current_app.send_task(task, args=arguments, retry=False)
    except (OperationalError, OSError) as error:
        logger.warning("no worker could be woken for %s: %s", task, error)


def approve(run: CleanupRun, *, files: int, actor: Actor) -> CleanupRun:
    """Let a plan above its brakes go ahead, for a person who names how many files it moves.

    An area marked `protected` needs two persons; until the second one the run goes on waiting.

    Raises:
        OperationRefused: it does not wait for approval, the number is wrong, this person has approved it, or
            its policy was changed since: it would do what nobody wants any more.
    """
    now = database_now()
    expire_plans(now, **_scope(run))
    with transaction.atomic():
        run = _locked(run)
        _check_approval(run, files, actor)
        run.approvals = [*run.approvals, {"actor": actor.name, "at": now.isoformat(), "files": files}]
        if len(run.approvals) >= needed_approvals(run):
            run.state = RunState.APPROVED
            wake(run.pk)
        run.save(update_fields=["approvals", "state"])
        evidence = {"files": files, "digest": run.plan_digest, "of": needed_approvals(run)}
        write_entry(run, "approved", actor, now=now, evidence=evidence)
    return run


def needed_approvals(run: CleanupRun) -> int:
    """How many persons must approve the run's plan."""
    return 2 if run.area and run.area.protected else 1


def _locked(run: CleanupRun) -> CleanupRun:
    CleanupRun.objects.select_for_update().get(pk=run.pk)
    return find_run(run.pk)


def _check_approval(run: CleanupRun, files: int, actor: Actor) -> None:
    if run.state != RunState.AWAITING_APPROVAL:
        raise OperationRefused(f"the run is {run.get_state_display()}, not awaiting approval")
    newest = current_version(run.policy_version.policy)
    if newest.pk != run.policy_version_id:
        raise OperationRefused(
            f"the plan is of version {run.policy_version.number} of the policy, which is at {newest.number}: "
            "reject it, and the next run plans anew"
        )
    if files != run.planned_files:
        raise OperationRefused(f"the plan has {run.planned_files} files, not {files}")
    if any(approval["actor"] == actor.name for approval in run.approvals):
        raise OperationRefused("the area is protected: a second person must approve")


def reject(run: CleanupRun, *, reason: str, actor: Actor) -> CleanupRun:
    """End a run that waits for approval.

    Raises:
        OperationRefused: it does not wait, or no reason is given.
    """
    if not reason.strip():
        raise OperationRefused("a rejection needs a reason")
    with transaction.atomic():
        run = _locked(run)
        if run.state != RunState.AWAITING_APPROVAL:
            raise OperationRefused(f"the run is {run.get_state_display()}, not awaiting approval")
        end(run, RunState.REJECTED, actor, message=reason)
    return find_run(run.pk)


def stop(run: CleanupRun, *, actor: Actor) -> CleanupRun:
    """Ask a run to end. One that somebody is carrying out ends after the batch at hand, any other at once.

    Raises:
        OperationRefused: it is over.
    """
    now = database_now()
    with transaction.atomic():
        run = _locked(run)
        if run.state not in ACTIVE_STATES:
            raise OperationRefused(f"the run is over: {run.get_state_display()}")
        CleanupRun.objects.filter(pk=run.pk).update(stop_requested=True)
        if run.lease_until is None or run.lease_until < now:
            end(run, RunState.STOPPED, actor, message=f"stopped by {actor.name}")
        else:
            write_entry(run, "stop_requested", actor, now=now)
    return find_run(run.pk)


def resume(run: CleanupRun) -> CleanupRun:
    """Hand a run with work to do to the worker again.

    Raises:
        OperationRefused: it waits for approval or is over.
    """
    if run.state not in WORKING_STATES:
        raise OperationRefused(f"the run is {run.get_state_display()}: there is nothing to go on with")
    wake(run.pk)
    return run


def end(run: CleanupRun, state: RunState, actor: Actor, *, message: str = "") -> None:
    """End a run from outside. Whoever acts for it finds its token gone. In a transaction of the caller."""
    now = database_now()
    revoke(run.pk)
    CleanupRun.objects.filter(pk=run.pk).update(state=state, finished_at=now, message=message[:500])
    tell_end(find_run(run.pk))
    write_entry(run, f"run_{state}", actor, now=now, reason=message)


def run_topic(run: CleanupRun) -> str:
    """Where its progress is told."""
    return topic_of("run", run.pk)


def said_of(run: CleanupRun, done: int) -> dict[str, Any]:
    """What is told of a run on its topic, which has dealt with `done` files."""
    return {
        "run": str(run.pk),
        "state": run.state,
        "policy": run.policy_version.policy.name,
        "area": run.scope,
        "done": done,
        "total": run.planned_files if run.state not in (RunState.QUEUED, RunState.PLANNING) else 0,
        "bytes": run.planned_bytes,
    }


def tell_end(run: CleanupRun) -> None:
    """Tell the last word of a run that is over, and end its topic. In a transaction of the caller."""
    figures = {name: getattr(run, name) for name in ("trashed", "skipped", "errors", "message")}
    JobFeed("run", run.pk).finish({**said_of(run, run.planned_files), **figures})


def expire_plans(now: datetime, **scope: Any) -> int:
    """End the runs (within `scope`, lookups) whose plan is too old to be carried out; return how many."""
    stale = CleanupRun.objects.select_related("area", "policy_version__policy").filter(
        state__in=[RunState.AWAITING_APPROVAL, RunState.APPROVED], plan_expires_at__lt=now, **scope
    )
    ended = 0
    for run in stale:
        with transaction.atomic():
            # Approved or taken up meanwhile: then whoever acts checks the age of the plan.
            if CleanupRun.objects.select_for_update().filter(pk=run.pk, state=run.state).exists():
                end(run, RunState.EXPIRED, Actor.system(), message="nobody carried out the plan in time")
                ended += 1
    return ended


def write_entry(
    run: CleanupRun,
    action: str,
    actor: Actor,
    *,
    now: datetime,
    reason: str | None = None,
    evidence: dict[str, Any] | None = None,
) -> None:
    """Write one audit entry about a run as a whole."""
    entry = record(
        actor, action, now=now, run=run.pk, area=run.scope, reason=reason,
        policy_version=version_label(run.policy_version), evidence=evidence,
    )  # fmt: skip
    DatabaseAuditSink().write([entry])


def actor_of(run: CleanupRun) -> Actor:
    """Who started the run: what it does is done in that name."""
    return Actor(name=run.actor, kind=run.actor_kind)


def working_runs() -> Iterable[CleanupRun]:
    """Runs that somebody should be carrying out."""
    return CleanupRun.objects.filter(state__in=WORKING_STATES).order_by("created_at")
