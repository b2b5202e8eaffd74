"""Staged files: the rows of the registry, living and soft-deleted, found along their indexes.

A row goes with its file: soft-deleted when the file is trashed, alive again when it is restored. The file
itself is a matter of the trash.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from bus import cells
from bus.console import Change, ConfirmForm, ReadOnlyAdmin, change
from bus.filters import choice_filter, text_filter
from bus.paging import Route, Sought
from cleanup.admin.explain import explain_url
from cleanup.admin.fields import actor_of
from cleanup.engine.errors import EngineError
from cleanup.models import StagedFile, StagingArea
from cleanup.operations.rows import restore_rows, retire_rows

_LIVING, _GONE = "living", "gone"


def _areas() -> list[tuple[str, str]]:
    return [(str(pk), name) for pk, name in StagingArea.objects.order_by("name").values_list("pk", "name")]


def _states() -> list[tuple[str, str]]:
    return [(_LIVING, "living"), (_GONE, "soft-deleted")]


def _in_state(state: str, sought: Sought) -> None:
    sought.rest.append(Q(deleted_at__isnull=state == _LIVING))


def _of_uploader(name: str, sought: Sought) -> None:
    sought.rest.append(Q(uploader=name))


def _of_task(name: str, sought: Sought) -> None:
    sought.equals["task_id"] = name


class RetireForm(ConfirmForm):
    """Why."""

    reason = forms.CharField(
        max_length=150,
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="Kept with the rows and in the audit.",
    )


@admin.register(StagedFile)
class StagedFileAdmin(ReadOnlyAdmin):
    """Rows of the registry."""

    intro = (
        "The registry of what was put into staging areas, by whom and for which task. A file that it does "
        "not know is an orphan. Its row is soft-deleted when the file is trashed, and comes back with it."
    )
    when_empty = (
        "The registry is empty. What is uploaded, stored by a task or fetched from a source is "
        "written down here; files that are there already get their rows by Register as known, on the "
        "page of their area."
    )
    when_empty_see = ("Areas", "admin:cleanup_stagingarea_changelist")
    refusals = (EngineError,)
    list_display = ("place", "bytes", "standing", "task", "by", "made", "next_step")
    list_display_links = ("place",)
    list_filter = (
        choice_filter("state", _states, title="state", put=_in_state),
        choice_filter("area", _areas),
        text_filter("task", _of_task, title="task", label="Id of the task"),
        text_filter("uploader", _of_uploader, title="uploader", label="Name of the uploader"),
    )
    list_select_related = ("area",)
    search_fields = ("path",)
    search_help_text = "Part of the path"
    ordering = ("-pk",)
    #: Rows are written one after another, so their keys are in the order of their moments.
    routes = (
        Route(fixed=("task_id",), by="id", unique=True),
        Route(by="id", unique=True, look_at=50_000),
    )
    fields = (
        ("place", "bytes", "standing"), ("task", "by", "made"), ("content_type", "sha256"),
        ("goes", "delete_reason", "next_step"),
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[StagedFile]:
        rows: Any = StagedFile.all_objects.all()
        return rows  # type: ignore[no-any-return]

    def applies(self, change: Change, row: Any) -> bool:
        return (row.deleted_at is None) is (change.name == "retire_row")

    @display(description="Path")
    def place(self, row: StagedFile) -> SafeString:
        return cells.path(row.path, row.area.name)

    @display(description="Size")
    def bytes(self, row: StagedFile) -> str:
        return cells.size(row.size)

    @display(description="Row")
    def standing(self, row: StagedFile) -> SafeString:
        return (
            cells.badge("living", "good") if row.deleted_at is None else cells.badge("soft-deleted", "warn")
        )

    @display(description="Task")
    def task(self, row: StagedFile) -> SafeString:
        return cells.mono(row.task_id or "—")

    @display(description="Uploader")
    def by(self, row: StagedFile) -> str:
        return row.uploader or "unknown"

    @display(description="Registered", ordering="id")
    def made(self, row: StagedFile) -> SafeString | str:
        return cells.moment(row.created_at)

    @display(description="Row removed")
    def goes(self, row: StagedFile) -> SafeString | str:
        return cells.moment(row.purge_after, empty="not by time")

    @display(description="Next")
    def next_step(self, row: StagedFile) -> SafeString:
        address = explain_url(row.path, row.area)
        return format_html('<a class="x-link" href="{}">Explain</a>', address)

    @change(
        "Retire row",
        permission="cleanup.retire_stagedfile",
        explain="The rows are soft-deleted for 7 days, in which “Restore row” brings them back; then they "
        "are removed for good. No file is touched: a file that is still there is an orphan from now on, and "
        "a policy for orphans may move it to the trash.",
        form=RetireForm,
    )
    def retire_row(self, request: HttpRequest, rows: QuerySet[StagedFile], data: dict[str, Any]) -> str:
        keys = [str(pk) for pk in rows.values_list("pk", flat=True)]
        done = retire_rows("cleanup.StagedFile", keys, actor=actor_of(request), reason=data["reason"])
        kept = f" {len(done.kept):,} did not live." if done.kept else ""
        return f"Retired: {done.rows:,} {'row' if done.rows == 1 else 'rows'}.{kept}"

    @change(
        "Restore row",
        permission="cleanup.restore_stagedfile",
        explain="The rows live again, so their files are no orphans. A row whose file is in the trash is "
        "kept as it is: restore the file there, and the row comes with it. No file is touched.",
    )
    def restore_row(self, request: HttpRequest, rows: QuerySet[StagedFile], data: dict[str, Any]) -> str:
        keys = [str(pk) for pk in rows.filter(deleted_at__isnull=False).values_list("pk", flat=True)]
        done = restore_rows("cleanup.StagedFile", keys, actor=actor_of(request))
        kept = f" {len(done.kept):,} come back with their files." if done.kept else ""
        return f"{done.rows:,} {'row lives' if done.rows == 1 else 'rows live'} again.{kept}"
