"""Every screen of the site as its HTML: one heading, a title, the policy of its scripts, and nothing raw.

What needs a browser (widths, colours, axe-core) is in `tests/e2e/test_browser_screens.py`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from tests.integration import console_pages as pages
from tests.integration import console_rows as given
from xnai_site.settings import CONTENT_SECURITY_POLICY

pytestmark = [pytest.mark.django_db, pytest.mark.sqlite_only, pytest.mark.timeout(900)]

#: What answers, but with no page to look at, by the status or kind of the answer, and why.
NO_PAGE = {
    "admin/login/": "who is logged in is led on; a stranger's page is looked at by itself",
    "admin/logout/": "takes POST alone",
    "admin/search/": "a fragment of the menu",
    "admin/autocomplete/": "data for a field",
    "admin/jsi18n/": "words for scripts",
    "admin/r/<path:content_type_id>/<path:object_id>/": "leads to where a row is shown",
    "admin/(?P<url>.*)": "what is not there",
    "admin/overview/parts/": "the parts of the overview that are renewed",
    "dashboard/state": "data for the dashboard",
    "dashboard/trace": "data for the dashboard",
    "api/openapi.json": "the description of the API for machines",
}
#: Who may show a page, guess at its kind, or learn of it.
GUARDS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
#: A moment as machines write it.
RAW_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")
#: Elements whose content nobody reads as a sentence.
SILENT = {"script", "style", "pre", "code", "template", "textarea"}
#: Classes of what is shown letter by letter: payloads, paths, names.
LITERAL = {"x-mono", "x-json", "x-clip", "x-code"}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Html(HTMLParser):
    """Reads a page: its headings, its title, its elements, and the text that people read."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.title = ""
        #: Elements that are open, and whether what is in them is read as a sentence.
        self._open: list[tuple[str, bool]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            classes = set((attributes.get("class") or "").split())
            self._open.append((tag, tag not in SILENT and not classes & LITERAL))

    def handle_endtag(self, tag: str) -> None:
        while any(name == tag for name, _ in self._open):
            if self._open.pop()[0] == tag:
                return

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] == "title":
            self.title += data.strip()
        if data.strip() and all(is_read for _, is_read in self._open):
            self.text.append(" ".join(data.split()))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    given.people()
    given.everything(tmp_path)
    given.checkpoint_row()
    found = Client()
    found.force_login(User.objects.create_superuser("root"))
    return found


def test_every_screen_is_well_made_and_every_answer_is_guarded(client: Client) -> None:
    """One walk for all: what is wrong is gathered, and named together."""
    troubles, shown, routes = [], 0, set()
    for address in pages.addresses():
        answer = client.get(address.url)
        routes.add(address.route)
        found = [] if address.route in pages.MACHINES else [*unguarded(address.url, answer)]
        if pages.is_screen(answer):
            shown += 1
            html = Html(answer.content.decode())
            found += [*well_made(html), *unsafe_scripts(html)]
        elif answer.status_code == 200 and not is_data(answer) and address.route not in NO_PAGE:
            found.append("is no page: say why, in NO_PAGE")
        troubles += [f"{address.url}: {entry}" for entry in found]
    assert not troubles, "\n".join(troubles)
    assert shown > 90
    assert NO_PAGE.keys() <= routes, "the list names what there is"


def test_the_log_in_is_well_made() -> None:
    answer = Client().get("/admin/login/")
    html = Html(answer.content.decode())
    assert [*well_made(html), *unsafe_scripts(html), *unguarded("/admin/login/", answer)] == []


def is_data(answer: Any) -> bool:
    """Whether it says itself that it is for programs or to be kept as a file."""
    kind = answer["Content-Type"]
    return kind.startswith(("application/", "text/csv", "text/plain")) or "Content-Disposition" in answer


def well_made(html: Html) -> Iterator[str]:
    """What is wrong with the frame of a page, or raw in its text."""
    for tag in ("h1", "main"):
        if (number := html.count(tag)) != 1:
            yield f"{number} {tag}"
    if not html.title:
        yield "no title"
    yield from (f"raw: {text}" for text in html.text if is_raw(text))
    for tag, attributes in html.elements:
        if tag == "input" and attributes.get("type") == "file":
            yield "a plain field for files"


def is_raw(text: str) -> bool:
    """Whether text shows what no person should see."""
    names = ("{{", "{%", "Delete selected", "object at 0x")
    return (
        text in ("None", "NaN", "undefined")
        or RAW_MOMENT.search(text) is not None
        or any(name in text for name in names)
    )


def unguarded(url: str, answer: Any) -> Iterator[str]:
    """What an answer does not say of what its page may do, and who may show it."""
    parts = [part.split() for part in answer["Content-Security-Policy"].split(";") if part.strip()]
    policy = {name: {source for source in sources if "nonce-" not in source} for name, *sources in parts}
    wanted = {name: {*map(str, sources)} for name, sources in CONTENT_SECURITY_POLICY["DIRECTIVES"].items()}
    wanted["script-src"] = {"'self'"} | ({"'unsafe-eval'"} if url.startswith("/admin/") else set())
    if policy != wanted:
        yield f"policy: {policy}"
    for name, value in GUARDS.items():
        if answer.get(name) != value:
            yield f"{name}: {answer.get(name)}"


def unsafe_scripts(html: Html) -> Iterator[str]:
    """Scripts in the page that its policy would not run, or that anybody could have put there."""
    for tag, attributes in html.elements:
        inline = tag == "script" and not attributes.get("src")
        if inline and attributes.get("type") != "application/json" and not attributes.get("nonce"):
            yield f"a script without nonce: {attributes}"
        if any(re.fullmatch("on[a-z]+", name) for name in attributes):
            yield f"a handler in an attribute: {attributes}"
        if (attributes.get("href") or "").startswith("javascript:"):
            yield f"a script as a link: {attributes}"


def test_cookies_are_out_of_reach_of_scripts_and_other_sites(client: Client) -> None:
    User.objects.create_user("anna", password="a-word-for-tests", is_staff=True)
    stranger = Client()
    stranger.get("/admin/login/")
    stranger.post("/admin/login/", {"username": "anna", "password": "a-word-for-tests"})
    session = stranger.cookies["sessionid"]
    assert session["httponly"]
    assert session["samesite"] == "Lax"
    assert stranger.cookies["csrftoken"]["samesite"] == "Lax"
