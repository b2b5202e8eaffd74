"""When background processes were last heard of: workers whenever they begin a task, beat when it begins.

A worker that is frozen, dead or stuck begins nothing, and that shows here without anybody having to ask it:
beat sends a task every few seconds. Who judges how long is too long (`xnai_site.checkup`) reads the rows.
Moments are by the clock of the database. Writing is one statement, at most every two seconds a process.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta

from django.db.models.functions import Now

from bus.models import Pulse

WORKER, BEAT = "worker", "beat"

#: A process that works fast says so no more often than this (s).
_PAUSE = 2.0

_noted: dict[tuple[int, str], float] = {}


def worker_began(name: str) -> None:
    """Note that the worker `name` has begun a task."""
    # By process: what a fork has inherited was said by its parent.
    key, now = (os.getpid(), name), time.monotonic()
    if now - _noted.get(key, -_PAUSE) < _PAUSE:
        return
    _noted[key] = now
    _note(WORKER, name, ["at"])


def beat_began(name: str) -> None:
    """Note that beat has just begun on the machine `name`."""
    _note(BEAT, name, ["at", "started_at"])


def _note(kind: str, name: str, changes: list[str]) -> None:
    Pulse.objects.bulk_create(
        [Pulse(kind=kind, name=name[:200], started_at=Now(), at=Now())],
        update_conflicts=True,
        unique_fields=["kind", "name"],
        update_fields=changes,
    )


def worker_ended(name: str) -> None:
    """Forget a worker that says goodbye, so that nobody misses it."""
    Pulse.objects.filter(kind=WORKER, name=name[:200]).delete()


def forget_old(now: datetime, *, after: timedelta = timedelta(days=1)) -> None:
    """Forget workers that have long been gone, without a goodbye, while others work."""
    Pulse.objects.filter(kind=WORKER, at__lt=now - after).delete()
