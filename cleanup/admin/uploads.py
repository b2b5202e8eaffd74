"""Uploads: what is on its way in, how far, and what became of it; Give up, and the box to send files by hand.

The box speaks tus with the server like any other client (`bus/console/tus.js`), with the session of the
person; here stands only what it has to know.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import cells
from bus.console import Change, ReadOnlyAdmin, change
from bus.filters import choice_filter, text_filter
from bus.paging import Route, Sought
from cleanup.admin.fields import actor_of
from cleanup.conf import conf
from cleanup.engine.errors import EngineError
from cleanup.models import StagedFile, StagingArea, Upload, UploadState
from cleanup.staging import limits, uploads

#: Django's own permission: whoever has it may send files by the session.
SEND = "cleanup.add_upload"

#: Where the site has mounted tus.
ADDRESS = "/files/"

OPEN = (UploadState.OPEN, UploadState.FINISHING)

_TONES = {
    UploadState.OPEN: "info",
    UploadState.FINISHING: "info",
    UploadState.DONE: "good",
    UploadState.FAILED: "bad",
    UploadState.EXPIRED: "warn",
}


def _areas() -> list[tuple[str, str]]:
    return [(str(pk), name) for pk, name in StagingArea.objects.order_by("name").values_list("pk", "name")]


def _states() -> list[tuple[str, str]]:
    return [(str(value), str(label)) for value, label in UploadState.choices]


def _of_uploader(name: str, sought: Sought) -> None:
    sought.equals["uploader"] = name


@admin.register(Upload)
class UploadAdmin(ReadOnlyAdmin):
    """Uploads."""

    intro = (
        "Files on their way in, part by part. One that is cut off goes on where it stopped, at any web "
        "process, until its time is over; under its final name a file appears only whole and checked."
    )
    when_empty = (
        "Nothing was uploaded yet. Programs send files by tus 1.0 to `/files/`, people by the box above; "
        "`manage.py cleanup stage AREA FILE` stages one from a shell."
    )
    when_empty_see = ("Files", "admin:cleanup_stagedfile_changelist")
    refusals = (EngineError,)
    list_display = ("what", "standing", "amount", "by", "begun", "ends")
    list_display_links = ("what",)
    list_filter = (
        choice_filter("state", _states),
        choice_filter("area", _areas),
        text_filter("uploader", _of_uploader, title="uploader", label="key:NAME or user:NAME"),
    )
    list_select_related = ("area",)
    search_fields = ("name",)
    search_help_text = "Part of the name, or the whole id"
    ordering = ("-created_at", "-pk")
    routes = (
        Route(by="created_at"),
        Route(fixed=("state",), by="expires_at"),
        Route(fixed=("id",), by="id", unique=True),
    )
    fields = (
        ("what", "standing", "by"),
        ("amount", "goes_on", "kind"),
        ("begun", "moved", "ends"),
        ("number", "expected"),
        "detail",
    )
    list_before_template = "console/uploads_before.html"
    change_form_outer_after_template = "console/upload_details.html"

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        extra = {"upload_box": _box(request), **(extra_context or {})}
        return super().changelist_view(request, extra)

    def context(self, request: HttpRequest, row: Upload) -> dict[str, Any]:
        file = StagedFile.all_objects.filter(pk=row.staged_file).first() if row.staged_file else None
        return {
            "upload": row,
            "is_open": row.state in OPEN,
            "topic": f"upload:{row.pk}",
            "file": file,
            "file_gone": bool(row.staged_file) and file is None,
            "refused": row.state == UploadState.FAILED,
            "done_share": cells.size(row.offset),
            "left": cells.size(row.size - row.offset),
        }

    def applies(self, change: Change, row: Any) -> bool:
        return bool(row.state == UploadState.OPEN)

    def describe(self, rows: QuerySet[Upload]) -> str:
        number, size = rows.count(), rows.aggregate(total=Sum("size"))["total"] or 0
        return f"{number:,} {'upload' if number == 1 else 'uploads'} of {cells.size(size)}"

    def seek(self, term: str, sought: Sought) -> None:
        """An id is found at once; a part of a name is looked for, the newest first."""
        try:
            sought.equals["id"] = UUID(term)
        except ValueError:
            super().seek(term, sought)

    @display(description="File")
    def what(self, row: Upload) -> SafeString:
        return cells.pair(row.name, row.area.name)

    @display(description="State")
    def standing(self, row: Upload) -> SafeString:
        return cells.badge(row.get_state_display(), _TONES.get(UploadState(row.state), "neutral"))

    @display(description="Arrived")
    def amount(self, row: Upload) -> SafeString | str:
        if row.state == UploadState.DONE:
            return cells.size(row.size)
        return format_html(
            '{} of {}<progress class="a-meter" aria-label="Arrived of {}" max="{}" value="{}"></progress>',
            cells.size(row.offset), cells.size(row.size), row.name, max(row.size, 1), row.offset,
        )  # fmt: skip

    @display(description="By")
    def by(self, row: Upload) -> SafeString:
        return cells.pair(row.uploader, f"task {row.task_id}" if row.task_id else "")

    @display(description="Begun", ordering="created_at")
    def begun(self, row: Upload) -> SafeString | str:
        return cells.moment(row.created_at)

    @display(description="Expires", ordering="expires_at")
    def ends(self, row: Upload) -> SafeString | str:
        return cells.moment(row.expires_at) if row.state == UploadState.OPEN else "—"

    @display(description="Last change")
    def moved(self, row: Upload) -> SafeString | str:
        return cells.moment(row.changed_at)

    @display(description="Goes on at byte")
    def goes_on(self, row: Upload) -> str:
        return f"{row.offset:,} of {row.size:,}" if row.state == UploadState.OPEN else "—"

    @display(description="Type as sent")
    def kind(self, row: Upload) -> str:
        return row.content_type or "none was said"

    @display(description="Id")
    def number(self, row: Upload) -> SafeString:
        return cells.mono(str(row.pk))

    @display(description="SHA-256 as announced")
    def expected(self, row: Upload) -> SafeString | str:
        return cells.mono(row.sha256) if row.sha256 else "none: whatever arrives is taken"

    @change(
        "Give up",
        permission="cleanup.terminate_upload",
        explain="The upload ends, and what has arrived of it is removed. The sender is told at the next "
        "part, and has to begin anew. No file that is complete is touched.",
        danger=True,
    )
    def give_up(self, request: HttpRequest, rows: QuerySet[Upload], data: dict[str, Any]) -> str:
        ended = [uploads.give_up(pk, actor_of(request)) for pk in rows.values_list("pk", flat=True)]
        return f"Given up: {len(ended):,} {'upload' if len(ended) == 1 else 'uploads'}."


def _box(request: HttpRequest) -> dict[str, Any] | None:
    """What the box for uploads has to know; None for those who may send nothing."""
    if not request.user.has_perm(SEND):
        return None
    return {
        "areas": list(
            StagingArea.objects.filter(enabled=True).order_by("name").values_list("name", flat=True)
        ),
        "person": request.user.get_username(),
        "most": cells.size(conf().upload_max_size),
        "part": conf().upload_part_size,
        "url": ADDRESS,
        "types": ", ".join(_taken()),
        "page": reverse("admin:cleanup_upload_change", args=["ID"]),
        "lifetime": cells.span(conf().upload_lifetime),
    }


def _taken() -> list[str]:
    """The extensions that are taken."""
    wanted = conf().upload_types or ("*",)
    return sorted({*wanted, *(limits.TYPES if "*" in wanted else ())} - {"*"})
