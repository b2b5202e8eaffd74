"""Previews: what a policy would do, while a worker finds out and afterwards, and what can follow from it.

The page of a preview is read from its rows alone: the totals it ended with, and the files batch by batch, for
a bounded time. It works without JavaScript; with it the bar moves, and the page is read anew at the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import cells
from bus.console import Change, ReadOnlyAdmin, change
from cleanup.admin.fields import actor_of
from cleanup.admin.previewing import LATE, page_context
from cleanup.engine.errors import EngineError
from cleanup.models import JobState, Mode, PolicyPreview
from cleanup.operations.previews import cancel_preview, drafted, run_previewed, save_draft
from cleanup.operations.tables import csv_parts
from cleanup.stores.jobs import OPEN_STATES
from cleanup.stores.previews import every_file

_TONES = {
    JobState.DONE: "good", JobState.RUNNING: "info", JobState.QUEUED: "neutral", JobState.STOPPED: "neutral",
    JobState.REFUSED: "bad", JobState.FAILED: "bad",
}  # fmt: skip


@admin.register(PolicyPreview)
class PolicyPreviewAdmin(ReadOnlyAdmin):
    """What policies would do."""

    intro = (
        "What a policy would do, judged by a worker for somebody who wanted to know. Nothing is touched by "
        "it. Previews are kept for a day; a new one is ordered on the page of a policy."
    )
    when_empty = "Nobody has asked for a preview in the last day. Press Preview on the page of a policy."
    when_empty_see = ("Policies", "admin:cleanup_retentionpolicy_changelist")
    refusals = (EngineError,)
    list_display = ("title", "standing", "found", "by", "ordered")
    list_filter = ("state",)
    search_fields = ("name",)
    search_help_text = "Name of a policy"
    ordering = ("-created_at",)

    def get_urls(self) -> list[URLPattern]:
        def view(function: Any) -> Any:
            return self.admin_site.admin_view(function)

        return [
            path("<uuid:pk>/state/", view(self.state), name="cleanup_policypreview_state"),
            path("<uuid:pk>/files.csv", view(self.files), name="cleanup_policypreview_files"),
            *super().get_urls(),
        ]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        row = self._row(request, object_id)
        context = {
            **self.admin_site.each_context(request),
            **page_context(row, request.GET),
            "opts": self.opts,
            "original": row,
            "title": f"Preview of {row.name}",
            "console_buttons": self.buttons(request, row),
            "may_edit": request.user.has_perm("cleanup.view_retentionpolicy"),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "console/preview.html", context)

    def _row(self, request: HttpRequest, key: object) -> PolicyPreview:
        row: PolicyPreview | None = self.get_object(request, str(key))
        if row is None:
            raise Http404("there is no such preview; they are kept for a day")
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        return row

    def state(self, request: HttpRequest, pk: object) -> HttpResponse:
        """How far it is, for pages that the bus does not reach."""
        row = self._row(request, pk)
        waits = row.state == JobState.QUEUED and timezone.now() - row.created_at > LATE
        return JsonResponse({"state": row.state, "late": waits})

    def files(self, request: HttpRequest, pk: object) -> StreamingHttpResponse:
        """Every file as CSV, while it is read."""
        row = self._row(request, pk)
        parts = csv_parts(every_file(row), drafted(row))
        # Each kind of server would read the other's iterator to its end before it sends anything.
        content = _one_by_one(parts) if isinstance(request, ASGIRequest) else parts
        answer = StreamingHttpResponse(content, content_type="text/csv; charset=utf-8")
        answer["Content-Disposition"] = f'attachment; filename="preview-{row.name}.csv"'
        return answer

    def applies(self, change: Change, row: Any) -> bool:
        if change.name == "cancel":
            return row.state in OPEN_STATES and not row.stop_requested
        if change.name == "save_version":
            return row.draft is not None and row.state != JobState.REFUSED
        is_saved = row.draft is None and row.policy is not None
        return bool(is_saved and row.state == JobState.DONE and row.policy.mode != Mode.OFF)

    def describe(self, rows: QuerySet[PolicyPreview]) -> str:
        return "; ".join(f"{row.name}, {_found(row)}" for row in rows)

    @display(description="Policy")
    def title(self, row: PolicyPreview) -> SafeString:
        return cells.path(row.name, of_what(row))

    @display(description="State")
    def standing(self, row: PolicyPreview) -> SafeString:
        return cells.badge(row.get_state_display(), _TONES[JobState(row.state)])

    @display(description="Would go to the trash")
    def found(self, row: PolicyPreview) -> str:
        return _found(row)

    @display(description="For")
    def by(self, row: PolicyPreview) -> str:
        return row.actor

    @display(description="Ordered", ordering="created_at")
    def ordered(self, row: PolicyPreview) -> SafeString | str:
        return cells.moment(row.created_at)

    @change(
        "Cancel",
        permission="cleanup.preview_retentionpolicy",
        explain="The worker stops looking. Nothing was touched.",
        bulk=False,
    )
    def cancel(self, request: HttpRequest, rows: QuerySet[PolicyPreview], data: dict[str, Any]) -> str:
        ended = cancel_preview(rows.get())
        return "Ended." if ended.state == JobState.STOPPED else "It ends within moments."

    @change(
        "Save this version",
        permission="cleanup.change_retentionpolicy",
        role="admin",
        explain="The policy is saved as it was looked at here. That is a new version; no file moves by it.",
        bulk=False,
    )
    def save_version(self, request: HttpRequest, rows: QuerySet[PolicyPreview], data: dict[str, Any]) -> str:
        policy = save_draft(rows.get(), actor_of(request))
        newest = policy.versions.order_by("-number").values_list("number", flat=True)[0]
        return f"{policy.name} is saved: version {newest}, in mode {policy.get_mode_display()}."

    @change(
        "Run now",
        permission="cleanup.run_retentionpolicy",
        explain="A worker makes the plan once more, for files change. In mode enforce, and under the brakes, "
        "it moves the files to the trash, from where they can be restored for the length of the grace "
        "period; above a brake the plan waits for a person. In mode report it ends with the plan.",
        bulk=False,
    )
    def run_now(self, request: HttpRequest, rows: QuerySet[PolicyPreview], data: dict[str, Any]) -> str:
        run = run_previewed(rows.select_related("policy__area").get(), actor_of(request))
        return f"Queued: {str(run.pk)[:8]}. Runs & plans shows how it goes."


def of_what(row: PolicyPreview) -> str:
    """Which version a preview is about."""
    if row.of_version is not None and row.draft is not None:
        return f"version {row.of_version}, not the newest"
    if row.draft is not None:
        return "not saved yet"
    return f"version {row.version}"


def _found(row: PolicyPreview) -> str:
    goes = row.result.get("goes")
    return cells.files_and_bytes(goes["files"], goes["bytes"]) if goes else "—"


async def _one_by_one(parts: Iterator[str]) -> AsyncIterator[str]:
    following = sync_to_async(lambda: next(parts, None))
    while (part := await following()) is not None:
        yield part
