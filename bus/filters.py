"""Filters of lists that follow routes (`bus.paging`): one of a few values, a text, a stretch of days.

They look up no distinct values in a table that grows, and leave it to the list how a value is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from typing import Any, ClassVar

from django.contrib.admin import ListFilter, SimpleListFilter
from django.contrib.admin.options import IncorrectLookupParameters
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from bus.paging import Sought

Choices = Iterable[tuple[str, str]]


class ChoiceFilter(SimpleListFilter):
    """One of a few values of a column. Make one by `choice_filter`."""

    column: ClassVar[str]
    #: What holds if nothing is chosen; None: everything.
    default: ClassVar[str | None] = None
    #: The word for that.
    default_label: ClassVar[str] = "All"
    values: ClassVar[Callable[[], Choices]]
    #: Tells the list what is chosen, where that is not an equal value.
    put: ClassVar[Callable[[str, Sought], None] | None] = None

    def lookups(self, request: HttpRequest, page: Any) -> Choices:
        return [choice for choice in type(self).values() if choice[0] != self.default]

    def has_output(self) -> bool:
        return True

    def choices(self, changelist: Any) -> Any:
        """Call the default what it is."""
        for index, choice in enumerate(super().choices(changelist)):
            yield {**choice, "display": self.default_label} if index == 0 else choice

    def seek(self, sought: Sought) -> None:
        """Tell the list what is chosen."""
        chosen = self.value() or self.default
        if chosen is None:
            return
        if chosen not in dict(type(self).values()):
            raise IncorrectLookupParameters(f"{chosen!r} cannot be chosen")
        put = type(self).put
        if put is None:
            sought.equals[self.column] = chosen
        else:
            put(chosen, sought)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Nothing here: the list follows its route."""
        return queryset


def choice_filter(
    column: str,
    values: Callable[[], Choices],
    *,
    title: str = "",
    default: str | None = None,
    default_label: str = "All",
    put: Callable[[str, Sought], None] | None = None,
) -> type[ChoiceFilter]:
    """A filter for one of `values`, which are pairs of value and word."""
    given = {
        "column": column,
        "parameter_name": column,
        "title": title or column.replace("_", " "),
        "values": staticmethod(values),
        "default": default,
        "default_label": default_label,
        "put": put and staticmethod(put),
    }
    return type(f"{column.title()}Filter", (ChoiceFilter,), given)


class FormFilter(ListFilter):
    """A filter with fields to fill in."""

    template = "console/filter_form.html"
    #: Parameter -> type of the input and its label.
    inputs: ClassVar[dict[str, tuple[str, str]]] = {}

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: type[Model], page: Any) -> None:
        super().__init__(request, params, model, page)
        for name in self.inputs:
            given = params.pop(name, [""])[-1].strip()
            if given:
                self.used_parameters[name] = given

    def has_output(self) -> bool:
        return True

    def expected_parameters(self) -> list[str | None]:
        return list(self.inputs)

    def choices(self, changelist: Any) -> Iterator[dict[str, Any]]:
        """One form: its fields, and what the other filters say."""
        shown = [
            {"name": name, "type": kind, "label": label, "value": self.used_parameters.get(name, "")}
            for name, (kind, label) in self.inputs.items()
        ]
        others = {
            name: values for name, values in changelist.filter_params.items() if name not in self.inputs
        }
        hidden = [(name, value) for name, values in others.items() for value in _listed(values)]
        without = changelist.get_query_string(remove=list(self.inputs))
        yield {"inputs": shown, "hidden": hidden, "without": without if self.used_parameters else ""}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Nothing here: the list follows its route."""
        return queryset


def _listed(values: Any) -> list[str]:
    return list(values) if isinstance(values, (list, tuple)) else [values]


class DaysFilter(FormFilter):
    """From one day to another, both with it, in the zone of the site."""

    #: `(low, high, sought)`, moments of which either may be None: `low` is within, `high` is not.
    between: ClassVar[Callable[[datetime | None, datetime | None, Sought], None]]

    def seek(self, sought: Sought) -> None:
        """Tell the list which days are wanted."""
        first, last = (self._day(name) for name in self.inputs)
        if first or last:
            type(self).between(begin_of(first), begin_of(last and last + timedelta(days=1)), sought)

    def _day(self, name: str) -> date | None:
        text = str(self.used_parameters.get(name, ""))
        return day_of(text) if text else None


def day_of(text: str) -> date:
    """A day as a form sends it.

    Raises:
        IncorrectLookupParameters: it is none, or none of our time.
    """
    try:
        found = date.fromisoformat(text)
    except ValueError as error:
        raise IncorrectLookupParameters(f"{text!r} is not a day") from error
    if not 1970 <= found.year < 9000:
        raise IncorrectLookupParameters(f"{text!r} is not a day of our time")
    return found


def begin_of(day: date | None) -> datetime | None:
    """The first moment of a day in the zone of the site."""
    if day is None:
        return None
    return datetime.combine(day, time.min, tzinfo=timezone.get_current_timezone())


def days_filter(
    name: str, between: Callable[[datetime | None, datetime | None, Sought], None], *, title: str
) -> type[DaysFilter]:
    """A filter for days, by the parameters `<name>_from` and `<name>_to`."""
    inputs = {f"{name}_from": ("date", "From"), f"{name}_to": ("date", "To")}
    given = {"title": title, "inputs": inputs, "between": staticmethod(between)}
    return type(f"{name.title()}Filter", (DaysFilter,), given)


class TextFilter(FormFilter):
    """A text that is the whole of a column."""

    put: ClassVar[Callable[[str, Sought], None]]

    def seek(self, sought: Sought) -> None:
        """Tell the list what was written."""
        for text in self.used_parameters.values():
            type(self).put(str(text), sought)


def text_filter(
    name: str, put: Callable[[str, Sought], None], *, title: str, label: str, kind: str = "text"
) -> type[TextFilter]:
    """A filter for a text that is given to `put`, which may raise `ValueError`; `kind` is the input's."""
    given = {"title": title, "inputs": {name: (kind, label)}, "put": staticmethod(put)}
    return type(f"{name.title()}Filter", (TextFilter,), given)


def distinct(model: type[Model], column: str, *, most: int = 100) -> list[str]:
    """The values of a text column, each found by one step along the index that begins with it."""
    found: list[str] = []
    rows = model._default_manager.order_by(column).values_list(column, flat=True)
    while len(found) < most:
        value = (rows.filter(**{f"{column}__gt": found[-1]}) if found else rows).first()
        if value is None:
            break
        found.append(value)
    return found
