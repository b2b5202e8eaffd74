"""Runs and their plans: Approve, Reject, Stop."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, QuerySet, Sum
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminTextInputWidget

from bus import cells
from bus.console import Change, ConfirmForm, ReadOnlyAdmin, change
from cleanup import operations
from cleanup.admin.fields import actor_of, brake_lines, reasons
from cleanup.engine.errors import EngineError
from cleanup.models import ACTIVE_STATES, CleanupItem, CleanupRun, RunState

#: Files that a run's page names, the biggest.
BIGGEST = 20

TONES = {
    RunState.DONE: "good",
    RunState.REPORTED: "good",
    RunState.AWAITING_APPROVAL: "warn",
    RunState.FAILED: "bad",
    RunState.REFUSED: "bad",
    RunState.EXPIRED: "bad",
    RunState.RUNNING: "info",
    RunState.PLANNING: "info",
    RunState.APPROVED: "info",
}


class ApproveForm(ConfirmForm):
    """The number of files, typed by hand: whoever approves has read it."""

    number = forms.IntegerField(
        min_value=0,
        label="Number of files in the plan",
        widget=UnfoldAdminIntegerFieldWidget(attrs={"autofocus": True, "autocomplete": "off"}),
        help_text="Type it. The plan is carried out exactly as it is; what has changed since stays.",
    )


class ReasonForm(ConfirmForm):
    """Why; kept in the audit."""

    reason = forms.CharField(
        max_length=300,
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="Kept in the audit.",
    )


@admin.register(CleanupRun)
class CleanupRunAdmin(ReadOnlyAdmin):
    """Runs."""

    intro = (
        "Every run first makes a plan: which files, and why. Under the brakes it goes on by itself; above "
        "one it waits here for a person. Nothing that is not in the plan is touched."
    )
    refusals = (EngineError,)
    list_display = ("title", "standing", "planned", "moved", "left", "begun", "by")
    list_filter = ("state", "area", "dry_run")
    list_select_related = ("policy_version__policy", "area")
    ordering = ("-created_at",)
    search_fields = ("policy_version__policy__name",)
    search_help_text = "Name of a policy"
    fieldsets = (
        (None, {"fields": (("title", "standing", "by"), ("created", "begun", "over"))}),
        ("Plan", {"fields": (("planned", "plan_expires"), "above", "digest", "approved")}),
        ("What happened", {"fields": (("moved", "left", "remaining"), "message", "found")}),
    )
    change_form_outer_after_template = "console/run_details.html"

    def context(self, request: HttpRequest, row: CleanupRun) -> dict[str, Any]:
        items = CleanupItem.objects.filter(run=row).order_by()
        return {
            "kept": reasons(row.kept),
            "outcomes": [
                (entry["state"].replace("_", " "), cells.files_and_bytes(entry["files"], entry["total"] or 0))
                for entry in items.values("state").annotate(files=Count("pk"), total=Sum("size"))
            ],
            "biggest": items.order_by("-size")[:BIGGEST],
        }

    def applies(self, change: Change, row: Any) -> bool:
        if change.name == "stop":
            return row.state in ACTIVE_STATES
        return bool(row.state == RunState.AWAITING_APPROVAL)

    def describe(self, rows: QuerySet[CleanupRun]) -> str:
        return "; ".join(
            f"{run.policy_version.policy.name}, {cells.files_and_bytes(run.planned_files, run.planned_bytes)}"
            for run in rows
        )

    @display(description="Run")
    def title(self, row: CleanupRun) -> SafeString:
        version = row.policy_version
        return cells.path(f"{version.policy.name} v{version.number}", f"{row.scope} · {str(row.pk)[:8]}")

    @display(description="State", ordering="state")
    def standing(self, row: CleanupRun) -> SafeString:
        text = "stopping" if row.stop_requested and row.state in ACTIVE_STATES else row.get_state_display()
        return cells.badge(text, TONES.get(RunState(row.state), "neutral"))

    @display(description="Planned", ordering="planned_bytes")
    def planned(self, row: CleanupRun) -> str:
        if row.plan_created_at is None:
            return "no plan yet"
        return cells.files_and_bytes(row.planned_files, row.planned_bytes)

    @display(description="Moved to the trash", ordering="trashed_bytes")
    def moved(self, row: CleanupRun) -> str:
        return cells.files_and_bytes(row.trashed, row.trashed_bytes) if row.trashed else "nothing"

    @display(description="Skipped, errors")
    def left(self, row: CleanupRun) -> SafeString | str:
        text = f"{row.skipped:,} skipped, {row.errors:,} {'error' if row.errors == 1 else 'errors'}"
        return cells.badge(text, "bad") if row.errors else text

    @display(description="Residue")
    def remaining(self, row: CleanupRun) -> str:
        if row.residue is None:
            return "not counted"
        return f"{row.residue:,} eligible files left" if row.residue else "none"

    @display(description="Started", ordering="created_at")
    def begun(self, row: CleanupRun) -> SafeString | str:
        return cells.moment(row.started_at, empty="not yet")

    @display(description="Queued", ordering="created_at")
    def created(self, row: CleanupRun) -> SafeString | str:
        return cells.moment(row.created_at)

    @display(description="Finished", ordering="finished_at")
    def over(self, row: CleanupRun) -> SafeString | str:
        return cells.moment(row.finished_at, empty="not yet")

    @display(description="Plan expires")
    def plan_expires(self, row: CleanupRun) -> SafeString | str:
        return cells.moment(row.plan_expires_at)

    @display(description="By", ordering="actor")
    def by(self, row: CleanupRun) -> str:
        return f"{row.actor} ({row.actor_kind}){', report only' if row.dry_run else ''}"

    @display(description="Found besides")
    def found(self, row: CleanupRun) -> SafeString | str:
        return cells.document(row.facts) if row.facts else "nothing"

    @display(description="Above its brakes")
    def above(self, row: CleanupRun) -> str:
        return "; ".join(brake_lines(row.brakes)) or "none"

    @display(description="Digest of the plan")
    def digest(self, row: CleanupRun) -> SafeString | str:
        return cells.mono(row.plan_digest) if row.plan_digest else "—"

    @display(description="Approved by")
    def approved(self, row: CleanupRun) -> str:
        return ", ".join(str(entry.get("actor", "")) for entry in row.approvals) or "nobody"

    @change(
        "Approve",
        permission="cleanup.approve_cleanuprun",
        explain="The plan is above a brake. Approved, a worker moves exactly its files to the trash, each "
        "checked once more before it goes.",
        form=ApproveForm,
        bulk=False,
    )
    def approve(self, request: HttpRequest, rows: QuerySet[CleanupRun], data: dict[str, Any]) -> str:
        run = operations.approve(rows.get(), files=data["number"], actor=actor_of(request))
        if run.state == RunState.AWAITING_APPROVAL:
            return "Approved by you. The area is protected: a second person must approve too."
        return "Approved. A worker takes it up now."

    @change(
        "Reject",
        permission="cleanup.approve_cleanuprun",
        explain="The plan is thrown away; no file is touched. The policy makes another one at its next run.",
        form=ReasonForm,
        bulk=False,
    )
    def reject(self, request: HttpRequest, rows: QuerySet[CleanupRun], data: dict[str, Any]) -> str:
        operations.reject(rows.get(), reason=data["reason"], actor=actor_of(request))
        return "Rejected. No file was touched."

    @change(
        "Stop",
        permission="cleanup.stop_cleanuprun",
        explain=(
            "The run ends after the batch it is at. What is in the trash already stays there, and can be "
            "restored."
        ),
        danger=True,
        bulk=False,
    )
    def stop(self, request: HttpRequest, rows: QuerySet[CleanupRun], data: dict[str, Any]) -> str:
        operations.stop(rows.get(), actor=actor_of(request))
        return "Told to stop."
