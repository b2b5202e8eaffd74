"""Connections, their history, agents and servers."""

from __future__ import annotations

from typing import Any

from asgiref.sync import async_to_sync
from django import forms
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import CharField, Exists, OuterRef, QuerySet, Subquery, Value
from django.db.models.functions import Cast, Coalesce, Concat, Greatest
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from bus import cells
from bus.conf import conf
from bus.connections.manager import connection_manager
from bus.console import ConfirmForm, ReadOnlyAdmin, change
from bus.models import ActiveConnection, Agent, ConnectionSession, Cursor, ServerInstance, Topic
from bus.protocol.errors import BusError

#: A client that owes more than this many bytes is marked in the list.
NOTABLE_BYTES = 65_536


class DisconnectForm(ConfirmForm):
    """Why; the client is told."""

    reason = forms.CharField(
        max_length=100,
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="Told to the client with the close code, and kept in its history. Optional.",
    )


@admin.register(ActiveConnection)
class ActiveConnectionAdmin(ReadOnlyAdmin):
    """Who is connected now."""

    intro = (
        "Every connection that a living server holds. A row goes when its server says so, or when the "
        "server's lease is over."
    )
    refusals = (BusError,)
    list_display = ("who", "kind", "subscribed", "owed", "seen", "since", "server")
    list_filter = ("transport", "server_instance")
    search_fields = ("agent_id", "user_id", "client_id", "task_id", "address")
    ordering = ("-connected_at",)
    list_select_related = ("server_instance",)
    fields = (
        ("who", "kind", "server"),
        ("client_id", "generation", "session_id", "task_id"),
        ("address", "user_agent"),
        ("since", "seen", "active"),
        ("owed", "topic_names"),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[ActiveConnection]:
        """With the name of the person, since `user_id` of a session is a number."""
        people = get_user_model().objects.annotate(text=Cast("pk", CharField()))
        name = people.filter(text=OuterRef("user_id")).values(get_user_model().USERNAME_FIELD)[:1]
        rows: QuerySet[ActiveConnection] = super().get_queryset(request)
        return rows.annotate(person=Subquery(name))

    @display(description="Agent or user", ordering="agent_id")
    def who(self, row: Any) -> SafeString:
        if row.agent_id:
            return cells.path(row.agent_id, f"generation {row.generation}")
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

    @display(description="Topics")
    def topic_names(self, row: ActiveConnection) -> SafeString | str:
        return cells.mono(", ".join(row.topics)) if row.topics else "none"

    @display(description="Pending", ordering="pending_bytes")
    def owed(self, row: ActiveConnection) -> SafeString | str:
        text = cells.size(row.pending_bytes)
        return cells.badge(text, "warn") if row.pending_bytes > NOTABLE_BYTES else text

    @display(description="Last seen", ordering="last_heartbeat")
    def seen(self, row: ActiveConnection) -> SafeString | str:
        return cells.moment(row.last_heartbeat)

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

    @change(
        "Disconnect",
        permission="bus.disconnect_activeconnection",
        explain="The client is told close code 3503 and the reason, and is not to come back by itself. What"
        " it has not acknowledged stays in the log; it gets it when it connects again.",
        form=DisconnectForm,
        danger=True,
    )
    def disconnect(self, request: HttpRequest, rows: QuerySet[ActiveConnection], data: dict[str, Any]) -> str:
        reason = data["reason"] or "force disconnect"
        names = [str(row) for row in rows]
        for row in rows:
            async_to_sync(connection_manager.disconnect_client)(client_id=row.client_id, reason=reason)
        return f"Told to close: {', '.join(names)}. A row goes as soon as its server has closed the socket."


@admin.register(ConnectionSession)
class ConnectionSessionAdmin(ReadOnlyAdmin):
    """The history of connections."""

    intro = (
        "One row a connection, kept for 30 days by default: how long it lasted, how it ended, how much was "
        "said."
    )
    list_display = ("who", "kind", "begun", "lasted", "ending", "events", "server_instance")
    search_fields = ("=agent_id", "=client_id")
    list_filter = ("transport",)
    ordering = ("-connected_at",)
    search_help_text = "Agent or client id"

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


@admin.register(Agent)
class AgentAdmin(ReadOnlyAdmin):
    """Agents, and what waits for them."""

    intro = (
        "Every agent that has ever connected. What is sent to an agent that is away waits in its inbox, the"
        " topic agent:<id>, and is delivered when it is back."
    )
    list_display = ("name", "online", "waiting", "acknowledged", "connects", "seen", "first_seen")
    search_fields = ("agent_id",)
    ordering = ("-last_seen_at",)
    fields = (
        ("agent_id", "online", "inbox"),
        ("waiting", "acknowledged"),
        ("generation", "connects"),
        ("seen", "first_seen"),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Agent]:
        """With what the list shows of other tables, in the same query."""
        live = ActiveConnection.objects.filter(
            agent_id=OuterRef("agent_id"), server_instance__lease_until__gt=timezone.now()
        )
        inbox = Topic.objects.filter(name=Concat(Value("agent:"), OuterRef("agent_id")))
        acked = Cursor.objects.filter(
            consumer=OuterRef("agent_id"), topic__name=Concat(Value("agent:"), OuterRef("agent_id"))
        )
        rows: QuerySet[Agent] = super().get_queryset(request)
        return rows.annotate(
            is_online=Exists(live),
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

    @display(description="Now", ordering="is_online")
    def online(self, row: Any) -> SafeString:
        return cells.badge("online", "good") if row.is_online else cells.badge("away")

    @display(description="Waiting in its inbox", ordering="depth")
    def waiting(self, row: Any) -> SafeString | str:
        if row.depth <= 0:
            return "nothing"
        events = f"{row.depth:,} {'event' if row.depth == 1 else 'events'}"
        return events if row.is_online else cells.badge(events, "warn")

    @display(description="Last acknowledged", ordering="acked_at")
    def acknowledged(self, row: Any) -> SafeString | str:
        return cells.moment(row.acked_at, empty="never")

    @display(description="Last seen", ordering="last_seen_at")
    def seen(self, row: Agent) -> SafeString | str:
        return cells.moment(row.last_seen_at)

    @display(description="First seen", ordering="first_seen_at")
    def first_seen(self, row: Agent) -> SafeString | str:
        return cells.moment(row.first_seen_at)

    @display(description="Inbox")
    def inbox(self, row: Any) -> SafeString | str:
        if row.inbox_id is None:
            return "Nothing was ever sent to it."
        address = reverse("admin:bus_topic_change", args=[row.inbox_id])
        return format_html('<a class="x-link" href="{}">agent:{}</a>', address, row.agent_id)


@admin.register(ServerInstance)
class ServerInstanceAdmin(ReadOnlyAdmin):
    """Server processes."""

    intro = (
        "One row a server process, alive while its lease is. A lease that is not renewed in time means a "
        "dead process."
    )
    list_display = ("instance", "alive", "layer", "lag", "begun", "lease")
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
