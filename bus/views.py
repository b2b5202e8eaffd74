"""The dashboard at `/`: one page for staff, and the state that it asks for.

The page itself is static; everything that moves comes over the bus to `static/bus/dashboard.js`. What cannot
come that way (which topics and tasks there are) is one small JSON document, `/dashboard/state`, read from
rows by indexed queries. Both are GET and change nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.views.decorators import staff_member_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from bus.conf import conf
from bus.models import ActiveConnection, Topic

#: A task that has said nothing for this long is not shown as running: its worker is gone.
TASK_SILENCE = timedelta(hours=1)
#: As many as one page can show.
MOST_TASKS = 50
MOST_TOPICS = 50


@require_safe
@never_cache
@staff_member_required
def dashboard(request: HttpRequest) -> HttpResponse:
    """The page."""
    return render(request, "bus/dashboard.html")


@require_safe
@never_cache
@staff_member_required
def dashboard_state(request: HttpRequest) -> JsonResponse:
    """What there is right now: connections, running tasks, the topics spoken on last."""
    now = timezone.now()
    live = ActiveConnection.objects.filter(server_instance__lease_until__gt=now)
    return JsonResponse(
        {
            "now": now.isoformat(),
            "connections": live.count(),
            "agents": live.exclude(agent_id="").values("agent_id").distinct().count(),
            "tasks": running_tasks(now),
            "topics": [_topic(row) for row in Topic.objects.order_by("-updated_at")[:MOST_TOPICS]],
            "topic_count": Topic.objects.count(),
            "volatile": conf().volatile,
        }
    )


def running_tasks(now: datetime) -> list[dict[str, str]]:
    """Jobs whose topic has not ended and was spoken on within `TASK_SILENCE`, the latest first."""
    rows = Topic.objects.filter(
        name__startswith="task:", ended_at__isnull=True, updated_at__gt=now - TASK_SILENCE
    ).order_by("-updated_at")
    return [
        {"topic": row.name, "task_id": row.name.removeprefix("task:"), "epoch": row.epoch}
        for row in rows[:MOST_TASKS]
    ]


def _topic(row: Topic) -> dict[str, Any]:
    return {
        "name": row.name,
        "epoch": row.epoch,
        "first_offset": row.first_offset,
        "last_offset": row.last_offset,
        "updated_at": row.updated_at.isoformat(),
        "ended": row.ended_at is not None,
        "end_status": row.end_status,
        "url": reverse("admin:bus_topic_change", args=[row.pk]),
    }
