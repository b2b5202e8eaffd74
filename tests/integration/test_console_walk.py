"""Every address of the whole site, by every role and method: looking changes nothing, nor does a viewer.

The addresses come from the site itself (`console_pages`), so a page that is added tomorrow is walked, too.
Requests carry no CSRF token and need none here: only the permissions stand between a role and the rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from bus.console import ConsoleAdmin
from tests.integration import console_pages as pages
from tests.integration import console_rows as given
from tests.integration.test_admin_changes import ANSWERS
from tests.retention import Staging

pytestmark = [pytest.mark.django_db, pytest.mark.sqlite_only, pytest.mark.timeout(900)]

SAFE = ("get", "head", "options")
UNSAFE = ("post", "put", "patch", "delete")

#: What ends the session that walks; nothing else is left out.
ENDS = "admin/logout/"
#: What a viewer may do although it writes a row, and why.
MAY = {
    "admin/cleanup/auditentry/do/verify/": "checks the audit; what is written is that it was checked",
}
#: Addresses that answer a stranger, and why.
OPEN = {
    "healthz/live": "a probe: says that the process lives",
    "healthz/ready": "a probe: says whether it can serve",
    "admin/login/": "where one proves who one is",
    "admin/logout/": "ends a session, if there is one",
    "api/docs": "the description of the API, which is public",
    "api/openapi.json": "the same for machines",
    "files/": "says by OPTIONS what of tus it speaks",
    "files/<str:upload_id>": "the same",
}
#: Addresses that say 503 when the site is not well, as in a test that has started no beat.
PROBES = {"healthz/ready", "healthz/full"}
#: What a stranger is told elsewhere.
CLOSED = {301, 302, 401, 403, 404, 405}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Refusals are logged; thousands of them would take most of the time."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def staging(people: dict[str, User], tmp_path: Path) -> Staging:
    found = given.everything(tmp_path)
    given.checkpoint_row()
    return found


def client_of(person: User | None) -> Client:
    client = Client(raise_request_exception=False)
    if person is not None:
        client.force_login(person)
    return client


def state(staging: Staging) -> dict[str, Any]:
    """Every row, every name and the content of every file of the area, its trash among them."""
    found: dict[str, Any] = given.rows()
    for path in sorted(staging.root.rglob("*")):
        found[str(path)] = path.read_bytes() if path.is_file() else path.is_dir()
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as it was, and how it is now."""
    names = sorted(before.keys() | after.keys())
    return [f"{name}: {after.get(name)!s:.2000}" for name in names if before.get(name) != after.get(name)]


def asked(client: Client, method: str, address: pages.Address) -> int:
    """Send what would act if it were let: the answers of all forms, to the API a whole command."""
    send = getattr(client, method)
    if method in SAFE:
        return int(send(address.url).status_code)
    if address.route.startswith("api/"):
        body = {"channel": "broadcast", "data": {"text": "x"}, "client": "x", "user": "x", "agent": "x"}
        return int(send(address.url, json.dumps(body), content_type="application/json").status_code)
    if method == "post":
        return int(send(address.url, ANSWERS).status_code)
    return int(send(address.url, "{}", content_type="application/json").status_code)


def is_broken(route: str, status: int) -> bool:
    return status >= 500 and not (status == 503 and route in PROBES)


def walked(client: Client, methods: tuple[str, ...], skip: set[str]) -> Iterator[tuple[str, str, int]]:
    for address in list(pages.addresses()):
        for method in methods if address.route not in skip else ():
            yield method, address.route, asked(client, method, address)


def forms(client: Client) -> Iterator[tuple[str, int]]:
    """Every action of every list, for the first row of it, and every form that makes or changes a row."""
    for model, page in admin.site._registry.items():
        if not isinstance(page, ConsoleAdmin):
            continue
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        keys = [str(pk) for pk in pages.some(model)]
        for change in page.changes:
            data = {"action": change, "_selected_action": keys, "index": "0", **ANSWERS}
            yield f"{name} {change}", client.post(reverse(f"{name}_changelist"), data).status_code


def test_every_address_can_be_asked_for(staging: Staging) -> None:
    """One without a row to show is walked by nobody: `console_rows` makes at least one of everything."""
    reached = {address.route for address in pages.addresses()}
    missed = {route for route in pages.routes() if not route.endswith("/do/<slug:name>/")} - reached
    assert sorted(missed) == []
    assert len(reached) > 100


@pytest.mark.parametrize("role", ["operator", "admin"])
def test_looking_changes_nothing(people: dict[str, User], staging: Staging, role: str) -> None:
    client = client_of(people[role])
    before = state(staging)
    broken = [found for found in walked(client, ("get",), {ENDS}) if is_broken(*found[1:])]
    assert broken == []
    assert changed(before, state(staging)) == []


@pytest.mark.parametrize("role", ["viewer", "nobody"])
def test_who_may_only_look_changes_nothing_by_any_method(
    people: dict[str, User], staging: Staging, role: str
) -> None:
    client = client_of(people[role])
    before = state(staging)
    skip = {ENDS} | (MAY.keys() if role == "viewer" else set())
    broken = [found for found in walked(client, (*SAFE, *UNSAFE), skip) if is_broken(*found[1:])]
    assert broken == []
    assert [found for found in forms(client) if found[1] >= 500] == []
    assert changed(before, state(staging)) == []


def test_a_stranger_is_sent_to_the_log_in_or_refused(staging: Staging, settings: Any) -> None:
    settings.METRICS_TOKEN = "without it, what comes from this machine is no stranger"
    before, client, let_in = state(staging), client_of(None), set()
    for method, route, status in walked(client, (*SAFE, *UNSAFE), set()):
        assert not is_broken(route, status), (method, route, status)
        if status not in CLOSED:
            let_in.add(route)
    assert let_in <= OPEN.keys(), "the list names what answers a stranger"
    assert set(OPEN) <= set(pages.routes()), "the list names what there is"
    assert changed(before, state(staging)) == []


def test_odd_addresses_are_refused_and_break_nothing(staging: Staging) -> None:
    client = client_of(User.objects.create_superuser("root", is_staff=True))
    before = state(staging)
    broken = [
        (address.url, status)
        for address in pages.odd()
        if (status := client.get(address.url).status_code) >= 500
    ]
    assert broken == []
    assert changed(before, state(staging)) == []


#: Queries that no link of ours makes.
ODD_QUERIES = (
    "ids=%00&after=junk&before=junk&o=99.-99.x&p=-1",
    "q=%00%27%22%3B--&after=%ff",
    "purge_day=yesterday&path=../../etc/passwd&area=x",
    "state__exact=%00",
    "nothing__here=1",
    "_popup=1&_to_field=password",
)


def test_odd_queries_are_refused_and_break_nothing(staging: Staging) -> None:
    client = client_of(User.objects.create_superuser("root", is_staff=True))
    before = state(staging)
    asked_for = [f"/{route}" for route in pages.routes() if "<" not in route and route != ENDS]
    broken = [
        (url, query, status)
        for url in asked_for
        if "/api/" not in url
        for query in ODD_QUERIES
        if (status := client.get(f"{url}?{query}").status_code) >= 500 and url[1:] not in PROBES
    ]
    assert broken == []
    assert changed(before, state(staging)) == []
