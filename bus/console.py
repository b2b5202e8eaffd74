"""What the pages of the console have in common: how they list rows, and how they ask before they change
anything.

A change is a method of a `ConsoleAdmin` marked with `@change`. It gets a page of its own that says what
would happen, to which rows, and asks for what is needed; GET shows that page and changes nothing, POST (with
CSRF token and permission) does it. The same page serves a selection in a list and the button on a row's own
page. What the domain refuses is shown on that page; nothing is half done by the console itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, ClassVar, TypeAlias
from urllib.parse import urlencode

from django import forms
from django.contrib import messages
from django.contrib.admin.options import IncorrectLookupParameters, ShowFacets
from django.contrib.admin.utils import unquote
from django.core.exceptions import BadRequest, PermissionDenied, ValidationError
from django.db.models import Model, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.http import url_has_allowed_host_and_scheme
from unfold.admin import ModelAdmin
from unfold.paginator import InfinitePaginator
from unfold.widgets import UnfoldAdminTextareaWidget

from bus.paging import Route, RoutedList, Sought

#: What a change returns: a sentence, or a page.
_Done: TypeAlias = str | HttpResponse

#: Rows that one confirmation covers: a full page of a list.
MOST_ROWS = 100
#: Rows named on the page that asks; the others are counted.
MOST_NAMED = 20
#: Parameters of a list's address that do not say which rows it shows.
NOT_A_FILTER = ("o", "p", "e", "all", "after", "before", "_changelist_filters")


class _Gone(Exception):
    """None of the chosen rows is there any more."""


class ConfirmForm(forms.Form):
    """Asks for nothing but the confirmation itself.

    Forms of changes inherit from it; `rows` are those chosen.
    """

    def __init__(self, *args: Any, rows: QuerySet[Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows = rows


class LinesField(forms.CharField):
    """A list of text, one entry a line."""

    widget = UnfoldAdminTextareaWidget(attrs={"rows": 3})

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def clean(self, value: str | None) -> list[str]:
        return [line.strip() for line in super().clean(value or "").splitlines() if line.strip()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that a person may do."""

    name: str
    label: str
    #: `app.codename`; made by the site with the roles, so it needs no migration of a model.
    permission: str
    #: The role that has it, and every role above.
    role: str
    #: What will happen, in one or two sentences.
    explain: str
    form: type[ConfirmForm]
    danger: bool
    #: Whether it is done to chosen rows, or to the whole.
    rows: bool
    #: Whether several rows can be done at once.
    bulk: bool
    do: Callable[[Any, HttpRequest, Any, dict[str, Any]], _Done]

    def allowed(self, request: HttpRequest) -> bool:
        """Whether this person may do it."""
        return request.user.has_perm(self.permission)


def change(
    label: str,
    *,
    permission: str,
    explain: str,
    role: str = "operator",
    form: type[ConfirmForm] = ConfirmForm,
    danger: bool = False,
    rows: bool = True,
    bulk: bool = True,
) -> Callable[[Callable[..., _Done]], Callable[..., _Done]]:
    """Mark a method `(self, request, rows, data) -> sentence` of a `ConsoleAdmin` as a change.

    The method gets the chosen rows and the cleaned data of `form`, and returns what was done, in one
    sentence; an empty one if it has told the person already. Or the page to be shown, for what may be put
    into no session and no message: a key that is shown once.
    """

    def mark(method: Callable[..., _Done]) -> Callable[..., _Done]:
        method.console_change = Change(  # type: ignore[attr-defined]
            name=method.__name__,
            label=label,
            permission=permission,
            role=role,
            explain=explain,
            form=form,
            danger=danger,
            rows=rows,
            bulk=bulk and rows,
            do=method,
        )
        return method

    return mark


class ConsoleAdmin(ModelAdmin):  # type: ignore[misc]
    """A page of the console: lists without full counts, changes that ask first, a word of introduction."""

    #: Says above the list what its rows are.
    intro: ClassVar[str] = ""
    #: Says in an empty list why there may be nothing, and what to do next; code between backquotes.
    when_empty: ClassVar[str] = "There is no row."
    #: Where one can do that: words for a link, and the name of its address.
    when_empty_see: ClassVar[tuple[str, str] | None] = None
    #: Exceptions by which the domain refuses; shown to the person, not raised.
    refusals: ClassVar[tuple[type[Exception], ...]] = ()

    #: The ways along its indexes by which the list is read, if the table grows without bounds. Columns that
    #: no route is ordered by cannot be sorted by. Without routes: a small table, read as it comes.
    routes: ClassVar[tuple[Route, ...]] = ()

    paginator = InfinitePaginator
    show_full_result_count = False
    #: Counts beside filters would read whole tables.
    show_facets = ShowFacets.NEVER
    list_per_page = 50
    list_fullwidth = True
    compressed_fields = False
    list_disable_select_all = True
    list_before_template = "console/list_before.html"
    change_form_outer_before_template = "console/buttons.html"

    @property
    def changes(self) -> dict[str, Change]:
        """Every change of this page, in the order of writing."""
        found = {}
        for kind in reversed(type(self).__mro__):
            for name, member in vars(kind).items():
                if isinstance(mark := getattr(member, "console_change", None), Change):
                    found[name] = mark
        return found

    def notice(self) -> str:
        """What has to be said above the list beside its introduction; empty as a rule."""
        return ""

    def filter_buttons(self, request: HttpRequest) -> list[dict[str, Any]]:
        """What may be done to everything that the filter and search of the list find.

        Each is `{"label", "url", "danger"}` of a page that asks. The list adds its filter to the address, as
        query string (`filter_query`); that page has the rows from `found`.
        """
        return []

    def filter_query(self, request: HttpRequest) -> str:
        """The filter and search of a list as a query string: no order and no place in it."""
        asked = request.GET.copy()
        for name in NOT_A_FILTER:
            asked.pop(name, None)
        return asked.urlencode()

    def seek(self, term: str, sought: Sought) -> None:
        """Say what a search is for, on a list with routes; by default a part of a `search_fields`."""
        fields = (name.lstrip("=^@") for name in self.search_fields)
        sought.rest.append(reduce(or_, (Q(**{f"{name}__icontains": term}) for name in fields)))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> Any:
        return RoutedList if self.routes else super().get_changelist(request, **kwargs)

    def found(self, request: HttpRequest) -> QuerySet[Any]:
        """All rows that the filter and search in the address of `request` find, page or no page.

        Raises `BadRequest` for a filter that there is not, where a list would begin again without it.
        """
        try:
            rows: QuerySet[Any] = self.get_changelist_instance(request).queryset
        except IncorrectLookupParameters as error:
            raise BadRequest("there is no such filter") from error
        return rows

    def applies(self, change: Change, row: Any) -> bool:
        """Whether a change makes sense for a row as it is now.

        Decides what is offered, not what is allowed.
        """
        return True

    def name_of(self, row: Any) -> str:
        """What a person calls a row: in the head of its page, and where it is named before a change."""
        return str(row)

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        row = self.get_object(request, unquote(object_id))
        title = {} if row is None else {"title": f"History of {self.name_of(row)}"}
        reply: HttpResponse = super().history_view(request, object_id, {**title, **(extra_context or {})})
        return reply

    def describe(self, rows: QuerySet[Any]) -> str:
        """The chosen rows in a few words, such as `3 files, 88 MB`."""
        number = rows.count()
        names = self.opts.verbose_name if number == 1 else self.opts.verbose_name_plural
        return f"{number:,} {names}"

    # What is offered

    def _offered(self, request: HttpRequest, *, rows: bool) -> Iterator[Change]:
        return (entry for entry in self.changes.values() if entry.rows is rows and entry.allowed(request))

    def _url(self, entry: Change, ids: Iterable[str] = (), back: str = "") -> str:
        query = {"ids": ",".join(ids), "next": back}
        base = reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_do", args=[entry.name])
        return f"{base}?{urlencode({key: value for key, value in query.items() if value})}"

    def _button(self, request: HttpRequest, entry: Change, ids: Iterable[str] = ()) -> dict[str, Any]:
        return {
            "label": entry.label,
            "danger": entry.danger,
            "url": self._url(entry, ids, request.get_full_path()),
        }

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Offer the changes for a selection; rows are deleted one by one only, on their own page."""
        actions = {
            name: found for name, found in super().get_actions(request).items() if name != "delete_selected"
        }
        for entry in self._offered(request, rows=True):
            if entry.bulk:
                actions[entry.name] = (_ask_about(entry), entry.name, f"{entry.label} …")
        return actions

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        buttons = [self._button(request, entry) for entry in self._offered(request, rows=False)]
        query = self.filter_query(request)
        extra = {
            "console_buttons": buttons,
            "console_filter_buttons": [
                {**button, "url": f"{button['url']}?{query}" if query else button["url"]}
                for button in self.filter_buttons(request)
            ],
            "console_intro": self.intro,
            "console_notice": self.notice(),
            **(extra_context or {}),
        }
        shown: HttpResponse = super().changelist_view(request, extra)
        return shown

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        extra = dict(extra_context or {})
        if object_id is not None and (row := self.get_object(request, unquote(object_id))) is not None:
            extra |= {"console_buttons": self.buttons(request, row), **self.context(request, row)}
        shown: HttpResponse = super().changeform_view(request, object_id, form_url, extra)
        return shown

    def buttons(self, request: HttpRequest, row: Any) -> list[dict[str, Any]]:
        """What stands above a row's own page."""
        return [
            self._button(request, entry, [str(row.pk)])
            for entry in self._offered(request, rows=True)
            if self.applies(entry, row)
        ]

    def context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """More for the templates of a row's own page."""
        return {}

    # The page that asks, and does

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_do"
        return [
            path("do/<slug:name>/", self.admin_site.admin_view(self.change_page), name=name),
            *super().get_urls(),
        ]

    def change_page(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask (GET), or do (POST)."""
        entry = self.changes.get(name)
        if entry is None:
            raise Http404(f"no change is called {name!r}")
        if not entry.allowed(request):
            raise PermissionDenied
        try:
            rows = self._chosen(request) if entry.rows else None
        except _Gone:
            messages.warning(request, f"{entry.label}: the chosen rows are gone meanwhile. Nothing was done.")
            return HttpResponseRedirect(self._list_url())
        posted = request.POST if request.method == "POST" else None
        form = entry.form(posted, rows=rows)
        if posted is not None and form.is_valid():
            done = self._attempt(request, entry, rows, form)
            if isinstance(done, HttpResponse):
                return done
            if done is not None:
                if done:
                    messages.success(request, done)
                return HttpResponseRedirect(self._back(request))
        return TemplateResponse(request, "console/confirm.html", self._asking(request, entry, rows, form))

    def _attempt(
        self, request: HttpRequest, entry: Change, rows: QuerySet[Any] | None, form: ConfirmForm
    ) -> _Done | None:
        """Do it; None after writing the refusal into the form."""
        try:
            return entry.do(self, request, rows, form.cleaned_data)
        except self.refusals as refusal:
            # The bus's own errors have a code before the words; that is for clients.
            form.add_error(None, str(getattr(refusal, "message", refusal)))
            return None

    def _chosen(self, request: HttpRequest) -> QuerySet[Any]:
        given = request.POST.get("ids") or request.GET.get("ids", "")
        ids = [part for part in given.split(",") if part]
        if not 0 < len(ids) <= MOST_ROWS:
            raise Http404(f"between 1 and {MOST_ROWS} rows are chosen at once")
        try:
            rows: QuerySet[Any] = self.get_queryset(request).filter(pk__in=ids)
            found = rows.exists()
        except (ValidationError, ValueError) as error:
            raise Http404("no such row") from error
        if not found:
            raise _Gone
        return rows

    def _asking(
        self, request: HttpRequest, entry: Change, rows: QuerySet[Any] | None, form: ConfirmForm
    ) -> dict[str, Any]:
        named = [] if rows is None else list(rows[: MOST_NAMED + 1])
        return {
            **self.admin_site.each_context(request),
            "title": entry.label,
            "opts": self.opts,
            "change": entry,
            "form": form,
            "summary": "" if rows is None else self.describe(rows),
            "named": [self.name_of(row) for row in named[:MOST_NAMED]],
            "more": max(0, rows.count() - MOST_NAMED) if rows is not None and len(named) > MOST_NAMED else 0,
            "ids": request.POST.get("ids") or request.GET.get("ids", ""),
            "back": self._back(request),
        }

    def _back(self, request: HttpRequest) -> str:
        """Where the person came from, if that is a page of this site; else the list."""
        wanted = request.POST.get("next") or request.GET.get("next", "")
        if url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure()):
            return wanted
        return self._list_url()

    def _list_url(self) -> str:
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")


class ReadOnlyAdmin(ConsoleAdmin):
    """Rows that the system keeps: people look, and act through changes only."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


def _ask_about(entry: Change) -> Callable[[Any, HttpRequest, QuerySet[Any]], HttpResponse]:
    """An action of a list that leads to the page that asks. It changes nothing itself."""

    def ask(page: Any, request: HttpRequest, chosen: QuerySet[Any]) -> HttpResponse:
        ids = [str(pk) for pk in chosen.values_list("pk", flat=True)[:MOST_ROWS]]
        return HttpResponseRedirect(page._url(entry, ids, request.get_full_path()))

    return ask
