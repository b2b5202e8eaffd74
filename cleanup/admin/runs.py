"""Runs and their plans: Approve, Reject, Stop."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminTextInputWidget

from bus import cells
from bus.console import Change, ConfirmForm, ReadOnlyAdmin, change
from cleanup import operations
from cleanup.admin.fields import actor_of, brake_lines, reasons, words
from cleanup.engine.errors import EngineError
from cleanup.models import ACTIVE_STATES, CleanupRun, PlanBatch, RunState
from cleanup.operations.runs import needed_approvals, run_topic
from cleanup.stores.leases import WORKING_STATES
from cleanup.stores.plans import items_of

#: Files of one part of a plan that the page names.
MOST_OF_PLAN = 500

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
        "one it waits here for a person. Nothing that is not in the plan is touched. One that is under way "
        "can be stopped on its page, and what it has moved can be restored from the trash."
    )
    when_empty = (
        "No policy has run yet. Each runs by its own schedule unless it is off; Run now on its page "
        "starts one at once."
    )
    when_empty_see = ("Policies", "admin:cleanup_retentionpolicy_changelist")
    refusals = (EngineError,)
    list_display = ("title", "standing", "planned", "moved", "left", "begun", "took", "by")
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
        return {
            "run": row,
            "topic": run_topic(row),
            "kept": reasons(row.kept),
            "outcomes": outcomes(row),
            "biggest": [(one["path"], cells.size(one["size"])) for one in row.facts.get("biggest", [])],
            "is_working": row.state in WORKING_STATES,
            "total": row.planned_files if row.state in (RunState.APPROVED, RunState.RUNNING) else 0,
            "done": row.trashed + row.skipped + row.errors,
            "life": timeline(row),
            "approvals_needed": approvals_in_words(row, request.user.get_username()),
            "page": plan_page(row, request.GET.get("batch", "")),
        }

    def applies(self, change: Change, row: Any) -> bool:
        if change.name == "stop":
            return row.state in ACTIVE_STATES
        if change.name == "resume":
            return row.state in WORKING_STATES
        if change.name == "run_again":
            return row.state not in ACTIVE_STATES
        return bool(row.state == RunState.AWAITING_APPROVAL)

    def describe(self, rows: QuerySet[CleanupRun]) -> str:
        return "; ".join(
            f"{run.policy_version.policy.name}, {cells.files_and_bytes(run.planned_files, run.planned_bytes)}"
            for run in rows
        )

    def name_of(self, row: CleanupRun) -> str:
        version = row.policy_version
        begun = timezone.localtime(row.created_at)
        return f"{version.policy.name} v{version.number}, {begun:%Y-%m-%d %H:%M %Z}"

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

    @display(description="Took")
    def took(self, row: CleanupRun) -> str:
        if row.started_at is None or row.finished_at is None:
            return "—"
        return cells.span(row.finished_at - row.started_at)

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
        facts = {name: value for name, value in row.facts.items() if name != "biggest"}
        return cells.document(facts) if facts else "nothing"

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

    @change(
        "Resume",
        permission="cleanup.resume_cleanuprun",
        explain="A worker is told again to go on with the run. If one is at it already, nothing changes.",
        bulk=False,
    )
    def resume(self, request: HttpRequest, rows: QuerySet[CleanupRun], data: dict[str, Any]) -> str:
        operations.resume(rows.get())
        return "A worker is told to go on with it."

    @change(
        "Run again now",
        permission="cleanup.resume_cleanuprun",
        explain="The policy of this run is carried out once more, in its newest version: a worker makes a "
        "new plan, which goes on by itself or waits at a brake.",
        bulk=False,
    )
    def run_again(self, request: HttpRequest, rows: QuerySet[CleanupRun], data: dict[str, Any]) -> str:
        made = operations.queue_run(rows.get().policy_version.policy, actor=actor_of(request))
        return f"Queued as run {str(made.pk)[:8]}. A worker takes it up now."


def outcomes(run: CleanupRun) -> list[tuple[str, str]]:
    """What became of the files, from the counters of the run: a million rows are not counted for a page."""
    if run.plan_created_at is None:
        return []
    left = max(0, run.planned_files - run.trashed - run.skipped - run.errors)
    found = [("moved to the trash", cells.files_and_bytes(run.trashed, run.trashed_bytes))]
    counted = (("skipped", run.skipped), ("errors", run.errors), ("not touched", left))
    return [*found, *((name, f"{number:,}") for name, number in counted if number)]


def timeline(run: CleanupRun) -> list[tuple[str, Any]]:
    """What happened to a run, in order."""
    approvals = [
        (f"approved by {one.get('actor', '')}", datetime.fromisoformat(one["at"])) for one in run.approvals
    ]
    steps = [
        (f"queued by {run.actor}", run.created_at),
        ("a worker took it up", run.started_at),
        (f"planned: {cells.files_and_bytes(run.planned_files, run.planned_bytes)}", run.plan_created_at),
        *approvals,
        (run.get_state_display(), run.finished_at),
    ]
    return [(step, cells.moment(at)) for step, at in steps if at is not None]


def approvals_in_words(run: CleanupRun, person: str) -> str:
    """How many approvals there are and are needed, and whether this person may give one."""
    needed = needed_approvals(run)
    if run.state != RunState.AWAITING_APPROVAL or needed < 2:
        return ""
    names = [str(entry.get("actor", "")) for entry in run.approvals]
    given = f": {', '.join(names)}" if names else ""
    yours = "; you may not approve twice" if person in names else ""
    return f"The area is protected: {len(names)} of {needed} approvals{given}{yours}."


def plan_page(run: CleanupRun, wanted: str) -> dict[str, Any] | None:
    """One stored part of the plan, by its number: the files as they were planned, and the parts beside it."""
    number = int(wanted) if wanted.isdecimal() and len(wanted) < 9 else 0
    batches = PlanBatch.objects.filter(run=run)
    batch = batches.filter(number=number).first()
    if batch is None:
        return None
    items = items_of(batch)
    return {
        "files": [
            (item.shown, cells.size(item.bytes), words(str(item.reason)), item.detail)
            for item in items[:MOST_OF_PLAN]
        ],
        "more": max(0, len(items) - MOST_OF_PLAN),
        "number": number + 1,
        "older": number - 1 if number else None,
        "newer": number + 1 if batches.filter(number=number + 1).exists() else None,
    }
