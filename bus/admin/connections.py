"""Connections, their history, and the servers that hold them.

A row is a belief: its server renews it with every heartbeat, and one that was not renewed for a few of them
is marked. How far a connection is behind is said of its own cursors, for what it has got is on its server.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import CharField, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Cast
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from bus import cells, operating
from bus.admin import reading
from bus.admin.forms import EventForm, operator_of
from bus.conf import conf
from bus.console import ConfirmForm, ReadOnlyAdmin, change
from bus.filters import choice_filter
from bus.models import ActiveConnection, Agent, ConnectionSession, ServerInstance, Transport
from bus.paging import Route, Sought
from bus.protocol.errors import BusError

#: A client that owes more than this many bytes is marked in the list.
NOTABLE_BYTES = 65_536
#: So many heartbeats without a word of a connection, and it is marked as frozen.
SILENT_HEARTBEATS = 3
#: Former sessions on the page of a connection.
MOST_SESSIONS = 20


class DisconnectForm(ConfirmForm):
    """Why; the client is told."""

    reason = forms.CharField(
        max_length=100,
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="Told to the client with the close code, and kept in its history. Optional.",
    )


def _transports() -> list[tuple[str, str]]:
    return [(transport.value, str(transport.label)) for transport in Transport]


def silent_before() -> datetime:
    """Return the moment since when a heartbeat of each living connection must have been heard."""
    return timezone.now() - conf().heartbeat_interval * SILENT_HEARTBEATS


class StandingFilter(admin.SimpleListFilter):
    """What is wrong with connections."""

    title = "standing"
    parameter_name = "standing"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Name them."""
        return [("frozen", "frozen"), ("owing", "slow: owes bytes"), ("closing", "told to close")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Choose."""
        match self.value():
            case "frozen":
                return queryset.filter(last_heartbeat__lt=silent_before())
            case "owing":
                return queryset.filter(pending_bytes__gt=NOTABLE_BYTES)
            case "closing":
                return queryset.filter(close_code__isnull=False)
        return queryset


class KindFilter(admin.SimpleListFilter):
    """Who is connected."""

    title = "who"
    parameter_name = "who"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Name them."""
        return [("agents", "agents"), ("people", "people and servers"), ("anonymous", "anonymous readers")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Choose."""
        match self.value():
            case "agents":
                return queryset.exclude(agent_id="")
            case "people":
                return queryset.filter(agent_id="").exclude(user_id="")
            case "anonymous":
                return queryset.filter(agent_id="", user_id="")
        return queryset


@admin.register(ActiveConnection)
class ActiveConnectionAdmin(ReadOnlyAdmin):
    """Who is connected now."""

    intro = (
        "Every connection that a living server holds. A row goes when its server says so, or when the "
        "server's lease is over."
    )
    when_empty = (
        "Nobody is connected. A client that connects to the bus is here within seconds; it needs a "
        "key or a token to be let in."
    )
    when_empty_see = ("API keys", "admin:bus_apikey_changelist")
    refusals = (BusError,)
    list_display = ("who", "subscribed", "behind", "owed", "seen", "since", "server")
    list_filter = (StandingFilter, KindFilter, "transport", "server_instance")
    search_fields = ("agent_id", "user_id", "client_id", "task_id", "address")
    ordering = ("-connected_at",)
    list_select_related = ("server_instance",)
    fields = (
        ("who", "kind", "server"),
        ("client_id", "generation", "session_id", "task_id"),
        ("address", "user_agent"),
        ("since", "seen", "active"),
        ("owed", "behind"),
    )
    change_form_outer_after_template = "console/connection_details.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[ActiveConnection]:
        """With the name of the person, since `user_id` of a session is a number."""
        people = get_user_model().objects.annotate(text=Cast("pk", CharField()))
        name = people.filter(text=OuterRef("user_id")).values(get_user_model().USERNAME_FIELD)[:1]
        rows: QuerySet[ActiveConnection] = super().get_queryset(request)
        return rows.annotate(person=Subquery(name))

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """With how far the rows that are shown are behind, looked up for all of them at once."""
        shown = super().get_changelist_instance(request)
        reading.add_lags(shown.result_list)
        return shown

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """With how far it is behind."""
        row = super().get_object(request, object_id, from_field)
        reading.add_lags([row] if row is not None else [])
        return row

    @display(description="Agent or user", ordering="agent_id")
    def who(self, row: Any) -> SafeString:
        if row.agent_id:
            return cells.path(row.agent_id, f"agent, generation {row.generation}")
        if row.user_id:
            return cells.path(row.person or row.user_id, "person" if row.person else "user")
        return cells.path(row.client_id, "anonymous")

    @display(description="Transport", ordering="transport")
    def kind(self, row: ActiveConnection) -> SafeString:
        return cells.badge(
            row.get_transport_display(), "info" if row.transport == "centrifugo" else "neutral"
        )

    @display(description="Topics")
    def subscribed(self, row: ActiveConnection) -> SafeString | str:
        if not row.topics:
            return "none"
        more = f"and {len(row.topics) - 1} more" if len(row.topics) > 1 else ""
        return cells.path(row.topics[0], more)

    @display(description="Lag")
    def behind(self, row: Any) -> SafeString | str:
        if row.lag is None:
            return cells.pair("—", "keeps no cursor")
        if not row.lag:
            return "none"
        text = f"{row.lag:,} {'event' if row.lag == 1 else 'events'}"
        return cells.pair(text, f"not acknowledged, of {row.lagging}")

    @display(description="Pending", ordering="pending_bytes")
    def owed(self, row: ActiveConnection) -> SafeString | str:
        text = cells.size(row.pending_bytes)
        return cells.badge(text, "warn") if row.pending_bytes > NOTABLE_BYTES else text

    @display(description="Last seen", ordering="last_heartbeat")
    def seen(self, row: ActiveConnection) -> SafeString | str:
        if row.close_code is not None:
            return cells.badge("told to close", "warn")
        seen = cells.moment(row.last_heartbeat)
        if row.last_heartbeat >= silent_before():
            return seen
        return format_html('{} <span class="x-bus-silent">{}</span>', cells.badge("frozen", "warn"), seen)

    @display(description="Last activity")
    def active(self, row: ActiveConnection) -> SafeString | str:
        return cells.moment(row.last_activity)

    @display(description="Connected", ordering="connected_at")
    def since(self, row: ActiveConnection) -> SafeString | str:
        return cells.moment(row.connected_at)

    @display(description="Server", ordering="server_instance")
    def server(self, row: ActiveConnection) -> SafeString:
        server = row.server_instance
        return cells.path(server.name, f"{server.hostname}, process {server.pid}")

    def buttons(self, request: HttpRequest, row: Any) -> list[dict[str, Any]]:
        """Without those of a connection that is told to close already."""
        return [] if row.close_code is not None else super().buttons(request, row)

    def context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What it reads and how far it is, and how its agent or person was connected before."""
        history = ConnectionSession.objects.filter(client_id=row.client_id)
        if row.agent_id:
            history = ConnectionSession.objects.filter(agent_id=row.agent_id)
        return {
            "reads": reading.of_connection(row),
            "sessions": list(history.order_by("-connected_at")[:MOST_SESSIONS]),
            "whose": row.agent_id or str(row),
            "agent_url": _agent_url(row.agent_id),
        }

    @change(
        "Disconnect",
        permission="bus.disconnect_activeconnection",
        explain="The client is told close code 3503 and the reason, and is not to come back by itself. What"
        " it has not acknowledged stays in the log; it gets it when it connects again.",
        form=DisconnectForm,
        danger=True,
    )
    def disconnect(self, request: HttpRequest, rows: QuerySet[ActiveConnection], data: dict[str, Any]) -> str:
        names = [str(row) for row in rows]
        wanted = Q(pk__in=[row.pk for row in rows])
        operating.disconnect(operator_of(request), wanted, reason=data["reason"])
        return f"Told to close: {', '.join(names)}. A row goes as soon as its server has closed the socket."

    @change(
        "Message",
        permission="bus.message_activeconnection",
        form=EventForm,
        explain="An agent gets the event through its inbox, where it is kept until it acknowledges it. A"
        " person or an anonymous reader gets it once, on this connection, and it is kept nowhere.",
    )
    def message(self, request: HttpRequest, rows: QuerySet[ActiveConnection], data: dict[str, Any]) -> str:
        operator, chosen = operator_of(request), list(rows)
        agents = sorted({row.agent_id for row in chosen if row.agent_id})
        others = [row.pk for row in chosen if not row.agent_id]
        for agent_id in agents:
            operating.message_agent(operator, agent_id, data["event_type"], data["payload"])
        if others:
            operating.message_clients(operator, Q(pk__in=others), data["event_type"], data["payload"])
        said = [f"stored for {', '.join(agents)}"] if agents else []
        said += [f"sent to {len(others)} without an inbox"] if others else []
        return f"The message is {' and '.join(said)}."


def _agent_url(agent_id: str) -> str:
    pk = Agent.objects.filter(agent_id=agent_id).values_list("pk", flat=True).first() if agent_id else None
    return reverse("admin:bus_agent_change", args=[pk]) if pk is not None else ""


@admin.register(ConnectionSession)
class ConnectionSessionAdmin(ReadOnlyAdmin):
    """The history of connections."""

    intro = (
        "One row a connection, kept for 30 days by default: how long it lasted, how it ended, how much was "
        "said."
    )
    when_empty = (
        "No connection is remembered: nobody has connected yet, or not for as long as the history is kept."
    )
    when_empty_see = ("Connections", "admin:bus_activeconnection_changelist")
    list_display = ("who", "kind", "begun", "lasted", "ending", "events", "server_instance")
    search_fields = ("agent_id", "client_id")
    list_filter = (choice_filter("transport", _transports),)
    ordering = ("-connected_at",)
    routes = (
        Route(fixed=("client_id",), by="connected_at"),
        Route(fixed=("agent_id",), by="connected_at"),
        Route(by="connected_at"),
    )
    search_help_text = "Whole id of an agent or a client"
    fields = (
        ("who", "kind", "server_instance"),
        ("begun", "lasted", "ending"),
        ("client_id", "user_id", "address"),
        ("events",),
    )

    def seek(self, term: str, sought: Sought) -> None:
        """By a whole id, for only those have indexes."""
        is_client = ConnectionSession.objects.filter(client_id=term).exists()
        sought.equals["client_id" if is_client else "agent_id"] = term

    @display(description="Agent or user")
    def who(self, row: ConnectionSession) -> SafeString:
        return cells.mono(row.agent_id or row.user_id or row.client_id)

    @display(description="Transport")
    def kind(self, row: ConnectionSession) -> SafeString:
        return cells.badge(row.get_transport_display())

    @display(description="Connected", ordering="connected_at")
    def begun(self, row: ConnectionSession) -> SafeString | str:
        return cells.moment(row.connected_at)

    @display(description="Lasted")
    def lasted(self, row: ConnectionSession) -> SafeString | str:
        if row.disconnected_at is None:
            return cells.badge("connected", "good")
        return cells.span(row.disconnected_at - row.connected_at)

    @display(description="Ended with")
    def ending(self, row: ConnectionSession) -> SafeString | str:
        if row.disconnected_at is None:
            return "—"
        if row.reason == "lost":
            return cells.badge("lost", "bad")
        return f"{row.code or ''} {row.reason}".strip() or "—"

    @display(description="Events in / out")
    def events(self, row: ConnectionSession) -> str:
        return f"{row.events_in:,} / {row.events_out:,}"


@admin.register(ServerInstance)
class ServerInstanceAdmin(ReadOnlyAdmin):
    """Server processes."""

    intro = (
        "One row a server process, alive while its lease is. A lease that is not renewed in time means a "
        "dead process."
    )
    when_empty = "No server has written itself down. Each does when it starts: `manage.py up`, or Daphne."
    list_display = ("instance", "alive", "layer", "lag", "begun", "lease")
    fields = (("instance", "alive"), ("layer", "lag"), ("begun", "lease"))
    ordering = ("-lease_until",)

    @display(description="Server", ordering="name")
    def instance(self, row: ServerInstance) -> SafeString:
        return cells.path(row.name, f"{row.hostname}, process {row.pid}")

    @display(description="State")
    def alive(self, row: ServerInstance) -> SafeString:
        if row.lease_until > timezone.now():
            return cells.badge("alive", "good")
        return cells.badge("lease over", "bad")

    @display(description="Channel layer", ordering="layer_up")
    def layer(self, row: ServerInstance) -> SafeString:
        return cells.badge("up", "good") if row.layer_up else cells.badge("down", "warn")

    @display(description="Loop lag", ordering="loop_lag_ms")
    def lag(self, row: ServerInstance) -> str:
        return f"{row.loop_lag_ms:.1f} ms"

    @display(description="Started", ordering="started_at")
    def begun(self, row: ServerInstance) -> SafeString | str:
        return cells.moment(row.started_at)

    @display(description="Lease until", ordering="lease_until")
    def lease(self, row: ServerInstance) -> SafeString | str:
        return cells.moment(row.lease_until)
