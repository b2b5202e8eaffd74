"""What beat does for the bus: take away what dead processes left, end jobs whose worker is gone, trim the
log, forget old sessions.

Each is short, may run twice at once, and does in one run whatever has come due: a missed tick is no harm.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from celery import shared_task
from celery.signals import task_prerun, worker_shutdown
from django.db import transaction
from django.utils import timezone

from bus import history, pulses, retention, runs
from bus.access import revocation
from bus.clocks import Calm
from bus.conf import conf
from bus.connections import leases, orders, reaper
from bus.models import ConnectionSession, RunningTask, Topic
from bus.protocol.errors import TopicEnded
from bus.publishing import end

logger = logging.getLogger(__name__)

#: Sessions deleted in one statement.
BATCH = 1_000
#: A clock that has jumped is believed again after so long: time for somebody, or NTP, to set it right.
SETTLE = timedelta(minutes=10)
#: By so much the clocks of two machines may differ.
CLOCKS_APART = timedelta(minutes=5)

calm = Calm(settle=SETTLE.total_seconds(), tolerance=30.0)


def is_time_certain() -> bool:
    """Tell whether this process may forget things for their age.

    Its clock has gone evenly for a while, and agrees with those of the servers.
    """
    if not calm.look():
        return False
    if leases.clocks_agree(timezone.now(), CLOCKS_APART):
        return True
    logger.warning("this clock and that of a server disagree: nothing is forgotten for its age")
    return False


@task_prerun.connect
def hear_of_worker(*, task: Any, **_: Any) -> None:
    """Whatever a worker begins tells that it lives. What runs without one tells nothing."""
    if not task.request.is_eager and task.request.hostname:
        pulses.worker_began(task.request.hostname)


@worker_shutdown.connect
def say_goodbye(*, sender: Any, **_: Any) -> None:
    """A worker that was told to end is not missed."""
    pulses.worker_ended(sender.hostname)


@shared_task(name="bus.tasks.note_figures", ignore_result=True)
def note_figures() -> None:
    """Note how many are connected and how much was said, for the charts of the console."""
    now = timezone.now()
    history.note(now)
    pulses.forget_old(now)


@shared_task(name="bus.tasks.reap_connections", ignore_result=True)
def reap_connections() -> int:
    """Remove connections whose server or heartbeat is gone, and end their presence; return how many."""
    orders.forget_old(timezone.now())
    return reaper.reap()


@shared_task(name="bus.tasks.end_lost_tasks", ignore_result=True)
def end_lost_tasks() -> int:
    """End jobs whose worker is gone as failed; return how many."""
    return sum(map(_end_lost, runs.doubt(timezone.now())))


def _end_lost(row: RunningTask) -> bool:
    """End one, with its lease and in one transaction; False if it was renewed, taken over or ended."""
    words = f"lost: {row.holder}, was to be heard of by {row.lease_until:%H:%M:%S} UTC and was not"
    with transaction.atomic():
        is_open = Topic.objects.filter(name=row.topic, ended_at=None).exists()
        if not runs.give_up(row) or not is_open:
            return False
        said = {"status": "failed", "message": words, "lost": True}
        try:
            end(row.topic, "failed", said, run_id=row.topic.removeprefix("task:"))
        except TopicEnded:
            return False
    logger.warning("%s was ended as failed: %s", row.topic, words)
    return True


@shared_task(name="bus.tasks.trim_log", ignore_result=True)
def trim_log() -> int:
    """Forget events by the rules of their topics; return how many.

    By their age only while the clock may be believed: what is forgotten cannot be had back.
    """
    return sum(retention.trim_all(by_age=is_time_certain()).values())


@shared_task(name="bus.tasks.purge_sessions", ignore_result=True)
def purge_sessions() -> int:
    """Forget how connections ended long ago (return how many), and revoked tokens that are over by now.

    Nothing while the clock is in doubt.
    """
    if not is_time_certain():
        return 0
    oldest = timezone.now() - conf().session_retention
    gone = 0
    while batch := list(
        ConnectionSession.objects.filter(disconnected_at__lt=oldest).values_list("pk", flat=True)[:BATCH]
    ):
        gone += ConnectionSession.objects.filter(pk__in=batch).delete()[0]
    revocation.purge(timezone.now())
    return gone
