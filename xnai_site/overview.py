"""What the first page of the console shows: both halves of the system at a glance, and what needs somebody.

Each part is a few indexed queries, and is there only for people who may see its rows. `overview` is named in
`UNFOLD["DASHBOARD_CALLBACK"]`. The page asks for `parts` again and again while somebody looks at it, and for
`history` when somebody wants to see more than the last minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.http import require_safe

from bus import cells, history
from bus.models import ActiveConnection, Agent, Event, RunningTask
from cleanup.admin.runs import TONES
from cleanup.models import CleanupRun, RunState
from cleanup.operations.measuring import Holding
from cleanup.stores.orphans import counts
from xnai_site import stock
from xnai_site.checkup.finding import number
from xnai_site.lamps import lamps

RUNS = 48
#: Events of the last minute are counted up to so many.
MOST_COUNTED = 10_000
#: What the chart can look back to.
RANGES = {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "7d": timedelta(days=7)}


def overview(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add the figures to the context of the first page."""
    now = timezone.now()
    sees_bus = request.user.has_perm("bus.view_activeconnection")
    sees_files = request.user.has_perm("cleanup.view_cleanuprun")
    context |= {"figures": [], "sees_bus": sees_bus, "sees_files": sees_files, "now": now}
    if sees_bus or sees_files:
        context["lamps"] = lamps(request)
    if sees_bus:
        context["figures"] += _bus_figures(now)
        context["recent"] = history.series(now, back=timedelta(minutes=6))
    if sees_files:
        found = stock.held_by_areas()
        context["figures"] += _cleanup_figures(found, now)
        context |= {
            "disks": stock.disks(found, now),
            "more_areas": max(0, len(found) - stock.MOST_AREAS),
            "days": stock.days(now),
            "calendar": stock.calendar(found, now),
            "as_of": stock.as_of(found, now),
            "runs": _runs(),
        }
    return context


@require_safe
def parts(request: HttpRequest) -> HttpResponse:
    """The parts of the page that change, as they are now."""
    return render(request, "console/overview.html", overview(request, {}))


@require_safe
def chart_history(request: HttpRequest) -> HttpResponse:
    """Connections and events a second of the last hour, day or week."""
    if not request.user.has_perm("bus.view_activeconnection"):
        return JsonResponse({"error": "forbidden"}, status=403)
    back = RANGES.get(request.GET.get("back", ""), RANGES["1h"])
    now = timezone.now()
    return JsonResponse(
        {
            "now": int(now.timestamp()),
            "back": int(back.total_seconds()),
            "points": history.series(now, back=back),
        }
    )


#: Before the addresses of the admin, which would take them for apps.
urls: list[URLPattern] = [
    path("admin/overview/parts/", admin.site.admin_view(parts), name="overview-parts"),
    path("admin/overview/history/", admin.site.admin_view(chart_history), name="overview-history"),
]


# Figures ----------------------------------------------------------------------------------------------------


def _bus_figures(now: datetime) -> list[dict[str, Any]]:
    live = ActiveConnection.objects.filter(server_instance__lease_until__gt=now)
    agents = live.exclude(agent_id="").values("agent_id").distinct().count()
    said = _said_since(now - timedelta(minutes=1))
    tasks = RunningTask.objects.filter(lease_until__gt=now).count()
    return [
        {
            "name": "connections",
            "label": "Live connections",
            "value": f"{live.count():,}",
            "note": _online(agents, Agent.objects.count()),
            "url": reverse("admin:bus_activeconnection_changelist"),
        },
        {
            "name": "events",
            "label": "Events a second",
            "value": _rate(said / 60) if said < MOST_COUNTED else f"> {MOST_COUNTED // 60:,}",
            "note": f"{said:,} in the last minute"
            if said < MOST_COUNTED
            else f"more than {MOST_COUNTED:,} in the last minute",
            "url": reverse("admin:bus_event_changelist"),
        },
        {
            "name": "tasks",
            "label": "Running tasks",
            "value": f"{tasks:,}",
            "note": "with a worker that renews them" if tasks else "none is under way",
            "url": reverse("admin:bus_runningtask_changelist"),
        },
    ]


def _online(agents: int, known: int) -> str:
    if not known:
        return "no agent has ever connected"
    return f"{agents:,} of {known:,} {'agent' if known == 1 else 'agents'} online"


def _rate(value: float) -> str:
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"


def _said_since(moment: datetime) -> int:
    """Count the events since a moment among the newest: their times have no index, their ids have."""
    newest = Event.objects.order_by("-pk").values_list("created_at", flat=True)[:MOST_COUNTED]
    return sum(1 for _ in takewhile(lambda at: at > moment, newest.iterator()))


def _cleanup_figures(found: Sequence[Holding], now: datetime) -> list[dict[str, Any]]:
    files, size = stock.in_trash(found)
    waiting = CleanupRun.objects.filter(state=RunState.AWAITING_APPROVAL).count()
    runs = reverse("admin:cleanup_cleanuprun_changelist")
    old = stock.as_of(found, now)
    return [
        {
            "name": "trash",
            "label": "In trash",
            "value": cells.size(size),
            "note": ", ".join(filter(None, [_restorable(files), old])),
            "url": reverse("admin:cleanup_cleanupitem_changelist"),
        },
        _orphans(),
        {
            "name": "waiting",
            "label": "Plans to approve",
            "value": f"{waiting:,}",
            "note": "nothing moves until you decide" if waiting else "nobody has to decide anything",
            "url": f"{runs}?state__exact={RunState.AWAITING_APPROVAL}" if waiting else runs,
        },
    ]


def _restorable(files: int) -> str:
    if not files:
        return "nothing waits to be purged"
    return f"{files:,} {'file' if files == 1 else 'files'}, can be restored"


def _orphans() -> dict[str, Any]:
    """What the last scan of each area saw: files that no row knows, rows whose file is not there."""
    found: dict[str, int] = {}
    for _, kind, count in counts():
        found[kind] = found.get(kind, 0) + count
    note = (
        f"and {number(found.get('row', 0), 'row')} without a file, at the last scan"
        if found
        else "no area was scanned"
    )
    return {
        "name": "orphans",
        "label": "Orphans",
        "value": f"{found.get('file', 0):,}" if found else "—",
        "note": note,
        "url": reverse("admin:cleanup_orphanbatch_changelist"),
    }


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
