"""The event log: the events of all topics, and what the pages about the log have in common.

Lists are answered by indexes, however long the log is: nothing is counted, and what is shown of other tables
is looked up for the rows of the page.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.contrib import admin
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import acks, cells
from bus.conf import conf
from bus.console import ReadOnlyAdmin
from bus.cursors import CursorState
from bus.filters import days_filter, text_filter
from bus.halving import first_since
from bus.models import Event, Topic
from bus.paging import Route, Sought

#: How far apart the moments of events may be whose ids are the other way round.
_MARGIN = timedelta(minutes=5)
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


def _published(low: datetime | None, high: datetime | None, sought: Sought) -> None:
    """Moments rise with ids, but for those of processes that wrote at the same time: hence the margin."""
    first = None if low is None else first_since(Event, "created_at", low - _MARGIN)
    last = None if high is None else first_since(Event, "created_at", high + _MARGIN)
    sought.between |= {"id": (first, last), "created_at": (low, high)}


def _of_type(name: str, sought: Sought) -> None:
    sought.equals["event_type"] = name


def _published_by(name: str, sought: Sought) -> None:
    sought.equals["publisher"] = name


@admin.register(Event)
class EventAdmin(LogAdmin):
    """Events of all topics, the newest first."""

    intro = (
        "What was said, on any topic, the latest first. Search for the whole name of a topic to see that one "
        "alone, by offset."
    )
    when_empty = (
        "Nothing was said yet, or everything was trimmed. `manage.py bus publish broadcast "
        'agent.message \'{"text": "hello"}\'` says something; so does the page Live.'
    )
    when_empty_see = ("Live", "dashboard")
    list_display = ("place", "event_type", "brief", "publisher", "at")
    list_display_links = ("place",)
    list_select_related = ("topic",)
    list_filter = (
        days_filter("published", _published, title="day"),
        text_filter("type", _of_type, title="type", label="Whole name of the type"),
        text_filter("from", _published_by, title="publisher", label="Whole name of the publisher"),
    )
    search_fields = ("topic",)
    search_help_text = "Whole name of a topic"
    ordering = ("-id",)
    routes = (
        Route(by="id", unique=True, look_at=50_000),
        Route(fixed=("topic",), by="offset", unique=True),
    )
    fields = (("place", "event_type", "at"), ("publisher", "key"), "body", "tag_list", "acknowledged")

    def seek(self, term: str, sought: Sought) -> None:
        """By the exact name of a topic, since only that has an index."""
        found = Topic.objects.filter(name=term).values_list("pk", flat=True).first()
        sought.equals["topic"] = found or 0
        if found is None:
            sought.remarks.append(f"No topic is called {term!r}. Only a whole name is found.")

    @display(description="Topic and offset")
    def place(self, row: Event) -> SafeString:
        return cells.mono(f"{row.topic.name} #{row.offset:,}")

    @display(description="Event")
    def brief(self, row: Event) -> SafeString:
        # Its type and time are in other columns. What comes before the data has no such text: it is escaped.
        said = row.payload.partition('"data":')[2][:-1] or row.payload
        return cells.mono(said if len(said) <= 120 else f"{said[:120]}…")

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
