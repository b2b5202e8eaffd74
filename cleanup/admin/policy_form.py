"""The form of a policy as people write one, and which of its fields belong to which rule.

The page shows the fields of the chosen rule and hides the others, where there is JavaScript; without it all
are shown, and what a rule does not look at is refused as always. What is not right is said beside the field.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from django import forms
from unfold.widgets import UnfoldAdminTextareaWidget

from bus.console import LinesField
from cleanup.admin.fields import AgeField, SizeField, verifier_line
from cleanup.engine.errors import PolicyInvalid
from cleanup.models import RetentionPolicy, Rule
from cleanup.operations.duetimes import parse_schedule
from cleanup.stores.sql import field_of
from cleanup.verifiers import KINDS

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


_BY_AGE = (Rule.AGE, Rule.ORPHAN, Rule.WATERMARK, Rule.KEEP_NEWEST)
_TOGETHER = (Rule.AGE, Rule.WATERMARK, Rule.KEEP_NEWEST)
_FILES = tuple(rule for rule in Rule if rule is not Rule.ROWS)

#: Which rules look at a field; one that is not here is looked at by all.
RULES_OF: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(("area", "include", "exclude", "skip_in_use", "verifiers", "task_id_pattern"), _FILES),
    "floor": _FILES,
    "age": (*_BY_AGE, Rule.ROWS),
    "age_by": _BY_AGE,
    **dict.fromkeys(("unit", "bundle_pattern"), _TOGETHER),
    **dict.fromkeys(("keep", "group_pattern"), (Rule.KEEP_NEWEST,)),
    "order_by": (Rule.WATERMARK,),
    **dict.fromkeys(("model", "stamp_field", "row_filter"), (Rule.ROWS,)),
}

#: What stands in a field that the chosen rule does not look at.
NEUTRAL = {
    **dict.fromkeys(RULES_OF, ""),
    **{name: _default(name) for name in ("age_by", "unit", "order_by", "stamp_field")},
    "row_filter": "{}",
    "skip_in_use": False,
}

FIELDSETS: Any = (
    (None, {"fields": (("name", "area", "mode"),)}),
    (
        "What goes",
        {
            "fields": (
                ("rule", "age", "age_by"),
                ("keep", "group_pattern"),
                ("order_by",),
                ("model", "stamp_field"),
                ("row_filter",),
                ("include", "exclude"),
                "skip_in_use",
            )
        },
    ),
    (
        "Bundles",
        {
            "fields": (("unit", "bundle_pattern"),),
            "description": "A bundle goes as a whole, when its newest file may go.",
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
