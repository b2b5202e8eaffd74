"""When a disk is too full: how much has to go, what the trash can give at once, and what stands in the way.

Above an area's high mark its policy of the rule `watermark` first purges the oldest trash, down to the low
mark and never anything before its floor, then plans what else has to go. What was trashed frees nothing until
it is purged: what is on its way out already is not planned for a second time. Where the low mark cannot be
reached, the run says how many bytes each reason keeps. Figures of a disk are an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Sum
from django.db.models.functions import Coalesce

from cleanup.engine.policy import Policy
from cleanup.engine.reasons import Reason
from cleanup.models import CleanupItem, ItemState, StagingArea
from cleanup.operations.outcomes import OperationRefused
from cleanup.operations.purging import purge_due
from cleanup.operations.usage import Disk, disk_of
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.sql import database_now

#: What the trash holds under a promise, beside the reasons of the engine.
WITHIN_FLOOR = "within_floor"

#: Purging goes on for so long before the caller is heard from: a third of the lease of a run.
_PART = timedelta(seconds=20)

Measure = Callable[[StagingArea], Disk]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relief:
    """What became of a disk that was too full, in bytes."""

    #: In use above the low mark, when the run began; 0: it was not above the high mark.
    needed: int
    #: Of that, what purging has freed.
    freed: int = 0
    #: What the plan takes to the trash, from where it is purged after its floor.
    planned: int = 0
    #: What cannot be freed.
    short: int = 0
    #: Reason -> bytes that it keeps, in the trash and out of it.
    blocked: dict[str, int] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """As `CleanupRun.facts` holds it."""
        return asdict(self)


def needed(area: StagingArea, *, used: int | None = None, total: int | None = None) -> int:
    """Bytes in use above the low mark, once the disk is above the high one; else 0.

    Args:
        area: with its marks.
        used: of its disk, in bytes; it is asked unless both figures are given.
        total: likewise.

    Raises:
        OSError: the disk cannot be asked.
        AreaRefused: it is not the area's.
    """
    disk = disk_of(area) if used is None or total is None else Disk(used=used, total=total)
    return _above_low(area, disk) if disk.used * 100 > area.high_watermark * disk.total else 0


def to_plan(area: StagingArea, policy: Policy, *, now: datetime, relief: Relief | None = None) -> Relief:
    """What a policy has to plan is `short` of the answer.

    What the trash gives back no later than what the policy trashes now is on its way already. Unless a relief
    has tried it, what is past its floor counts with that; afterwards it is known to be blocked.
    """
    found = relief or _unrelieved(needed(area))
    by = now + (policy.grace_period if policy.floor is None else policy.floor)
    coming = _in_trash(area, by=by, after=now if relief else None) if found.short else 0
    return replace(found, short=max(found.short - coming, 0))


def _unrelieved(wanted: int) -> Relief:
    return Relief(needed=wanted, short=wanted)


def _above_low(area: StagingArea, disk: Disk) -> int:
    """Rounded up, so that what is freed suffices."""
    return max(disk.used - area.low_watermark * disk.total // 100, 0)


def _in_trash(area: StagingArea, *, by: datetime | None = None, after: datetime | None = None) -> int:
    """Bytes in the trashes of the area's disk whose floor ends in this time."""
    rows = CleanupItem.objects.filter(state=ItemState.TRASHED)
    rows = rows.filter(area__device=area.device) if area.device else rows.filter(area=area)
    rows = rows.annotate(floor_ends=Coalesce("purge_floor", "purge_after"))
    rows = rows if by is None else rows.filter(floor_ends__lte=by)
    rows = rows if after is None else rows.filter(floor_ends__gt=after)
    return rows.aggregate(total=Sum("size"))["total"] or 0


def relieve(
    area: StagingArea,
    *,
    now: datetime | None = None,
    measure: Measure = disk_of,
    beat: Callable[[], object] | None = None,
    begun: bool = False,
) -> Relief:
    """Purge the oldest trash of an area above its high mark, until its disk is at the low mark.

    Args:
        area: with its marks.
        now: the database's time unless given.
        measure: asks the disk, before and after each part.
        beat: called after each part; what it raises ends the purging.
        begun: the disk was above the high mark when this began, and is cleared down to the low one.

    Raises:
        OSError: the disk cannot be asked.
        AreaRefused: it is not the area's.
    """
    disk = measure(area)
    wanted = _above_low(area, disk) if begun else needed(area, used=disk.used, total=disk.total)
    left = wanted
    blocked: dict[str, int] = {}
    while left:
        part = purge_due(now=now, area=area, under_pressure=True, until_freed=left, slice_length=_PART)
        blocked = part.kept_bytes
        left = _above_low(area, measure(area))
        if beat is not None:
            beat()
        if not part.purged:
            break
    return Relief(needed=wanted, freed=max(wanted - left, 0), short=left, blocked=dict(blocked))


def told(
    relief: Relief, area: StagingArea, *, planned: int, kept: Mapping[str, int], now: datetime
) -> Relief:
    """What a relief comes to with a plan for what it left.

    Args:
        relief: of the trash.
        area: of the run.
        planned: bytes that the plan takes to the trash.
        kept: reason -> bytes that stay in the area.
        now: the moment of the plan.
    """
    waits = _in_trash(area, after=now)
    short = max(relief.short - planned, 0)
    blocked = dict(relief.blocked)
    if short:
        for reason, size in kept.items():
            if reason != Reason.NOT_NEEDED:
                blocked[reason] = blocked.get(reason, 0) + size
        blocked[WITHIN_FLOOR] = waits
    shown = {reason: size for reason, size in sorted(blocked.items()) if size}
    return replace(relief, planned=planned, short=short, blocked=shown if short else {})


def relieved_again(facts: dict[str, Any], area: StagingArea, *, beat: Callable[[], object]) -> dict[str, Any]:
    """Purge once more when a run has trashed what it planned, for what has no floor; return its facts."""
    if not facts.get("needed"):
        return facts
    again = relieve(area, beat=beat, begun=True)
    return facts | {"freed": facts["freed"] + again.freed}


def sentence(facts: Mapping[str, Any]) -> str:
    """What a run that cannot reach the low mark says about it; empty if it can."""
    if not facts.get("short"):
        return ""
    blocked = ", ".join(f"{reason} {size}" for reason, size in facts["blocked"].items())
    return f"{facts['short']} bytes above the low watermark cannot be freed (bytes kept: {blocked or 'none'})"


def set_marks(area: StagingArea, *, high: int, low: int, actor: Actor) -> StagingArea:
    """Set from which share of its disk on an area is cleared, and down to which, in percent.

    Raises:
        OperationRefused: not 0 <= low < high <= 100.
    """
    if not 0 <= low < high <= 100:
        raise OperationRefused(
            f"watermarks are percent, the low one below the high one, not {low} and {high}"
        )
    with transaction.atomic():
        StagingArea.objects.filter(pk=area.pk).update(high_watermark=high, low_watermark=low)
        evidence = {"high": high, "low": low, "were": [area.high_watermark, area.low_watermark]}
        entry = record(actor, "watermarks_set", now=database_now(), area=area.name, evidence=evidence)
        DatabaseAuditSink().write([entry])
    area.high_watermark, area.low_watermark = high, low
    return area
