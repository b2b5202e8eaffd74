"""Holds: files that stay, whatever a policy says; what each keeps right now, by whom, why and until when.

Holds that a restore has made are shown apart. While a pattern is typed, a hint says how many files it keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.admin import SimpleListFilter
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, JsonResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import cells
from bus.console import Change, change
from cleanup import operations
from cleanup.admin.fields import actor_of
from cleanup.admin.verbs import VerbAdmin
from cleanup.engine.errors import PolicyInvalid
from cleanup.models import Hold, StagingArea
from cleanup.operations.keeping import MAKER
from cleanup.operations.matching import Names, kept_by, matched_by_pattern, names_of

_LONGEST = 500


class HoldForm(forms.ModelForm):  # type: ignore[type-arg]
    """A new hold."""

    class Meta:
        model = Hold
        fields = ("area", "pattern", "until", "reason")
        help_texts: ClassVar = {
            "pattern": "A glob below the area, such as reports/** or *.parquet.",
            "until": "Empty: until somebody releases it.",
            "reason": "Stands in the audit, and beside every file that it keeps.",
        }


class MakerFilter(SimpleListFilter):
    """People's holds, unless those of restores are asked for."""

    title = "made by"
    parameter_name = "maker"

    def lookups(self, request: HttpRequest, page: Any) -> Iterable[tuple[str, str]]:
        return [("restores", "restores: files that were brought back"), ("all", "anybody")]

    def choices(self, changelist: Any) -> Any:
        """Call the default what it is."""
        for index, choice in enumerate(super().choices(changelist)):
            yield {**choice, "display": "people"} if index == 0 else choice

    def queryset(self, request: HttpRequest, queryset: QuerySet[Hold]) -> QuerySet[Hold]:
        if self.value() == "all":
            return queryset
        made = queryset.filter(paths__isnull=False, created_by=MAKER)
        return made if self.value() == "restores" else queryset.exclude(pk__in=made.values("pk"))


@admin.register(Hold)
class HoldAdmin(VerbAdmin):
    """Files that stay, whatever a policy says."""

    intro = (
        "A hold keeps every file that matches its pattern: it is neither trashed nor, if it is in the trash"
        " already, purged. It works from the moment it is made. What is restored is held by itself for the "
        "length of its grace period: the filter shows those."
    )
    when_empty = (
        "Nothing is held by a person, so policies decide alone. Hold what must stay, whatever they say."
    )
    form = HoldForm
    list_display = ("glob", "scope", "standing", "keeps", "ends", "why", "made")
    list_filter = (MakerFilter, "area")
    search_fields = ("pattern", "reason")
    list_select_related = ("area",)
    ordering = ("-created_at",)
    fields = (("glob", "area", "standing"), ("keeps", "ends"), ("why", "made"))
    readonly_fields = ("glob", "standing", "keeps", "ends", "why", "made")
    change_form_outer_after_template = "console/hold_hint.html"

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("area", "pattern", "until", "reason") if obj is None else self.fields

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else self.readonly_fields

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.hint)
        return [path("hint/", view, name="cleanup_hold_hint"), *super().get_urls()]

    def hint(self, request: HttpRequest) -> JsonResponse:
        """How many files a pattern would keep."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        key, pattern = request.GET.get("area", ""), request.GET.get("pattern", "")[:_LONGEST]
        is_key = key.isascii() and key.isdigit() and len(key) < 18
        area = StagingArea.objects.filter(pk=key).first() if is_key else None
        if area is None or not pattern:
            return JsonResponse({"text": ""})
        try:
            return JsonResponse({"text": f"Keeps {matched_by_pattern(pattern, names_of(area)).sentence()}."})
        except PolicyInvalid as error:
            return JsonResponse({"text": str(error)})

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Look at the names of each area once for all holds of the page."""
        shown = super().get_changelist_instance(request)
        shown.result_list = list(shown.result_list)
        names: dict[int, Names] = {}
        for row in shown.result_list:
            if _is_over(row):
                continue
            if row.area_id not in names:
                names[row.area_id] = names_of(row.area_id)
            row.kept = kept_by(row, names[row.area_id])
        return shown

    def carry_out(self, request: HttpRequest, form: Any) -> Hold:
        data = form.cleaned_data
        return operations.hold(
            data["area"], data["pattern"], data["until"], data["reason"], actor_of(request)
        )

    def applies(self, change: Change, row: Any) -> bool:
        return row.released_at is None

    def name_of(self, row: Hold) -> str:
        return f"{'restored files' if row.paths is not None else row.shown} in {row.area.name}"

    @display(description="Pattern", ordering="pattern")
    def glob(self, row: Hold) -> SafeString:
        return cells.mono("restored files" if row.paths is not None else row.shown)

    @display(description="Area", ordering="area__name")
    def scope(self, row: Hold) -> str:
        return row.area.name

    @display(description="State")
    def standing(self, row: Hold) -> SafeString:
        if row.released_at is not None:
            return cells.badge("released")
        return cells.badge("over") if _is_over(row) else cells.badge("holds", "info")

    @display(description="Keeps now")
    def keeps(self, row: Any) -> str:
        if _is_over(row):
            return "nothing any more"
        kept: str | None = getattr(row, "kept", None)
        return kept_by(row, names_of(row.area_id)) if kept is None else kept

    @display(description="Until", ordering="until")
    def ends(self, row: Hold) -> SafeString | str:
        if row.released_at is not None:
            return cells.moment(row.released_at)
        return cells.moment(row.until, empty="somebody releases it")

    @display(description="Why")
    def why(self, row: Hold) -> SafeString:
        return cells.pair(row.reason, "by itself" if row.created_by == MAKER else f"by {row.created_by}")

    @display(description="Made", ordering="created_at")
    def made(self, row: Hold) -> SafeString | str:
        return cells.moment(row.created_at)

    @change(
        "Release",
        permission="cleanup.release_hold",
        explain="From now on policies apply to the files again. Files in the trash whose time is over are "
        "purged with the next tick.",
        danger=True,
    )
    def release(self, request: HttpRequest, rows: QuerySet[Hold], data: dict[str, Any]) -> str:
        holds = list(rows.filter(released_at__isnull=True).select_related("area"))
        for held in holds:
            operations.release(held, actor_of(request))
        return (
            f"Released: {', '.join(held.shown for held in holds)}." if holds else "Nothing was held any more."
        )


def _is_over(row: Hold) -> bool:
    return row.released_at is not None or (row.until is not None and row.until <= timezone.now())
