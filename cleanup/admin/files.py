"""Staged files: the rows of the registry, living and soft-deleted, found along their indexes.

A row goes with its file: soft-deleted when the file is trashed, alive again when it is restored. The file
itself is a matter of the trash; its bytes can be downloaded by those who may.
"""

from __future__ import annotations

import re
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from bus import cells
from bus.console import Change, ConfirmForm, ReadOnlyAdmin, change
from bus.filters import choice_filter, text_filter
from bus.paging import Route, Sought
from cleanup.admin.downloads import download
from cleanup.admin.explain import explain_url
from cleanup.admin.fields import actor_of
from cleanup.engine.errors import EngineError
from cleanup.models import StagedContent, StagedFile, StagingArea
from cleanup.operations.rows import restore_rows, retire_rows

DOWNLOAD = "cleanup.download_stagedfile"

#: Rows that a file's page names of those that have to do with it; the others are counted, or said to be more.
MOST_RELATED = 20

_LIVING, _GONE = "living", "gone"
#: Fewer digits would fit too many hashes.
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
#: So many contents whose hashes begin alike are looked up.
_MOST_ALIKE = 20


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
    search_fields = ("path", "name")
    search_help_text = "Part of the path or the name; or the first 8 digits of the SHA-256, or more"
    ordering = ("-pk",)
    #: Rows are written one after another, so their keys are in the order of their moments.
    routes = (
        Route(fixed=("task_id",), by="id", unique=True),
        Route(fixed=("content",), by="id", unique=True),
        Route(by="id", unique=True, look_at=50_000),
    )
    fields = (
        ("given", "bytes", "standing"), ("task", "by", "made"), ("kind", "digest"), "where",
        ("goes", "delete_reason", "next_step"),
    )  # fmt: skip
    change_form_outer_after_template = "console/file_details.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[StagedFile]:
        rows: Any = StagedFile.all_objects.all()
        return rows  # type: ignore[no-any-return]

    def applies(self, change: Change, row: Any) -> bool:
        return (row.deleted_at is None) is (change.name == "retire_row")

    def seek(self, term: str, sought: Sought) -> None:
        """By the beginning of a hash along the index of contents; else by a part of path or name."""
        digest = term.lower()
        alike = _contents(digest, sought.equals.get("area")) if _DIGEST.fullmatch(digest) else []
        if len(alike) == 1:
            sought.equals["content"] = alike[0]
        elif alike:
            sought.among["content"] = alike
        else:
            super().seek(term, sought)

    def name_of(self, row: StagedFile) -> str:
        return row.name or row.path

    def buttons(self, request: HttpRequest, row: StagedFile) -> list[dict[str, Any]]:
        offered = super().buttons(request, row)
        if row.deleted_at is None and request.user.has_perm(DOWNLOAD):
            url = reverse("admin:cleanup_stagedfile_download", args=[row.pk])
            offered.insert(0, {"label": "Download", "url": url})
        return offered

    def context(self, request: HttpRequest, row: StagedFile) -> dict[str, Any]:
        return {"file": row, "alike": _sharing(row), **_descent(row)}

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.download_page)
        name = "cleanup_stagedfile_download"
        return [path("<path:object_id>/download/", view, name=name), *super().get_urls()]

    def download_page(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The bytes of one file; where they are gone, its page says so."""
        if not request.user.has_perm(DOWNLOAD):
            raise PermissionDenied
        row = self.get_object(request, unquote(object_id))
        if row is None:
            raise Http404("there is no such row")
        try:
            return download(request, row)  # type: ignore[return-value]
        except FileNotFoundError:
            messages.warning(request, "The file is not there any more: look for it in the trash.")
        except (EngineError, OSError) as trouble:
            messages.error(request, f"The file cannot be read: {trouble}.")
        return HttpResponseRedirect(reverse("admin:cleanup_stagedfile_change", args=[row.pk]))

    @display(description="File")
    def place(self, row: StagedFile) -> SafeString:
        if not row.name:
            return cells.path(row.path, row.area.name)
        short = f" · {row.sha256[:12]}" if row.sha256 else ""
        return cells.pair(row.name, f"{row.area.name}{short}")

    @display(description="Name as given")
    def given(self, row: StagedFile) -> str:
        return row.name or "none was given"

    @display(description="Path")
    def where(self, row: StagedFile) -> SafeString:
        return cells.path(row.path, row.area.name)

    @display(description="Type")
    def kind(self, row: StagedFile) -> str:
        return row.content_type or "unknown"

    @display(description="SHA-256")
    def digest(self, row: StagedFile) -> SafeString | str:
        return format_html('<span class="x-mono x-digest">{}</span>', row.sha256) if row.sha256 else "unknown"

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


def _contents(digest: str, area: Any) -> list[int]:
    """Contents whose hashes begin so, in one area or in each, found along the index."""
    areas = [area] if area else StagingArea.objects.values_list("pk", flat=True)
    found: list[int] = []
    for pk in areas:
        rows = StagedContent.objects.filter(area=pk, sha256__gte=digest, sha256__lt=f"{digest}g")
        found += rows.order_by("sha256").values_list("pk", flat=True)[: _MOST_ALIKE - len(found)]
    return found


def _sharing(row: StagedFile) -> dict[str, Any] | None:
    """Who else has staged the same bytes, which are stored once; None for a file that was not staged so."""
    if row.content_id is None:
        return None
    rows = StagedFile.all_objects.filter(content=row.content_id)
    others = list(rows.exclude(pk=row.pk).order_by("-pk")[: MOST_RELATED + 1])
    return {
        "living": rows.filter(deleted_at__isnull=True).count(),
        "others": [_related(one) for one in others[:MOST_RELATED]],
        "more": len(others) > MOST_RELATED,
    }


def _descent(row: StagedFile) -> dict[str, Any]:
    """What it was made of, where it was fetched, and what was made of it."""
    origin = None if row.origin is None else StagedFile.all_objects.filter(pk=row.origin).first()
    made = list(StagedFile.all_objects.filter(origin=row.pk).order_by("-pk")[: MOST_RELATED + 1])
    return {
        "origin": origin and _related(origin),
        "origin_gone": row.origin is not None and origin is None,
        "derived": [_related(one) for one in made[:MOST_RELATED]],
        "derived_more": len(made) > MOST_RELATED,
        "source_url": row.source_id and reverse("admin:cleanup_source_change", args=[row.source_id]),
    }


def _related(row: StagedFile) -> dict[str, Any]:
    return {
        "url": reverse("admin:cleanup_stagedfile_change", args=[row.pk]),
        "name": row.name or row.path,
        "by": row.uploader or "unknown",
        "at": cells.moment(row.created_at),
        "gone": row.deleted_at is not None,
    }
