"""What beat does for the bus: take away what dead processes left, trim the log, forget old sessions.

Each is short, may run twice at once, and does in one run whatever has come due: a missed tick is no harm.
"""

from __future__ import annotations

import logging

from celery import shared_task
from django.utils import timezone

from bus import leases, presence, retention
from bus.conf import conf
from bus.models import ConnectionSession

logger = logging.getLogger(__name__)

#: Sessions deleted in one statement.
BATCH = 1_000


@shared_task(name="bus.tasks.reap_connections", ignore_result=True)
def reap_connections() -> int:
    """Remove connections whose server or heartbeat is gone, and end their presence; return how many."""
    now = timezone.now()
    went, servers = leases.reap(now)
    presence.end_of_dead(now)
    left = presence.end_due(now)
    if went or servers or left:
        logger.info("reaped %d connections, servers %s, %d presences", went, servers, left)
    return went


@shared_task(name="bus.tasks.trim_log", ignore_result=True)
def trim_log() -> int:
    """Forget events by the rules of their topics; return how many."""
    return sum(retention.trim_all().values())


@shared_task(name="bus.tasks.purge_sessions", ignore_result=True)
def purge_sessions() -> int:
    """Forget how connections ended long ago; return how many."""
    oldest = timezone.now() - conf().session_retention
    gone = 0
    while batch := list(
        ConnectionSession.objects.filter(disconnected_at__lt=oldest).values_list("pk", flat=True)[:BATCH]
    ):
        gone += ConnectionSession.objects.filter(pk__in=batch).delete()[0]
    return gone
