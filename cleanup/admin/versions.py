"""Versions of policies: who saved what and when, field by field, and an old one looked at or put back."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import cells
from bus.console import Change, ReadOnlyAdmin, change
from cleanup.admin.fields import actor_of
from cleanup.admin.policies import page_of
from cleanup.engine.errors import EngineError
from cleanup.models import PolicyVersion
from cleanup.operations.previews import order_preview
from cleanup.operations.versions import FieldChange, changes_between, put_back

#: Fields that a row of the list names; its page names all.
_SHOWN = 4


@admin.register(PolicyVersion)
class PolicyVersionAdmin(ReadOnlyAdmin):
    """History."""

    intro = (
        "Every save of a policy makes a version, which never changes again; runs and audit entries point at "
        "the one they obeyed. An old version can be looked at, and put back as the newest one."
    )
    when_empty = "No policy was saved yet, and each save makes a version."
    when_empty_see = ("Policies", "admin:cleanup_retentionpolicy_changelist")
    refusals = (EngineError,)
    list_display = ("title", "changed", "by", "saved")
    list_filter = ("policy",)
    search_fields = ("policy__name",)
    search_help_text = "Name of a policy"
    list_select_related = ("policy",)
    ordering = ("-id",)
    fieldsets = (
        (None, {"fields": (("title", "by", "saved"), "all_changes")}),
        ("What it says", {"fields": (("schedule", "catch_up"), "whole")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[PolicyVersion]:
        earlier = PolicyVersion.objects.filter(
            policy=OuterRef("policy"), number__lt=OuterRef("number")
        ).order_by("-number")
        newest = PolicyVersion.objects.filter(policy=OuterRef("policy")).order_by("-number")
        rows: QuerySet[PolicyVersion] = super().get_queryset(request)
        return rows.annotate(
            old_document=Subquery(earlier.values("document")[:1]),
            old_schedule=Subquery(earlier.values("schedule")[:1]),
            old_catch_up=Subquery(earlier.values("catch_up")[:1]),
            newest=Subquery(newest.values("number")[:1]),
        )

    def describe(self, rows: QuerySet[PolicyVersion]) -> str:
        return "; ".join(f"{row.policy.name}, version {row.number}" for row in rows)

    def applies(self, change: Change, row: Any) -> bool:
        return change.name != "put_back" or row.number != row.newest

    def buttons(self, request: HttpRequest, row: Any) -> list[dict[str, Any]]:
        address = reverse("admin:cleanup_retentionpolicy_change", args=[row.policy_id])
        return [*super().buttons(request, row), {"label": "The policy", "danger": False, "url": address}]

    def _back(self, request: HttpRequest) -> str:
        previewed = getattr(request, "previewed", None)
        return page_of(previewed) if previewed else super()._back(request)

    def name_of(self, row: PolicyVersion) -> str:
        return f"{row.policy.name} v{row.number}"

    @display(description="Version")
    def title(self, row: PolicyVersion) -> SafeString:
        note = "the newest" if row.number == row.newest else ""  # type: ignore[attr-defined]
        return cells.path(f"{row.policy.name} v{row.number}", note)

    @display(description="What changed")
    def changed(self, row: PolicyVersion) -> SafeString | str:
        found = _changes(row)
        if not found:
            return "made" if row.number == 1 else "nothing in its rule"
        more = f"and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return _lines(found[:_SHOWN], more)

    @display(description="What changed")
    def all_changes(self, row: PolicyVersion) -> SafeString | str:
        found = _changes(row)
        return _lines(found) if found else "made" if row.number == 1 else "nothing in its rule"

    @display(description="By")
    def by(self, row: PolicyVersion) -> str:
        return row.created_by or "—"

    @display(description="Saved")
    def saved(self, row: PolicyVersion) -> SafeString | str:
        return cells.moment(row.created_at)

    @display(description="All of it")
    def whole(self, row: PolicyVersion) -> SafeString:
        return cells.document(row.document)

    @change(
        "Preview",
        permission="cleanup.preview_retentionpolicy",
        explain="A worker says what this version would do now, and the difference to what is saved. Nothing "
        "is touched, and nothing is saved.",
        bulk=False,
    )
    def preview(self, request: HttpRequest, rows: QuerySet[PolicyVersion], data: dict[str, Any]) -> str:
        row = rows.get()
        ordered = order_preview(row.policy, actor_of(request), of_version=row.number)
        request.previewed = ordered  # type: ignore[attr-defined]  # where the answer leads
        return ""

    @change(
        "Put back",
        permission="cleanup.change_retentionpolicy",
        role="admin",
        explain="What this version says is saved as the newest version of its policy. Its name, its area and "
        "its mode stay as they are now, so putting it back never makes a policy act that only "
        "reports. Runs that are under way go on with the version they began with.",
        bulk=False,
    )
    def put_back(self, request: HttpRequest, rows: QuerySet[PolicyVersion], data: dict[str, Any]) -> str:
        row = rows.get()
        made = put_back(row.policy, row.number, actor_of(request))
        return f"{row.policy.name} says again what version {row.number} said: it is version {made.number}."


def _changes(row: Any) -> list[FieldChange]:
    return changes_between(
        row.old_document, row, old_schedule=row.old_schedule or "", old_catch_up=row.old_catch_up or ""
    )


def _lines(changes: list[FieldChange], more: str = "") -> SafeString:
    lines = format_html_join(
        "",
        "<span><b>{}</b> {} → {}</span>",
        ((one.field.replace("_", " "), one.old, one.new) for one in changes),
    )
    return format_html('<span class="x-changes">{}{}</span>', lines, more)
