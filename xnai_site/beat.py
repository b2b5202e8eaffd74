"""Beat's schedule, proof against a clock that was ahead for a while.

Celery counts from the last run, by the wall clock. Once that has jumped a year ahead and back, every last run
lies in the future, and nothing would run for a year. Here such a run is taken for one of just now.
"""

from __future__ import annotations

import logging
import socket
from datetime import timedelta
from typing import Any

from django.db import DatabaseError
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler

from bus import pulses

logger = logging.getLogger(__name__)

#: A last run is further ahead only after a jump: clocks are never more apart than this.
AHEAD = timedelta(minutes=1)


class SteadyScheduler(DatabaseScheduler):  # type: ignore[misc]
    """See the module."""

    def setup_schedule(self) -> None:
        """Read the schedule; note that beat has begun, from when on workers are expected to hear of it."""
        super().setup_schedule()
        try:
            pulses.beat_began(socket.gethostname())
        except DatabaseError as error:
            # The ticks matter more than the note, and write to the same database in a moment.
            logger.warning("that beat has begun was not noted: %s", error)

    def tick(self, *args: Any, **options: Any) -> Any:
        """Run what is due; return the seconds until the next time."""
        self._come_back_from_the_future()
        return super().tick(*args, **options)

    def _come_back_from_the_future(self) -> None:
        now = timezone.now()
        ahead = [entry for entry in self.schedule.values() if _is_ahead(entry.last_run_at, now)]
        if not ahead:
            return
        logger.warning("the clock was set back: %d tasks are counted from now on", len(ahead))
        PeriodicTask.objects.filter(last_run_at__gt=now + AHEAD).update(last_run_at=now)
        for entry in ahead:
            entry.last_run_at = entry.model.last_run_at = now
        # The times that were worked out before lie in the future, too.
        self._heap = None


def _is_ahead(moment: Any, now: Any) -> bool:
    if moment is None:
        return False
    return bool((moment if timezone.is_aware(moment) else timezone.make_aware(moment)) > now + AHEAD)
