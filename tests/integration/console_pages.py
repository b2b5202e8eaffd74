"""Every address of the site, found by asking the site itself: a new page cannot be forgotten by a test.

An address that needs values gets those of rows that are there (`console_rows.everything`). What an argument
stands for that is no row's key is said in `ARGUMENTS`; one that nobody has named raises, and with it the
tests. `odd` fills the same arguments with what nobody has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote as escape

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.db.models import Model
from django.test import Client, RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver

from bus.console import Change, ConsoleAdmin
from bus.models import Topic
from cleanup.models import Upload

#: Names of arguments that are the key of a row.
KEYS = {"object_id", "pk", "id"}
#: What else an argument may be, by its name.
ARGUMENTS: dict[str, Callable[[], list[str]]] = {
    "topic": lambda: list(Topic.objects.values_list("name", flat=True)[:1]),
    "app_label": lambda: ["bus", "cleanup"],
    "content_type_id": lambda: ["1"],
    "upload_id": lambda: list(map(str, Upload.objects.filter(state="open").values_list("pk", flat=True)[:1])),
    "object_id": lambda: ["1"],
    "url": lambda: ["nowhere"],
    "name": lambda: ["nothing"],
}
#: Values that nobody has: too big, too long, of another kind, out of the path, not text.
ODD = ("0", "9" * 30, "x" * 300, "-1", "a'b", "../../etc", "\x00", "\u0663", "<i>", "_5F")
#: Answered before the addresses are asked (`xnai_site.middleware`).
MACHINES = ("healthz/live", "healthz/ready", "metrics")

_ARGUMENT = re.compile(r"<(?:\w+:)?(\w+)>|\(\?P<(\w+)>[^)]*\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where something answers."""

    #: As the site writes it, with the names of its arguments; of a change with the change's name.
    route: str
    url: str


class Unknown(Exception):
    """An address has an argument that this module has no value for."""


def routes() -> Iterator[str]:
    """Every address as the site writes it."""
    yield from MACHINES
    yield from _flat(get_resolver().url_patterns, "")


def _flat(patterns: list[Any], before: str) -> Iterator[str]:
    for entry in patterns:
        route = before + str(entry.pattern).removeprefix("^").removesuffix("$")
        if isinstance(entry, URLResolver):
            yield from _flat(entry.url_patterns, route)
        elif isinstance(entry, URLPattern):
            yield route


def addresses() -> Iterator[Address]:
    """Every address, filled in with what is there; of rows with states, one of each state."""
    for route in dict.fromkeys(routes()):
        page = _page(route)
        if page is not None and route.endswith("/do/<slug:name>/"):
            yield from _asking(page, route)
        else:
            for url in _filled(route, page):
                yield Address(route=route, url=f"/{url}")


def screens(client: Client) -> list[str]:
    """Every address that answers this person with a page to look at."""
    answers = [(address.url, client.get(address.url)) for address in addresses()]
    return [url for url, answer in answers if is_screen(answer)]


def is_screen(answer: Any) -> bool:
    """Whether it is a page, and not data, a redirect or a refusal."""
    is_page = answer.status_code == 200 and answer["Content-Type"].startswith("text/html")
    return bool(is_page and b"<html" in answer.content[:2000])


def odd() -> Iterator[Address]:
    """Every address that has arguments, with values that nobody has."""
    for route in dict.fromkeys(routes()):
        if _ARGUMENT.search(route):
            for value in ODD:
                yield Address(route=route, url="/" + _ARGUMENT.sub(lambda _, v=value: escape(v), route))


def some(model: type[Model]) -> list[Any]:
    """Keys of rows: one of each state if they have states, else one; none if there is none."""
    rows = getattr(model, "all_objects", model._default_manager).order_by("pk")
    if "state" not in {field.name for field in model._meta.fields}:
        return list(rows.values_list("pk", flat=True)[:1])
    return list({state: pk for pk, state in rows.values_list("pk", "state")}.values())


def chosen(page: ConsoleAdmin, change: Change) -> Any:
    """The key of a row to which a change applies, or of any if there is none; None without rows."""
    request = RequestFactory().get("/admin/")
    request.user = User(username="anybody", is_active=True, is_staff=True, is_superuser=True)
    rows = list(page.get_queryset(request).order_by("pk"))
    fitting = [row.pk for row in rows if page.applies(change, row)]
    return next(iter([*fitting, *(row.pk for row in rows)]), None)


def _asking(page: ConsoleAdmin, route: str) -> Iterator[Address]:
    for change in page.changes.values():
        here = route.replace("<slug:name>", change.name)
        if change.rows and (row := chosen(page, change)) is None:
            continue
        ids = f"?ids={row}" if change.rows else ""
        yield Address(route=here, url=f"/{here}{ids}")


def _page(route: str) -> ConsoleAdmin | None:
    for model, page in admin.site._registry.items():
        if route.startswith(f"admin/{model._meta.app_label}/{model._meta.model_name}/"):
            return page if isinstance(page, ConsoleAdmin) else None
    return None


def _filled(route: str, page: ConsoleAdmin | None) -> list[str]:
    """The route with each of its arguments put in, in every way that there is."""
    found = _ARGUMENT.search(route)
    if found is None:
        return [route]
    name = found[1] or found[2]
    if page is not None and name in KEYS:
        values = [quote(str(pk)) for pk in some(page.model)]
    elif name in ARGUMENTS:
        values = ARGUMENTS[name]()
    else:
        raise Unknown(f"{name!r} of {route}: say in ARGUMENTS what it may be")
    return [
        full
        for value in values
        for full in _filled(route[: found.start()] + escape(value) + route[found.end() :], page)
    ]
