"""What the pages of areas say about them: found for all rows of a page together, in a few queries.

`AreaUsage` says what an area holds, the newest samples how its disk was, and opening it what is wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from bus import cells
from cleanup.admin.runs import TONES
from cleanup.models import CleanupRun, Hold, RetentionPolicy, RunState, StagingArea, UsageSample
from cleanup.operations import measuring, usage
from cleanup.operations.grounds import Trouble, trouble_of
from cleanup.stores.orphans import count, scanned

#: Rows of each kind on the page of an area.
_SHOWN = 10
#: The chart: days back, and its size in units of its own.
_DAYS, _WIDTH, _HEIGHT = 7, 700, 140


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaFacts:
    """One area."""

    area: StagingArea
    trouble: Trouble | None
    disk: usage.Disk | None
    held: measuring.Holding
    full_in: float | None
    policies: list[str]
    last_run: CleanupRun | None

    def standing(self) -> SafeString:
        """Whether runs may act here; trouble in words."""
        if self.trouble is not None:
            word = cells.badge("not usable", "bad")
            return format_html(
                "<span class='x-pair'>{}<span class='a-trouble'>{}</span></span>", word, self.trouble.what
            )
        return cells.badge("enabled", "good") if self.area.enabled else cells.badge("disabled", "warn")

    def disk_cell(self) -> SafeString:
        """The share in use, as a bar and in words, with the marks."""
        if self.disk is None:
            return cells.badge("cannot be asked", "bad")
        percent, high = self.disk.percent, self.area.high_watermark
        bar = "<progress class='a-meter{}' max='100' value='{}' aria-hidden='true'></progress>"
        marks = f"cleared above {high} % to {self.area.low_watermark} %"
        above = percent > high
        return format_html(
            "<span class='x-pair'><span>{} %{}</span>" + bar + "<small>{}</small></span>",
            f"{percent:.0f}", ", above the high mark" if above else "", " a-over" if above else "",
            f"{percent:.0f}", marks,
        )  # fmt: skip

    def holding_cell(self) -> SafeString:
        """Live, eligible and held, as measured last."""
        row = self.held.measured
        if row is None:
            return cells.pair("not measured yet", "a worker does it within minutes")
        eligible = cells.files_and_bytes(row.eligible_files, row.eligible_bytes)
        held = f", held {cells.files_and_bytes(row.held_files, row.held_bytes)}" if row.held_files else ""
        return cells.pair(cells.files_and_bytes(row.live_files, row.live_bytes), f"eligible {eligible}{held}")

    @property
    def trash(self) -> str:
        files = self.held.trash_files
        return cells.files_and_bytes(files, self.held.trash_bytes) if files else "nothing"

    def last_run_cell(self) -> SafeString:
        """The state of the newest run, and when it was."""
        run = self.last_run
        if run is None:
            return cells.badge("none yet")
        word = cells.badge(run.get_state_display(), TONES.get(RunState(run.state), "neutral"))
        return format_html("<span class='x-pair'>{} {}</span>", word, cells.moment(run.created_at))


def facts_of(areas: Sequence[StagingArea]) -> dict[int, AreaFacts]:
    """The facts of some areas, by their keys."""
    now = timezone.now()
    disks, coming = usage.disks(areas), usage.forecasts(now, areas=[area.pk for area in areas])
    names: dict[int, list[str]] = defaultdict(list)
    for key, name in RetentionPolicy.objects.filter(area__in=areas).values_list("area", "name"):
        names[key or 0].append(name)
    return {
        held.area.pk: AreaFacts(
            area=held.area, trouble=trouble_of(held.area), disk=disks.get(held.area.pk), held=held,
            full_in=coming.get(held.area.pk), policies=names[held.area.pk],
            last_run=CleanupRun.objects.filter(area=held.area).order_by("-created_at").first(),
        )
        for held in measuring.holdings(areas)
    }  # fmt: skip


def page_of(area: StagingArea, facts: AreaFacts) -> dict[str, Any]:
    """What stands below the fields of an area's own page."""
    now = timezone.now()
    runs = CleanupRun.objects.filter(area=area).select_related("policy_version__policy")
    return {
        "area": area,
        "trouble": facts.trouble,
        "figures": _figures(facts, now),
        "policies": RetentionPolicy.objects.filter(area=area).order_by("name")[:50],
        "runs": [(run, _tone(run)) for run in runs.order_by("-created_at")[:_SHOWN]],
        "holds": _holds(area, now),
        "orphans": _orphans(area),
        "chart": _chart(area, now),
    }


def _tone(run: CleanupRun) -> str:
    return TONES.get(RunState(run.state), "neutral")


def _figures(facts: AreaFacts, now: datetime) -> list[dict[str, Any]]:
    row, disk = facts.held.measured, facts.disk
    since = "not measured yet: a worker does it within minutes, or press Measure now"
    if row is not None and row.measured_at is not None:
        since = f"as of {cells.relative(row.measured_at, now)}"
    trash_since = "now" if facts.held.trash_at is None else cells.relative(facts.held.trash_at, now)
    trash = f"{reverse('admin:cleanup_cleanupitem_changelist')}?area={facts.area.pk}"
    found = [
        _figure("Disk in use", "cannot be asked" if disk is None else f"{disk.percent:.0f} %",
                "" if disk is None else f"{cells.size(disk.used)} of {cells.size(disk.total)}"),
        *(
            _figure(label, "—" if row is None else cells.size(getattr(row, f"{name}_bytes")),
                    since if row is None else f"{getattr(row, f'{name}_files'):,} files, {since}")
            for label, name in (("Live", "live"), ("Eligible", "eligible"), ("Held", "held"))
        ),
        _figure("In trash", cells.size(facts.held.trash_bytes),
                f"{facts.held.trash_files:,} files, as of {trash_since}") | {"url": trash},
    ]  # fmt: skip
    return found


def _figure(label: str, value: str, note: str) -> dict[str, Any]:
    return {"label": label, "value": value, "note": note}


def _holds(area: StagingArea, now: datetime) -> list[Hold]:
    rows = Hold.objects.filter(area=area, released_at__isnull=True).exclude(until__lte=now)
    return list(rows.defer("paths").order_by("-created_at")[:_SHOWN])


def _orphans(area: StagingArea) -> dict[str, Any] | None:
    first = scanned(area.pk, "file")
    if first is None:
        return None
    return {"files": count(area.pk, "file"), "rows": count(area.pk, "row"), "at": cells.moment(first.seen_at)}


def _chart(area: StagingArea, now: datetime) -> dict[str, Any] | None:
    """Use of the disk in the last week as the points of a line, and in words; None without two samples."""
    begin = now - timedelta(days=_DAYS)
    rows = UsageSample.objects.filter(area=area, at__gt=begin, at__lte=now).order_by("at")
    samples = [
        (at, 100 * used / total)
        for at, used, total in rows.values_list("at", "used_bytes", "total_bytes")
        if total
    ]
    if len(samples) < 2:
        return None
    thinned = [*samples[:: max(1, len(samples) // _WIDTH)], samples[-1]]
    points = " ".join(
        f"{_WIDTH * (at - begin) / (now - begin):.1f},{_HEIGHT * (1 - percent / 100):.1f}"
        for at, percent in thinned
    )
    shares = [percent for _, percent in samples]
    return {
        "points": points, "width": _WIDTH, "height": _HEIGHT,
        "high": f"{_HEIGHT * (1 - area.high_watermark / 100):.1f}",
        "low": f"{_HEIGHT * (1 - area.low_watermark / 100):.1f}",
        "words": f"Between {min(shares):.0f} % and {max(shares):.0f} % of the disk in the last {_DAYS} days, "
        f"{shares[-1]:.0f} % at last.",
    }  # fmt: skip
