"""Jobs that are under way: a lease each, so that one whose worker has died does not seem to run for ever.

`Progress` takes the lease when a job starts and gives it back when it ends; between, one thread of the
process renews the leases of all its jobs in one statement, whatever the jobs themselves are busy with. A
lease that is over is first doubted, for after an outage of the database all of them are; if it is not renewed
then either, beat ends the task as failed (`bus.tasks.end_lost_tasks`). Each run draws a name of its own: a
worker that comes back from a freeze finds another run, or none, in its place and says nothing more.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from django.db import DatabaseError, InterfaceError, connection, transaction
from django.db.models import Q
from django.utils import timezone

from bus.conf import conf
from bus.models import RunningTask
from bus.protocol.errors import LogUnavailable

logger = logging.getLogger(__name__)

#: Renewals in the length of a lease: three may fail before it is over.
RENEWALS = 4
#: A job that waits to be tried again is not doubted before its time has come, and this much later.
RETRY_GRACE = timedelta(hours=1)


def take(topic: str) -> str:
    """Take the lease of a job, from whoever had it; return the name of this run.

    Raises:
        LogUnavailable: the database failed.
    """
    run = secrets.token_hex(8)
    now = timezone.now()
    row = RunningTask(
        topic=topic,
        run=run,
        holder=f"{socket.gethostname()}, process {os.getpid()}"[:255],
        started_at=now,
        lease_until=now + conf().task_lease,
    )
    with _as_unavailable():
        RunningTask.objects.bulk_create(
            [row],
            update_conflicts=True,
            unique_fields=["topic"],
            update_fields=["run", "holder", "started_at", "lease_until", "doubted_at"],
        )
    return run


def give_back(run: str) -> bool:
    """Give a lease back; return whether it was still held. Raises `LogUnavailable`."""
    with _as_unavailable():
        return bool(RunningTask.objects.filter(run=run).delete()[0])


def is_held(run: str) -> bool:
    """Tell whether a run still has its lease. Raises `LogUnavailable`."""
    with _as_unavailable():
        return RunningTask.objects.filter(run=run).exists()


def forget(topic: str) -> None:
    """Remove the lease of a job that ends by another's hand. Raises `LogUnavailable`."""
    with _as_unavailable():
        RunningTask.objects.filter(topic=topic).delete()


def wait_until(run: str, moment: datetime) -> None:
    """Have a job wait for its next try without a worker that renews its lease. Raises `LogUnavailable`."""
    with _as_unavailable():
        RunningTask.objects.filter(run=run).update(lease_until=moment + RETRY_GRACE, doubted_at=None)


def renew(runs: Collection[str]) -> set[str]:
    """Renew the leases of these runs; return those that have lost theirs. Raises `LogUnavailable`."""
    with _as_unavailable():
        held = RunningTask.objects.filter(run__in=runs)
        held.update(lease_until=timezone.now() + conf().task_lease, doubted_at=None)
        return set(runs).difference(held.values_list("run", flat=True))


def doubt(now: datetime) -> list[RunningTask]:
    """Doubt the leases that are over; return those that were doubted long enough ago to be given up."""
    over = RunningTask.objects.filter(lease_until__lt=now)
    over.filter(doubted_at=None).update(doubted_at=now)
    return list(over.filter(doubted_at__lte=now - renewal_interval() * 2))


def give_up(row: RunningTask) -> bool:
    """Remove a lease that was not renewed meanwhile; return whether it was there. Within a transaction."""
    still_over = Q(pk=row.pk, run=row.run, lease_until=row.lease_until)
    return bool(RunningTask.objects.filter(still_over).delete()[0])


def renewal_interval() -> timedelta:
    """Return the time between two renewals."""
    return conf().task_lease / RENEWALS


@contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        with transaction.atomic():
            yield
    except (DatabaseError, InterfaceError) as error:
        raise LogUnavailable(f"the database failed: {type(error).__name__}") from error


class Keeper:
    """Renews the leases of this process, in a thread that lives while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: set[str] = set()
        self._lost: set[str] = set()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def keep(self, run: str) -> None:
        """Renew a lease from now on."""
        with self._lock:
            self._runs.add(run)
            if self._thread is None:
                # A stop that found no thread has left it set.
                self._wake.clear()
                self._thread = threading.Thread(target=self._renew_all, name="bus-runs", daemon=True)
                self._thread.start()

    def drop(self, run: str) -> None:
        """Renew it no more."""
        with self._lock:
            self._runs.discard(run)
            self._lost.discard(run)

    def has_lost(self, run: str) -> bool:
        """Tell whether somebody else has the lease, or ended the task."""
        return run in self._lost

    def stop(self) -> None:
        """End the thread, for a clean end of the process; leases run out by themselves."""
        with self._lock:
            self._runs.clear()
            thread = self._thread
        self._wake.set()
        if thread is not None:
            thread.join(5)

    def _renew_all(self) -> None:
        while self._is_needed():
            self._wake.wait(renewal_interval().total_seconds())
            self._wake.clear()
            with self._lock:
                runs = set(self._runs)
            if not runs:
                continue
            try:
                lost = renew(runs)
            except LogUnavailable as error:
                logger.warning("leases of running tasks were not renewed: %s", error)
                continue
            finally:
                connection.close()
            with self._lock:
                self._lost |= lost & self._runs
                self._runs -= lost

    def _is_needed(self) -> bool:
        """Whether there is anything to renew; the thread ends if not, and `keep` starts another."""
        with self._lock:
            if not self._runs:
                self._thread = None
            return bool(self._runs)


keeper = Keeper()


def _after_fork() -> None:
    """Begin anew in a forked child: the thread lives in the parent alone, and so do its jobs."""
    global keeper
    keeper = Keeper()


os.register_at_fork(after_in_child=_after_fork)
