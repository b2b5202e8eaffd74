"""The dashboard at `/`: one page for staff, and the state that it asks for.

The page itself is static; everything that moves comes over the bus to `static/bus/dashboard.js`. What cannot
come that way (which topics and tasks there are) is one small JSON document, `/dashboard/state`, read from
rows by indexed queries. `/dashboard/trace` says which topics a name stands for, of those that the person may
read; the door of the bus decides again. All are GET and change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.views.decorators import staff_member_required
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from bus.access.logins import identity_of
from bus.access.permissions import Identity, allows
from bus.conf import conf
from bus.models import ActiveConnection, Agent, RunningTask, Topic
from bus.protocol.errors import BusError
from bus.runs import renewal_interval

#: A task that has said nothing for this long is not shown as running: its worker is gone.
TASK_SILENCE = timedelta(hours=1)
#: As many as one page can show.
MOST_TASKS = 50
MOST_TOPICS = 50
#: Topics are counted up to here: beyond, the exact number would cost more than it tells.
MOST_COUNTED = 1_000
#: Topics that one trace follows.
MOST_TRACED = 8
#: Renewals that a worker has missed before it is called silent: one may be late.
SILENT_AFTER = 2


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
    live = _live(now)
    counted = Topic.objects.order_by()[: MOST_COUNTED + 1].count()
    return JsonResponse(
        {
            "now": now.isoformat(),
            "connections": live.count(),
            "agents": live.exclude(agent_id="").values("agent_id").distinct().count(),
            "tasks": running_tasks(now),
            "topics": [_topic(row) for row in Topic.objects.order_by("-updated_at")[:MOST_TOPICS]],
            "topic_count": min(counted, MOST_COUNTED),
            "more_topics": counted > MOST_COUNTED,
            "volatile": conf().volatile,
        }
    )


@require_safe
@never_cache
@staff_member_required
def dashboard_trace(request: HttpRequest) -> JsonResponse:
    """Which topics the name `of` stands for: a topic itself, or what an agent hears.

    What is wrong with the name is an answer too, `error`, for the page shows it.
    """
    wanted, identity = request.GET.get("of", "").strip(), identity_of(request.user)
    try:
        names = traced(wanted, timezone.now())
        readable = [name for name in names if may_read(identity, name)]
    except BusError as error:
        return JsonResponse({"error": f"{wanted!r} cannot be followed: {error}"})
    if not readable:
        return JsonResponse({"error": f"{wanted!r} is no topic that you may read, and no agent."})
    pages = dict(Topic.objects.filter(name__in=readable).values_list("name", "pk"))
    urls = {name: reverse("admin:bus_topic_change", args=[pk]) for name, pk in pages.items()}
    return JsonResponse(
        {
            "topics": [{"name": name, "url": urls.get(name, "")} for name in readable[:MOST_TRACED]],
            "refused": [name for name in names if name not in readable],
        }
    )


def may_read(identity: Identity, topic: str) -> bool:
    """Tell whether somebody may follow a topic and read its past. Raises `BadRequest` for what is no name."""
    return allows(identity, "subscribe", topic) and allows(identity, "history", topic)


def traced(wanted: str, now: datetime) -> list[str]:
    """The topics that a name stands for: a topic itself; of an agent its inbox and what it listens to.

    An agent is named by its inbox, `agent:ID`, or by its id if no topic is called so.
    """
    agent = wanted.removeprefix("agent:")
    is_topic = agent == wanted and Topic.objects.filter(name=wanted).exists()
    if is_topic or (agent == wanted and not Agent.objects.filter(agent_id=agent).exists()):
        return [wanted]
    heard = _live(now).filter(agent_id=agent).values_list("topics", flat=True)
    return list(dict.fromkeys([f"agent:{agent}", *(topic for topics in heard for topic in topics)]))


def _live(now: datetime) -> QuerySet[ActiveConnection]:
    return ActiveConnection.objects.filter(server_instance__lease_until__gt=now)


def running_tasks(now: datetime) -> list[dict[str, Any]]:
    """Jobs whose topic has not ended and was spoken on within `TASK_SILENCE`, the latest first.

    `silent` is for how many seconds nothing was heard of the worker, null while it renews its lease.
    """
    rows = Topic.objects.filter(
        name__startswith="task:", ended_at__isnull=True, updated_at__gt=now - TASK_SILENCE
    ).order_by("-updated_at")[:MOST_TASKS]
    tasks = list(rows)
    silent = _silences((row.name for row in tasks), now)
    return [
        {
            "topic": row.name,
            "task_id": row.name.removeprefix("task:"),
            "epoch": row.epoch,
            "silent": silent.get(row.name),
        }
        for row in tasks
    ]


def _silences(topics: Iterable[str], now: datetime) -> dict[str, float]:
    """Topic to seconds since the last renewal, of the jobs whose worker is late with the next one."""
    leases = RunningTask.objects.filter(topic__in=list(topics)).values_list("topic", "lease_until")
    heard = {topic: now - (until - conf().task_lease) for topic, until in leases}
    late = renewal_interval() * SILENT_AFTER
    return {topic: length.total_seconds() for topic, length in heard.items() if length > late}


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
