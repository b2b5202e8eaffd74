"""The event log: topics, their events by offset, how far each consumer has read, and the jobs under way.

Lists are answered by indexes, however long the log is: nothing is counted, and what is shown of other tables
is looked up for the rows of the page.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import F, OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import acks, cells
from bus.conf import conf
from bus.console import ReadOnlyAdmin
from bus.cursors import CursorState
from bus.models import Cursor, Event, RunningTask, Topic

#: Events on one page of a topic.
PAGE = 50
#: Cursors shown of one topic or event: those furthest behind, or those who acknowledged last.
MOST_CURSORS = 50


class LogAdmin(ReadOnlyAdmin):
    """A page about the log in SQL; it says so where the log is elsewhere."""

    def notice(self) -> str:
        """Say that the log is volatile."""
        if not conf().volatile:
            return ""
        return (
            "The log is kept in memory only (BUS_VOLATILE): what is said now is not on this page, and is "
            "lost with the process that keeps it. These rows are of an earlier time."
        )


@admin.register(Topic)
class TopicAdmin(LogAdmin):
    """Topics; a topic's own page shows its events."""

    intro = (
        "Each topic is an ordered stream of events: offsets 1, 2, 3 … within one epoch. Old events are "
        "trimmed by the rule of the topic's area; the offsets of the others stay."
    )
    list_display = ("stream", "state", "retained", "behind", "spoken", "made")
    search_fields = ("name",)
    ordering = ("-updated_at",)
    fields = (("stream", "state", "epoch"), ("retained", "last_offset"), ("spoken", "made"))
    change_form_outer_after_template = "console/topic_events.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Topic]:
        """With the cursor that is furthest behind, in the same query."""
        slowest = Cursor.objects.filter(topic=OuterRef("pk")).order_by("offset", "consumer")
        rows: QuerySet[Topic] = super().get_queryset(request)
        return rows.annotate(
            slowest=Subquery(slowest.values("consumer")[:1]),
            lag=F("last_offset") - Subquery(slowest.values("offset")[:1]),
        )

    @display(description="Furthest behind")
    def behind(self, row: Any) -> SafeString | str:
        if row.slowest is None:
            return "no cursor"
        if not row.lag:
            return "all are done"
        return cells.path(row.slowest, f"{row.lag:,} {'event' if row.lag == 1 else 'events'} to do")

    @display(description="Topic", ordering="name")
    def stream(self, row: Topic) -> SafeString:
        return cells.mono(row.name)

    @display(description="State", ordering="ended_at")
    def state(self, row: Topic) -> SafeString:
        if row.ended_at is None:
            return cells.badge("open", "good")
        return cells.badge(row.end_status or "ended", "bad" if row.end_status == "failed" else "neutral")

    @display(description="Retained")
    def retained(self, row: Topic) -> str:
        number = max(0, row.last_offset - row.first_offset + 1)
        return f"{number:,} ({row.first_offset:,} to {row.last_offset:,})" if number else "nothing"

    @display(description="Last event", ordering="updated_at")
    def spoken(self, row: Topic) -> SafeString | str:
        return cells.moment(row.updated_at)

    @display(description="Created", ordering="created_at")
    def made(self, row: Topic) -> SafeString | str:
        return cells.moment(row.created_at)

    def context(self, request: HttpRequest, row: Topic) -> dict[str, Any]:
        """One page of events, found by offset: the index answers, however long the topic is."""
        before = _offset(request.GET.get("before"), row.last_offset + 1)
        events = list(Event.objects.filter(topic=row, offset__lt=before).order_by("-offset")[:PAGE])
        oldest = events[-1].offset if events else 0
        return {
            "events": events,
            "older": oldest if oldest > row.first_offset else None,
            "newer": min(before + PAGE, row.last_offset + 1) if before <= row.last_offset else None,
            "at_offset": before - 1,
            "cursors": acks.cursors(row.name)[:MOST_CURSORS],
        }


def _offset(given: str | None, default: int) -> int:
    """An offset from the address line; nonsense gives the default."""
    if given is not None and given.isascii() and given.isdigit() and len(given) < 19:
        return max(1, int(given))
    return default


@admin.register(Event)
class EventAdmin(LogAdmin):
    """Events of all topics, the newest first."""

    intro = "What was said last, on any topic. Search for the whole name of a topic to see that one alone."
    list_display = ("place", "event_type", "brief", "publisher", "at")
    list_display_links = ("place",)
    list_select_related = ("topic",)
    search_fields = ("topic",)
    search_help_text = "Whole name of a topic"
    ordering = ("-id",)
    fields = (("place", "event_type", "at"), ("publisher", "key"), "body", "tag_list", "acknowledged")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Event], search_term: str
    ) -> tuple[QuerySet[Event], bool]:
        """By the exact name of a topic, since only that has an index."""
        if not search_term.strip():
            return queryset, False
        found = Topic.objects.filter(name=search_term.strip()).values_list("pk", flat=True)
        return queryset.filter(topic__in=list(found)), False

    @display(description="Topic and offset")
    def place(self, row: Event) -> SafeString:
        return cells.mono(f"{row.topic.name} #{row.offset:,}")

    @display(description="Event")
    def brief(self, row: Event) -> SafeString:
        return cells.mono(row.payload if len(row.payload) <= 120 else f"{row.payload[:120]}…")

    @display(description="Published")
    def at(self, row: Event) -> SafeString | str:
        return cells.moment(row.created_at)

    @display(description="Event")
    def body(self, row: Event) -> SafeString:
        return cells.document(row.payload)

    @display(description="Tags")
    def tag_list(self, row: Event) -> SafeString | str:
        return cells.document(row.tags) if row.tags else "none"

    @display(description="Acknowledged by")
    def acknowledged(self, row: Event) -> SafeString | str:
        found = acks.acknowledged_by(row.topic.name, row.offset, limit=MOST_CURSORS)
        if not found:
            return "nobody yet"
        lines = ((state.consumer, _when(state, row.offset)) for state in found)
        return format_html(
            '<ul class="x-list">{}</ul>',
            format_html_join("", '<li><span class="x-mono">{}</span> {}</li>', lines),
        )


def _when(state: CursorState, offset: int) -> SafeString:
    """Say when an event was acknowledged: with this very ack, or with one of those up to the latest."""
    return format_html("{} {}", "at" if state.offset == offset else "not after", cells.moment(state.acked_at))


@admin.register(Cursor)
class CursorAdmin(LogAdmin):
    """How far consumers have acknowledged."""

    intro = (
        "A cursor is the last offset that a consumer has acknowledged; the lag is what it has still to do."
    )
    list_display = ("consumer", "topic_name", "offset", "lag", "at")
    search_fields = ("consumer",)
    list_select_related = ("topic",)
    ordering = ("-acked_at",)
    fields = (("consumer", "topic_name"), ("offset", "lag", "at"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Cursor]:
        rows: QuerySet[Cursor] = super().get_queryset(request)
        return rows.annotate(behind=F("topic__last_offset") - F("offset"))

    @display(description="Topic")
    def topic_name(self, row: Cursor) -> SafeString:
        return cells.mono(row.topic.name)

    @display(description="Lag", ordering="behind")
    def lag(self, row: Any) -> SafeString | str:
        return cells.badge(f"{row.behind:,} events", "warn") if row.behind else "none"

    @display(description="Acknowledged", ordering="acked_at")
    def at(self, row: Cursor) -> SafeString | str:
        return cells.moment(row.acked_at)


@admin.register(RunningTask)
class RunningTaskAdmin(ReadOnlyAdmin):
    """Jobs under way."""

    intro = (
        "Every job that tells its progress and has not ended, with the worker that holds it. If the worker "
        "is not heard of for the length of a lease, and not soon after either, the job is ended as failed."
    )
    list_display = ("job", "holder", "state", "begun", "lease")
    search_fields = ("topic",)
    ordering = ("-started_at",)
    fields = (("job", "holder"), ("state", "begun", "lease"))

    @display(description="Job", ordering="topic")
    def job(self, row: RunningTask) -> SafeString:
        address = reverse("admin:bus_topic_changelist")
        name = row.topic.removeprefix("task:")
        return format_html('<a class="x-link x-mono" href="{}?q={}">{}</a>', address, row.topic, name)

    @display(description="State")
    def state(self, row: RunningTask) -> SafeString:
        if row.lease_until >= timezone.now():
            return cells.badge("running", "good")
        return cells.badge("not heard of" if row.doubted_at else "late", "warn")

    @display(description="Started", ordering="started_at")
    def begun(self, row: RunningTask) -> SafeString | str:
        return cells.moment(row.started_at)

    @display(description="Lease until", ordering="lease_until")
    def lease(self, row: RunningTask) -> SafeString | str:
        return cells.moment(row.lease_until)
