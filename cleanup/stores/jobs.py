"""Who is at a job (a preview, an order on the trash): a lease in its row, as runs have one.

A job waits, is taken by one worker, renews its lease while it goes on, and ends. Every write of a worker
names the lease that it was given; once somebody else has taken the job over, such a write changes nothing and
raises `LeaseLost`. What a job writes besides its own row it writes in one transaction with a renewal, so a
worker that was paused leaves nothing behind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from django.db import DatabaseError
from django.db.models import QuerySet

from cleanup.conf import conf
from cleanup.engine.errors import AreaBusy, EngineError, RunStopped
from cleanup.models import JobState
from cleanup.models.console import Job
from cleanup.stores.leases import LeaseLost, is_dead, owner_name

logger = logging.getLogger(__name__)

JobT = TypeVar("JobT", bound=Job)

#: States in which somebody has work to do.
OPEN_STATES = (JobState.QUEUED, JobState.RUNNING)

#: A job that was just ordered is left to the worker who was woken for it.
_START = timedelta(seconds=15)


def take(model: type[JobT], job_id: UUID, *, now: datetime) -> JobT | None:
    """Take a job that nobody is at; return its row, or None if somebody is, or it is over."""
    job = _rows(model).filter(pk=job_id, state__in=OPEN_STATES).first()
    if job is None or not _is_free(job, now):
        return None
    taken = _rows(model).filter(
        pk=job_id, state=job.state, lease_owner=job.lease_owner, lease_until=job.lease_until
    )
    until = now + conf().run_lease
    if not taken.update(state=JobState.RUNNING, lease_owner=owner_name(), lease_until=until):
        return None
    return _rows(model).get(pk=job_id)


def renew(job: Job, *, now: datetime, **changes: Any) -> None:
    """Write `changes` to the row and renew the lease.

    Raises:
        LeaseLost: the job has passed to somebody else, or is over; nothing was written.
    """
    if not _held(job).update(lease_until=now + conf().run_lease, **changes):
        raise LeaseLost(f"{job._meta.verbose_name} {job.pk} has passed to another worker")


def end(job: Job, state: JobState, *, now: datetime, message: str = "", **changes: Any) -> bool:
    """End the job in `state`. False, and nothing is written, if it has passed to somebody else."""
    changes |= {"finished_at": now, "message": message[:500], "lease_owner": "", "lease_until": None}
    return bool(_held(job).update(state=state, **changes))


def give_back(job: Job, **changes: Any) -> bool:
    """Let the next worker go on with the job. False if it has passed to somebody else already."""
    return bool(_held(job).update(lease_owner="", lease_until=None, **changes))


@contextmanager
def ended_by(job: Job, finish: Callable[[JobState, str], None]) -> Iterator[None]:
    """End the job by `finish(state, message)` as whatever stops its work asks for.

    A job that has passed to another worker is left to it, and one whose area is busy is given back.

    Raises:
        AreaBusy: the job can be gone on with.
        django.db.DatabaseError: the row is as it was; the lease will run out, and another worker goes on.
        Exception: something unforeseen, after the job has failed by it.
    """
    try:
        yield
    except LeaseLost as lost:
        logger.warning("%s", lost)
    except RunStopped as stopped:
        finish(JobState.STOPPED, str(stopped))
    except AreaBusy:
        give_back(job)
        raise
    except EngineError as error:
        finish(JobState.REFUSED, str(error))
    except OSError as error:
        finish(JobState.FAILED, f"{type(error).__name__}: {error}")
    except DatabaseError:
        raise
    except Exception as error:
        finish(JobState.FAILED, f"{type(error).__name__}: {error}")
        raise


def abandoned(model: type[JobT], *, now: datetime) -> list[UUID]:
    """Jobs with work to do that nobody is doing."""
    open_jobs = _rows(model).filter(state__in=OPEN_STATES).order_by("created_at")
    return [job.pk for job in open_jobs if _is_free(job, now) and _is_left(job, now)]


def _is_free(job: Job, now: datetime) -> bool:
    return job.lease_until is None or job.lease_until < now or is_dead(job.lease_owner)


def _is_left(job: Job, now: datetime) -> bool:
    return bool(job.lease_owner) or job.created_at < now - _START


def _held(job: Job) -> QuerySet[Job]:
    rows: QuerySet[Job] = type(job)._default_manager.filter(
        pk=job.pk, state=JobState.RUNNING, lease_owner=owner_name()
    )
    return rows


def _rows(model: type[JobT]) -> QuerySet[JobT]:
    return model._default_manager.all()
