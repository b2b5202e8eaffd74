"""Areas, and holds on files in them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminTextInputWidget

from bus import cells
from bus.console import Change, ConfirmForm, change
from cleanup import operations
from cleanup.admin.fields import actor_of
from cleanup.admin.verbs import VerbAdmin
from cleanup.models import CleanupItem, Hold, ItemState, StagingArea
from cleanup.operations import usage
from cleanup.operations.watermarks import set_marks


class AreaForm(forms.ModelForm):  # type: ignore[type-arg]
    """A new area. What the engine refuses is an error of the field `path`."""

    class Meta:
        model = StagingArea
        fields = ("name", "path", "protected")
        widgets: ClassVar = {"path": UnfoldAdminTextInputWidget}
        help_texts: ClassVar = {
            "name": "Letters, digits, - and _.",
            "path": (
                "An absolute path to a directory of its own. A marker file is written into it; without it "
                "no run starts."
            ),
            "protected": "Two people must approve a plan that is above its brakes.",
        }


class MarksForm(ConfirmForm):
    """From which share of its disk on an area is cleared, and down to which."""

    high = forms.IntegerField(
        min_value=1, max_value=100, label="High, percent of the disk", widget=UnfoldAdminIntegerFieldWidget
    )
    low = forms.IntegerField(
        min_value=0, max_value=99, label="Low, percent of the disk", widget=UnfoldAdminIntegerFieldWidget
    )


@admin.register(StagingArea)
class StagingAreaAdmin(VerbAdmin):
    """Directory trees that may be cleaned."""

    intro = (
        "A directory tree that policies may clean. Its marker file must be in place before a run touches "
        "anything, so an unmounted disk never looks like an empty one."
    )
    form = AreaForm
    list_display = ("title", "standing", "disk", "rules", "trash", "guard", "made")
    search_fields = ("name", "path")
    ordering = ("name",)
    add_fieldsets = ((None, {"fields": ("name", "path", "protected")}),)
    fields = (
        ("title", "standing", "guard"), ("disk", "marks", "full"), ("rules", "trash"),
        ("uuid", "device", "made"),
    )  # fmt: skip
    readonly_fields = (
        "title", "standing", "guard", "disk", "marks", "full", "rules", "trash", "uuid", "device", "made",
    )  # fmt: skip

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("name", "path", "protected") if obj is None else self.fields

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else self.readonly_fields

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[StagingArea]:
        in_trash = CleanupItem.objects.filter(area=OuterRef("pk"), state=ItemState.TRASHED).order_by()
        sums = in_trash.values("area").annotate(files=Count("pk"), total=Sum("size"))
        rows: QuerySet[StagingArea] = super().get_queryset(request)
        return rows.annotate(
            trash_files=Coalesce(Subquery(sums.values("files")), 0),
            trash_bytes=Coalesce(Subquery(sums.values("total")), 0),
            policy_count=Count("policies"),
        )

    def carry_out(self, request: HttpRequest, form: Any) -> StagingArea:
        data = form.cleaned_data
        return operations.add_area(data["name"], data["path"], actor_of(request), protected=data["protected"])

    @display(description="Area", ordering="name")
    def title(self, row: StagingArea) -> SafeString:
        return cells.path(row.name, row.path)

    @display(description="State", ordering="enabled")
    def standing(self, row: StagingArea) -> SafeString:
        return cells.badge("enabled", "good") if row.enabled else cells.badge("disabled", "warn")

    @display(description="Above a brake", ordering="protected")
    def guard(self, row: StagingArea) -> str:
        return "two people approve" if row.protected else "one person approves"

    @display(description="Disk in use")
    def disk(self, row: StagingArea) -> SafeString | str:
        found = usage.disks([row]).get(row.pk)
        if found is None:
            return cells.badge("not there", "bad")
        above = found.percent > row.high_watermark
        return cells.badge(f"{found.percent:.0f} %", "warn" if above else "good")

    @display(description="Watermarks")
    def marks(self, row: StagingArea) -> str:
        return f"above {row.high_watermark} % of its disk it is cleared down to {row.low_watermark} %"

    @display(description="Full in")
    def full(self, row: StagingArea) -> str:
        seconds = usage.forecasts(timezone.now(), areas=[row.pk]).get(row.pk)
        return "not in sight" if seconds is None else cells.span(timedelta(seconds=seconds))

    @display(description="Policies", ordering="policy_count")
    def rules(self, row: Any) -> str:
        return f"{row.policy_count}" if row.policy_count else "none: nothing is cleaned"

    @display(description="In trash", ordering="trash_bytes")
    def trash(self, row: Any) -> str:
        return cells.files_and_bytes(row.trash_files, row.trash_bytes) if row.trash_files else "nothing"

    @display(description="Registered", ordering="created_at")
    def made(self, row: StagingArea) -> SafeString | str:
        return cells.moment(row.created_at)

    @change(
        "Set watermarks",
        permission="cleanup.change_stagingarea",
        role="admin",
        explain="Above the high mark, policies of the rule watermark purge the oldest trash and then trash "
        "files, down to the low mark. Nothing is purged before the floor that it was promised.",
        form=MarksForm,
    )
    def set_marks(self, request: HttpRequest, rows: QuerySet[StagingArea], data: dict[str, Any]) -> str:
        for area in rows:
            set_marks(area, high=data["high"], low=data["low"], actor=actor_of(request))
        return f"Cleared above {data['high']} %, down to {data['low']} %."


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


@admin.register(Hold)
class HoldAdmin(VerbAdmin):
    """Files that stay, whatever a policy says."""

    intro = (
        "A hold keeps every file that matches its pattern: it is neither trashed nor, if it is in the trash"
        " already, purged. It works from the moment it is made."
    )
    form = HoldForm
    list_display = ("glob", "area", "standing", "ends", "reason", "created_by", "made")
    list_filter = ("area",)
    search_fields = ("pattern", "reason")
    list_select_related = ("area",)
    ordering = ("-created_at",)
    fields = (("glob", "area", "standing"), ("ends", "reason"), ("created_by", "made"))
    readonly_fields = ("glob", "standing", "ends", "made")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("area", "pattern", "until", "reason") if obj is None else self.fields

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else self.readonly_fields

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def carry_out(self, request: HttpRequest, form: Any) -> Hold:
        data = form.cleaned_data
        return operations.hold(
            data["area"], data["pattern"], data["until"], data["reason"], actor_of(request)
        )

    def applies(self, change: Change, row: Any) -> bool:
        return row.released_at is None

    @display(description="Pattern", ordering="pattern")
    def glob(self, row: Hold) -> SafeString:
        return cells.mono(row.shown)

    @display(description="State")
    def standing(self, row: Hold) -> SafeString:
        if row.released_at is not None:
            return cells.badge("released")
        if row.until is not None and row.until <= timezone.now():
            return cells.badge("over")
        return cells.badge("holds", "info")

    @display(description="Until", ordering="until")
    def ends(self, row: Hold) -> SafeString | str:
        if row.released_at is not None:
            return cells.moment(row.released_at)
        return cells.moment(row.until, empty="released")

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
