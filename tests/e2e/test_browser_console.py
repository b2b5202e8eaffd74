"""The console in a real browser: an operator and a viewer at work; test_browser_screens walks the pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.browser import Browser, site_with_people, window_of
from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.sqlite_only, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with site_with_people() as site:
        site.python(
            "from pathlib import Path\n"
            "from tests.integration.console_rows import everything\n"
            f"everything(Path({str(site.folder)!r}))\n"
        )
        yield site


@pytest.fixture(scope="module")
def window(site: Site) -> Iterator[Browser]:
    with window_of(site, "root") as window:
        yield window


_GROUNDS = """
const ground = (selector) => getComputedStyle(document.querySelector(selector)).backgroundColor;
return [ground("#main"), ground(".x-figure")];
"""


def is_dark(window: Browser) -> bool:
    """Whether the page is dark and its figures are of the same colour."""
    page, figure = window.run(_GROUNDS)
    return (
        page == figure and "oklch" in page and float(page.removeprefix("oklch(").split()[0].rstrip("%")) < 0.3
    )


def test_dark_is_dark(window: Browser):
    try:
        window.prefer(color_scheme="dark")
        window.open("/admin/")
        window.until(lambda: is_dark(window), what="a dark page", why=lambda: window.run(_GROUNDS))
    finally:
        window.prefer(color_scheme="light")


def test_a_plan_above_its_brake_is_approved_by_typing_the_number(site: Site, window: Browser):
    window.open("/admin/cleanup/cleanuprun/?state__exact=awaiting_approval")
    window.click("#result_list tbody th a, #result_list tbody td a")
    window.goes_to("/change/")
    window.click(".x-bar a")
    window.hears(".x-ask h2", "3\u00a0files")
    window.write("[name=number]", "4")
    window.click(".x-ask button[type=submit]")
    window.hears(".x-error", "the plan has 3 files, not 4")
    window.write("[name=number]", "3")
    window.click(".x-ask button[type=submit]")
    window.hears("body", "Approved. A worker takes it up now.")
    assert site.sql("SELECT count(*) FROM cleanup_cleanuprun WHERE state = 'approved'") == [(1,)]


def test_a_viewer_finds_no_button_that_changes(site: Site):
    with window_of(site, "viewer") as browser:
        for path in (
            "/admin/cleanup/cleanuprun/",
            "/admin/cleanup/cleanupitem/",
            "/admin/bus/activeconnection/",
        ):
            browser.open(path)
            # The filters are forms of their own, by GET; every button beside them changes something.
            assert not browser.count(".x-button:not(.x-filter *, .x-filter-head *)"), path
            assert not browser.count("input.action-select"), path
        assert "Users" not in browser.text("#nav-sidebar")
        assert browser.complaints() == []
