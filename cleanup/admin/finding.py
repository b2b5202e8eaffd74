"""How files in the trash and audit entries are found: the routes of their lists, their filters, their search.

Every filter is answered along an index, or looked for along one for so many rows (`bus.paging`). No filter
asks a big table which values it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import BooleanField, F, Func, Q
from django.utils import timezone

from bus.filters import begin_of, choice_filter, day_of, days_filter, distinct, text_filter
from bus.halving import first_since
from bus.paging import Route, Sought
from cleanup.engine.reasons import Reason
from cleanup.models import AuditEntry, CleanupRun, ItemState, RetentionPolicy, StagingArea
from cleanup.models.heads import HEAD, PathHead
from cleanup.stores.audit import micros

#: How far apart the moments of entries may be whose numbers are the other way round.
_MARGIN = timedelta(minutes=10)
#: Sorts behind every path that begins alike.
_LAST = "\U0010ffff"

Choices = Iterable[tuple[str, str]]


# Audit ------------------------------------------------------------------------------------------------------


class _IsOfPerson(Func):
    """Whether an entry is not the system's own; spelt as the partial index is."""

    template = "NOT (%(expressions)s = 'system')"
    output_field = BooleanField()


#: The narrowest first: of two that are sought, the one that stands before.
AUDIT_ROUTES = (
    Route(fixed=("item",), by="seq", unique=True),
    Route(fixed=("run",), by="seq", unique=True),
    Route(fixed=("actor",), by="seq", unique=True, given=lambda: _IsOfPerson(F("actor_kind"))),
    Route(fixed=("action",), by="seq", unique=True),
    Route(by="seq", unique=True, look_at=50_000),
)


def _by(name: str, sought: Sought) -> None:
    """A person's entries have an index; the system's are so many that they are soon met."""
    rows = AuditEntry.objects.filter(_IsOfPerson(F("actor_kind")), actor=name)
    if rows.exists():
        sought.equals["actor"] = name
    else:
        sought.rest.append(Q(actor=name))


def _entries_between(low: datetime | None, high: datetime | None, sought: Sought) -> None:
    """Moments rise with numbers, but for clocks that were set: hence the margin."""
    first = None if low is None else first_since(AuditEntry, "at_us", micros(low - _MARGIN))
    last = None if high is None else first_since(AuditEntry, "at_us", micros(high + _MARGIN))
    sought.between["seq"] = first, last
    sought.between["at_us"] = low and micros(low), high and micros(high)


def _of_run(text: str, sought: Sought) -> None:
    sought.equals["run"] = text


def _of_item(text: str, sought: Sought) -> None:
    sought.equals["item"] = text


def _actions() -> Choices:
    return [(action, action.replace("_", " ")) for action in distinct(AuditEntry, "action")]


def _area_names() -> Choices:
    return [(name, name) for name in StagingArea.objects.order_by("name").values_list("name", flat=True)]


AUDIT_FILTERS = (
    choice_filter("action", _actions, title="action"),
    choice_filter("area", _area_names, title="area"),
    text_filter("by", _by, title="person", label="Whole name"),
    days_filter("at", _entries_between, title="day"),
    text_filter("run", _of_run, title="run", label="Id of the run"),
    text_filter("item", _of_item, title="file in the trash", label="Id of the file"),
)


def seek_entry(term: str, sought: Sought) -> None:
    """The number of an entry, the id of a run or a file, else a part of a path."""
    number = term.replace(",", "")
    if number.isascii() and number.isdigit() and len(number) < 19:
        sought.between["seq"] = int(number), int(number) + 1
        return
    try:
        found = UUID(term)
    except ValueError:
        sought.rest.append(Q(path__icontains=term))
        return
    column = "run" if CleanupRun.objects.filter(pk=found).exists() else "item"
    sought.equals[column] = str(found)


# Trash ------------------------------------------------------------------------------------------------------


def path_head() -> PathHead:
    """What the paths' index is of."""
    return PathHead(F("path"))


ITEM_ROUTES = (
    Route(fixed=("area", "state"), by="trashed_at"),
    Route(fixed=("state",), by="trashed_at"),
    Route(fixed=("state",), by="purge_after", falling=False),
    # For the beginning of a path only: neighbours by path are far apart in the table.
    Route(by="head", expression=path_head, falling=False, look_at=2_000),
)


def _states() -> Choices:
    return [(state.value, str(state.label)) for state in ItemState]


def _areas() -> Choices:
    return [(str(pk), name) for pk, name in StagingArea.objects.order_by("name").values_list("pk", "name")]


def _reasons() -> Choices:
    return [(reason.value, reason.value.replace("_", " ")) for reason in Reason]


def _of_policy(name: str, sought: Sought) -> None:
    policy = RetentionPolicy.objects.filter(name=name).values_list("pk", flat=True).first()
    if policy is None:
        sought.remarks.append(f"No policy is called {name!r}.")
    sought.among["run"] = CleanupRun.objects.filter(policy_version__policy=policy or 0).values("pk")


def _trashed_between(low: datetime | None, high: datetime | None, sought: Sought) -> None:
    sought.between["trashed_at"] = low, high


def _purged_between(low: datetime | None, high: datetime | None, sought: Sought) -> None:
    sought.between["purge_after"] = low, high
    sought.order = "purge_after"


def _purged_on(text: str, sought: Sought) -> None:
    """One day of the calendar; today's is also that of what is overdue."""
    day = day_of(text)
    low = begin_of(day)
    is_today = day <= timezone.localdate()
    _purged_between(None if is_today else low, begin_of(day + timedelta(days=1)), sought)


def _at_least(text: str, sought: Sought) -> None:
    sought.rest.append(Q(size__gte=int(text)))


SIZES = ((10**6, "1 MB and more"), (10**8, "100 MB and more"), (10**9, "1 GB and more"))

ITEM_FILTERS = (
    choice_filter("state", _states, default=ItemState.TRASHED.value, default_label="in trash"),
    choice_filter("area", _areas),
    choice_filter("reason", _reasons, title="reason"),
    choice_filter("size", lambda: [(str(size), label) for size, label in SIZES], title="size", put=_at_least),
    text_filter("policy", _of_policy, title="policy", label="Name of the policy"),
    days_filter("trashed", _trashed_between, title="day of the move"),
    days_filter("purge", _purged_between, title="day of the purge"),
    text_filter("purge_day", _purged_on, title="purge on one day", label="Day", kind="date"),
    text_filter("run", _of_run, title="run", label="Id of the run"),
)


def seek_item(term: str, sought: Sought) -> None:
    """A part of a path, or with `*` at its end the beginning of one; an absolute path names its area."""
    for area in StagingArea.objects.all():
        if term.startswith(f"{area.path.rstrip('/')}/"):
            sought.equals["area"] = area.pk
            begins_with(term.removeprefix(f"{area.path.rstrip('/')}/").removesuffix("*"), sought)
            return
    if term.endswith("*"):
        begins_with(term.removesuffix("*"), sought)
        return
    sought.rest.append(Q(path__icontains=term))


def begins_with(text: str, sought: Sought) -> None:
    """Paths that begin with this text, in their order: the index has them."""
    sought.between["head"] = text[:HEAD], f"{text[:HEAD]}{_LAST}"
    if len(text) > HEAD:
        sought.rest.append(Q(path__startswith=text))
    sought.order = "head"
