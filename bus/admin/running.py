"""Jobs under way: who holds each, whether that one is heard of, and the end of one that is stuck."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db import transaction
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import cells, operating
from bus.admin.forms import ReasonForm, operator_of
from bus.conf import conf
from bus.console import ReadOnlyAdmin, change
from bus.models import RunningTask, Topic
from bus.protocol.errors import BusError


class SignFilter(admin.SimpleListFilter):
    """Whether the worker is heard of."""

    title = "worker"
    parameter_name = "worker"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Name them."""
        return [("heard", "heard of"), ("silent", "no sign of life")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Choose."""
        now = timezone.now()
        match self.value():
            case "heard":
                return queryset.filter(lease_until__gte=now)
            case "silent":
                return queryset.filter(lease_until__lt=now)
        return queryset


@admin.register(RunningTask)
class RunningTaskAdmin(ReadOnlyAdmin):
    """Jobs under way: who holds each, whether that one is heard of, and the end of one that is stuck."""

    intro = (
        "Every job that tells its progress and has not ended, with the worker that holds it. If the worker "
        "is not heard of for the length of a lease, and not soon after either, the job is ended as failed."
    )
    when_empty = "No job is under way. One that tells its progress is here until it ends; its topic stays."
    when_empty_see = ("Live", "dashboard")
    refusals = (BusError,)
    list_display = ("job", "holder", "state", "age", "begun", "lease")
    list_filter = (SignFilter,)
    search_fields = ("topic", "holder")
    ordering = ("-started_at",)
    fields = (("job", "holder"), ("state", "age"), ("begun", "lease"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[RunningTask]:
        """With the topic on which it tells its progress; there is none before the first word."""
        topic = Topic.objects.filter(name=OuterRef("topic")).values("pk")[:1]
        rows: QuerySet[RunningTask] = super().get_queryset(request)
        return rows.annotate(topic_id=Subquery(topic))

    @display(description="Job", ordering="topic")
    def job(self, row: Any) -> SafeString:
        name = row.topic.removeprefix("task:")
        if row.topic_id is None:
            return cells.mono(name)
        address = reverse("admin:bus_topic_change", args=[row.topic_id])
        return format_html('<a class="x-link x-mono" href="{}">{}</a>', address, name)

    @display(description="State")
    def state(self, row: RunningTask) -> SafeString:
        now = timezone.now()
        if row.lease_until >= now:
            return cells.badge("running", "good")
        silence = cells.span(now - row.lease_until + conf().task_lease)
        return format_html(
            '<span class="x-pair">{}<small>for {}</small></span>',
            cells.badge("no sign of life", "warn"),
            silence,
        )

    @display(description="Runs for")
    def age(self, row: RunningTask) -> str:
        return cells.span(timezone.now() - row.started_at)

    @display(description="Started", ordering="started_at")
    def begun(self, row: RunningTask) -> SafeString | str:
        return cells.moment(row.started_at)

    @display(description="Lease until", ordering="lease_until")
    def lease(self, row: RunningTask) -> SafeString | str:
        return cells.moment(row.lease_until)

    @change(
        "End as failed",
        permission="bus.end_runningtask",
        form=ReasonForm,
        danger=True,
        explain="The task gets its final event, failed, with the reason, and its card goes from the"
        " dashboard. A worker that is alive after all is refused its next word and gives up.",
    )
    def end(self, request: HttpRequest, rows: QuerySet[RunningTask], data: dict[str, Any]) -> str:
        names = [row.topic for row in rows]
        with transaction.atomic():
            for name in names:
                operating.end_topic(operator_of(request), name, "failed", reason=data["reason"])
        return f"Ended as failed: {', '.join(names)}."
