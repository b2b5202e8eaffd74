"""Every address of the site asks who is there, or is on a short list; secrets do not travel in addresses."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from bus.doors.routing import websocket_urlpatterns
from tests.e2e.clients import RawClient
from tests.harness import Site
from tests.integration.rights.kit import Cast, cookie, token

#: Addresses that answer anybody, and why.
OPEN = {
    "admin/login/": "where one proves who one is",
    "admin/logout/": "ends a session, if there is one",
    "api/docs": "the description of the API, which is public",
    "api/openapi.json": "the same for machines",
    "favicon.ico": "leads to the mark, which is a static file",
}
#: What a stranger may be answered: go and log in, 401, 403, or that there is no such thing.
CLOSED = {301, 302, 401, 403, 404, 405}
#: A value for each kind of variable in an address.
VALUES = {"int": "1", "path": "1", "str": "x", "slug": "x"}

pytestmark = [pytest.mark.sqlite_only]


def addresses(patterns: list[Any], before: str = "") -> Iterator[str]:
    """Every address that the site knows, with values put in."""
    for entry in patterns:
        route = before + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from addresses(entry.url_patterns, route)
        elif isinstance(entry, URLPattern):
            for name, kind in entry.pattern.converters.items():
                words = VALUES.get(type(kind).__name__.removesuffix("Converter").lower(), "x")
                for form in (
                    f"<{name}>",
                    f"<path:{name}>",
                    f"<int:{name}>",
                    f"<str:{name}>",
                    f"<slug:{name}>",
                ):
                    route = route.replace(form, words)
            yield route


KNOWN = sorted({route for route in addresses(get_resolver().url_patterns) if "(?P" not in route})


@pytest.mark.django_db
def test_every_address_asks_who_is_there_or_is_on_the_list(settings: Any) -> None:
    settings.METRICS_TOKEN = "without it, what comes from this machine is no stranger"
    assert len(KNOWN) > 60
    stranger, answered = Client(), []
    for route in KNOWN:
        for method in (stranger.get, stranger.post):
            status = method(f"/{route}").status_code
            if status not in CLOSED:
                answered.append((route, status))
    assert {route for route, _ in answered} <= OPEN.keys()
    assert OPEN.keys() <= set(KNOWN), "the list names what there is"


@pytest.mark.django_db
def test_a_redirect_of_a_stranger_leads_to_the_log_in() -> None:
    stranger = Client()
    for route in KNOWN:
        answer = stranger.get(f"/{route}")
        if answer.status_code == 302 and route not in OPEN:
            assert answer["Location"].startswith(("/admin/login/?next=", "/admin/")), route


@pytest.mark.e2e
def test_every_socket_and_stream_asks_who_is_there(site: Site) -> None:
    paths = [str(entry.pattern) for entry in websocket_urlpatterns]
    assert paths == ["connection/websocket", "ws/agents/<str:agent_id>/", "ws/progress/<str:task_id>/", ""]
    port = site.web[0].port
    forged = token(site, sub="u")[:-6] + "AAAAAA"
    for headers in ({}, {"X-API-Key": f"xk_{'0' * 10}_{'x' * 43}"}, {"Authorization": f"Bearer {forged}"}):
        with RawClient(site.web[0].socket, additional_headers=headers) as socket:
            socket.send({"id": 1, "connect": {}})
            assert socket.ending()[1] == 3500
        for path in ("/ws/agents/x/", "/ws/progress/x/"):
            with connect(f"ws://127.0.0.1:{port}{path}", additional_headers=headers, proxy=None) as plain:
                assert '"code":3500' in str(plain.recv(20))
        assert (
            httpx.get(
                f"{site.web[0].url}/events/task:1", headers=headers, trust_env=False, timeout=60
            ).status_code
            == 401
        )
    with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{port}/ws/elsewhere/", proxy=None):
        pass


@pytest.mark.e2e
def test_a_secret_in_an_address_is_refused_and_written_nowhere(site: Site, cast: Cast) -> None:
    web, marked = site.web[0], secrets.token_hex(16)
    good = token(site, sub="u", jti=marked)
    words = "a secret in the address; send it in a header"
    for query in (f"token={good}", f"access_token={good}", f"x={good}", f"API_KEY={cast.keys['server']}"):
        with RawClient(f"{web.socket}?{query}") as socket:
            socket.send({"id": 1, "connect": {"token": good}})
            _, code, reason = socket.ending()
            assert (code, reason) == (3501, f"bad request: {words} or in the connect command")
        headers = {"X-API-Key": cast.keys["server"]}
        answer = httpx.get(f"{web.url}/api/topics?{query}", headers=headers, trust_env=False, timeout=60)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == words
        assert httpx.get(f"{web.url}/events/task:1?{query}", trust_env=False, timeout=60).status_code == 400
    with RawClient(web.socket) as socket:
        socket.call("connect", token=good)
    log = web.log.read_text()
    assert not [
        secret for secret in (good, marked, *cast.keys.values(), *cast.sessions.values()) if secret in log
    ]


@pytest.mark.e2e
@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:1"])
def test_a_session_is_of_no_use_to_pages_of_others(site: Site, cast: Cast, origin: str | None) -> None:
    headers = cookie(site, cast.sessions["boss"])
    headers.pop("Origin")
    with RawClient(site.web[0].socket, additional_headers=headers, origin=origin) as socket:
        socket.send({"id": 1, "connect": {}})
        assert socket.ending()[1:] == (3507, "permission denied: this origin may not use the session")
    if origin is not None:
        answer = httpx.get(
            f"{site.web[0].url}/events/task:1",
            headers={**headers, "Origin": origin},
            trust_env=False,
            timeout=60,
        )
        assert answer.status_code == 403


@pytest.mark.e2e
def test_a_page_under_a_name_that_is_not_ours_gets_nothing(site: Site, cast: Cast) -> None:
    headers = {"Cookie": cookie(site, cast.sessions["boss"])["Cookie"], "Host": "rebound.example"}
    answer = httpx.get(
        f"{site.web[0].url}/events/task:1",
        headers={**headers, "Origin": "http://rebound.example"},
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == 403


@pytest.mark.e2e
@pytest.mark.parametrize("value", ["", "%00", "a;b", '"\\000"', "x" * 5_000])
def test_a_cookie_that_is_no_session_is_refused_like_none(site: Site, value: str) -> None:
    headers = {"Cookie": f"sessionid={value}"}
    with RawClient(site.web[0].socket, additional_headers=headers, origin=site.web[0].url) as socket:
        socket.send({"id": 1, "connect": {}})
        assert socket.ending()[1] == 3500
