"""Areas: how full their disks are, what they hold, what stands in the way, and what may be done about it.

Nothing is walked and nothing summed while a page is made: what an area holds comes from `AreaUsage`, which a
worker keeps. The page of one area shows its policies, holds, last runs and orphans beside that.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
)

from bus import cells
from bus.console import Change, ConfirmForm, change
from cleanup import operations
from cleanup.admin.area_facts import AreaFacts, facts_of, page_of
from cleanup.admin.fields import actor_of
from cleanup.admin.verbs import VerbAdmin
from cleanup.models import StagingArea
from cleanup.operations import looking
from cleanup.operations.area_changes import set_protected
from cleanup.operations.runs import send
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        area = None if self.rows is None else self.rows.first()
        if area is not None:
            self.initial = {"high": area.high_watermark, "low": area.low_watermark}


class GuardForm(ConfirmForm):
    """Who approves."""

    people = forms.ChoiceField(
        choices=[("", "—"), ("1", "one person"), ("2", "two people")],
        label="A plan above a brake is approved by",
        widget=UnfoldAdminSelectWidget,
    )


class MoveForm(ConfirmForm):
    """Where the directory is now."""

    path = forms.CharField(
        max_length=4096,
        label="Path at which the directory is now",
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="Absolute. Its marker file must have come along.",
    )


class RemoveForm(ConfirmForm):
    """The name of the area, typed by hand."""

    name = forms.CharField(
        max_length=100,
        label="Name of the area",
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True, "autocomplete": "off"}),
        help_text="Type it.",
    )


class RegisterForm(ConfirmForm):
    """Which files become known."""

    pattern = forms.CharField(
        max_length=500,
        label="Files that match",
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="A glob below the area, such as imports/** or *.parquet; ** for all of them.",
    )


@admin.register(StagingArea)
class StagingAreaAdmin(VerbAdmin):
    """Directory trees that may be cleaned."""

    intro = (
        "A directory tree that policies may clean. Its marker file must be in place before a run touches "
        "anything, so an unmounted disk never looks like an empty one. Disable one, and nothing in it goes."
    )
    when_empty = (
        "No directory is registered, so nothing can be cleaned. Add the first one; nothing happens to "
        "its files until it has a policy that enforces."
    )
    form = AreaForm
    list_display = ("title", "standing", "disk", "holding", "trash", "rules", "last_run", "full")
    search_fields = ("name", "path")
    ordering = ("name",)
    add_fieldsets = ((None, {"fields": ("name", "path", "protected")}),)
    fields = (("title", "standing", "guard"), ("marks", "full", "made"), ("uuid", "device"))
    readonly_fields = ("title", "standing", "guard", "marks", "full", "uuid", "device", "made")
    change_form_outer_after_template = "console/area.html"

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("name", "path", "protected") if obj is None else self.fields

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else self.readonly_fields

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Find the facts of all areas of the page together."""
        shown = super().get_changelist_instance(request)
        shown.result_list = list(shown.result_list)
        found = facts_of(shown.result_list)
        for row in shown.result_list:
            row.facts = found[row.pk]
        return shown

    def context(self, request: HttpRequest, row: StagingArea) -> dict[str, Any]:
        return page_of(row, _facts(row))

    def carry_out(self, request: HttpRequest, form: Any) -> StagingArea:
        data = form.cleaned_data
        return operations.add_area(data["name"], data["path"], actor_of(request), protected=data["protected"])

    def applies(self, change: Change, row: Any) -> bool:
        if change.name in ("enable", "remove"):
            return not row.enabled
        return change.name not in ("disable", "look", "register", "measure") or row.enabled

    # What is shown

    @display(description="Area", ordering="name")
    def title(self, row: StagingArea) -> SafeString:
        return cells.path(row.name, row.path)

    @display(description="State", ordering="enabled")
    def standing(self, row: StagingArea) -> SafeString:
        return _facts(row).standing()

    @display(description="Above a brake", ordering="protected")
    def guard(self, row: StagingArea) -> str:
        return "two people approve" if row.protected else "one person approves"

    @display(description="Disk in use")
    def disk(self, row: StagingArea) -> SafeString:
        return _facts(row).disk_cell()

    @display(description="Live files")
    def holding(self, row: StagingArea) -> SafeString:
        return _facts(row).holding_cell()

    @display(description="In trash")
    def trash(self, row: StagingArea) -> str:
        return _facts(row).trash

    @display(description="Watermarks")
    def marks(self, row: StagingArea) -> str:
        return f"above {row.high_watermark} % of its disk it is cleared down to {row.low_watermark} %"

    @display(description="Full in")
    def full(self, row: StagingArea) -> str:
        seconds = _facts(row).full_in
        return "not in sight" if seconds is None else cells.span(timedelta(seconds=seconds))

    @display(description="Policies")
    def rules(self, row: StagingArea) -> str:
        names = _facts(row).policies
        return ", ".join(names) if names else "none: nothing is cleaned"

    @display(description="Last run")
    def last_run(self, row: StagingArea) -> SafeString:
        return _facts(row).last_run_cell()

    @display(description="Registered", ordering="created_at")
    def made(self, row: StagingArea) -> SafeString | str:
        return cells.moment(row.created_at)

    # What may be done

    @change(
        "Look for orphans",
        permission="cleanup.look_stagingarea",
        explain="A worker compares the files with the registry. What it sees is a sighting: a file that is "
        "seen twice without a row, far enough apart, may go by a policy of the rule orphan. "
        "No file is touched.",
    )
    def look(self, request: HttpRequest, rows: QuerySet[StagingArea], data: dict[str, Any]) -> str:
        for area in rows:
            looking.ask_look(area, actor_of(request))
        return "A worker looks now. Orphans shows what it finds."

    @change(
        "Measure now",
        permission="cleanup.measure_stagingarea",
        explain="A worker counts what the area holds: live, eligible, held and in the trash. It reads alone.",
    )
    def measure(self, request: HttpRequest, rows: QuerySet[StagingArea], data: dict[str, Any]) -> str:
        for key in rows.values_list("pk", flat=True):
            transaction.on_commit(partial(send, "cleanup.tasks.measure_area", str(key)), robust=True)
        return "A worker measures now. The figures are here when it is through."

    @change(
        "Register as known",
        permission="cleanup.register_stagingarea",
        explain="The files that the last look saw without a row, and that the pattern matches, get one: they "
        "are no orphans any more. Each is looked at again first, and no file is touched.",
        form=RegisterForm,
        bulk=False,
    )
    def register(self, request: HttpRequest, rows: QuerySet[StagingArea], data: dict[str, Any]) -> str:
        made = looking.register_files(rows.get(), data["pattern"], actor_of(request))
        return f"{len(made):,} {'file is' if len(made) == 1 else 'files are'} known to the registry now."

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

    @change(
        "Set who approves",
        permission="cleanup.protect_stagingarea",
        role="admin",
        explain="A plan above a brake waits for so many people. It counts for plans that wait already, too.",
        form=GuardForm,
    )
    def set_guard(self, request: HttpRequest, rows: QuerySet[StagingArea], data: dict[str, Any]) -> str:
        for area in rows:
            set_protected(area, data["people"] == "2", actor_of(request))
        return "Two people approve." if data["people"] == "2" else "One person approves."

    @change(
        "Disable",
        permission="cleanup.disable_stagingarea",
        explain="Nothing in the area is trashed any more, and nothing purged by time. A run that is under "
        "way is told to stop. Everything in the trash can still be restored.",
        danger=True,
    )
    def disable(self, request: HttpRequest, rows: QuerySet[StagingArea], data: dict[str, Any]) -> str:
        return _switch(request, rows, enabled=False)

    @change(
        "Enable",
        permission="cleanup.enable_stagingarea",
        role="admin",
        explain="Policies act in the area again, and what is due in its trash is purged with the next tick.",
    )
    def enable(self, request: HttpRequest, rows: QuerySet[StagingArea], data: dict[str, Any]) -> str:
        return _switch(request, rows, enabled=True)

    @change(
        "Move",
        permission="cleanup.move_stagingarea",
        role="admin",
        explain="Notes that the directory is at another path now. No file is moved by this.",
        form=MoveForm,
        bulk=False,
    )
    def move(self, request: HttpRequest, rows: QuerySet[StagingArea], data: dict[str, Any]) -> str:
        area = operations.move_area(rows.get(), data["path"], actor_of(request))
        return f"{area.name} is {area.path} now."

    @change(
        "Remove",
        permission="cleanup.remove_stagingarea",
        role="admin",
        explain="Lets a disabled area go whose trash is empty: its policies, the rows of its runs, and its "
        "marker file. No file of yours goes, and the audit stays.",
        form=RemoveForm,
        danger=True,
        bulk=False,
    )
    def remove(self, request: HttpRequest, rows: QuerySet[StagingArea], data: dict[str, Any]) -> HttpResponse:
        area = rows.get()
        if data["name"] != area.name:
            raise operations.OperationRefused(f"the area is called {area.name!r}, not {data['name']!r}")
        operations.remove_area(area, actor_of(request))
        messages.success(request, f"{area.name} is let go. {area.path} is a directory like any other now.")
        return HttpResponseRedirect(reverse("admin:cleanup_stagingarea_changelist"))


def _facts(row: Any) -> AreaFacts:
    """What is known about an area, found once for each row of a page."""
    found: AreaFacts | None = getattr(row, "facts", None)
    if found is None:
        found = row.facts = facts_of([row])[row.pk]
    return found


def _switch(request: HttpRequest, rows: QuerySet[StagingArea], *, enabled: bool) -> str:
    names = []
    for area in rows:
        operations.set_enabled(area, enabled, actor_of(request))
        names.append(area.name)
    return f"{'Enabled' if enabled else 'Disabled'}: {', '.join(names)}."
