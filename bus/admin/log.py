"""The event log: topics, their events by offset, and how far each consumer has read."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import F, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import cells
from bus.console import ReadOnlyAdmin
from bus.models import Cursor, Event, Topic

#: Events on one page of a topic.
PAGE = 50


@admin.register(Topic)
class TopicAdmin(ReadOnlyAdmin):
    """Topics; a topic's own page shows its events."""

    intro = (
        "Each topic is an ordered stream of events: offsets 1, 2, 3 … within one epoch. Old events are "
        "trimmed by the rule of the topic's area; the offsets of the others stay."
    )
    list_display = ("stream", "state", "retained", "last_offset", "spoken", "made")
    search_fields = ("name",)
    ordering = ("-updated_at",)
    fields = (("stream", "state", "epoch"), ("retained", "last_offset"), ("spoken", "made"))
    change_form_outer_after_template = "console/topic_events.html"

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
            "cursors": row.cursors.order_by("consumer")[:20],
        }


def _offset(given: str | None, default: int) -> int:
    """An offset from the address line; nonsense gives the default."""
    if given is not None and given.isascii() and given.isdigit() and len(given) < 19:
        return max(1, int(given))
    return default


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
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
    def acknowledged(self, row: Event) -> str:
        cursors = Cursor.objects.filter(topic=row.topic_id, offset__gte=row.offset).order_by("consumer")[:50]
        return ", ".join(cursor.consumer for cursor in cursors) or "nobody yet"


@admin.register(Cursor)
class CursorAdmin(ReadOnlyAdmin):
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
