"""What the first page of the console shows: both halves of the system at a glance.

Each part is a few indexed queries, and is there only for people who may see its rows. `overview` is named in
`UNFOLD["DASHBOARD_CALLBACK"]`.
"""

from __future__ import annotations

import shutil
from datetime import date, datetime, timedelta
from itertools import takewhile
from typing import Any

from django.db.models import Count, Sum
from django.db.models.functions import TruncDate
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from bus import cells
from bus.conf import conf
from bus.models import ActiveConnection, Agent, Event, ServerInstance
from cleanup.admin.runs import TONES
from cleanup.models import CleanupItem, CleanupRun, ItemState, RunState, StagingArea
from xnai_site import checkup

DAYS_BACK = 14
DAYS_AHEAD = 21
RUNS = 48
#: Events of the last minute are counted up to so many.
MOST_COUNTED = 10_000


def overview(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add the figures to the context of the first page."""
    now = timezone.now()
    if request.user.has_perm("bus.view_activeconnection"):
        context |= {"bus_figures": _bus_figures(now), "lamps": _lamps(now)}
    if request.user.has_perm("cleanup.view_cleanuprun"):
        context |= {
            "cleanup_figures": _cleanup_figures(),
            "areas": [_area(row) for row in StagingArea.objects.filter(enabled=True)],
            "days": _trashed_by_day(now),
            "calendar": _purges(now),
            "runs": _runs(),
        }
    return context


def _bus_figures(now: datetime) -> list[dict[str, Any]]:
    live = ActiveConnection.objects.filter(server_instance__lease_until__gt=now)
    agents = live.exclude(agent_id="").count()
    said = _said_since(now - timedelta(minutes=1))
    return [
        {
            "label": "Live connections",
            "value": f"{live.count():,}",
            "note": f"{agents:,} of {Agent.objects.count():,} agents online",
            "url": reverse("admin:bus_activeconnection_changelist"),
        },
        {
            "label": "Events, last minute",
            "value": f"{said:,}" if said < MOST_COUNTED else f"more than {MOST_COUNTED:,}",
            "note": f"{said / 60:.1f} a second" if said < MOST_COUNTED else "the newest were counted",
            "url": reverse("admin:bus_event_changelist"),
        },
    ]


def _said_since(moment: datetime) -> int:
    """Count the events since a moment among the newest: their times have no index, their ids have."""
    newest = Event.objects.order_by("-pk").values_list("created_at", flat=True)[:MOST_COUNTED]
    return sum(1 for _ in takewhile(lambda at: at > moment, newest.iterator()))


def _lamps(now: datetime) -> list[dict[str, str]]:
    servers = ServerInstance.objects.filter(lease_until__gt=now)
    alive, up = servers.count(), servers.filter(layer_up=True).count()
    beat = checkup.beat()
    volatile = [_lamp(False, "", "the log is kept in memory only: events do not outlive a restart", "warn")]
    return [
        *(volatile if conf().volatile else []),
        _lamp(
            alive > 0,
            f"{alive} {'server' if alive == 1 else 'servers'} alive",
            "no server holds a lease",
            "off",
        ),
        _lamp(
            alive > 0 and up == alive,
            "channel layer up",
            f"channel layer down on {alive - up} of {alive}",
            "warn",
        ),
        _lamp(
            beat.state == checkup.OK,
            f"beat: {beat.detail}",
            "beat is silent: nothing is cleaned or reaped by itself",
            "bad",
        ),
    ]


def _lamp(good: bool, fine: str, trouble: str, lamp: str) -> dict[str, str]:
    return {"lamp": "good", "text": fine} if good else {"lamp": lamp, "text": trouble}


def _cleanup_figures() -> list[dict[str, Any]]:
    trash = CleanupItem.objects.filter(state=ItemState.TRASHED).aggregate(
        files=Count("pk"), total=Sum("size")
    )
    waiting = CleanupRun.objects.filter(state=RunState.AWAITING_APPROVAL).count()
    runs = reverse("admin:cleanup_cleanuprun_changelist")
    return [
        {
            "label": "In trash",
            "value": cells.size(trash["total"] or 0),
            "note": f"{trash['files']:,} {'file' if trash['files'] == 1 else 'files'}, can be restored",
            "url": reverse("admin:cleanup_cleanupitem_changelist"),
        },
        {
            "label": "Plans awaiting approval",
            "value": f"{waiting:,}",
            "note": "above a brake; nothing is moved until a person says so"
            if waiting
            else "nobody has to decide anything",
            "url": f"{runs}?state__exact={RunState.AWAITING_APPROVAL}" if waiting else runs,
        },
    ]


def _area(row: StagingArea) -> dict[str, Any]:
    """An area with the disk that it lies on; an area whose disk is away says so."""
    shown: dict[str, Any] = {"name": row.name, "high": row.high_watermark, "used": None}
    try:
        disk = shutil.disk_usage(row.path)
    except OSError as error:
        return {**shown, "note": f"cannot be read: {error.strerror}"}
    used = round(100 * (disk.total - disk.free) / disk.total) if disk.total else 0
    trash = CleanupItem.objects.filter(area=row, state=ItemState.TRASHED).aggregate(
        files=Count("pk"), total=Sum("size")
    )
    kept = cells.files_and_bytes(trash["files"], trash["total"] or 0) if trash["files"] else "nothing"
    return {
        **shown,
        "used": used,
        "over": used >= row.high_watermark,
        "note": f"{cells.size(disk.free)} free on its disk · in trash: {kept}",
    }


def _trashed_by_day(now: datetime) -> list[dict[str, Any]]:
    """Files moved to the trash on each of the last days, from the runs that did it."""
    first = timezone.localdate(now) - timedelta(days=DAYS_BACK - 1)
    rows = (
        CleanupRun.objects.filter(created_at__gt=now - timedelta(days=DAYS_BACK + 1), trashed__gt=0)
        .order_by()
        .annotate(day=TruncDate("created_at"))
        .values("day")
        .annotate(files=Sum("trashed"), total=Sum("trashed_bytes"))
    )
    by_day: dict[date, dict[str, Any]] = {row["day"]: {**row} for row in rows}
    most = max((row["files"] for row in by_day.values()), default=0)
    if not most:
        return []
    return [_bar(first + timedelta(days=offset), by_day, most) for offset in range(DAYS_BACK)]


def _bar(day: date, by_day: dict[date, dict[str, Any]], most: int) -> dict[str, Any]:
    row = by_day.get(day, {"files": 0, "total": 0})
    return {
        "label": day.strftime("%d %b").lstrip("0"),
        "text": cells.files_and_bytes(row["files"], row["total"]),
        "percent": round(100 * row["files"] / most),
    }


def _purges(now: datetime) -> list[dict[str, Any]]:
    """What will be purged on each of the next days; what is due already counts for today."""
    today = timezone.localdate(now)
    rows = (
        CleanupItem.objects.filter(
            state=ItemState.TRASHED, purge_after__lt=now + timedelta(days=DAYS_AHEAD + 1)
        )
        .order_by()
        .annotate(day=TruncDate("purge_after"))
        .values("day")
        .annotate(files=Count("pk"), total=Sum("size"))
    )
    due: dict[date, list[int]] = {}
    for row in rows:
        sums = due.setdefault(max(row["day"], today), [0, 0])
        sums[0], sums[1] = sums[0] + row["files"], sums[1] + row["total"]
    if not due:
        return []
    days = (today + timedelta(days=offset) for offset in range(DAYS_AHEAD))
    return [
        {
            "day": day.day,
            "today": day == today,
            "files": due.get(day, (0, 0))[0],
            "title": f"{day:%d %b}: {cells.files_and_bytes(*due.get(day, (0, 0)))}",
        }
        for day in days
    ]


def _runs() -> list[dict[str, str]]:
    """The last runs, oldest first."""
    rows = CleanupRun.objects.select_related("policy_version__policy").order_by("-created_at")[:RUNS]
    return [
        {
            "tone": TONES.get(RunState(row.state), "neutral"),
            "url": reverse("admin:cleanup_cleanuprun_change", args=[row.pk]),
            "text": f"{row.policy_version.policy.name}, {row.get_state_display()}, "
            f"{timezone.localtime(row.created_at):%Y-%m-%d %H:%M %Z}: "
            f"{cells.files_and_bytes(row.trashed, row.trashed_bytes)}",
        }
        for row in reversed(rows)
    ]
