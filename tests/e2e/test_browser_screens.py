"""Every screen of the site in a real browser, at three widths, light and dark, and before axe-core.

The screens are found by asking the site (`console_pages`): each address that answers a person with a page.
One visit a screen: the width and the scheme are changed while it is open.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.browser import SIZES, Browser, site_with_people
from tests.e2e.clients import node_file
from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.sqlite_only, pytest.mark.timeout(400)]

_SCREENS = """
import json
from django.contrib.auth.models import User
from django.test import Client
from tests.integration.console_pages import screens
client = Client(SERVER_NAME="localhost")
client.force_login(User.objects.get(username={who!r}))
print(json.dumps(screens(client)))
"""

#: What axe may find, and why nothing can be done about it.
KNOWN = {
    "landmark-unique": "two lists on one page that scroll by themselves are named by the same library",
    "region": "what Swagger UI and the menu of unfold put beside the landmarks",
}

#: Rules on contrast take most of the time: the menu is looked at on the first page alone.
_AXE = """
const [contrast, whole, done] = arguments;
const options = {preload: false, resultTypes: ["violations"]};
if (contrast === "only") options.runOnly = ["color-contrast", "link-in-text-block"];
if (contrast === "none") options.rules = {"color-contrast": {enabled: false}};
axe.run(whole ? document : {exclude: ["#nav-sidebar"]}, options).then((found) => done(found.violations.map(
  (one) => [one.id, one.impact, one.nodes.slice(0, 4).map((node) => node.target.join(" ") + ": "
    + node.failureSummary)])));
"""

#: unfold decides on its scheme when a page begins; afterwards the class alone counts.
_SCHEME = "document.documentElement.classList.toggle('dark', arguments[0] === 'dark')"
#: Pages made by one template, of which one is enough for the colours.
_ALIKE = ("/do/", "/history/", "/delete/", "/add/")


#: What a page that fills itself shows when it has; all others are whole when they are loaded.
FILLED = {
    "/": "[data-part=chart] canvas",
    "/admin/": "[data-chart=live] canvas",
    "/api/docs": ".opblock-summary",
}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with site_with_people() as site:
        site.python(
            "from pathlib import Path\n"
            "from tests.integration.console_rows import checkpoint_row, everything\n"
            f"everything(Path({str(site.folder)!r}))\n"
            "checkpoint_row()\n"
        )
        yield site


@pytest.fixture(scope="module")
def window(site: Site) -> Iterator[Browser]:
    browser = Browser(site)
    browser.driver.set_script_timeout(120)  # axe-core, on a machine with much to do
    browser.log_in("root")
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def screens(site: Site) -> list[str]:
    found = json.loads(site.python(_SCREENS.format(who="root")).splitlines()[-1])
    assert len(found) > 90
    return found


def settle(window: Browser) -> None:
    """Wait for the scripts, the fonts and the end of every transition that changes a colour."""
    script = (
        "return document.readyState === 'complete' && document.fonts.status === 'loaded'"
        " && !document.querySelector('html[x-cloak]')"
        " && document.getAnimations().every((one) => one.playState !== 'running' || one.effect"
        ".getComputedTiming().iterations === Infinity)"
    )
    window.until(lambda: window.run(script), what="the page to settle")


def accuse(window: Browser, scheme: str, contrast: str, whole: bool) -> list[str]:
    """What axe-core finds in one scheme."""
    window.prefer(color_scheme=scheme)
    window.run(_SCHEME, scheme)
    settle(window)
    found: list[Any] = window.driver.execute_async_script(_AXE, contrast, whole)
    return [
        f"{scheme}: {name} ({impact}): {nodes}"
        for name, impact, nodes in found
        if impact in ("serious", "critical") or name not in KNOWN
    ]


def too_wide(window: Browser) -> list[str]:
    """The widths at which the page scrolls sideways. Charts follow a new width a moment later."""
    found = []
    for size in SIZES:
        window.resize(*size)
        end = time.monotonic() + 20
        while (wide := window.overflow()) and time.monotonic() < end:
            time.sleep(0.05)
        found += [f"{size[0]}: {one}" for one in wide]
    window.resize(*SIZES[0])
    return found


def colourful(screens: list[str]) -> set[str]:
    """The screens on which colours are looked at: all lists and pages, of those that are alike one each."""
    found: dict[str, str] = {}
    for path in screens:
        kind = next((part for part in _ALIKE if part in path), "")
        found.setdefault(kind or path, path)
    return set(found.values())


def look(window: Browser, path: str, axe: str, colours: bool) -> list[str]:
    """Everything that is wrong with one screen."""
    window.complaints()
    window.open(path)
    settle(window)
    if path in FILLED:
        window.see(FILLED[path])
    window.run(axe)
    whole = path == "/admin/"
    found = accuse(window, "light", "all" if colours else "none", whole)
    if colours:
        found += accuse(window, "dark", "only", whole)
    found += too_wide(window)
    window.prefer(color_scheme="light")
    return [f"{path}: {entry}" for entry in (*found, *window.complaints())]


def test_no_screen_overflows_complains_or_fails_before_axe(window: Browser, screens: list[str]) -> None:
    axe = node_file("axe-core/axe.min.js").read_text()
    colours = colourful(screens)
    troubles = [entry for path in screens for entry in look(window, path, axe, path in colours)]
    assert not troubles, "\n".join(troubles)


#: Opens each address with the person's own session, and says what on its page would change something.
_BUTTONS = """
const [paths, done] = arguments;
const found = [];
for (const path of paths) {
  const page = new DOMParser().parseFromString(await (await fetch(path)).text(), "text/html");
  const forms = [...page.querySelectorAll("form[method=post]")].filter((form) =>
    !/logout/.test(form.getAttribute("action") || "") && form.id !== "changelist-form"
    && form.querySelector("[type=submit]"));
  const buttons = page.querySelectorAll(
    "a[href*='/do/'], [name=_save], input.action-select, a[href$='/add/']");
  for (const one of [...forms, ...buttons]) found.push([path, one.getAttribute("href") || one.outerHTML]);
}
done(found);
"""
#: What a viewer may do although it is a button, or finds on every page.
_VIEWER_MAY = ("/do/verify/", "password_change")


def test_a_viewer_finds_no_button_that_changes_on_any_screen(site: Site) -> None:
    paths = json.loads(site.python(_SCREENS.format(who="viewer")).splitlines()[-1])
    assert len(paths) > 50
    browser = Browser(site)
    try:
        browser.log_in("viewer")
        browser.driver.set_script_timeout(120)
        script = f"(async (...arguments) => {{{_BUTTONS}}})(...arguments)"
        found = browser.driver.execute_async_script(script, [path for path in paths if "/do/" not in path])
    finally:
        browser.close()
    offered = [(path, what) for path, what in found if not any(may in path + what for may in _VIEWER_MAY)]
    assert offered == []
