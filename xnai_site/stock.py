"""What the first page says about files: the disks of the areas, what became of files, when the trash empties.

Read from what workers have measured (`cleanup.operations.measuring`) and from daily totals: no table that
grows is counted here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Any

from django.db.models import Sum
from django.urls import reverse
from django.utils import timezone

from bus import cells
from cleanup.engine.errors import AreaRefused
from cleanup.models import DailyTotal, StagingArea
from cleanup.operations import usage
from cleanup.operations.measuring import Holding, holdings

DAYS_BACK = 14
#: Weeks of the calendar, from the Monday of this one: three weeks ahead at least.
WEEKS = 4
#: Areas whose disks are asked and shown; the list of areas has the rest.
MOST_AREAS = 8

_KINDS = ("trashed", "purged", "restored")


def held_by_areas() -> list[Holding]:
    """What each enabled area holds."""
    return holdings([*StagingArea.objects.filter(enabled=True)])


def in_trash(found: Sequence[Holding]) -> tuple[int, int]:
    """Files and bytes in the trash of all of them."""
    return sum(one.trash_files for one in found), sum(one.trash_bytes for one in found)


def as_of(found: Sequence[Holding], now: datetime) -> str:
    """How old the sums of the trash are: empty if they are of this moment."""
    times = [one.trash_at for one in found if one.trash_at is not None]
    return f"as of {cells.relative(min(times), now)}" if times else ""


# Disks ------------------------------------------------------------------------------------------------------


def disks(found: Sequence[Holding], now: datetime) -> list[dict[str, Any]]:
    """Every area with its disk, as one bar and in words."""
    shown = found[:MOST_AREAS]
    coming = usage.forecasts(now, areas=[one.area.pk for one in shown])
    return [_disk(one, coming.get(one.area.pk), now) for one in shown]


def _disk(one: Holding, full_in: float | None, now: datetime) -> dict[str, Any]:
    area = one.area
    shown: dict[str, Any] = {
        "name": area.name,
        "url": reverse("admin:cleanup_stagingarea_change", args=[area.pk]),
        "high": area.high_watermark,
        "low": area.low_watermark,
        "parts": _parts(one),
        "measured": _measured(one, now),
        "full_in": None if full_in is None else cells.span(timedelta(seconds=full_in)),
    }
    try:
        disk = usage.disk_of(area)
    except OSError as error:
        return {**shown, "trouble": f"{area.path} cannot be read: {error.strerror}"}
    except AreaRefused as refusal:
        return {**shown, "trouble": str(refusal)}
    return {**shown, **_bar(shown["parts"], disk, area)}


def _parts(one: Holding) -> list[dict[str, Any]]:
    """Live, eligible, held, in trash: disjoint, in the order of the bar."""
    row, parts = one.measured, []
    if row is not None:
        rest = max(row.live_files - row.eligible_files - row.held_files, 0)
        size = max(row.live_bytes - row.eligible_bytes - row.held_bytes, 0)
        parts += [
            ("live", rest, size),
            ("eligible", row.eligible_files, row.eligible_bytes),
            ("held", row.held_files, row.held_bytes),
        ]
    parts.append(("in trash", one.trash_files, one.trash_bytes))
    return [
        {
            "kind": name.rpartition(" ")[2],
            "name": name,
            "bytes": size,
            "text": cells.files_and_bytes(files, size),
        }
        for name, files, size in parts
    ]


def _measured(one: Holding, now: datetime) -> str:
    """How old the figures of the walk are."""
    if one.measured is None or one.measured.measured_at is None:
        return "What is live, eligible and held is counted by a worker within a minute."
    at = f"counted {cells.relative(one.measured.measured_at, now)}"
    return f"{at} ({one.measured.message})" if one.measured.message else at


def _bar(parts: Iterable[dict[str, Any]], disk: usage.Disk, area: StagingArea) -> dict[str, Any]:
    own = sum(part["bytes"] for part in parts)
    rest = {"kind": "rest", "name": "other data on this disk", "bytes": max(disk.used - own, 0)}
    segments = [
        {**part, "percent": round(100 * part["bytes"] / disk.total, 3) if disk.total else 0}
        for part in (*parts, rest)
    ]
    return {
        "used": round(disk.percent),
        "over": disk.percent > area.high_watermark,
        "free": cells.size(disk.total - disk.used),
        "total": cells.size(disk.total),
        "segments": [segment for segment in segments if segment["bytes"]],
    }


# What became of files ---------------------------------------------------------------------------------------


def days(now: datetime) -> list[dict[str, Any]]:
    """Trashed, purged and restored on each of the last days; empty if nothing was."""
    today = timezone.localdate(now)
    first = today - timedelta(days=DAYS_BACK - 1)
    fields = [f"{unit}_{kind}" for kind in _KINDS for unit in ("files", "bytes")]
    rows: Any = (
        DailyTotal.objects.filter(day__gte=first, day__lte=today)
        .order_by()
        .values("day")
        .annotate(**{f"sum_{name}": Sum(name) for name in fields})
    )
    by_day = {row["day"]: {name: row[f"sum_{name}"] for name in fields} for row in rows}
    most = {
        unit: max((row[f"{unit}_{kind}"] for row in by_day.values() for kind in _KINDS), default=0)
        for unit in ("files", "bytes")
    }
    if not most["files"]:
        return []
    return [_day(first + timedelta(days=offset), by_day, most) for offset in range(DAYS_BACK)]


def _day(day: date, by_day: dict[date, dict[str, int]], most: dict[str, int]) -> dict[str, Any]:
    row = by_day.get(day, {})
    bars = []
    for kind in _KINDS:
        files, size = row.get(f"files_{kind}", 0), row.get(f"bytes_{kind}", 0)
        bars.append(
            {
                "kind": kind,
                "text": cells.files_and_bytes(files, size) if files else "none",
                "files": round(100 * files / most["files"], 1),
                "bytes": round(100 * size / most["bytes"], 1) if most["bytes"] else 0,
            }
        )
    return {"label": f"{day:%d %b}".lstrip("0"), "bars": bars}


# When the trash empties -------------------------------------------------------------------------------------


def calendar(found: Sequence[Holding], now: datetime) -> dict[str, Any]:
    """What may be purged on each day of some weeks, and what later; what is overdue counts for today."""
    today = timezone.localdate(now)
    monday = today - timedelta(days=today.weekday())
    end = monday + timedelta(days=7 * WEEKS)
    due: dict[date, tuple[int, int]] = {}
    for one in found:
        for day, (files, size) in one.purges.items():
            before = due.get(max(day, today), (0, 0))
            due[max(day, today)] = (before[0] + files, before[1] + size)
    later = [sums for day, sums in due.items() if day >= end]
    return {
        "days": [_cell(monday + timedelta(days=offset), today, due) for offset in range(7 * WEEKS)]
        if due
        else [],
        "later": _total(later) if later else "",
    }


def _total(sums: Iterable[tuple[int, int]]) -> str:
    files, size = (sum(values) for values in zip(*sums, strict=True))
    return cells.files_and_bytes(files, size)


def _cell(day: date, today: date, due: dict[date, tuple[int, int]]) -> dict[str, Any]:
    files, size = due.get(day, (0, 0))
    return {
        "day": day.day,
        "month": f"{day:%b}" if day.day == 1 else "",
        "today": day == today,
        "past": day < today,
        "files": _short(files) if files else "",
        "title": f"{day:%a} {day.day} {day:%b}: {cells.files_and_bytes(files, size)} may be purged",
        "url": f"{reverse('admin:cleanup_cleanupitem_changelist')}?purge_day={day.isoformat()}"
        if files
        else "",
    }


def _short(number: int) -> str:
    """A count that fits into a cell: `940`, `12k`, `1.2M`."""
    if number < 1_000:
        return str(number)
    if number < 999_500:
        return f"{number / 1_000:.1f}k" if number < 9_950 else f"{number / 1_000:.0f}k"
    return f"{number / 1e6:.1f}M"
