"""Lists that stay fast however many rows there are: pages by key, along an index, with bounded looking.

A page of such a list follows a `Route`: columns that are fixed, then an order, both known to one index. The
next page begins after the last row of this one (`?after=`), so no page is slower than another, and new rows
move nothing. What no index answers is looked for row by row along the route, for so many rows at most; then
the page says how far it has looked, and a link goes on from there. Nothing is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import FieldDoesNotExist, FieldError, ValidationError
from django.db.models import F, Field, Func, Q, QuerySet
from django.db.models.expressions import Combinable
from django.http import HttpRequest
from unfold.views import ChangeList

AFTER, BEFORE = "after", "before"
#: `?before=end`: the last page.
END = "end"
#: Rows that one page looks at for something that no index answers, where the way leads here and there
#: through the table. Along the table's own order it may be more.
LOOK_AT = 20_000

#: A row's place in its route: the value it is ordered by, and its primary key.
Key = tuple[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A way through a table that one index knows."""

    #: Fields that are equal in all rows of the way.
    fixed: tuple[str, ...] = ()
    #: What the rows are ordered by; rows that are alike in it are ordered by their primary key.
    by: str
    #: Whether the list begins with the greatest, unless somebody sorts it otherwise.
    falling: bool = True
    #: Whether no two rows of the way are alike in `by`.
    unique: bool = False
    #: Makes `by`, if that is no field.
    expression: Callable[[], Combinable] | None = None
    #: Rows of the way that one page looks at.
    look_at: int = LOOK_AT
    #: Holds for every row of the way: what a partial index asks for.
    given: Callable[[], Any] | None = None


@dataclass(slots=True, kw_only=True)
class Sought:
    """What filters and search ask for, in terms that a route can take up."""

    #: Field = value.
    equals: dict[str, Any] = field(default_factory=dict)
    #: At least the first, and below the second; either may be None.
    between: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    #: One of many values, or of a query's.
    among: dict[str, Any] = field(default_factory=dict)
    #: Anything else; no index is meant to answer it.
    rest: list[Any] = field(default_factory=list)
    #: Columns by which the rows are wanted, if nobody has sorted them.
    order: str = ""
    #: Shown above the list.
    remarks: list[str] = field(default_factory=list)


class Plain(Func):
    """A column by which rows are picked on the way, never found: it keeps SQLite off the column's index.

    PostgreSQL knows how many rows share a value, and is left to decide.
    """

    arity = 1
    template = "%(expressions)s"

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, template="+%(expressions)s", **context)


class Pages:
    """Takes the paginator's place in the templates."""

    template_name: ClassVar = "console/pages.html"


class RoutedList(ChangeList):  # type: ignore[misc]
    """A list of a page of the console that names its routes."""

    #: Tokens of the neighbouring pages; empty where there is none.
    next_page = previous_page = ""
    #: Whether the page holds fewer rows since it has looked at as many as it may.
    looked = False

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        """All rows that are sought, in order; the page itself is read along the route."""
        self.request = request
        self.asked = {name: request.GET.get(name, "") for name in (AFTER, BEFORE)}
        for name in self.asked:
            self.filter_params.pop(name, None)
        found = self.get_filters(request)
        self.filter_specs, self.has_filters, remaining, _, self.has_active_filters = found
        self.clear_all_filters_qs = self.get_query_string(remove=self.get_filters_params())
        try:
            self.sought, self.others = self._seek(request, remaining)
            self._set_out()
            return self._ordered(self._narrowed(self._along()))
        except (ValueError, TypeError, ValidationError, FieldDoesNotExist, FieldError) as error:
            raise IncorrectLookupParameters(str(error)) from error

    def _seek(self, request: HttpRequest, remaining: dict[str, Any]) -> tuple[Sought, list[Any]]:
        """Ask filters, address and search what is wanted."""
        sought, others = Sought(), []
        for spec in self.filter_specs:
            if (seek := getattr(spec, "seek", None)) is not None:
                seek(sought)
            else:
                others.append(spec)
        for name, values in remaining.items():
            column = name.removesuffix("__exact").removesuffix("__id").removesuffix("__pk")
            if not _has_field(self.model, column):
                raise IncorrectLookupParameters(f"this list has no filter {name!r}")
            sought.equals[column] = values[-1]
        if self.query.strip():
            self.model_admin.seek(self.query.strip(), sought)
        return sought, others

    # The way

    def _set_out(self) -> None:
        """Choose the route: as sorted, else with most of what is sought on it."""
        open_ones = [
            route for route in self.model_admin.routes if self.sought.equals.keys() >= set(route.fixed)
        ]
        self.sortable_by = [
            column
            for column in self.list_display
            if self._sorts_by(column) in {route.by for route in open_ones}
        ]
        wanted, falling = self._sorted_by()
        named = [route for route in open_ones if route.by == (wanted or self.sought.order)]
        ahead = named or [route for route in open_ones if route.by in self.sought.between] or open_ones
        self.route: Route = max(ahead, key=lambda route: len(route.fixed))
        self.falling = falling if wanted and named else self.route.falling

    def _sorts_by(self, column: Any) -> str:
        name = self.get_ordering_field(column)
        return name.lstrip("-") if isinstance(name, str) else ""

    def _sorted_by(self) -> tuple[str, bool]:
        """What the person sorts by, and whether the greatest comes first; empty: nothing."""
        first = self.params.get("o", "").split(".")[0]
        number = first.removeprefix("-")
        if not number.isascii() or not number.isdigit() or len(number) > 2:
            return "", True
        column = dict(enumerate(self.list_display)).get(int(number))
        return (self._sorts_by(column), first.startswith("-")) if column else ("", True)

    def get_ordering_field_columns(self) -> dict[int, str]:
        """Mark the column that the list is sorted by."""
        way = "desc" if self.falling else "asc"
        columns = [
            number for number, name in enumerate(self.list_display) if self._sorts_by(name) == self.route.by
        ]
        return dict.fromkeys(columns[:1], way)

    def _along(self) -> QuerySet[Any]:
        """The rows of the route."""
        route, rows = self.route, self.apply_select_related(self.root_queryset).order_by()
        if route.expression is not None:
            rows = rows.annotate(**{route.by: route.expression()})
        if route.given is not None:
            rows = rows.filter(route.given())
        rows = rows.filter(**{name: self.sought.equals[name] for name in route.fixed})
        return _bounded(rows, route.by, self.sought.between.get(route.by))

    def _narrowed(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Of those, the ones that are sought."""
        for name, value in self.sought.equals.items():
            if name not in self.route.fixed:
                rows = self._plain(rows, name).filter(**{f"plain_{name}": value})
        for name, limits in self.sought.between.items():
            if name != self.route.by:
                rows = _bounded(self._plain(rows, name), f"plain_{name}", limits)
        for name, values in self.sought.among.items():
            rows = self._plain(rows, name).filter(**{f"plain_{name}__in": values})
        for condition in self.sought.rest:
            rows = rows.filter(condition)
        for spec in self.others:
            found = spec.queryset(self.request, rows)
            rows = rows if found is None else found
        return rows

    def _plain(self, rows: QuerySet[Any], name: str) -> QuerySet[Any]:
        made = next((r.expression for r in self.model_admin.routes if r.by == name and r.expression), None)
        if made is not None:
            kept = Plain(made())
        else:
            column: Any = self.lookup_opts.get_field(name)
            kept = Plain(F(name), output_field=getattr(column, "target_field", column))
        found: QuerySet[Any] = rows.alias(**{f"plain_{name}": kept})
        return found

    @property
    def is_looking(self) -> bool:
        """Whether rows of the route are not those that are sought."""
        sought, route = self.sought, self.route
        off_route = (sought.equals.keys() - set(route.fixed)) | (sought.between.keys() - {route.by})
        return bool(off_route or sought.among or sought.rest or self.others)

    # The page

    def get_results(self, request: HttpRequest) -> None:
        """Read one page, and where its neighbours begin."""
        if self.asked[BEFORE]:
            rows = self._page_before(self._key(self.asked[BEFORE]), last=self.asked[BEFORE] == END)
        else:
            rows = self._page_after(self._key(self.asked[AFTER]))
        self.result_list = rows
        self.result_count = self.full_result_count = len(rows)
        self.show_full_result_count = self.can_show_all = self.multi_page = self.show_all = False
        self.show_admin_actions = True
        self.paginator = Pages()

    def _page_after(self, start: Key | None) -> list[Any]:
        rows, stop = self._walk(start, back=False)
        more, rows = len(rows) > self.list_per_page, rows[: self.list_per_page]
        self.next_page = self._token(self._key_of(rows[-1]) if more else stop)
        if start is not None:
            self.previous_page = self._token(self._key_of(rows[0]) if rows else start)
        self.looked = not more and stop is not None
        return rows

    def _page_before(self, start: Key | None, *, last: bool) -> list[Any]:
        if start is None and not last:
            return self._page_after(None)
        rows, stop = self._walk(start, back=True)
        more, rows = len(rows) > self.list_per_page, rows[: self.list_per_page][::-1]
        if not more and stop is None and not last:
            return self._page_after(None)  # the first page, and a full one
        self.previous_page = self._token(self._key_of(rows[0]) if more else stop)
        if not last:
            self.next_page = self._token(self._key_of(rows[-1]) if rows else start)
        self.looked = not more and stop is not None
        return rows

    def _walk(self, start: Key | None, *, back: bool) -> tuple[list[Any], Key | None]:
        """One row more than a page holds, from `start` on; and the key up to which was looked, if not all."""
        rows: list[Any] = []
        sections = self._sections(back)
        if start is not None:
            sections = sections[sections.index(start[0] is None) :]
        for number, without in enumerate(sections):
            part = self._ordered(self._section(without), back=back)
            if start is not None and number == 0:
                part = part.filter(self._beyond(start, back=back))
            stop = self._look_until(part) if self.is_looking else None
            if stop is not None:
                part = part.filter(self._up_to(stop, back=back))
            rows += self._narrowed(part)[: self.list_per_page + 1 - len(rows)]
            if stop is not None or len(rows) > self.list_per_page:
                return rows, stop
        return rows, None

    def _sections(self, back: bool) -> list[bool]:
        """Rows with a value of `by`, then those without one: each kind is read along the index by itself."""
        if not self._column.null or self.route.expression is not None:
            return [False]
        return [True, False] if back else [False, True]

    def _section(self, without: bool) -> QuerySet[Any]:
        rows = self._along()
        if len(self._sections(False)) == 1:
            return rows
        return rows.filter(**{f"{self.route.by}__isnull": without})

    def _ordered(self, rows: QuerySet[Any], *, back: bool = False) -> QuerySet[Any]:
        sign = "-" if self.falling is not back else ""
        names = [self.route.by] if self.route.unique else [self.route.by, "pk"]
        return rows.order_by(*(f"{sign}{name}" for name in names))

    def _look_until(self, rows: QuerySet[Any]) -> Key | None:
        """The last row that this page looks at; None: it can look at all."""
        last = self.route.look_at
        found = rows.values_list(self.route.by, "pk")[last - 1 : last]
        return next(iter(found), None)

    def _beyond(self, key: Key, *, back: bool) -> Q:
        return self._compare(key, "lt" if self.falling is not back else "gt", "")

    def _up_to(self, key: Key, *, back: bool) -> Q:
        return self._compare(key, "gt" if self.falling is not back else "lt", "e")

    def _compare(self, key: Key, way: str, even: str) -> Q:
        """Rows on one side of a key; the first condition is for the index, the others for those alike."""
        (value, pk), by = key, self.route.by
        if value is None:
            return Q(**{f"pk__{way}{even}": pk})
        if self.route.unique:
            return Q(**{f"{by}__{way}{even}": value})
        alike = Q(**{f"{by}__{way}": value}) | Q(**{f"pk__{way}{even}": pk})
        return Q(**{f"{by}__{way}e": value}) & alike

    # Tokens

    @property
    def _column(self) -> Field[Any, Any]:
        if self.route.expression is not None:
            made: Any = self.route.expression()
            return made.output_field  # type: ignore[no-any-return]
        column: Any = self.lookup_opts.get_field(self.route.by)
        return column  # type: ignore[no-any-return]

    def _key_of(self, row: Any) -> Key:
        return getattr(row, self.route.by), row.pk

    def _token(self, key: Key | None) -> str:
        if key is None:
            return ""
        value, pk = key
        text = value.isoformat() if isinstance(value, datetime) else value
        return f"~{pk}" if value is None else f"={text}~{pk}"

    def _key(self, token: str) -> Key | None:
        """The key of a token; None: it is none, so the list begins at its beginning."""
        text, mark, last = token.rpartition("~")
        if not mark or "\x00" in token:
            return None
        try:
            value = self._column.to_python(text[1:]) if text.startswith("=") else None
            pk = self.lookup_opts.pk.to_python(last)
        except (ValidationError, ValueError, TypeError, OverflowError):
            return None
        if isinstance(value, datetime) and (value.tzinfo is None or not 1900 < value.year < 9000):
            return None
        if value is None and len(self._sections(False)) == 1:
            return None
        return value, pk

    def address(self, **place: str) -> str:
        """The address of another page of this list."""
        return str(self.get_query_string({name: value for name, value in place.items() if value}))

    @property
    def pages(self) -> Iterator[dict[str, str]]:
        """Links to the pages around this one; without an address where there is none."""
        inside = self.asked[AFTER] or self.asked[BEFORE]
        further = "Look further" if self.looked else "Next"
        before = self.address(before=self.previous_page) if self.previous_page else ""
        after = self.address(after=self.next_page) if self.next_page else ""
        yield {"label": "First", "url": self.address() if inside else ""}
        yield {"label": "Previous", "url": before}
        yield {"label": further if self.next_page else "Next", "url": after}
        yield {"label": "Last", "url": self.address(before=END) if after else ""}

    @property
    def remarks(self) -> list[str]:
        """What has to be said above the list."""
        if not self.looked:
            return self.sought.remarks
        said = (
            f"Looked at {self.route.look_at:,} rows and found {len(self.result_list):,}. There are more to "
            "look at: go on below, or narrow the list by a filter."
        )
        return [*self.sought.remarks, said]


def _has_field(model: Any, name: str) -> bool:
    try:
        return bool(model._meta.get_field(name).concrete)
    except FieldDoesNotExist:
        return False


def _bounded(rows: QuerySet[Any], name: str, limits: tuple[Any, Any] | None) -> QuerySet[Any]:
    low, high = limits or (None, None)
    if low is not None:
        rows = rows.filter(**{f"{name}__gte": low})
    return rows if high is None else rows.filter(**{f"{name}__lt": high})
