"""Policies: the list, the form with its sentence in words, Preview, Run now.

Preview on the form posts it as it stands: it is checked as saving would, nothing is saved, and a worker says
what it would do (`previews`). Versions have their own page (`versions`).
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldBooleanWidget

from bus import cells
from bus.console import Change, ConfirmForm, change
from cleanup import operations
from cleanup.admin.fields import actor_of, verifier_line
from cleanup.admin.policy_form import FIELDSETS, NEUTRAL, RULES_OF, PolicyForm
from cleanup.admin.verbs import VerbAdmin
from cleanup.engine.errors import PolicyInvalid
from cleanup.models import Mode, PolicyPreview, PolicyVersion, RetentionPolicy, Rule
from cleanup.operations.duetimes import parse_schedule
from cleanup.operations.policies import engine_policy
from cleanup.operations.previews import order_preview
from cleanup.operations.wording import policy_in_words

#: The name of the button that posts the form without saving it.
PREVIEW = "_preview"

_TONES = {Mode.ENFORCE: "info", Mode.REPORT: "warn", Mode.OFF: "neutral"}


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
        "promised. To stop one, set its mode to off; to stop all of an area, disable the area."
    )
    when_empty = (
        "No policy yet, so no file goes by itself. Add the first one: it only reports until you let "
        "it enforce."
    )
    when_empty_see = ("Areas", "admin:cleanup_stagingarea_changelist")
    form = PolicyForm
    list_display = ("title", "scope", "standing", "says", "grace", "due", "version")
    list_filter = ("mode", "rule", "area")
    search_fields = ("name",)
    list_select_related = ("area",)
    ordering = ("name",)
    readonly_fields = ("in_words",)
    fieldsets = FIELDSETS
    change_form_before_template = "console/policy_says.html"

    def carry_out(self, request: HttpRequest, form: Any) -> RetentionPolicy:
        policy: RetentionPolicy = form.instance
        if PREVIEW in request.POST:
            request.previewed = order_preview(policy, actor_of(request), is_draft=True)  # type: ignore[attr-defined]
        else:
            operations.save_policy(policy, actor_of(request))
        return policy

    def response_add(self, request: HttpRequest, obj: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        answer: HttpResponse = _to_preview(request) or super().response_add(request, obj, *args, **kwargs)
        return answer

    def response_change(self, request: HttpRequest, obj: Any) -> HttpResponse:
        answer: HttpResponse = _to_preview(request) or super().response_change(request, obj)
        return answer

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        return None if _previewed(request) else super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        return None if _previewed(request) else super().log_change(request, obj, message)

    def get_urls(self) -> list[URLPattern]:
        def view(function: Any) -> Any:
            return self.admin_site.admin_view(function)

        return [
            path("words/", view(require_POST(self.words)), name="cleanup_retentionpolicy_words"),
            path("<int:pk>/preview/", view(self.newest), name="cleanup_retentionpolicy_preview"),
            *super().get_urls(),
        ]

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        row = None if object_id is None else self.get_object(request, object_id)
        address = reverse("admin:cleanup_retentionpolicy_words")
        says = {
            "words": policy_in_words(row or RetentionPolicy()),
            "url": f"{address}?policy={row.pk}" if row else address,
            "rules": {name: list(map(str, rules)) for name, rules in RULES_OF.items()},
            "neutral": NEUTRAL,
            "edits": self.may_carry_out(request, row),
        }
        return super().changeform_view(
            request, object_id, form_url, {"policy_says": says, **(extra_context or {})}
        )

    def words(self, request: HttpRequest) -> HttpResponse:
        """What the form as it stands would do, in words, and what is wrong with it. Saves nothing."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        key = request.GET.get("policy", "")
        stored = self.get_queryset(request).filter(pk=key).first() if key.isdecimal() else None
        form = PolicyForm(request.POST, instance=stored)
        form.is_valid()
        return JsonResponse({"words": policy_in_words(form.instance), "problem": _problem(form)})

    def get_queryset(self, request: HttpRequest) -> QuerySet[RetentionPolicy]:
        """With the newest version of each: one query for the whole list."""
        newest = PolicyVersion.objects.filter(policy=OuterRef("pk")).order_by("-number")
        rows: QuerySet[RetentionPolicy] = super().get_queryset(request)
        return rows.annotate(
            newest_number=Subquery(newest.values("number")[:1]),
            newest_author=Subquery(newest.values("created_by")[:1]),
        )

    def newest(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Lead to the newest preview of a policy; to the page that makes one if there is none."""
        policy = self.get_queryset(request).filter(pk=pk).first()
        if policy is None:
            raise Http404("there is no such policy")
        if not self.has_view_permission(request, policy):
            raise PermissionDenied
        found = policy.previews.filter(draft__isnull=True).order_by("-created_at").first()
        if found is not None:
            return HttpResponseRedirect(page_of(found))
        entry = self.changes["preview"]
        if not entry.allowed(request):
            return HttpResponseRedirect(reverse("admin:cleanup_policypreview_changelist"))
        return HttpResponseRedirect(self._url(entry, [str(pk)]))

    def buttons(self, request: HttpRequest, row: Any) -> list[dict[str, Any]]:
        """Who may edit has Preview on the form, which posts it as it stands."""
        found = super().buttons(request, row)
        if self.may_carry_out(request, row):
            found = [button for button in found if button["label"] != "Preview"]
        versions = reverse("admin:cleanup_policyversion_changelist")
        address = f"{versions}?policy__id__exact={row.pk}"
        return [*found, {"label": "Versions", "danger": False, "url": address}]

    def applies(self, change: Change, row: Any) -> bool:
        return change.name != "run_now" or (row.mode != Mode.OFF and (not row.area or row.area.enabled))

    def _back(self, request: HttpRequest) -> str:
        previewed = _previewed(request)
        return page_of(previewed) if previewed else super()._back(request)

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
        number, author = getattr(row, "newest_number", None), getattr(row, "newest_author", "")
        return f"{number}, by {author}" if number else "none yet"

    @change(
        "Preview",
        permission="cleanup.preview_retentionpolicy",
        explain="A worker reads the area and says, file by file, what the policy as it is saved would do now "
        "and why. Nothing is touched.",
        bulk=False,
    )
    def preview(self, request: HttpRequest, rows: QuerySet[RetentionPolicy], data: dict[str, Any]) -> str:
        request.previewed = order_preview(rows.get(), actor_of(request))  # type: ignore[attr-defined]
        return ""

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


def page_of(preview: PolicyPreview) -> str:
    """Where a preview is shown."""
    return reverse("admin:cleanup_policypreview_change", args=[preview.pk])


def _previewed(request: HttpRequest) -> PolicyPreview | None:
    """What this request has ordered instead of saving, if it has."""
    found: PolicyPreview | None = getattr(request, "previewed", None)
    return found


def _to_preview(request: HttpRequest) -> HttpResponse | None:
    found = _previewed(request)
    return None if found is None else HttpResponseRedirect(page_of(found))


def _problem(form: PolicyForm) -> str:
    """The first thing that is wrong with what a form says, then what it does not say yet; else empty."""
    wrong = [(name, error) for name, errors in form.errors.as_data().items() for error in errors]
    missing = [pair for pair in wrong if pair[1].code == "required"]
    for name, error in [pair for pair in wrong if pair not in missing]:
        return _labelled(form, name, " ".join(error.messages))
    try:
        engine_policy(form.instance)
    except PolicyInvalid as problem:
        if not missing or missing[0][0] != "name":
            return str(problem)
        return (
            str(problem).removeprefix(f"policy {form.instance.name!r}: ").removeprefix("a name is missing; ")
        )
    return _labelled(form, missing[0][0], "is missing") if missing else ""


def _labelled(form: PolicyForm, name: str, text: str) -> str:
    """What is wrong, with the field as the page calls it."""
    if name not in form.fields:
        return text
    return f"{form.fields[name].label or name.replace('_', ' ').capitalize()}: {text}"


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
