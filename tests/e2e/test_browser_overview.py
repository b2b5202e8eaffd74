"""The first page of the console in a real browser: lamps that turn red by themselves, charts, ways on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.browser import Browser, site_with_people, window_of
from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.sqlite_only, pytest.mark.timeout(400)]

_ROWS = """
from datetime import timedelta
from pathlib import Path
from django.utils import timezone
from bus.models import BusSample
from cleanup import operations
from tests.retention import ANNA, Staging
staging = Staging(Path({folder!r}), "staged")
staging.fill(4)
staging.run(staging.policy("old"))
now = timezone.now().replace(second=0, microsecond=0)
BusSample.objects.bulk_create(
    BusSample(
        at=now - timedelta(minutes=back), connections=3 + back % 5, agents=2, last_event=10**6 - 120 * back
    )
    for back in range(1, 300)
)
operations.verify_audit()
"""

#: How many pixels of a chart are painted.
_PAINTED = """
const canvas = document.querySelector(arguments[0] + " canvas");
if (!canvas || !canvas.width || !canvas.height) return 0;
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
let painted = 0;
for (let at = 3; at < pixels.length; at += 4) painted += pixels[at] > 0;
return painted;
"""


#: Has the page ask for its parts, with so much time (ms) for an answer that none overtakes a later one.
_ASK = """
if (Date.now() - (window.askedAt ?? 0) < 2000) return;
window.askedAt = Date.now();
document.dispatchEvent(new Event("visibilitychange"));
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with site_with_people(DJANGO_SETTINGS_MODULE="tests.e2e.lively_settings") as site:
        site.python(_ROWS.format(folder=str(site.folder)))
        yield site


@pytest.fixture(scope="module")
def window(site: Site) -> Iterator[Browser]:
    with window_of(site, "viewer") as window:
        yield window


@pytest.fixture
def page(window: Browser) -> Iterator[Browser]:
    """The page, freshly opened; whatever a test does there, the console of the browser stays clean."""
    window.rest()
    window.open("/admin/")
    yield window
    assert window.complaints() == []


def lamp(page: Browser, name: str) -> tuple[str, str]:
    """The tone of a lamp and what it says, after the page has asked for its parts as it does by itself."""
    page.run(_ASK)
    find = (
        "const found = document.querySelector(`[data-part=lamps] li[data-name=${arguments[0]}]`);"
        "return found ? [found.dataset.lamp, found.textContent] : ['', '']"
    )
    tone, text = page.run(find, name)
    return str(tone), " ".join(text.split())


def test_a_frozen_worker_is_noticed_while_somebody_looks(site: Site, page: Browser):
    site.start_worker()
    site.start_beat()
    page.run("window.seenBefore = true")
    page.until(lambda: lamp(page, "worker")[0] == "good", what="a worker that works")
    site.worker.freeze()
    try:
        page.until(
            lambda: blames_the_worker(page),
            what="the lamp of the frozen worker",
            why=lambda: (lamp(page, "worker"), lamp(page, "beat")),
        )
        page.until(lambda: "needs somebody" in page.text("[data-announce]"), what="what is said aloud")
    finally:
        site.worker.thaw()
    page.until(lambda: lamp(page, "worker")[0] == "good", what="the worker that goes on")
    assert page.run("return window.seenBefore"), "the page was never loaded anew"


def blames_the_worker(page: Browser) -> bool:
    """Whether the worker's lamp is red and says what to do, and beat is not blamed for it."""
    words = ("no worker has begun a task for", "while beat goes on", "kill it and start it again")
    tone, said = lamp(page, "worker")
    return tone == "bad" and all(one in said for one in words) and lamp(page, "beat")[0] != "bad"


def test_a_tampered_audit_turns_the_lamp_red(site: Site, page: Browser):
    page.until(lambda: lamp(page, "audit")[0] == "good", what="an audit that was verified")
    ((actor,),) = site.sql("SELECT actor FROM cleanup_auditentry WHERE seq = 2")
    site.sql("UPDATE cleanup_auditentry SET actor = 'mallory' WHERE seq = 2")
    try:
        site.manage("cleanup", "audit", "verify", accept=(1, 2))
        page.until(lambda: is_tampered_with(page), what="the red lamp", why=lambda: lamp(page, "audit"))
        page.until(lambda: _follow(page, "[data-name=audit] a", "/auditentry/"), what="the way to the audit")
    finally:
        site.sql("UPDATE cleanup_auditentry SET actor = %s WHERE seq = 2", actor)
        site.manage("cleanup", "audit", "verify")
    page.open("/admin/")
    page.until(lambda: lamp(page, "audit")[0] == "good", what="an audit that is whole again")


def is_tampered_with(page: Browser) -> bool:
    """Whether the audit's lamp is red and says why, and red comes first."""
    tone, said = lamp(page, "audit")
    first = page.run("return document.querySelector('[data-part=lamps] li').dataset.lamp")
    return tone == first == "bad" and "tampered with" in said


def _follow(page: Browser, selector: str, wanted: str) -> bool:
    """Click a link that may be replaced meanwhile; whether it has led where it should."""
    page.run("document.querySelector(arguments[0])?.click()", selector)
    return wanted in page.driver.current_url


def test_the_chart_is_drawn_live_and_from_what_was_noted(page: Browser):
    page.until(lambda: page.run(_PAINTED, "[data-chart=live]") > 200, what="the live chart")
    page.until(lambda: "Connections:" in page.text("[data-chart-text]"), what="the chart in words")
    page.click('[data-back="24h"]')
    page.until(
        lambda: "Events: at most 2 a second" in page.text("[data-chart-text]"), what="the day in words"
    )
    page.until(lambda: page.run(_PAINTED, "[data-chart=history]") > 200, what="the chart of the day")
    assert page.attribute('[data-back="24h"]', "aria-pressed") == "true"
    assert page.run("return document.querySelector('[data-chart=live]').hidden")


def test_bars_of_bytes_are_other_bars_than_those_of_files(page: Browser):
    page.click('[data-unit="bytes"]')
    page.until(lambda: page.attribute("[data-by]", "data-by") == "bytes", what="bars of bytes")
    page.hears(".o-table", "4\u00a0files, 28\u00a0B")


def test_a_day_of_the_calendar_leads_to_what_is_purged_then(page: Browser):
    page.until(lambda: _follow(page, ".o-calendar a", "purge_day="), what="the way to the trash")
    page.until(lambda: page.count("#result_list tbody tr") == 4, what="what is purged on that day")
