"""How full the disks of the areas are: asked now, remembered by the minute, and forecast.

Every tick notes one sample of each area and minute at most; beyond a day one an hour is kept, beyond a week
none. A share of the disk is what an ordinary user cannot write any more, blocks reserved for root among it,
as `cleanup_area_used_ratio` has it. A disk that cannot be asked, or is not the area's (nothing is mounted
there), gives no figure rather than a wrong one.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Max, Min
from django.db.models.functions import TruncHour

from cleanup.engine.errors import AreaRefused
from cleanup.engine.forecast import Sample, seconds_until_full
from cleanup.models import StagingArea, UsageSample

#: The samples that a forecast looks at: usage goes on as it did in this time.
WINDOW = timedelta(hours=6)

#: How long every sample is kept, and how long one an hour.
_BY_MINUTE, _BY_HOUR = timedelta(days=1), timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes of a file system."""

    used: int
    total: int

    @property
    def percent(self) -> float:
        """The share in use, 0 to 100."""
        return 100 * self.used / self.total if self.total else 0.0


def disk_of(area: StagingArea) -> Disk:
    """The disk that an area lies on.

    Raises:
        OSError: it cannot be asked.
        AreaRefused: another file system is there than the one that was registered.
    """
    descriptor = os.open(area.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if area.device and os.fstat(descriptor).st_dev != int(area.device):
            raise AreaRefused("device", f"{area.path} is not on the disk that was registered")
        figures = os.fstatvfs(descriptor)
    finally:
        os.close(descriptor)
    free = figures.f_bavail * figures.f_frsize
    return Disk(used=figures.f_blocks * figures.f_frsize - free, total=figures.f_blocks * figures.f_frsize)


def disks(areas: Iterable[StagingArea]) -> dict[int, Disk]:
    """The disks that can be asked, by the key of their area."""
    found = {}
    for area in areas:
        try:
            found[area.pk] = disk_of(area)
        except (OSError, AreaRefused):
            continue
    return found


def sample(now: datetime) -> None:
    """Note how full each area's disk is, unless this minute has been noted."""
    minute = now.replace(second=0, microsecond=0)
    areas = list(StagingArea.objects.filter(enabled=True).order_by())
    hour = UsageSample.objects.filter(area__in=areas, at__gte=minute.replace(minute=0), at__lte=minute)
    newest = hour.aggregate(at=Max("at"))["at"] if areas else minute
    if newest == minute:
        return
    if newest is None:
        thin(now)
    # Of two ticks at once the second finds the minute taken.
    UsageSample.objects.bulk_create(
        (
            UsageSample(area_id=area, at=minute, used_bytes=disk.used, total_bytes=disk.total)
            for area, disk in disks(areas).items()
        ),
        ignore_conflicts=True,
    )


def thin(now: datetime) -> None:
    """Forget what is too old, what a clock that was ahead has noted, and all but one an hour of the rest."""
    UsageSample.objects.filter(at__lt=now - _BY_HOUR).delete()
    UsageSample.objects.filter(at__gt=now).delete()
    old = UsageSample.objects.filter(at__lt=now - _BY_MINUTE).order_by()
    hours = old.values("area", hour=TruncHour("at")).annotate(first=Min("pk"))
    old.exclude(pk__in=hours.values("first")).delete()


def forecasts(now: datetime, *, areas: Iterable[int] | None = None) -> dict[int, float]:
    """Seconds until the disk of each area is full, by its key; those that nobody can tell are missing.

    Args:
        now: not before the samples that count.
        areas: keys of these alone.
    """
    recent = UsageSample.objects.filter(at__gt=now - WINDOW, at__lte=now).order_by("area_id", "at")
    recent = recent if areas is None else recent.filter(area__in=areas)
    series: dict[int, list[Sample]] = defaultdict(list)
    for area, at, used, total in recent.values_list("area_id", "at", "used_bytes", "total_bytes"):
        series[area].append(Sample(at, used, total))
    found = {area: seconds_until_full(samples, now=now) for area, samples in series.items()}
    return {area: seconds for area, seconds in found.items() if seconds is not None}
