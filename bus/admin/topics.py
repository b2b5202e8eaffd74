"""Topics: how fast they go, what each keeps, who is there, who reads how far, and their events.

What a list shows of the last minute is looked up for the rows of the page alone (`bus.pace`). A topic's own
page is browsed by offset or by time, both found by the index of the offsets, however long the topic is.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib import admin
from django.db.models import F, OuterRef, QuerySet, Subquery, TextField
from django.db.models.functions import Cast
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import acks, cells, operating, pace
from bus.access.permissions import rule_of
from bus.admin.forms import EndForm, NewEventForm, ReplayForm, TopicEventForm, TrimForm, operator_of
from bus.admin.log import MOST_CURSORS, LogAdmin
from bus.console import Change, change
from bus.models import ActiveConnection, Cursor, Event, Presence, Topic
from bus.paging import Route
from bus.protocol.errors import BusError, UnknownTopic

#: Events on one page of a topic.
PAGE = 50
#: Readers and cursors shown of one topic.
MOST_READERS = 50
#: The rate is that of so long.
MINUTE = timedelta(minutes=1)


@admin.register(Topic)
class TopicAdmin(LogAdmin):
    """Topics; a topic's own page shows its events."""

    intro = (
        "Each topic is an ordered stream of events: offsets 1, 2, 3 … within one epoch. Old events are "
        "trimmed by the rule of the topic's area; the offsets of the others stay."
    )
    when_empty = (
        "No topic yet: the first event makes its topic. `manage.py bus publish broadcast "
        'agent.message \'{"text": "hello"}\'` publishes one; so does the page Live.'
    )
    when_empty_see = ("Live", "dashboard")
    refusals = (BusError,)
    list_display = ("stream", "state", "rate", "retained", "behind", "spoken", "made")
    search_fields = ("name",)
    ordering = ("-updated_at",)
    routes = (Route(by="updated_at"),)
    fields = (("stream", "state", "epoch"), ("rate", "retained", "last_offset"), ("spoken", "made", "rule"))
    change_form_outer_after_template = "console/topic_events.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Topic]:
        """With the cursor that is furthest behind, in the same query."""
        slowest = Cursor.objects.filter(topic=OuterRef("pk")).order_by("offset", "consumer")
        rows: QuerySet[Topic] = super().get_queryset(request)
        return rows.annotate(
            slowest=Subquery(slowest.values("consumer")[:1]),
            lag=F("last_offset") - Subquery(slowest.values("offset")[:1]),
        )

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """With the rates of the rows that are shown."""
        shown = super().get_changelist_instance(request)
        _add_rates(shown.result_list)
        return shown

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """With its rate."""
        row = super().get_object(request, object_id, from_field)
        _add_rates([row] if row is not None else [])
        return row

    @display(description="Last minute")
    def rate(self, row: Any) -> SafeString | str:
        if not row.minute:
            return "quiet"
        events = f"{row.minute:,} {'event' if row.minute == 1 else 'events'}"
        return cells.pair(events, f"{row.minute / 60:,.1f} a second" if row.minute >= 6 else "")

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

    @display(description="State")
    def state(self, row: Topic) -> SafeString:
        if row.ended_at is None:
            return cells.badge("open", "good")
        return cells.badge(row.end_status or "ended", "bad" if row.end_status == "failed" else "neutral")

    @display(description="Retained")
    def retained(self, row: Topic) -> str:
        number = max(0, row.last_offset - row.first_offset + 1)
        return f"{number:,} ({row.first_offset:,} to {row.last_offset:,})" if number else "nothing"

    @display(description="Rule of its area")
    def rule(self, row: Topic) -> str:
        try:
            rule = rule_of(row.name)
        except UnknownTopic:
            return "none: no setting of BUS_TOPICS fits it, so it is left as it is"
        kept = f"keeps {rule.history_size:,} events for {cells.span(rule.history_age)}"
        return f"{rule.pattern} ({rule.delivery}): {kept}"

    @display(description="Last event", ordering="updated_at")
    def spoken(self, row: Topic) -> SafeString | str:
        return cells.moment(row.updated_at)

    @display(description="Created")
    def made(self, row: Topic) -> SafeString | str:
        return cells.moment(row.created_at)

    def context(self, request: HttpRequest, row: Topic) -> dict[str, Any]:
        """One page of events, found by offset: the index answers, however long the topic is."""
        before, wrong = _before(request, row)
        events = list(Event.objects.filter(topic=row, offset__lt=before).order_by("-offset")[:PAGE])
        oldest = events[-1].offset if events else 0
        present, is_kept = _present(row)
        return {
            "events": events,
            "older": oldest if oldest > row.first_offset else None,
            "newer": min(before + PAGE, row.last_offset + 1) if before <= row.last_offset else None,
            "at_offset": before - 1,
            "at_time": request.GET.get("at", ""),
            "wrong_time": wrong,
            "cursors": acks.cursors(row.name, limit=MOST_CURSORS),
            "present": present,
            "presence_is_kept": is_kept,
            "trace_url": f"/?{urlencode({'trace': row.name})}",
        }

    def applies(self, change: Change, row: Topic) -> bool:
        is_open = row.ended_at is None
        has_events = row.last_offset >= row.first_offset
        return {
            "publish": is_open,
            "trim": has_events,
            "replay": has_events,
            "end": is_open and row.name.startswith("task:"),
        }.get(change.name, True)

    @change(
        "Publish an event",
        permission="bus.publish_topic",
        rows=False,
        form=NewEventForm,
        explain="The event is stored in the topic and sent to everybody who reads it, on every server. It"
        " cannot be taken back.",
    )
    def publish_new(self, request: HttpRequest, rows: None, data: dict[str, Any]) -> str:
        return _publish(request, data.pop("topic").strip(), data)

    @change(
        "Publish a test event",
        permission="bus.publish_topic",
        form=TopicEventForm,
        bulk=False,
        explain="The event is stored in this topic and sent to everybody who reads it. It cannot be taken"
        " back.",
    )
    def publish(self, request: HttpRequest, rows: QuerySet[Topic], data: dict[str, Any]) -> str:
        return _publish(request, rows.get().name, data)

    @change(
        "Replay to an agent",
        permission="bus.replay_topic",
        form=ReplayForm,
        bulk=False,
        explain="Copies of the events go into the agent's inbox as new events, in their order, with a tag"
        " that names the event that each repeats. All of them or none, at most 1,000 at once. The topic and"
        " its other readers are left alone.",
    )
    def replay(self, request: HttpRequest, rows: QuerySet[Topic], data: dict[str, Any]) -> str:
        done = operating.replay(
            operator_of(request),
            rows.get().name,
            data["first"],
            data["last"],
            data["agent"].strip(),
            reason=data["reason"],
        )
        events = "1 event" if done.count == 1 else f"{done.count:,} events"
        return f"Sent again: {events}, now {done.inbox} #{done.first:,} to #{done.last:,}."

    @change(
        "Trim",
        permission="bus.trim_topic",
        form=TrimForm,
        bulk=False,
        danger=True,
        explain="The oldest events of the topic are forgotten, for good. The offsets of the others stay. A"
        " reader that has not got that far is told that it has missed something.",
    )
    def trim(self, request: HttpRequest, rows: QuerySet[Topic], data: dict[str, Any]) -> str:
        name = rows.get().name
        went = operating.trim(
            operator_of(request), name, up_to=data["up_to"], max_age=data["max_age"], reason=data["reason"]
        )
        return f"Forgotten: {went:,} {'event' if went == 1 else 'events'} of {name}."

    @change(
        "End",
        permission="bus.end_topic",
        form=EndForm,
        bulk=False,
        danger=True,
        explain="The task gets its final event, and nothing can be published on its topic afterwards. Whoever"
        " works on it is refused the next word and gives up. Its events stay.",
    )
    def end(self, request: HttpRequest, rows: QuerySet[Topic], data: dict[str, Any]) -> str:
        row = rows.get()
        operating.end_topic(operator_of(request), row.name, data["status"], reason=data["reason"])
        return f"Ended as {data['status']}: {row.name}."


def _add_rates(rows: Iterable[Any]) -> None:
    rows = list(rows)
    minutes = pace.published_since(rows, timezone.now() - MINUTE)
    for row in rows:
        row.minute = minutes[row.pk]


def _publish(request: HttpRequest, topic: str, data: dict[str, Any]) -> str:
    place = operating.publish(
        operator_of(request), topic, data["event_type"], data["payload"], key=data["key"] or None
    )
    if not place.offset:
        return f"Sent to whoever reads {topic} now. It is kept nowhere."
    again = ", where it was stored before with the same key" if place.duplicate else ""
    return f"Published: {place.topic} #{place.offset:,}{again}."


def _before(request: HttpRequest, row: Topic) -> tuple[int, str]:
    """Return the offset below which a page begins, and what is wrong with the time that was asked for."""
    if not (asked := request.GET.get("at", "").strip()):
        return _offset(request.GET.get("before"), row.last_offset + 1), ""
    try:
        moment = datetime.fromisoformat(asked)
        if moment.tzinfo is None:
            moment = timezone.make_aware(moment)
        # Up to and with the second that was named.
        until = moment.astimezone(UTC) + timedelta(seconds=1)
    except (ValueError, OverflowError):
        return row.last_offset + 1, f"“{asked}” is no time such as 2026-11-22 09:00."
    return pace.offsets_at([row], until)[row.pk] + 1, ""


def _offset(given: str | None, default: int) -> int:
    """An offset from the address line; nonsense gives the default."""
    if given is not None and given.isascii() and given.isdigit() and len(given) < 19:
        return max(1, int(given))
    return default


def _present(row: Topic) -> tuple[list[dict[str, Any]], bool]:
    """Return who reads a topic now, and whether that is known by presence or from the last heartbeats."""
    try:
        is_kept = rule_of(row.name).presence
    except UnknownTopic:
        is_kept = False
    live = ActiveConnection.objects.filter(server_instance__lease_until__gt=timezone.now())
    if is_kept:
        since = dict(
            Presence.objects.filter(topic=row.name)
            .order_by("since")
            .values_list("client_id", "since")[:MOST_READERS]
        )
        found = live.filter(pk__in=since)
    else:
        # As text, for JSON lists cannot be searched alike on both databases; names have no quotes in them.
        as_text = live.annotate(text=Cast("topics", TextField()))
        found, since = as_text.filter(text__contains=f'"{row.name}"').order_by("pk")[:MOST_READERS], {}
    return [_reader(each, since.get(each.pk, each.connected_at)) for each in found], is_kept


def _reader(row: ActiveConnection, since: datetime) -> dict[str, Any]:
    return {
        "name": str(row),
        "kind": "agent" if row.agent_id else "person" if row.user_id else "anonymous",
        "since": cells.moment(since),
        "url": reverse("admin:bus_activeconnection_change", args=[row.pk]),
    }
