"""The trash: what is in it, why, until when; Restore, Extend grace, Purge now."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin import SimpleListFilter
from django.db.models import QuerySet, Sum
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from bus import cells
from bus.console import Change, ConfirmForm, ReadOnlyAdmin, change
from cleanup import operations
from cleanup.admin.fields import AgeField, actor_of, reasons, words
from cleanup.engine.errors import EngineError
from cleanup.models import CleanupItem, ItemState

#: A purge that comes within this time is marked.
SOON = timedelta(days=1)

#: States in which bytes lie in the trash.
IN_TRASH = (ItemState.TRASHED, ItemState.PURGE_INTENT, ItemState.RESTORING, ItemState.ERROR)

_TONES = {
    ItemState.TRASHED: "warn",
    ItemState.RESTORED: "good",
    ItemState.LOST: "bad",
    ItemState.ERROR: "bad",
}


class ExtendForm(ConfirmForm):
    """By how much."""

    by = AgeField(
        label="Longer by",
        initial="7d",
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="Such as 7d, 12h or 4w. It is added to what each file was promised.",
    )


class PurgeForm(ConfirmForm):
    """Why it cannot wait."""

    reason = forms.CharField(
        max_length=300,
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="Kept in the audit.",
    )


class StateFilter(SimpleListFilter):
    """Shows what is in the trash, unless asked for something else."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, page: Any) -> Iterable[tuple[str, str]]:
        return [(state.value, str(state.label)) for state in ItemState if state != ItemState.TRASHED]

    def choices(self, changelist: Any) -> Any:
        """Call the default what it is."""
        for index, choice in enumerate(super().choices(changelist)):
            yield {**choice, "display": "in trash"} if index == 0 else choice

    def queryset(self, request: HttpRequest, queryset: QuerySet[CleanupItem]) -> QuerySet[CleanupItem]:
        return queryset.filter(state=self.value() or ItemState.TRASHED)


@admin.register(CleanupItem)
class CleanupItemAdmin(ReadOnlyAdmin):
    """Files on their way through the trash."""

    intro = (
        "Files that a run has moved to the trash. Until its time is over each can be restored, with its "
        "bytes, mode and times; then it is purged, unless a hold keeps it."
    )
    refusals = (EngineError,)
    list_display = ("original", "bytes", "why", "by_policy", "moved", "purge")
    list_filter = (StateFilter, "area", "reason")
    list_select_related = ("area", "run__policy_version__policy")
    ordering = ("-trashed_at", "id")
    search_fields = ("path",)
    search_help_text = "Part of the path"
    fields = (
        ("original", "standing", "bytes"),
        ("why", "by_policy", "task_id"),
        ("moved", "purge", "trash_id"),
        "detail",
        "files",
    )

    def describe(self, rows: QuerySet[CleanupItem]) -> str:
        return cells.files_and_bytes(rows.count(), rows.aggregate(total=Sum("size"))["total"] or 0)

    def applies(self, change: Change, row: Any) -> bool:
        if change.name == "restore":
            return row.state in (ItemState.TRASHED, ItemState.ERROR)
        return bool(row.state == ItemState.TRASHED)

    @display(description="Original path", ordering="path")
    def original(self, row: CleanupItem) -> SafeString:
        return cells.path(row.path, row.area.name)

    @display(description="State", ordering="state")
    def standing(self, row: CleanupItem) -> SafeString:
        return cells.badge(row.get_state_display(), _TONES.get(ItemState(row.state), "neutral"))

    @display(description="Size", ordering="size")
    def bytes(self, row: CleanupItem) -> str:
        return cells.size(row.size)

    @display(description="Why")
    def why(self, row: CleanupItem) -> SafeString:
        return cells.pair(words(row.reason), row.detail)

    @display(description="Policy")
    def by_policy(self, row: CleanupItem) -> str:
        if row.run is None:
            return "found in the trash"
        return f"{row.run.policy_version.policy.name} v{row.run.policy_version.number}"

    @display(description="Trashed", ordering="trashed_at")
    def moved(self, row: CleanupItem) -> SafeString | str:
        return cells.moment(row.trashed_at)

    @display(description="Purge", ordering="purge_after")
    def purge(self, row: CleanupItem) -> SafeString | str:
        if row.state not in IN_TRASH:
            return cells.badge(row.get_state_display(), _TONES.get(ItemState(row.state), "neutral"))
        if row.purge_after is None:
            return "not by time"
        if row.purge_after <= timezone.now():
            return cells.badge("due", "warn")
        return cells.moment(row.purge_after)

    @display(description="Files")
    def files(self, row: CleanupItem) -> SafeString:
        return cells.document(row.members)

    @change(
        "Restore",
        permission="cleanup.restore_cleanupitem",
        explain="The files go back to their original paths, with their bytes, modes and times. Nothing is "
        "overwritten: where another file has taken the name, the trashed one stays in the trash and"
        " you are told.",
    )
    def restore(self, request: HttpRequest, rows: QuerySet[CleanupItem], data: dict[str, Any]) -> str:
        report = operations.restore(_ids(rows), actor=actor_of(request))
        said = [f"Restored {cells.files_and_bytes(report.restored, report.bytes)}."]
        if report.conflicts:
            names = ", ".join(conflict.path for conflict in report.conflicts[:5])
            said.append(f"{len(report.conflicts):,} stay in the trash, since the name is taken: {names}.")
        if report.lost:
            said.append(f"{report.lost:,} were not in the trash any more.")
        return " ".join([*said, *report.errors[:5]])

    @change(
        "Extend grace",
        permission="cleanup.extend_cleanupitem",
        explain=(
            "The files stay in the trash for longer before they are purged. A grace period is never made "
            "shorter."
        ),
        form=ExtendForm,
    )
    def extend(self, request: HttpRequest, rows: QuerySet[CleanupItem], data: dict[str, Any]) -> str:
        number = operations.extend_grace(_ids(rows), by=data["by"], actor=actor_of(request))
        return f"{number:,} {'file stays' if number == 1 else 'files stay'} {cells.span(data['by'])} longer."

    @change(
        "Purge now",
        permission="cleanup.purge_cleanupitem",
        explain="The files are removed for good, before their grace period is over. This cannot be undone. "
        "Held files stay, and so does a file that a verifier no longer vouches for.",
        form=PurgeForm,
        danger=True,
    )
    def purge_now(self, request: HttpRequest, rows: QuerySet[CleanupItem], data: dict[str, Any]) -> str:
        report = operations.purge_now(_ids(rows), reason=data["reason"], actor=actor_of(request))
        said = [f"Purged {cells.files_and_bytes(report.purged, report.bytes)}."]
        said += [f"{number} kept: {reason}." for reason, number in reasons(report.kept)]
        return " ".join([*said, *report.errors[:5]])


def _ids(rows: QuerySet[CleanupItem]) -> list[Any]:
    return list(rows.values_list("pk", flat=True))
