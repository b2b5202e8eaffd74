"""Verifiers: whom policies ask, whether they can be trusted, and *Test now*.

The cards above are the verifiers that policies name, each with its canaries and its last checks; the list
below is every check of the last 30 days, of runs and by hand. A test asks what a run asks and moves nothing.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from bus import cells
from bus.console import ConfirmForm, ReadOnlyAdmin, change
from bus.filters import choice_filter
from bus.paging import Route, Sought
from cleanup import operations
from cleanup.admin.fields import actor_of
from cleanup.engine.errors import EngineError
from cleanup.models import VerifierCheck
from cleanup.operations.verifying import InUse, answers_of, last_checks
from cleanup.verifiers import KINDS

#: As a choice of the form.
ALL = "all"


class TestForm(ConfirmForm):
    """Which verifier, and what it is asked about beside its canaries."""

    verifier = forms.ChoiceField(widget=UnfoldAdminSelectWidget)
    task_id = forms.CharField(
        required=False,
        max_length=200,
        label="Task id",
        widget=UnfoldAdminTextInputWidget,
        help_text="Optional: ask about this task too.",
    )
    path = forms.CharField(
        required=False,
        max_length=1000,
        widget=UnfoldAdminTextInputWidget,
        help_text="Optional: ask about this file too. Absolute, in an area whose policy asks the verifier.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = [used.name for used in operations.verifiers_in_use() if not used.complaint]
        chosen: forms.ChoiceField = self.fields["verifier"]  # type: ignore[assignment]
        chosen.choices = [*((ALL, "all of them") for _ in names[:1]), *((name, name) for name in names)]
        if not names:
            chosen.help_text = "No policy asks a verifier yet. Name one in a policy first."

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or {}
        if given.get("verifier") == ALL and (given.get("task_id") or given.get("path")):
            raise forms.ValidationError("A task or a file is asked about one verifier: choose it.")
        return given


@admin.register(VerifierCheck)
class VerifierCheckAdmin(ReadOnlyAdmin):
    """Checks of verifiers, below the verifiers themselves."""

    intro = (
        "Before a file is trashed, and again before it is purged, its policy asks its verifiers. Only PASS "
        "lets it go; whatever is in doubt stays. Canaries are tasks whose answer is known: they show that a "
        "verifier can be trusted, and every run asks them first."
    )
    when_empty = (
        "No verifier was checked. Each run asks the canaries of its verifiers first, and Test now "
        "above asks at once."
    )
    refusals = (EngineError,)
    list_before_template = "console/verifiers.html"
    list_display = ("when", "result", "name", "said", "took", "who")
    list_display_links = ("when",)
    list_filter = (choice_filter("sound", lambda: [("1", "sound"), ("0", "not sound")], title="result"),)
    search_fields = ("verifier",)
    search_help_text = "A verifier, as its card spells it"
    ordering = ("-at", "-id")
    routes = (Route(fixed=("verifier",), by="at"), Route(by="at"))
    fields = (("when", "result", "took"), "name", ("said", "who"))

    def seek(self, term: str, sought: Sought) -> None:
        sought.equals["verifier"] = term

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        used = operations.verifiers_in_use()
        extra = {"verifiers": [_card(one) for one in used], **(extra_context or {})}
        shown: HttpResponse = super().changelist_view(request, extra)
        return shown

    @display(description="When", ordering="at")
    def when(self, row: VerifierCheck) -> SafeString | str:
        return cells.moment(row.at)

    @display(description="Result", ordering="sound")
    def result(self, row: VerifierCheck) -> SafeString:
        return _result(row)

    @display(description="Verifier")
    def name(self, row: VerifierCheck) -> SafeString:
        return cells.mono(row.verifier)

    @display(description="It said")
    def said(self, row: VerifierCheck) -> str:
        return row.detail or "all canaries answered as they must"

    @display(description="Took")
    def took(self, row: VerifierCheck) -> str:
        return _took(row)

    @display(description="Asked by")
    def who(self, row: VerifierCheck) -> str:
        return row.asked_by or "—"

    @change(
        "Test now",
        permission="cleanup.test_verifiercheck",
        explain="Asks the canaries of the verifier as a run does, for at most 10 seconds. Without canaries "
        "it asks about something that does not exist, which must not pass. No file is touched; the result is "
        "kept for 30 days.",
        form=TestForm,
        rows=False,
    )
    def test(self, request: HttpRequest, rows: QuerySet[Any] | None, data: dict[str, Any]) -> str:
        wanted, actor = data["verifier"], actor_of(request)
        if wanted != ALL:
            tested = operations.check_verifier(wanted, actor, task_id=data["task_id"], path=data["path"])
            _tell(request, tested, data["path"] or data["task_id"])
            return ""
        for name, found in operations.check_verifiers(actor):
            if isinstance(found, EngineError):
                messages.warning(request, f"{name} was not tested: {found}.")
            else:
                _tell(request, found, "")
        return ""


def _tell(request: HttpRequest, tested: operations.Tested, about: str) -> None:
    check = tested.check
    say = messages.success if check.sound else messages.error
    say(request, f"{'Sound' if check.sound else 'NOT SOUND'}: {check.verifier}: {check.detail}.")
    if tested.answer:
        messages.info(request, f"About {about} it said {tested.answer}.")


def _card(used: InUse) -> dict[str, Any]:
    """A verifier as its card shows it."""
    checks = last_checks(used.name)
    last = checks[0] if checks else None
    counts = answers_of(used)
    return {
        "name": used.name,
        "kind": used.kind or "not understood",
        "summary": KINDS[used.kind].summary if used.kind else "",
        "complaint": used.complaint,
        "policies": used.policies,
        "options": [
            (name, value, KINDS[used.kind].options[name].meaning)
            for name, value in used.options.items()
            if value and not name.startswith("canary_")
        ],
        "canaries": [(name.removeprefix("canary_"), value) for name, value in used.canaries.items()],
        "may_have_canaries": used.may_have_canaries,
        "answers": [(word, counts.get(word, 0)) for word in ("pass", "fail", "unknown")] if counts else [],
        "last": last,
        "badge": _badge(used, last),
        "at": "" if last is None else cells.moment(last.at),
        "took": "" if last is None else _took(last),
        "said": "" if last is None else last.detail or "all canaries answered as they must",
        "sound": sum(check.sound for check in checks),
        "checks": [(check, "good" if check.sound else "bad", _took(check)) for check in reversed(checks)],
    }


def _badge(used: InUse, last: VerifierCheck | None) -> SafeString:
    if used.complaint:
        return cells.badge("not understood", "bad")
    if last is None:
        return cells.badge("never tested", "warn")
    return _result(last)


def _result(check: VerifierCheck) -> SafeString:
    return cells.badge("sound", "good") if check.sound else cells.badge("not sound", "bad")


def _took(check: VerifierCheck) -> str:
    return (
        f"{check.milliseconds:,.0f}\u00a0ms" if check.milliseconds >= 10 else f"{check.milliseconds}\u00a0ms"
    )
