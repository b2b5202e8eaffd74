"""Policies: the form, the preview, Run now."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget, UnfoldBooleanWidget

from bus import cells
from bus.console import Change, ConfirmForm, LinesField, change
from cleanup import operations
from cleanup.admin.fields import AgeField, SizeField, actor_of, brake_lines, reasons, verifier_line, words
from cleanup.admin.verbs import VerbAdmin
from cleanup.engine.errors import EngineError, PolicyInvalid
from cleanup.models import Mode, RetentionPolicy, Rule
from cleanup.operations.duetimes import parse_schedule
from cleanup.stores.sql import field_of
from cleanup.verifiers import KINDS

#: Files of each kind that a preview names.
PREVIEW_FILES = 200

_TONES = {Mode.ENFORCE: "info", Mode.REPORT: "warn", Mode.OFF: "neutral"}


LABELS = {
    "age_by": "Age by",
    "skip_in_use": "Skip files in use",
    "unit": "Goes as a",
    "bundle_pattern": "Bundle",
    "keep": "Keep",
    "group_pattern": "Of each",
    "order_by": "Goes first",
    "stamp_field": "Age by the field",
    "catch_up": "Missed runs",
    "max_files": "Most files",
    "max_percent": "Most of the area, percent",
    "max_median_factor": "Most times the usual",
    "max_unknown_percent": "Most unknown answers, percent",
}

HELP = {
    "area": "Empty for the rule rows alone.",
    "mode": "report only: a run makes its plan and ends there. enforce: it moves the files to the trash.",
    "rule": (
        "age: older than the age below. expires_at: results whose metadata says that they have expired. "
        "orphan: files that no row knows, seen twice. watermark: when the disk is too full. keep_newest: all "
        "but the newest of each group. rows: records of a model, soft-deleted."
    ),
    "age": "Such as 2d, 1h30m or 4w. Required by age, orphan and rows; the others heed it if it is given.",
    "age_by": "Any of a (access), b (birth), c (change), m (modification); A B C M for a bundle's directory.",
    "schedule": "An interval such as 6h, or cron text such as 30 2 * * *: minute hour day month weekday.",
    "catch_up": "What becomes of runs that were due while nothing was running.",
    "max_median_factor": "Compared with the median of the last 30 runs, from the fifth run on.",
    "max_unknown_percent": "Of what the verifiers were asked. Above it a run ends without having acted.",
}


def _default(field: str) -> Any:
    """What a new policy has there: a field of our own does not take it from the model."""
    return field_of(RetentionPolicy, field).get_default()


class VerifiersField(LinesField):
    """Verifiers, one a line: a kind, or a kind with options; or a JSON object."""

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(map(verifier_line, value)) if isinstance(value, list) else value

    def clean(self, value: str | None) -> list[Any]:
        try:
            return [json.loads(line) if line.startswith("{") else line for line in super().clean(value)]
        except ValueError as error:
            raise forms.ValidationError(f"a verifier is not JSON: {error}") from error


class PolicyForm(forms.ModelForm):  # type: ignore[type-arg]
    """A policy as people write one."""

    include = LinesField(
        required=False, help_text="One glob a line, below the area; re:… is a regex. Empty: every file."
    )
    exclude = LinesField(
        required=False,
        help_text="What matches here stays, and so does everything below a matching directory.",
    )
    verifiers = VerifiersField(
        required=False,
        help_text="All must say yes, when a file is trashed and again when it is purged. One a line: "
        "redis_task, or redis_task:key=task:{task_id}:status,value=Complete. There are: "
        f"{'; '.join(f'{name} ({kind.summary})' for name, kind in KINDS.items())}. "
        "`manage.py cleanup policies verifiers` lists their options.",
    )
    grace_period = AgeField(
        label="Grace period",
        initial=_default("grace_period"),
        help_text="How long a trashed file can be restored: 7d, 12h, 4w.",
    )
    floor = AgeField(
        required=False,
        label="Floor",
        help_text="How long of that is promised even when the disk is full. Empty: all of it. Each file has "
        "the promise that was made when it was trashed.",
    )
    row_filter = forms.JSONField(
        required=False,
        label="Only rows with",
        initial=dict,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text='Field lookups as a JSON object, such as {"task_id__startswith": "demo-"}.',
    )
    max_bytes = SizeField(label="Most bytes", initial=_default("max_bytes"), help_text="Such as 100 GB.")

    class Meta:
        model = RetentionPolicy
        fields = (
            "name", "area", "mode", "rule", "age", "age_by", "include", "exclude", "skip_in_use", "unit",
            "bundle_pattern", "keep", "group_pattern", "order_by", "model", "stamp_field", "row_filter",
            "verifiers", "task_id_pattern", "grace_period", "floor", "schedule", "catch_up", "max_files",
            "max_bytes", "max_percent", "max_median_factor", "max_unknown_percent",
        )  # fmt: skip
        labels: ClassVar = LABELS
        help_texts: ClassVar = HELP

    def clean_row_filter(self) -> Any:
        return self.cleaned_data["row_filter"] or {}

    def clean_schedule(self) -> str:
        text: str = self.cleaned_data["schedule"]
        try:
            parse_schedule(text)
        except PolicyInvalid as error:
            raise forms.ValidationError(str(error)) from error
        return text


class RunForm(ConfirmForm):
    """Whether to act."""

    dry_run = forms.BooleanField(
        required=False,
        label="Report only",
        widget=UnfoldBooleanWidget,
        help_text="Make the plan and end there, whatever the mode of the policy is.",
    )


class ModeForm(ConfirmForm):
    """Which mode."""

    mode = forms.ChoiceField(choices=Mode.choices, widget=UnfoldAdminSelectWidget)


@admin.register(RetentionPolicy)
class RetentionPolicyAdmin(VerbAdmin):
    """Rules."""

    intro = (
        "One rule for one area. A new policy reports only: look at its preview, then set it to enforce. "
        "Every save makes a new version, and files already in the trash keep the grace period they were "
        "promised."
    )
    form = PolicyForm
    list_display = ("title", "scope", "standing", "says", "grace", "due", "version")
    list_filter = ("mode", "rule", "area")
    search_fields = ("name",)
    list_select_related = ("area",)
    ordering = ("name",)
    readonly_fields = ("in_words",)
    fieldsets = (
        (None, {"fields": (("name", "area", "mode"),)}),
        ("What goes", {"fields": (("rule", "age", "age_by"), ("include", "exclude"), "skip_in_use")}),
        (
            "Bundles",
            {
                "fields": (("unit", "bundle_pattern"),),
                "description": "A bundle goes as a whole, when its newest file may go. For the rules age, "
                "watermark and keep_newest.",
            },
        ),
        (
            "Rule keep_newest",
            {"fields": (("keep", "group_pattern"),), "description": "How many of each group stay."},
        ),
        (
            "Rule watermark",
            {
                "fields": ("order_by",),
                "description": "Above the high mark of the area the oldest trash is purged, then files go in "
                "this order, down to the low mark.",
            },
        ),
        (
            "Rule rows",
            {
                "fields": (("model", "stamp_field"), "row_filter"),
                "description": "Records instead of files: a model that keeps its deleted rows for a while.",
            },
        ),
        ("Who is asked", {"fields": (("verifiers", "task_id_pattern"),)}),
        ("How long it can be restored", {"fields": (("grace_period", "floor"),)}),
        ("When", {"fields": (("schedule", "catch_up"), "in_words")}),
        (
            "Brakes",
            {
                "fields": (
                    ("max_files", "max_bytes", "max_percent"),
                    ("max_median_factor", "max_unknown_percent"),
                ),
                "description": "A plan above any of these waits for a person.",
            },
        ),
    )

    def carry_out(self, request: HttpRequest, form: Any) -> RetentionPolicy:
        operations.save_policy(form.instance, actor_of(request))
        policy: RetentionPolicy = form.instance
        return policy

    def get_urls(self) -> list[URLPattern]:
        preview = self.admin_site.admin_view(self.preview)
        return [
            path("<int:pk>/preview/", preview, name="cleanup_retentionpolicy_preview"),
            *super().get_urls(),
        ]

    def preview(self, request: HttpRequest, pk: int) -> HttpResponse:
        """What the policy as it is saved would do now. Reads the area, touches nothing."""
        policy = self.get_queryset(request).filter(pk=pk).first()
        if policy is None:
            raise Http404("there is no such policy")
        if not self.has_view_permission(request, policy):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "original": policy,
            "title": f"Preview of {policy.name}",
            "policy": policy,
            "grace": cells.span(policy.grace_period),
            "limit": PREVIEW_FILES,
            "console_buttons": self.buttons(request, policy, preview=False),
        }
        try:
            context |= _shown(operations.preview(policy, limit=PREVIEW_FILES))
        except EngineError as refusal:
            context["refusal"] = str(refusal)
        return TemplateResponse(request, "console/preview.html", context)

    def buttons(self, request: HttpRequest, row: Any, *, preview: bool = True) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = super().buttons(request, row)
        if preview:
            address = reverse("admin:cleanup_retentionpolicy_preview", args=[row.pk])
            found.insert(0, {"label": "Preview", "danger": False, "url": address})
        return found

    def applies(self, change: Change, row: Any) -> bool:
        return change.name != "run_now" or (row.mode != Mode.OFF and (not row.area or row.area.enabled))

    @display(description="Policy", ordering="name")
    def title(self, row: RetentionPolicy) -> SafeString:
        return cells.mono(row.name)

    @display(description="Mode", ordering="mode")
    def standing(self, row: RetentionPolicy) -> SafeString:
        return cells.badge(row.get_mode_display(), _TONES[Mode(row.mode)])

    @display(description="Of", ordering="area")
    def scope(self, row: RetentionPolicy) -> str:
        return row.scope

    @display(description="Trashes")
    def says(self, row: RetentionPolicy) -> SafeString:
        asked = f"after asking {', '.join(map(verifier_line, row.verifiers))}" if row.verifiers else ""
        return cells.pair(_rule_in_words(row), asked)

    @display(description="Grace period", ordering="grace_period")
    def grace(self, row: RetentionPolicy) -> str:
        return cells.span(row.grace_period)

    @display(description="Next run", ordering="next_due_at")
    def due(self, row: RetentionPolicy) -> SafeString | str:
        return cells.moment(row.next_due_at) if row.mode != Mode.OFF else "off"

    @display(description="That is")
    def in_words(self, row: RetentionPolicy) -> str:
        try:
            return parse_schedule(row.schedule).words()
        except PolicyInvalid as error:
            return str(error)

    @display(description="Version")
    def version(self, row: RetentionPolicy) -> str:
        newest = row.versions.order_by("-number").first()
        return f"{newest.number}, by {newest.created_by}" if newest else "none yet"

    @change(
        "Run now",
        permission="cleanup.run_retentionpolicy",
        explain="A worker makes a plan with the rule as it is now. In mode enforce, and under the brakes, "
        "it moves the files to the trash, from where they can be restored for the length of the "
        "grace period. Above a brake the plan waits for a person.",
        form=RunForm,
    )
    def run_now(self, request: HttpRequest, rows: QuerySet[RetentionPolicy], data: dict[str, Any]) -> str:
        runs = [
            operations.queue_run(policy, actor=actor_of(request), dry_run=data["dry_run"])
            for policy in rows.select_related("area")
        ]
        return f"Queued: {', '.join(str(run.pk)[:8] for run in runs)}. Runs & plans shows how they go."

    @change(
        "Set mode",
        permission="cleanup.change_retentionpolicy",
        role="admin",
        explain="Report only ends each run with its plan; enforce lets runs move files to the trash; off "
        "stops the schedule. It is a new version of the policy.",
        form=ModeForm,
    )
    def set_mode(self, request: HttpRequest, rows: QuerySet[RetentionPolicy], data: dict[str, Any]) -> str:
        for policy in rows.select_related("area"):
            operations.set_mode(policy, data["mode"], actor_of(request))
        return f"{rows.count():,} set to {Mode(data['mode']).label}."


def _rule_in_words(row: RetentionPolicy) -> str:
    older = f"older than {row.age}" if row.age else "of any age"
    return {
        Rule.AGE: older,
        Rule.EXPIRES_AT: "expired by their metadata",
        Rule.ORPHAN: f"that no row knows, {older}",
        Rule.WATERMARK: f"{row.get_order_by_display()} above the high mark, {older}",
        Rule.KEEP_NEWEST: f"all but the newest {row.keep} of each group, {older}",
        Rule.ROWS: f"rows {older}",
    }[Rule(row.rule)]


def _shown(preview: Any) -> dict[str, Any]:
    """A preview in the words of the page."""
    return {
        "files": preview.files,
        "total": cells.files_and_bytes(preview.files, preview.bytes),
        "scanned": preview.scanned,
        "brakes": brake_lines(preview.brakes),
        "kept": reasons(preview.kept),
        "goes": [
            (item.path, cells.size(item.size), words(item.reason), item.detail) for item in preview.items
        ],
        "stays": [(item.path, words(item.reason), item.detail) for item in preview.kept_items],
        "errors": [(item.path, item.detail) for item in preview.errors],
        "digest": preview.digest,
    }
