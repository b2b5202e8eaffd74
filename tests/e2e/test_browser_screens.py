"""Every screen of the site in a real browser, at three widths, light and dark, and before axe-core.

The screens are found by asking the site (`console_pages`): each address that answers a person with a page.
One visit a screen: the width and the scheme are changed while it is open.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.browser import SIZES, Browser, site_with_people, window_of
from tests.e2e.clients import StockClient, node_file
from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.sqlite_only, pytest.mark.timeout(900)]

_SCREENS = """
import json
from django.contrib.auth.models import User
from django.test import Client
from tests.integration.console_pages import screens
client = Client(SERVER_NAME="localhost")
client.force_login(User.objects.get(username={who!r}))
print(json.dumps(screens(client)))
"""

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

#: A connection whose server does not live is soon reaped, and its pages are gone: a real one stands for it.
_ROWS = """
from pathlib import Path
from bus.models import ActiveConnection, ServerInstance
from tests.integration.console_rows import checkpoint_row, everything
everything(Path({folder!r}))
checkpoint_row()
ActiveConnection.objects.all().delete()
ServerInstance.objects.filter(name="web-1").delete()
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with site_with_people() as site:
        site.python(_ROWS.format(folder=str(site.folder)))
        with StockClient("python") as agent:
            agent.connect(site.web[0].socket, site.token("walker"), agent_id="walker")
            yield site


@pytest.fixture(scope="module")
def window(site: Site) -> Iterator[Browser]:
    with window_of(site, "root") as window:
        yield window


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
    return [f"{scheme}: {name} ({impact}): {nodes}" for name, impact, nodes in found]


def too_wide(window: Browser) -> list[str]:
    """The widths at which the page scrolls sideways. Charts follow a new width a moment later."""
    found = []
    for size in SIZES:
        window.resize(*size)
        end = time.monotonic() + 2
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
    window.rest()
    window.open(path)
    settle(window)
    if path in FILLED:
        window.see(FILLED[path])
    if urlsplit(window.driver.current_url).path != urlsplit(path).path:
        return [f"{path}: it has led to {window.driver.current_url}"]
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


def test_an_operation_of_the_api_and_its_dialog_of_keys_pass_axe(window: Browser) -> None:
    window.rest()
    window.open("/api/docs")
    window.click("#operations-tag-publish .opblock-summary-control, .opblock-post .opblock-summary-control")
    window.see(".opblock.is-open .opblock-body .responses-table")
    window.run(node_file("axe-core/axe.min.js").read_text())
    found = both_schemes(window)
    window.click(".btn.authorize")
    window.see(".dialog-ux .modal-ux-content")
    found += both_schemes(window)
    assert not found, "\n".join(found)
    assert window.complaints() == []


def both_schemes(window: Browser) -> list[str]:
    """What axe-core finds in light and in dark, colours and all."""
    return [entry for scheme in ("light", "dark") for entry in accuse(window, scheme, "all", whole=True)]


def test_filters_and_colours_are_reached_and_used_by_the_keyboard(window: Browser) -> None:
    window.prefer(color_scheme="light")
    window.open("/admin/cleanup/cleanupitem/")
    settle(window)
    press(window, "#x-filter-open", "Enter")
    window.until(lambda: focused(window) == "x-filter-close", what="the focus in the filters")
    press(window, "#x-filter-close", "Escape")
    window.until(lambda: focused(window) == "x-filter-open", what="the focus back on the button")
    window.until(lambda: not window.is_shown("#changelist-filter"), what="the end of the filters")
    press(window, "[aria-controls=x-user]", "Enter")
    window.until(lambda: window.is_shown("#x-user"), what="the menu of the person")
    press(window, "#x-user button:nth-of-type(2)", "Enter")
    window.until(lambda: window.attribute("html", "class") == "dark", what="the dark")
    assert window.attribute("#x-user button:nth-of-type(2)", "aria-pressed") == "true"
    press(window, "#x-user button:nth-of-type(3)", "Enter")
    window.until(lambda: window.attribute("html", "class") == "", what="the colours of the system")


def press(window: Browser, selector: str, key: str) -> None:
    """Press a key on an element that Tab can reach."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    reached = "const one = document.querySelector(arguments[0]); one.focus(); return one.tabIndex === 0"
    assert window.run(f"{reached} && document.activeElement === one", selector), selector
    ActionChains(window.driver).send_keys(getattr(Keys, key.upper())).perform()


def focused(window: Browser) -> str:
    """The id of the element that has the focus."""
    return str(window.run("return document.activeElement.id"))


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
    "a[href*='/do/'], [name=_save], input.action-select, a[href*='/add/']");
  for (const one of [...forms, ...buttons]) found.push([path, one.getAttribute("href") || one.outerHTML]);
}
done(found);
"""
#: What a viewer may do although it is a button, or finds on every page.
_VIEWER_MAY = ("/do/verify/", "password_change")


def test_a_viewer_finds_no_button_that_changes_on_any_screen(site: Site) -> None:
    paths = json.loads(site.python(_SCREENS.format(who="viewer")).splitlines()[-1])
    assert len(paths) > 50
    with window_of(site, "viewer") as browser:
        script = f"(async (...arguments) => {{{_BUTTONS}}})(...arguments)"
        found = browser.driver.execute_async_script(script, [path for path in paths if "/do/" not in path])
    offered = [(path, what) for path, what in found if not any(may in path + what for may in _VIEWER_MAY)]
    assert offered == []
