"""Trashed items that a hold or a verifier keeps although they are due: put off, and asked about again later.

`ask_again_at` of the row says when. It is cleared when somebody has changed what the answer hangs on: a hold
was released, or a policy saved.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import Q

from cleanup.engine.states import ItemState
from cleanup.models import CleanupItem, RetentionPolicy, StagingArea

#: A kept item is asked about again after as long as it is overdue, which doubles the pause each time.
SHORTEST_PAUSE, LONGEST_PAUSE = timedelta(hours=1), timedelta(hours=24)


def again_at(now: datetime, *, purge_after: datetime | None, until: datetime | None = None) -> datetime:
    """When to ask again about an item that is kept at `now`.

    Args:
        now: of the answer.
        purge_after: the end of the item's grace.
        until: when the answer will change in any case: the end of a hold.
    """
    overdue = timedelta(0) if purge_after is None else now - purge_after
    again = now + min(max(overdue, SHORTEST_PAUSE), LONGEST_PAUSE)
    return again if until is None else min(again, until)


def is_asked_at(now: datetime) -> Q:
    """The condition that an item is not put off at `now`."""
    return Q(ask_again_at__isnull=True) | Q(ask_again_at__lte=now)


def ask_now(*, area: StagingArea | None = None, policy: RetentionPolicy | None = None) -> int:
    """Make items that were put off due again, of an area or of a policy; return how many."""
    rows = CleanupItem.objects.filter(state=ItemState.TRASHED, ask_again_at__isnull=False)
    if area is not None:
        rows = rows.filter(area=area)
    if policy is not None:
        rows = rows.filter(run__policy_version__policy=policy)
    return rows.update(ask_again_at=None)
