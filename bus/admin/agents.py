"""Agents, and what waits for them."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery, Value
from django.db.models.functions import Coalesce, Concat, Greatest
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import cells, operating
from bus.admin.connections import MOST_SESSIONS, DisconnectForm
from bus.admin.forms import EventForm, ReasonForm, operator_of
from bus.admin.log import MOST_CURSORS
from bus.conf import conf
from bus.console import Change, ReadOnlyAdmin, change
from bus.models import ActiveConnection, Agent, ConnectionSession, Cursor, Topic
from bus.paging import Route
from bus.protocol.errors import BusError


def _live() -> QuerySet[ActiveConnection]:
    """Connections that a living server holds."""
    return ActiveConnection.objects.filter(server_instance__lease_until__gt=timezone.now())


class OnlineFilter(admin.SimpleListFilter):
    """Who is there."""

    title = "now"
    parameter_name = "now"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Name them."""
        return [("online", "online"), ("away", "away")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Choose."""
        if self.value() not in ("online", "away"):
            return queryset
        there = Q(agent_id__in=_live().values("agent_id"))
        return queryset.filter(there if self.value() == "online" else ~there)


@admin.register(Agent)
class AgentAdmin(ReadOnlyAdmin):
    """Agents, and what waits for them."""

    intro = (
        "Every agent that has ever connected. What is sent to an agent that is away waits in its inbox, the"
        " topic agent:<id>, and is delivered when it is back."
    )
    when_empty = (
        "No agent has ever connected. An agent is a client that says who it is: give it a key of its own."
    )
    when_empty_see = ("API keys", "admin:bus_apikey_changelist")
    refusals = (BusError,)
    list_display = ("name", "online", "waiting", "acknowledged", "reconnects", "generation", "seen")
    list_filter = (OnlineFilter,)
    search_fields = ("agent_id",)
    ordering = ("-last_seen_at",)
    routes = (Route(by="last_seen_at"),)
    fields = (
        ("agent_id", "online", "inbox"),
        ("waiting", "acknowledged", "reconnects"),
        ("generation", "seen", "first_seen"),
    )
    change_form_outer_after_template = "console/agent_details.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Agent]:
        """With what the list shows of other tables, in the same query."""
        live = _live().filter(agent_id=OuterRef("agent_id")).order_by("-connected_at")
        inbox = Topic.objects.filter(name=Concat(Value("agent:"), OuterRef("agent_id")))
        acked = Cursor.objects.filter(
            consumer=OuterRef("agent_id"), topic__name=Concat(Value("agent:"), OuterRef("agent_id"))
        )
        rows: QuerySet[Agent] = super().get_queryset(request)
        return rows.annotate(
            is_online=Exists(live),
            online_since=Subquery(live.values("connected_at")[:1]),
            inbox_id=Subquery(inbox.values("pk")[:1]),
            # What was trimmed does not come any more, and so does not wait.
            depth=Coalesce(Subquery(inbox.values("last_offset")[:1]), 0)
            - Greatest(
                Coalesce(Subquery(acked.values("offset")[:1]), 0),
                Coalesce(Subquery(inbox.values("first_offset")[:1]), 1) - 1,
            ),
            acked_at=Subquery(acked.values("acked_at")[:1]),
        )

    def notice(self) -> str:
        """Say that what waits is not known from rows."""
        if not conf().volatile:
            return ""
        return "The log is kept in memory only (BUS_VOLATILE): what waits in inboxes now is not shown here."

    @display(description="Agent", ordering="agent_id")
    def name(self, row: Agent) -> SafeString:
        return cells.mono(row.agent_id)

    @display(description="Now")
    def online(self, row: Any) -> SafeString:
        if not row.is_online:
            return cells.badge("away")
        return format_html(
            '<span class="x-pair">{}<small>for {}</small></span>',
            cells.badge("online", "good"),
            cells.span(timezone.now() - row.online_since),
        )

    @display(description="Reconnects", ordering="connects")
    def reconnects(self, row: Agent) -> str:
        return f"{max(0, row.connects - 1):,}"

    @display(description="Waiting in its inbox")
    def waiting(self, row: Any) -> SafeString | str:
        if row.depth <= 0:
            return "nothing"
        events = f"{row.depth:,} {'event' if row.depth == 1 else 'events'}"
        return events if row.is_online else cells.badge(events, "warn")

    @display(description="Last acknowledged")
    def acknowledged(self, row: Any) -> SafeString | str:
        return cells.moment(row.acked_at, empty="never")

    @display(description="Last seen", ordering="last_seen_at")
    def seen(self, row: Agent) -> SafeString | str:
        return cells.moment(row.last_seen_at)

    @display(description="First seen")
    def first_seen(self, row: Agent) -> SafeString | str:
        return cells.moment(row.first_seen_at)

    @display(description="Inbox")
    def inbox(self, row: Any) -> SafeString | str:
        if row.inbox_id is None:
            return "Nothing was ever sent to it."
        address = reverse("admin:bus_topic_change", args=[row.inbox_id])
        return format_html('<a class="x-link" href="{}">agent:{}</a>', address, row.agent_id)

    def applies(self, change: Change, row: Any) -> bool:
        return bool({"disconnect": row.is_online, "skip": row.depth > 0}.get(change.name, True))

    def context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """Its connection, its cursors, and how it was connected before."""
        cursors = Cursor.objects.filter(Q(consumer=row.agent_id) | Q(consumer__startswith=f"{row.agent_id}/"))
        sessions = ConnectionSession.objects.filter(agent_id=row.agent_id).order_by("-connected_at")
        return {
            "connections": list(_live().filter(agent_id=row.agent_id)),
            "own_cursors": [
                (cursor, cursor.topic.last_offset - cursor.offset)
                for cursor in cursors.select_related("topic").order_by("consumer", "topic")[:MOST_CURSORS]
            ],
            "sessions": list(sessions[:MOST_SESSIONS]),
            "whose": row.agent_id,
            "trace_url": f"/?{urlencode({'trace': f'agent:{row.agent_id}'})}",
        }

    @change(
        "Message",
        permission="bus.message_agent",
        form=EventForm,
        explain="The event goes into the inbox. An agent that is online gets it now, another when it is back;"
        " it is kept until it is acknowledged or trimmed.",
    )
    def message(self, request: HttpRequest, rows: QuerySet[Agent], data: dict[str, Any]) -> str:
        operator, names = operator_of(request), [row.agent_id for row in rows]
        for name in names:
            operating.message_agent(operator, name, data["event_type"], data["payload"])
        return f"Stored in the inbox of {', '.join(names)}."

    @change(
        "Disconnect",
        permission="bus.disconnect_agent",
        form=DisconnectForm,
        danger=True,
        explain="The agent's client is told close code 3503 and the reason, and is not to come back by"
        " itself. What waits in its inbox stays there.",
    )
    def disconnect(self, request: HttpRequest, rows: QuerySet[Agent], data: dict[str, Any]) -> str:
        names = [row.agent_id for row in rows]
        told = operating.disconnect(operator_of(request), Q(agent_id__in=names), reason=data["reason"])
        if not told:
            return f"{', '.join(names)}: not connected, so there was nothing to close."
        return f"Told to close: {', '.join(names)}."

    @change(
        "Skip what waits",
        permission="bus.skip_agent",
        form=ReasonForm,
        danger=True,
        explain="All that waits in the inbox counts as acknowledged: the agent does not get it when it"
        " connects. The events stay in the log until they are trimmed; setting the agent's cursor back makes"
        " them wait again.",
    )
    def skip(self, request: HttpRequest, rows: QuerySet[Agent], data: dict[str, Any]) -> str:
        operator, chosen = operator_of(request), list(rows)
        with transaction.atomic():
            for row in chosen:
                operating.skip_inbox(operator, row.agent_id, reason=data["reason"])
        return f"Nothing waits any more for {', '.join(row.agent_id for row in chosen)}."
