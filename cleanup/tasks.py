"""Celery's way into cleanup: a tick by beat, and wake-ups for what takes longer.

A message carries an id at most and is only a wake-up: a task looks at the rows and does what they say is to
be done, for one slice, and sends another wake-up if it is not through. So a message that comes twice, late or
not at all does no harm, and no task runs as long as the broker's time-out for redelivery. When a worker
starts it finishes first what the last one was interrupted in.
"""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from celery import shared_task
from celery.signals import worker_ready

from cleanup.conf import conf
from cleanup.engine.errors import AreaBusy
from cleanup.models import StagingArea
from cleanup.operations import (
    Actor,
    auditing,
    execute,
    looking,
    measuring,
    orders,
    previews,
    reading,
    schedule,
)
from cleanup.operations.purging import has_due, purge_due
from cleanup.operations.restoring import is_waiting
from cleanup.operations.runs import send, wake
from cleanup.staging import content, pipeline, sources, uploads
from cleanup.stores import jobs
from cleanup.stores.leases import WORKING_STATES
from cleanup.stores.sql import database_now

logger = logging.getLogger(__name__)


@shared_task(name="cleanup.tasks.tick")
def tick() -> None:
    """Do what is due by the clock, and wake a worker for what is long."""
    now = database_now()
    done = schedule.tick(now)
    for run_id in [*done.started, *done.reaped]:
        wake(run_id)
    if has_due(now):
        send("cleanup.tasks.purge")
    for preview_id in previews.abandoned_previews(now):
        send(previews.TASK, str(preview_id))
    for order_id in orders.abandoned_orders(now):
        send(orders.TASK, str(order_id))


@shared_task(name="cleanup.tasks.continue_run")
def continue_run(run_id: str) -> None:
    """Start a run or go on with it, for one slice. If somebody else is at it, nothing is done."""
    try:
        run = execute(UUID(run_id), slice_length=conf().slice_length)
    except AreaBusy as busy:
        logger.info("run %s waits for the next tick: %s", run_id, busy)
        return
    if run.state in WORKING_STATES and run.lease_until is None:
        wake(run.pk)


@shared_task(name=orders.TASK)
def order(order_id: str) -> None:
    """Go on with an order on the trash, for one slice. If somebody else is at it, nothing is done."""
    try:
        found = orders.carry_out_order(UUID(order_id), slice_length=conf().slice_length)
    except AreaBusy as busy:
        logger.info("order %s waits for the next tick: %s", order_id, busy)
        return
    if found.state in jobs.OPEN_STATES and found.lease_until is None:
        orders.wake(found.pk)


@shared_task(name=previews.TASK)
def preview(preview_id: str) -> None:
    """Say what a policy would do. If somebody else is at it, or it is over, nothing is done."""
    previews.carry_out_preview(UUID(preview_id))


@shared_task(name=pipeline.TASK)
def distil(job_id: str) -> None:
    """Take a file through the pipeline. If somebody else is at it, or it is through, nothing is done."""
    pipeline.carry_out(UUID(job_id))


@shared_task(name="cleanup.tasks.purge")
def purge() -> None:
    """Purge what is due in all areas, for one slice."""
    report = purge_due(slice_length=conf().slice_length)
    if report.unfinished:
        send("cleanup.tasks.purge")


@shared_task(name="cleanup.tasks.restore")
def restore() -> None:
    """Go on with queued restores, some thousand items at a time. Where others work, the tick goes on."""
    if schedule.recover_all() and is_waiting():
        send("cleanup.tasks.restore")


@shared_task(name="cleanup.tasks.recover")
def recover() -> None:
    """Finish what was interrupted, adopt what has no row, and wake runs that lost their worker."""
    recovered = schedule.recover_all(with_adoption=True)
    if recovered:
        logger.warning("recovered %s items after an interruption", recovered)
    for run_id in schedule.abandoned(database_now()):
        wake(run_id)


@shared_task(name="cleanup.tasks.audit")
def audit() -> None:
    """Seal the audit where a checkpoint is due, and go on with its reading, for one slice. What somebody
    has asked for goes on at once."""
    auditing.tend(conf().slice_length)
    if reading.is_awaited():
        send("cleanup.tasks.audit")


@shared_task(name="cleanup.tasks.measure")
def measure() -> None:
    """Measure what areas hold, where it is due: for the console."""
    measuring.measure_due()


@shared_task(name="cleanup.tasks.tend_uploads")
def tend_uploads() -> None:
    """End uploads that got no byte in their time, and go on with those whose process has died."""
    now = database_now()
    uploads.expire(now)
    uploads.recover(now)


@shared_task(name="cleanup.tasks.tend_pipeline")
def tend_pipeline() -> None:
    """Wake workers for files that nobody takes through the pipeline, and forget those that are gone."""
    now = database_now()
    for job_id in pipeline.due(now):
        send(pipeline.TASK, str(job_id))
    pipeline.forget_jobs(now)


@shared_task(name="cleanup.tasks.forget")
def forget() -> None:
    """Remove what nobody needs any more: previews of yesterday, contents to which no row refers."""
    previews.forget_previews(database_now())
    content.forget_contents()


@shared_task(name=looking.TASK)
def look_for_orphans(area_id: str, actor: str, kind: str) -> None:
    """Look at an area because somebody asked for it. If it is gone meanwhile, nothing is done."""
    area = StagingArea.objects.filter(pk=area_id).first()
    if area is not None:
        looking.carry_out_look(area, Actor(name=actor, kind=kind))


@shared_task(name="cleanup.tasks.measure_area")
def measure_area(area_id: str) -> None:
    """Measure what one area holds because somebody asked for it, within the slice of a worker."""
    area, now = StagingArea.objects.filter(pk=area_id).first(), database_now()
    if area is not None:
        measuring.measure_trash(area, now=now)
        measuring.measure_area(area, now=now, limit=conf().slice_length)


@shared_task(name="cleanup.tasks.tick_sources")
def tick_sources() -> None:
    """Queue the sources that are due, and wake workers for them."""
    for key in sources.tick(database_now()):
        sources.wake(key)


@shared_task(name=sources.TASK)
def refresh_source(key: str) -> None:
    """Ask a source for news. If somebody else is at it, or nobody waits for it, nothing is done."""
    sources.refresh(int(key))


@worker_ready.connect
def recover_first(**_: Any) -> None:
    """Have the new worker's pool recover: forks must not share a connection that this process opened."""
    send("cleanup.tasks.recover")
    send("cleanup.tasks.tend_uploads")
    send("cleanup.tasks.tend_pipeline")
