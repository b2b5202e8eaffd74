"""Who may act for a run: a lease in its row, with a fencing token.

Whoever takes the lease raises the token; every later write to the run names the token it was given and
changes nothing if the token has moved on. So a worker that was paused, and whose run another has taken over,
cannot commit anything. A lease ends by time, by being given back, or at once when its owner was a process of
this host that is dead.
"""

from __future__ import annotations

import os
import socket
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

import psutil
from django.db.models import F, Q

from cleanup.conf import conf
from cleanup.engine.errors import EngineError
from cleanup.models import CleanupRun, RunState

#: States in which somebody has work to do on a run.
WORKING_STATES = (RunState.QUEUED, RunState.PLANNING, RunState.APPROVED, RunState.RUNNING)


class LeaseLost(EngineError):
    """Another worker has taken the run over, or it was ended from outside."""

    code = "lease_lost"
    retryable = True


def owner_name() -> str:
    """This process, such that another process of the same host can tell whether it still lives."""
    return _owner_name(os.getpid())


@lru_cache(maxsize=4)
def _owner_name(pid: int) -> str:
    return f"{socket.gethostname()[:60]}:{_namespace()}:{pid}:{_started(pid)}"


@lru_cache(maxsize=1)
def _namespace() -> str:
    """The process id namespace: containers of one host name may count their processes apart."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"


def _started(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def is_dead(owner: str) -> bool:
    """Whether `owner` was a process of this host that has ended. In doubt it lives."""
    host, _, rest = owner.partition(":")
    namespace, _, process = rest.partition(":")
    pid, _, started = process.partition(":")
    if host != socket.gethostname()[:60] or namespace != _namespace() or not pid.isdigit():
        return False
    return str(_started(int(pid))) != started


def take(run_id: UUID, *, now: datetime) -> int | None:
    """Take the lease of a run that has work to do; return the token, or None if somebody else holds it."""
    run = CleanupRun.objects.filter(pk=run_id, state__in=WORKING_STATES).first()
    if run is None:
        return None
    free = Q(lease_until__isnull=True) | Q(lease_until__lt=now)
    if run.lease_owner and is_dead(run.lease_owner):
        free |= Q(lease_owner=run.lease_owner)
    taken = CleanupRun.objects.filter(free, pk=run_id, fencing_token=run.fencing_token, state=run.state)
    token = run.fencing_token + 1
    changed = taken.update(fencing_token=token, lease_owner=owner_name(), lease_until=now + conf().run_lease)
    return token if changed else None


def advance(run_id: UUID, token: int, *, now: datetime, **changes: Any) -> None:
    """Write `changes` to the run and renew the lease.

    Raises:
        LeaseLost: the token is no longer the run's; nothing was written.
    """
    held = CleanupRun.objects.filter(pk=run_id, fencing_token=token, state__in=WORKING_STATES)
    if not held.update(lease_until=now + conf().run_lease, **changes):
        raise LeaseLost(f"run {run_id} has passed to another worker")


def release(run_id: UUID, token: int, **changes: Any) -> bool:
    """Give the lease back, and write `changes`. False if it was lost."""
    held = CleanupRun.objects.filter(pk=run_id, fencing_token=token, state__in=WORKING_STATES)
    return bool(held.update(lease_until=None, lease_owner="", **changes))


def revoke(run_id: UUID) -> None:
    """Raise the token, so that whoever acts for the run finds it gone."""
    CleanupRun.objects.filter(pk=run_id).update(
        fencing_token=F("fencing_token") + 1, lease_until=None, lease_owner=""
    )
