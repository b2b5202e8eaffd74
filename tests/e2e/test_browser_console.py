"""The console in a real browser: an operator and a viewer at work; test_browser_screens walks the pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.browser import Browser, site_with_people
from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.sqlite_only, pytest.mark.timeout(240)]


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
    browser = Browser(site)
    browser.log_in("root")
    yield browser
    browser.close()


def test_dark_is_dark(window: Browser):
    try:
        window.prefer(color_scheme="dark")
        window.open("/admin/")
        ground = "return getComputedStyle(document.querySelector('#main')).backgroundColor"
        lightness = "oklch" in (shown := window.run(ground)) and float(
            shown.removeprefix("oklch(").split()[0].rstrip("%")
        )
        assert lightness < 0.3, shown
        figure = "return getComputedStyle(document.querySelector('.x-figure')).backgroundColor"
        assert window.run(figure) == shown
    finally:
        window.prefer(color_scheme="light")


def test_a_plan_above_its_brake_is_approved_by_typing_the_number(site: Site, window: Browser):
    window.open("/admin/cleanup/cleanuprun/?state__exact=awaiting_approval")
    window.click("#result_list tbody th a, #result_list tbody td a")
    window.click(".x-bar a")
    assert "3\u00a0files" in window.text(".x-ask h2")
    window.write("[name=number]", "4")
    window.click(".x-ask button[type=submit]")
    window.until(lambda: "the plan has 3 files, not 4" in window.text(".x-error"), what="the refusal")
    window.write("[name=number]", "3")
    window.click(".x-ask button[type=submit]")
    window.until(lambda: "Approved. A worker takes it up now." in window.text("body"), what="the answer")
    assert site.sql("SELECT count(*) FROM cleanup_cleanuprun WHERE state = 'approved'") == [(1,)]


def test_a_viewer_finds_no_button_that_changes(site: Site):
    browser = Browser(site)
    try:
        browser.log_in("viewer")
        for path in (
            "/admin/cleanup/cleanuprun/",
            "/admin/cleanup/cleanupitem/",
            "/admin/bus/activeconnection/",
        ):
            browser.open(path)
            # The filters are forms of their own, by GET; every other button changes something.
            assert not browser.count(".x-button:not(.x-filter *)"), path
            assert not browser.count("input.action-select"), path
        assert "Users" not in browser.text("#nav-sidebar")
        assert browser.complaints() == []
    finally:
        browser.close()
