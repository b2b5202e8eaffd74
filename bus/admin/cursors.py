"""Cursors: how far each consumer has read each topic."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import cells, operating
from bus.admin.forms import CursorForm, ReasonForm, operator_of
from bus.admin.log import LogAdmin
from bus.console import change
from bus.models import Cursor
from bus.paging import Route
from bus.protocol.errors import BusError


@admin.register(Cursor)
class CursorAdmin(LogAdmin):
    """How far consumers have acknowledged."""

    intro = (
        "A cursor is the last offset that a consumer has acknowledged; the lag is what it has still to do."
    )
    when_empty = (
        "Nobody has acknowledged anything yet. A consumer gets a cursor with its first "
        "acknowledgement, and goes on from there when it comes back."
    )
    when_empty_see = ("Topics", "admin:bus_topic_changelist")
    list_display = ("consumer", "topic_name", "offset", "lag", "at")
    search_fields = ("consumer",)
    list_select_related = ("topic",)
    ordering = ("consumer", "pk")
    #: The order of the one index; there is none by time, which each acknowledgement would have to pay for.
    #: What is looked for is in the index itself.
    routes = (Route(by="consumer", falling=False, look_at=100_000),)
    fields = (("consumer", "topic_name"), ("offset", "lag", "at"))
    refusals = (BusError,)

    @display(description="Topic")
    def topic_name(self, row: Cursor) -> SafeString:
        return cells.mono(row.topic.name)

    @display(description="Lag")
    def lag(self, row: Cursor) -> SafeString | str:
        behind = row.topic.last_offset - row.offset
        return cells.badge(f"{behind:,} {'event' if behind == 1 else 'events'}", "warn") if behind else "none"

    @display(description="Acknowledged")
    def at(self, row: Cursor) -> SafeString | str:
        return cells.moment(row.acked_at)

    @change(
        "Set",
        permission="bus.set_cursor",
        form=CursorForm,
        bulk=False,
        danger=True,
        explain="The consumer goes on behind this offset the next time that it connects or subscribes: back,"
        " and it gets events a second time; forward, and it never gets those between.",
    )
    def set_offset(self, request: HttpRequest, rows: QuerySet[Cursor], data: dict[str, Any]) -> str:
        row = rows.get()
        operating.set_cursor(
            operator_of(request), row.consumer, row.topic.name, data["offset"], reason=data["reason"]
        )
        return f"Set: {row.consumer} stands at {row.topic.name} #{data['offset']:,}."

    @change(
        "Forget",
        permission="bus.forget_cursor",
        form=ReasonForm,
        danger=True,
        explain="The consumer counts as one that has never read the topic: it begins where newcomers do, and"
        " an agent gets its whole inbox again, as far as that is kept.",
    )
    def forget(self, request: HttpRequest, rows: QuerySet[Cursor], data: dict[str, Any]) -> str:
        chosen = list(rows)
        with transaction.atomic():
            for row in chosen:
                operating.forget_cursor(
                    operator_of(request), row.consumer, row.topic.name, reason=data["reason"]
                )
        return f"Forgotten: {', '.join(f'{row.consumer} in {row.topic.name}' for row in chosen)}."
