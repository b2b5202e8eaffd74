"""The dashboard in a real browser, on a real site with a worker: cards, feed, indicator, publishing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from tests.e2e.browser import SIZES, Browser, site_with_people
from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with site_with_people() as site:
        site.start_worker("--include", "tests.e2e.browser_jobs")
        yield site


@pytest.fixture(scope="module")
def window(site: Site) -> Iterator[Browser]:
    browser = Browser(site)
    browser.log_in("root")
    yield browser
    browser.close()


@pytest.fixture
def page(window: Browser) -> Iterator[Browser]:
    """The dashboard, connected. Whatever a test does there, the console of the browser stays clean."""
    window.complaints()
    open_live(window)
    yield window
    assert window.complaints() == []


def open_live(window: Browser) -> None:
    window.open("/")
    window.until(lambda: window.text("[data-part=state-text]") == "Live", what="the connection")


def start(site: Site, task_id: str, total: int) -> None:
    site.python(
        f"from xnai_site.celery import app; app.send_task('tests.steps', args=[{total}], task_id={task_id!r})"
    )


def let_go_on(site: Site, task_id: str) -> None:
    with Redis.from_url(site.valkey.url) as gate:
        gate.rpush(f"gate:{task_id}", "go")


def card(task_id: str) -> str:
    return f'[data-task="{task_id}"]'


def run_through(site: Site, page: Browser, task_id: str) -> None:
    """See a card appear, move and go away 2 s after the end."""
    start(site, task_id, 4)
    page.one(card(task_id))
    for done in (1, 2, 3):
        let_go_on(site, task_id)
        page.until(lambda done=done: f"{done} of 4 steps" in page.text(card(task_id)), what=f"step {done}")
        assert page.text(f"{card(task_id)} [data-percent]") == f"{25 * done} %"
    bar = page.one(f"{card(task_id)} progress")
    assert (bar.get_attribute("value"), bar.get_attribute("max")) == ("3", "4")
    let_go_on(site, task_id)
    page.until(lambda: "completed" in page.text(card(task_id)), what="the end")
    ended = time.monotonic()
    page.until(lambda: not page.all(card(task_id)), what="the card to go", timeout=4)
    assert 1.5 < time.monotonic() - ended < 3.5
    assert page.text("[data-part=announce]") == f"Task {task_id} completed"


def test_a_card_appears_moves_ends_and_is_gone_and_again_under_the_same_id(site: Site, page: Browser):
    assert "Nothing is running" in page.text("[data-part=cards-empty]")
    assert page.one("[data-part=cards-empty]").is_displayed()
    run_through(site, page, "import-7")
    assert page.text("[data-part=tasks]") == "0"
    run_through(site, page, "import-7")


def test_two_cards_move_on_their_own_and_a_reload_finds_them_where_they_are(site: Site, page: Browser):
    start(site, "first", 2)
    page.one(card("first"))
    let_go_on(site, "first")
    page.until(lambda: "1 of 2" in page.text(card("first")), what="the first step")
    open_live(page)
    page.until(lambda: "1 of 2" in page.text(card("first")), what="the step, after a reload")
    let_go_on(site, "first")
    page.until(lambda: not page.all(card("first")), what="the card to go")


def test_publishing_is_answered_with_the_offset_and_shows_in_the_topics(page: Browser):
    form = "[data-part=publish]"
    topic = page.one(f"{form} [name=topic]")
    topic.clear()
    topic.send_keys("room:1")
    page.click(f"{form} button")
    page.until(lambda: page.text(f"{form} output") == "Published as event 1 of room:1.", what="the answer")
    page.until(lambda: "room:1" in page.text("[data-part=topics]"), what="the topic in the table")


def test_publishing_says_what_is_wrong(page: Browser):
    form = "[data-part=publish]"
    data = page.one(f"{form} [name=data]")
    data.clear()
    data.send_keys("{broken")
    page.click(f"{form} button")
    page.until(lambda: "The data is not JSON" in page.text(f"{form} output"), what="the complaint")
    data.clear()
    data.send_keys("{}")
    topic = page.one(f"{form} [name=topic]")
    topic.clear()
    topic.send_keys("sys:stats")
    page.click(f"{form} button")
    page.until(lambda: "Refused: permission denied (103)" in page.text(f"{form} output"), what="the refusal")


def test_the_form_works_by_keyboard_alone(page: Browser):
    from selenium.webdriver.common.keys import Keys

    topic = page.one("[data-part=publish] [name=topic]")
    topic.clear()
    topic.send_keys("room:keys" + Keys.ENTER)
    page.until(lambda: "room:keys" in page.text("[data-part=publish] output"), what="the answer")
    page.open("/")
    page.one("body").send_keys(Keys.TAB)
    assert page.driver.switch_to.active_element.text == "Skip to the content"


def test_what_cleanup_does_arrives_in_the_audit_feed(site: Site, page: Browser):
    assert page.one("[data-part=feed-empty]").is_displayed()
    folder = site.folder / "staged"
    folder.mkdir()
    site.manage("cleanup", "areas", "add", "staged", str(folder))
    page.until(lambda: "area added" in page.text("[data-part=feed]"), what="the entry")
    assert "staged" in page.text("[data-part=feed]")
    assert not page.one("[data-part=feed-empty]").is_displayed()
    open_live(page)
    page.until(lambda: "area added" in page.text("[data-part=feed]"), what="the entry, after a reload")


def test_live_connections_are_counted_and_drawn(site: Site, page: Browser):
    # A server that was killed before holds its lease for 45 s, so there may be more than this page.
    page.until(lambda: page.text("[data-part=connections]") in set("123456789"), what="this page itself")
    page.until(lambda: page.all("[data-part=chart] canvas"), what="the line")
    assert not page.one("[data-part=chart-empty]").is_displayed()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_in_either_scheme(page: Browser, size: tuple[int, int], scheme: str):
    try:
        page.prefer(color_scheme=scheme)
        page.resize(*size)
        open_live(page)
        page.until(lambda: page.all("[data-part=chart] canvas"), what="the line")
        assert page.overflow() == []
        ground = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground.strip("rgb()").split(","))) < 300) == (scheme == "dark")
    finally:
        page.prefer(color_scheme="light")
        page.resize(*SIZES[0])


def test_the_scheme_chosen_in_the_console_holds_here(page: Browser):
    page.driver.execute_script("localStorage.setItem('adminTheme', JSON.stringify('dark'))")
    try:
        open_live(page)
        assert page.driver.execute_script("return document.documentElement.dataset.theme") == "dark"
    finally:
        page.driver.execute_script("localStorage.removeItem('adminTheme')")


def test_nothing_moves_for_whoever_asks_for_stillness(page: Browser):
    # In one breath, since the connection sets the state too.
    moving = (
        "document.querySelector('[data-part=state]').dataset.state = 'connecting';"
        "return getComputedStyle(document.querySelector('.dot')).animationName"
    )
    assert page.driver.execute_script(moving) == "breathe"
    page.prefer(reduced_motion="reduce")
    try:
        assert page.driver.execute_script(moving) == "none"
    finally:
        page.prefer(reduced_motion="no-preference")


def test_the_indicator_is_honest_when_the_server_dies_and_comes_back(site: Site, window: Browser):
    open_live(window)
    start(site, "survivor", 2)
    window.one(card("survivor"))
    web = site.web[0]
    web.kill()
    window.until(lambda: window.text("[data-part=state-text]") == "Reconnecting…", what="the loss")
    window.until(lambda: window.one("[data-part=stale]").is_displayed(), what="the warning of old figures")
    assert window.text("[data-part=events]") == "—"
    let_go_on(site, "survivor")  # told while the page is away
    web.restart()
    window.until(lambda: window.text("[data-part=state-text]") == "Live", what="the return", timeout=40)
    window.until(lambda: "1 of 2" in window.text(card("survivor")), what="what was missed", timeout=20)
    window.until(lambda: not window.one("[data-part=stale]").is_displayed(), what="fresh figures")
    let_go_on(site, "survivor")
    window.until(lambda: not window.all(card("survivor")), what="the card to go")
    window.complaints()  # the browser complains of the dead server, rightly


def test_logging_out_elsewhere_leads_to_the_log_in(site: Site, window: Browser):
    open_live(window)
    window.driver.delete_cookie("sessionid")
    window.until(lambda: "/admin/login/" in window.driver.current_url, what="the log-in page")
    window.log_in("root")
    window.complaints()


def test_state_is_json_that_holds_no_secret(site: Site, page: Browser):
    shown = json.dumps(
        page.driver.execute_script("return fetch('/dashboard/state').then((reply) => reply.json())")
    )
    assert site.secret not in shown
    assert "address" not in shown
