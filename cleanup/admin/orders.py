"""Orders on the trash: restore, extend or purge all that a filter finds, and what came of it.

The three changes stand beside the list of the trash. Their pages take its filter from the address, say how
many files and bytes it finds, and want the number typed: whoever orders has read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminTextInputWidget

from bus import cells
from bus.console import Change, ConfirmForm, ReadOnlyAdmin, change
from bus.filters import begin_of
from cleanup.admin.fields import AgeField, actor_of, reasons
from cleanup.engine.errors import EngineError
from cleanup.models import ItemState, JobState, OrderVerb, StagingArea, TrashOrder
from cleanup.operations import OperationRefused, orders, trash_filters
from cleanup.operations.glimpses import LOOK_AT, full_count, glimpse

TONES = {
    JobState.QUEUED: "info",
    JobState.RUNNING: "info",
    JobState.DONE: "good",
    JobState.STOPPED: "warn",
    JobState.REFUSED: "bad",
    JobState.FAILED: "bad",
}
OPEN = (JobState.QUEUED, JobState.RUNNING)

#: `?count=all`: count every file that is found, however long it takes.
_COUNT, _ALL = "count", "all"


def suffix() -> str:
    """What is added to a taken name unless somebody writes something else."""
    return timezone.localtime().strftime("restored-%Y%m%d-%H%M%S")


def filter_of(asked: QueryDict) -> dict[str, Any]:
    """The filter and search of the list of the trash, as orders keep it.

    Raises:
        OperationRefused: it is about files that are not in the trash, or cannot be understood.
    """
    given = {
        name: asked.get(name, "").strip() for name in (*_TAKEN, *_DAYS, "area", "state", "purge_day", "q")
    }
    if given["state"] not in ("", ItemState.TRASHED):
        raise OperationRefused(
            "the filter is about files that are not in the trash: set its state to in trash"
        )
    found: dict[str, Any] = {_TAKEN[name]: given[name] for name in _TAKEN if given[name]}
    if given["area"]:
        found["area"] = _area_name(given["area"])
    for name, (key, days) in _DAYS.items():
        if given[name]:
            found[key] = _moment(given[name], days)
    if given["purge_day"]:
        # Today's day is also that of what is overdue, as on the calendar.
        if given["purge_day"] > timezone.localdate().isoformat():
            found["purge_from"] = _moment(given["purge_day"], 0)
        found["purge_before"] = _moment(given["purge_day"], 1)
    return found | _searched(given["q"])


#: Parameters of the list to the names of the filter; days with how many are added.
_TAKEN = {"policy": "policy", "reason": "reason", "run": "run", "size": "min_size"}
_DAYS = {
    "trashed_from": ("trashed_from", 0),
    "trashed_to": ("trashed_before", 1),
    "purge_from": ("purge_from", 0),
    "purge_to": ("purge_before", 1),
}


def _area_name(text: str) -> str:
    area = StagingArea.objects.filter(pk=int(text)).first() if text.isdecimal() else None
    if area is None:
        raise OperationRefused(f"there is no area {text}")
    return area.name


def _moment(text: str, days: int) -> str:
    try:
        begin = begin_of(date.fromisoformat(text) + timedelta(days=days))
    except (ValueError, OverflowError) as error:
        raise OperationRefused(f"{text!r} is not a day") from error
    return "" if begin is None else begin.isoformat()


def _searched(term: str) -> dict[str, str]:
    for area in StagingArea.objects.all() if term.startswith("/") else ():
        root = f"{area.path.rstrip('/')}/"
        if term.startswith(root):
            return {"area": area.name, "begins": term.removeprefix(root).removesuffix("*")}
    if term.endswith("*"):
        return {"begins": term.removesuffix("*")}
    return {"contains": term} if term else {}


class _NumberForm(ConfirmForm):
    number = forms.IntegerField(
        min_value=1,
        label="Number of files",
        widget=UnfoldAdminIntegerFieldWidget(attrs={"autocomplete": "off"}),
        help_text="Type the number that stands above: what is ordered is all of them.",
    )


class RestoreFoundForm(_NumberForm):
    """What happens to files whose names are taken."""

    rename = forms.CharField(
        required=False,
        max_length=100,
        label="Where a name is taken, add",
        widget=UnfoldAdminTextInputWidget(),
        help_text="With “new”, report.csv comes back as report.new.csv. Left empty, such a file stays in the "
        "trash. Nothing is overwritten.",
    )
    field_order = ("rename", "number")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["rename"].initial = suffix()


class ExtendFoundForm(_NumberForm):
    """By how much."""

    by = AgeField(label="Longer by", initial="7d", help_text="Such as 7d, 12h or 4w.")
    field_order = ("by", "number")


class PurgeFoundForm(_NumberForm):
    """Why it cannot wait."""

    reason = forms.CharField(
        max_length=300, widget=UnfoldAdminTextInputWidget(), help_text="Kept in the audit with every file."
    )
    field_order = ("reason", "number")


@admin.register(TrashOrder)
class TrashOrderAdmin(ReadOnlyAdmin):
    """Orders."""

    intro = (
        "What was ordered for everything that a filter of the trash found, done by a worker. To order "
        "something, filter the trash and choose below its search what is to be done to all that is found."
    )
    when_empty = "Nothing was ordered yet."
    when_empty_see = ("Trash", "admin:cleanup_cleanupitem_changelist")
    refusals = (EngineError,)
    list_display = ("what", "standing", "amount", "did", "kept_back", "who", "ordered")
    list_display_links = ("what",)
    list_filter = ("state", "verb")
    ordering = ("-created_at",)
    fields = (
        ("what", "standing", "who"),
        ("amount", "did", "kept_back"),
        ("ordered", "over", "how"),
        "message",
    )
    readonly_fields = ("what",)
    change_form_outer_after_template = "console/order_details.html"

    def context(self, request: HttpRequest, row: TrashOrder) -> dict[str, Any]:
        return {
            "is_open": row.state in OPEN,
            "topic": orders.topic_of(row),
            "order": row,
            "order_total": max(row.files, row.seen),
            "kept": reasons(row.kept),
            "conflicts": row.conflicts,
            "conflicts_more": row.kept.get("the name is taken", 0) - len(row.conflicts),
        }

    def applies(self, change: Change, row: Any) -> bool:
        return row.state in OPEN

    def _offered(self, request: HttpRequest, *, rows: bool) -> Iterator[Change]:
        """The three that need the trash's filter are offered beside that alone."""
        return super()._offered(request, rows=True) if rows else iter(())

    def _asking(
        self, request: HttpRequest, entry: Change, rows: QuerySet[Any] | None, form: ConfirmForm
    ) -> dict[str, Any]:
        asking = super()._asking(request, entry, rows, form)
        if entry.rows:
            return asking
        try:
            return {**asking, **_found(request)}
        except EngineError as refusal:
            form.errors.clear()
            return {**asking, "summary": "nothing is found", "trouble": str(refusal)}

    def _list_url(self) -> str:
        return reverse("admin:cleanup_cleanupitem_changelist")

    def name_of(self, row: TrashOrder) -> str:
        return f"{row.get_verb_display().capitalize()}: {trash_filters.in_words(row.filter)}"

    @display(description="Order")
    def what(self, row: TrashOrder) -> SafeString:
        return cells.pair(row.get_verb_display().capitalize(), trash_filters.in_words(row.filter))

    @display(description="State", ordering="state")
    def standing(self, row: TrashOrder) -> SafeString:
        text = "stopping" if row.stop_requested and row.state in OPEN else row.get_state_display()
        return cells.badge(text, TONES[JobState(row.state)])

    @display(description="Found")
    def amount(self, row: TrashOrder) -> str:
        return cells.files_and_bytes(row.files, row.bytes)

    @display(description="Done")
    def did(self, row: TrashOrder) -> str:
        if row.verb == OrderVerb.EXTEND:
            return f"{row.done_files:,} stay longer"
        return cells.files_and_bytes(row.done_files, row.done_bytes)

    @display(description="Left as it was")
    def kept_back(self, row: TrashOrder) -> str:
        return "; ".join(f"{number} {reason}" for reason, number in reasons(row.kept)) or "nothing"

    @display(description="By", ordering="actor")
    def who(self, row: TrashOrder) -> SafeString:
        return cells.pair(f"{row.actor} ({row.actor_kind})", row.reason)

    @display(description="Ordered", ordering="created_at")
    def ordered(self, row: TrashOrder) -> SafeString | str:
        return cells.moment(row.created_at)

    @display(description="Finished")
    def over(self, row: TrashOrder) -> SafeString | str:
        return cells.moment(row.finished_at, empty="not yet")

    @display(description="How")
    def how(self, row: TrashOrder) -> str:
        if row.by is not None:
            return f"longer by {cells.span(row.by)}"
        if row.verb == OrderVerb.RESTORE:
            return f"taken names get “{row.rename}”" if row.rename else "taken names stay in the trash"
        return "before the end of the grace period"

    @change(
        "Stop",
        permission="cleanup.stop_trashorder",
        explain="The order ends after the batch at hand. What is done stays done; the rest is left.",
        danger=True,
        bulk=False,
    )
    def stop(self, request: HttpRequest, rows: QuerySet[TrashOrder], data: dict[str, Any]) -> str:
        orders.stop_order(rows.get(), actor=actor_of(request))
        return "Told to stop."

    @change(
        "Restore all",
        permission="cleanup.restore_cleanupitem",
        explain="A worker brings everything back that the filter finds in the trash now, to its original "
        "paths. Nothing is overwritten.",
        form=RestoreFoundForm,
        rows=False,
    )
    def restore_found(self, request: HttpRequest, rows: None, data: dict[str, Any]) -> HttpResponse:
        return self.order(request, OrderVerb.RESTORE, data, rename=data["rename"])

    @change(
        "Extend grace of all",
        permission="cleanup.extend_cleanupitem",
        explain="All that the filter finds in the trash now stays there for longer before it is purged.",
        form=ExtendFoundForm,
        rows=False,
    )
    def extend_found(self, request: HttpRequest, rows: None, data: dict[str, Any]) -> HttpResponse:
        return self.order(request, OrderVerb.EXTEND, data, by=data["by"])

    @change(
        "Purge all now",
        permission="cleanup.purge_cleanupitem",
        explain="A worker removes for good what the filter finds in the trash now. This cannot be undone. "
        "Held files stay, and so does a file that a verifier no longer vouches for.",
        form=PurgeFoundForm,
        danger=True,
        rows=False,
    )
    def purge_found(self, request: HttpRequest, rows: None, data: dict[str, Any]) -> HttpResponse:
        return self.order(request, OrderVerb.PURGE, data, reason=data["reason"])

    def order(
        self, request: HttpRequest, verb: OrderVerb, data: dict[str, Any], **options: Any
    ) -> HttpResponse:
        """Give the order and go to its page."""
        found_by = filter_of(request.GET)
        made = orders.order(verb, found_by, actor=actor_of(request), files=data["number"], **options)
        return HttpResponseRedirect(reverse("admin:cleanup_trashorder_change", args=[made.pk]))


def _found(request: HttpRequest) -> dict[str, Any]:
    """What the filter finds, for the page that asks: at a glimpse, or counted if somebody wants it."""
    found_by, more = filter_of(request.GET), False
    if request.GET.get(_COUNT) == _ALL:
        seen, more = full_count(found_by)
    else:
        seen = glimpse(found_by)
    asked = request.GET.copy()
    asked[_COUNT] = _ALL
    some = "" if seen.is_whole else "at least "
    others = seen.files - len(seen.named)
    return {
        "summary": f"{'more than ' if more else some}{cells.files_and_bytes(seen.files, seen.bytes)}",
        "found_by": trash_filters.in_words(found_by),
        "named": seen.named,
        "more": f"{others:,}" if others and seen.is_whole else "",
        "looked_at": "" if seen.is_whole else f"{LOOK_AT:,}",
        "count_url": "" if seen.is_whole else f"?{asked.urlencode()}",
    }


def buttons(request: HttpRequest) -> list[dict[str, Any]]:
    """The orders that this person may give, for the list of the trash; none where it shows something else."""
    if request.GET.get("state", ItemState.TRASHED) != ItemState.TRASHED:
        return []
    return [
        {
            "label": entry.label,
            "danger": entry.danger,
            "url": reverse("admin:cleanup_trashorder_do", args=[entry.name]),
        }
        for entry in TrashOrderAdmin(TrashOrder, admin.site).changes.values()
        if not entry.rows and entry.allowed(request)
    ]
