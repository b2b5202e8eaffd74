"""A headless Chromium for the tests, with what the pages of this site are asked for again and again."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest

from tests.harness import Site
from tests.servers import PATIENCE, free_port

PASSWORD = "a-word-for-tests"
#: Wide, as on a tablet, as on a phone.
SIZES = ((1440, 1000), (768, 1024), (390, 844))

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # One process for all pages of a window: a new one for each costs more than all that the page does.
    "--process-per-site",
    "--disable-site-isolation-trials",
    "--disable-features=ProactivelySwapBrowsingInstance,BackForwardCache,SpareRendererForSitePerProcess,"
    "IsolateOrigins,site-per-process",
)

#: What reaches beyond the right edge of the page, in words; nothing if the page does not scroll sideways.
_OVERFLOW = """
const edge = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth <= edge) return [];
return [...document.querySelectorAll("body *")]
  .filter((element) => element.getBoundingClientRect().right > edge + 1)
  .map((element) => `${element.tagName}.${element.className}`).slice(0, 8);
"""


#: What Chromium says of a page that was left while it was asked.
_LEFT = ("aborted by navigation", "does not belong to the document", "context", "frame", "loader", "detached")

_CHOOSE = """
const field = document.querySelector(arguments[0]);
const fits = (one) => one.value === arguments[1] || one.text.startsWith(arguments[1]);
field.value = [...field.options].find(fits).value;
field.dispatchEvent(new Event("input", {bubbles: true}));
field.dispatchEvent(new Event("change", {bubbles: true}));
"""


@lru_cache(maxsize=1)
def programs() -> tuple[str, str]:
    """Chromium and its driver. Skips the test where they are not installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium: install the packages chromium and chromium-driver")
    return browser, driver


def _errors() -> Any:
    """Selenium is imported where there is a browser for it."""
    from selenium.common import exceptions

    return exceptions


def _passes(error: Exception) -> bool:
    """Whether an error of the driver tells of a moment, and not of a mistake."""
    errors = _errors()
    moments = (
        errors.NoSuchElementException,
        errors.StaleElementReferenceException,
        errors.ElementNotInteractableException,
        errors.ElementClickInterceptedException,
    )
    return isinstance(error, moments) or any(words in str(error) for words in _LEFT)


class Browser:
    """One window on one site."""

    def __init__(self, site: Site) -> None:
        from selenium import webdriver

        browser, driver = programs()
        self.base = site.web[0].url
        self.folder = tempfile.mkdtemp(prefix="chromium-")
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in (*_ARGUMENTS, f"--user-data-dir={self.folder}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(
            options=options, service=webdriver.ChromeService(driver, port=free_port())
        )
        self.driver.set_script_timeout(2 * PATIENCE)
        self.resize(*SIZES[0])

    def close(self) -> None:
        """End the browser and remove its profile."""
        self.driver.quit()
        self.driver.service.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def resize(self, width: int, height: int) -> None:
        """Give the page this many pixels, as a phone would."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, **features: str) -> None:
        """Set media features: `color_scheme="dark"`, `reduced_motion="reduce"`."""
        named = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})

    def open(self, path: str) -> None:
        """Go to a page of the site."""
        self.driver.get(self.base + path)

    def rest(self) -> None:
        """Leave the page, and forget what it has complained of until then."""
        self.driver.get("about:blank")
        self.complaints()

    def log_out(self) -> None:
        """Forget the session, with no page open that would ask for something meanwhile."""
        self.rest()
        self.driver.execute_cdp_cmd("Network.deleteCookies", {"name": "sessionid", "url": self.base})

    def log_in(self, name: str) -> None:
        """Log in by the form."""
        self.open("/admin/login/")
        self.write("[name=username]", name)
        self.write("[name=password]", PASSWORD)
        self.click("#login-form [type=submit]")
        self.until(lambda: "/login/" not in self.driver.current_url, what="the log-in")

    def run(self, script: str, *given: Any) -> Any:
        """Run a script on the page: what it reads belongs to one moment, whatever is replaced later."""
        return self.driver.execute_script(script, *given)

    def count(self, selector: str) -> int:
        """How many elements the CSS selector finds now."""
        return int(self.run("return document.querySelectorAll(arguments[0]).length", selector))

    def text(self, selector: str) -> str:
        """What the first element says, whether in sight or not; nothing if there is none."""
        return str(
            self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector)
        ).strip()

    def attribute(self, selector: str, name: str) -> str:
        """An attribute of the first element; nothing if there is no such one."""
        script = "return document.querySelector(arguments[0])?.getAttribute(arguments[1]) ?? ''"
        return str(self.run(script, selector, name))

    def is_shown(self, selector: str) -> bool:
        """Whether the first element is there and in sight."""
        return bool(
            self.run("return document.querySelector(arguments[0])?.checkVisibility() ?? false", selector)
        )

    def see(self, selector: str) -> None:
        """Wait until there is such an element."""
        self.until(lambda: self.count(selector), what=selector)

    def miss(self, selector: str) -> None:
        """Wait until there is no such element any more."""
        self.until(lambda: not self.count(selector), what=f"the end of {selector}")

    def click(self, selector: str) -> None:
        """Bring an element into sight and click it; one that is replaced or covered meanwhile, again."""
        self.until(lambda: self._click(selector), what=f"a click on {selector}")

    def write(self, selector: str, text: str) -> None:
        """Type into a field in place of what it holds; one that is replaced meanwhile, again."""
        self.until(lambda: self._write(selector, text), what=f"the field {selector}")

    def press(self, find: str, *given: Any, what: str) -> None:
        """Click the element that a script finds, as soon as it finds one."""
        self.until(lambda: self._press(self.run(find, *given)), what=what)

    def hears(self, selector: str, words: str) -> None:
        """Wait until the first element says these words."""
        self.until(lambda: words in self.text(selector), what=f"{words!r} in {selector}")

    def goes_to(self, part: str) -> None:
        """Wait until the address has such a part, and its page is whole."""
        here = "return document.readyState === 'complete' && location.href.includes(arguments[0])"
        self.until(lambda: self.run(here, part), what=f"the page {part}")

    def fits(self) -> None:
        """Wait until nothing makes the page scroll sideways: charts follow a new width a moment later."""
        self.until(lambda: not self.overflow(), what="a page without overflow", why=self.overflow)

    def choose(self, selector: str, wanted: str) -> None:
        """Choose the option of a select that has this value, or whose text begins so."""
        self.run(_CHOOSE, selector, wanted)

    def _click(self, selector: str) -> bool:
        return self._press(self.driver.find_element("css selector", selector))

    def _press(self, element: Any) -> bool:
        if element is None:
            return False
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()
        return True

    def _write(self, selector: str, text: str) -> bool:
        field = self.driver.find_element("css selector", selector)
        field.clear()
        field.send_keys(text)
        return True

    def until(
        self,
        condition: Callable[[], Any],
        *,
        what: str,
        timeout: float = PATIENCE,
        why: Callable[[], Any] = lambda: "",
    ) -> Any:
        """Wait until the condition holds, and return its value; `why` tells what is wrong if it does not.

        An element that is gone, covered or not there yet is waited for, and so is a page that was left while
        it was asked.
        """
        end = time.monotonic() + timeout
        while True:
            trouble = None
            try:
                if found := condition():
                    return found
            except _errors().WebDriverException as error:
                if not _passes(error):
                    raise
                trouble = error
            if time.monotonic() > end:
                raise TimeoutError(f"{what} on {self.driver.current_url} {why()}") from trouble
            time.sleep(0.05)

    def overflow(self) -> list[str]:
        """What makes the page scroll sideways."""
        return list(self.run(_OVERFLOW))

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last call: scripts, policy, missing files."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")
        ]


@contextmanager
def window_of(site: Site, name: str) -> Iterator[Browser]:
    """A window in which this person is logged in."""
    browser = Browser(site)
    try:
        browser.log_in(name)
        yield browser
    finally:
        browser.close()


@contextmanager
def site_with_people(**settings: str) -> Iterator[Site]:
    """A site that serves its static files, with a superuser `admin` and a person of each role."""
    programs()
    site = Site(web=1, **settings)
    site.manage("collectstatic", "--noinput", "--verbosity", "0")
    try:
        site.start()
        site.python(
            "from django.contrib.auth.models import Group, User\n"
            "from xnai_site.roles import ROLES, ensure_roles\n"
            "ensure_roles()\n"
            f"User.objects.create_superuser('root', password={PASSWORD!r})\n"
            "for role in ROLES:\n"
            f"    person = User.objects.create_user(role, password={PASSWORD!r}, is_staff=True)\n"
            "    person.groups.add(Group.objects.get(name=role))\n"
        )
        yield site
    finally:
        site.stop()
