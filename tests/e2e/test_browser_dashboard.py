"""The dashboard in a real browser, on a real site with a worker: cards, feed, trace, publishing, honesty."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.browser import SIZES, Browser, site_with_people, window_of
from tests.e2e.dashboard_page import (
    FROZEN,
    card,
    follow,
    freeze,
    let_go_on,
    offsets,
    open_live,
    publish,
    say,
    scripted,
    start,
    write,
)
from tests.harness import ROOT, Program, Site

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.sqlite_only, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    # A worker is silent after half of its lease. There is no beat: only a test that wants it ends a task.
    with site_with_people(BUS_TASK_LEASE="2") as site:
        site.start_worker("--include", "tests.e2e.browser_jobs")
        yield site


@pytest.fixture(scope="module")
def window(site: Site) -> Iterator[Browser]:
    with window_of(site, "root") as window:
        yield window


@pytest.fixture
def page(window: Browser) -> Iterator[Browser]:
    """The dashboard, connected. Whatever a test does there, the console of the browser stays clean."""
    window.rest()
    open_live(window)
    yield window
    assert window.complaints() == []


#: Notes when the card says its end, and when it is gone, by the clock of the page itself.
_LINGER = """
const watch = new MutationObserver(() => {
  const card = document.querySelector(arguments[0]);
  if (card?.textContent.includes("completed")) window.ended ??= performance.now();
  if (!card) { window.gone = performance.now(); watch.disconnect(); }
});
window.ended = undefined;
watch.observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true});
"""


def run_through(site: Site, page: Browser, task_id: str) -> None:
    """See a card appear, move and go away 2 s after the end."""
    start(site, task_id, 4)
    page.see(card(task_id))
    for done in (1, 2, 3):
        let_go_on(site, task_id)
        page.until(lambda done=done: f"{done} of 4 steps" in page.text(card(task_id)), what=f"step {done}")
        assert page.text(f"{card(task_id)} [data-percent]") == f"{25 * done} %"
    bar = f"{card(task_id)} progress"
    assert (page.attribute(bar, "value"), page.attribute(bar, "max")) == ("3", "4")
    page.run(_LINGER, card(task_id))
    let_go_on(site, task_id)
    page.miss(card(task_id))
    lingered = page.run("return window.gone - window.ended")
    assert 1_500 < lingered < 3_500, "ms: long enough to be read, and not stuck"
    assert page.text("[data-part=announce]") == f"Task {task_id} completed"


def test_a_card_appears_moves_ends_and_is_gone_and_again_under_the_same_id(site: Site, page: Browser):
    assert "Nothing is running" in page.text("[data-part=cards-empty]")
    page.until(lambda: page.is_shown("[data-part=cards-empty]"), what="the word on no task")
    run_through(site, page, "import-7")
    assert page.text("[data-part=tasks]") == "0"
    run_through(site, page, "import-7")


def test_two_cards_move_on_their_own_and_a_reload_finds_them_where_they_are(site: Site, page: Browser):
    start(site, "first", 2)
    page.see(card("first"))
    let_go_on(site, "first")
    page.until(lambda: "1 of 2" in page.text(card("first")), what="the first step")
    open_live(page)
    page.until(lambda: "1 of 2" in page.text(card("first")), what="the step, after a reload")
    let_go_on(site, "first")
    page.miss(card("first"))


def test_publishing_is_answered_with_the_offset_and_shows_in_the_topics(page: Browser):
    form = "[data-part=publish]"
    page.write(f"{form} [name=topic]", "room:1")
    page.click(f"{form} button")
    page.until(lambda: page.text(f"{form} output") == "Published as event 1 of room:1.", what="the answer")
    page.until(lambda: "room:1" in page.text("[data-part=topics]"), what="the topic in the table")


def test_publishing_says_what_is_wrong(page: Browser):
    form = "[data-part=publish]"
    page.write(f"{form} [name=data]", '{\n"a": 1,\n"b" 2}')
    page.click(f"{form} button")
    complaint = "The data is not JSON: line 3, column 5 wants a colon."
    page.until(lambda: page.text(f"{form} output") == complaint, what="the complaint")
    at = "const field = document.activeElement; return [field.name, field.selectionStart]"
    assert page.run(at) == ["data", 14]
    page.write(f"{form} [name=data]", "{}")
    page.write(f"{form} [name=topic]", "sys:stats")
    page.click(f"{form} button")
    page.until(lambda: "Refused: permission denied (103)" in page.text(f"{form} output"), what="the refusal")


def test_the_form_works_by_keyboard_alone(page: Browser):
    from selenium.webdriver.common.keys import Keys

    page.write("[data-part=publish] [name=topic]", "room:keys" + Keys.ENTER)
    page.until(lambda: "room:keys" in page.text("[data-part=publish] output"), what="the answer")
    page.open("/")
    page.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert page.driver.switch_to.active_element.text == "Skip to the content"


# The trace


def test_what_is_published_in_the_box_is_seen_in_the_trace_and_by_a_client_elsewhere(
    site: Site, page: Browser
):
    topic = "room:traced"
    listen = (
        "window.heard = []; await new Promise((ready) => bus.subscribe(given[0], {onReady: ready,"
        "onEvent: (event, {offset}) => window.heard.push([offset, event.data])})); return 'listening'"
    )
    assert scripted(page, listen, topic) == "listening"
    write(page, "[data-part=publish] [name=topic]", topic)
    write(page, "[data-part=publish] [name=data]", '{"text": "<i>one</i>"}')
    page.click("[data-part=publish] [value=trace]")
    page.until(lambda: offsets(page) == [1], what="the event in the trace")
    page.until(lambda: page.run("return window.heard.length"), what="the event elsewhere")
    assert page.run("return window.heard") == [[1, {"text": "<i>one</i>"}]]
    row = "[data-part=trace-rows] > li"
    assert page.text(f"{row} [data-who]") == "you"
    assert page.text(f"{row} [data-short]") == '{"text":"<i>one</i>"}', "as text, not as a part of the page"
    page.click(f"{row} summary")
    page.until(lambda: '"text": "<i>one</i>"' in page.text(f"{row} pre"), what="the payload in full")
    assert "?trace=room%3Atraced" in page.driver.current_url
    page.driver.refresh()
    page.until(lambda: offsets(page) == [1], what="the trace, after a reload")
    remembered = "return document.querySelector('[data-part=publish] [name=topic]').value"
    assert page.run(remembered) == topic


def test_the_trace_pauses_when_nobody_looks_and_catches_up_without_a_gap(site: Site, page: Browser):
    follow(page, "room:away")
    say(page, "room:away", 2)
    page.until(lambda: offsets(page) == [1, 2], what="the first events")
    page.run("window.dispatchEvent(new Event('blur'))")
    publish(site, "room:away", 120)
    page.until(lambda: "120 events were missed" in page.text("[data-part=trace-paused-text]"), what="120")
    assert offsets(page) == [1, 2]
    page.run("window.dispatchEvent(new Event('focus'))")
    page.click("[data-part=trace-catch]")
    page.until(lambda: offsets(page) == list(range(1, 123)), what="what was missed, in order")
    say(page, "room:away", 1)
    page.until(lambda: offsets(page) == list(range(1, 124)), what="what comes after that")


def test_skipping_leaves_a_word_and_many_events_leave_200_rows(site: Site, page: Browser):
    follow(page, "room:many")
    say(page, "room:many", 1)
    page.until(lambda: offsets(page) == [1], what="the first event")
    page.click("[data-part=trace-pause]")
    say(page, "room:many", 3)
    page.until(lambda: "3 events were missed" in page.text("[data-part=trace-paused-text]"), what="the count")
    page.click("[data-part=trace-skip]")
    page.until(lambda: offsets(page) == [1, 0], what="the word on what was skipped")
    assert page.text("[data-part=trace-rows] .gap") == "offsets 2 to 4 are not shown: skipped"
    publish(site, "room:many", 300)
    page.until(lambda: offsets(page) == list(range(105, 305)), what="the last 200")
    assert page.text("[data-part=trace-count]") == "the last 200 of 301 events"
    page.click("[data-part=trace-clear]")
    page.until(lambda: offsets(page) == [], what="no rows")


def test_the_trace_is_filtered_by_type_and_copied_as_json(page: Browser):
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.base},
    )
    follow(page, "room:kinds")
    say(page, "room:kinds", 2)
    say(page, "room:kinds", 1, "error")
    page.until(lambda: offsets(page) == [1, 2, 3], what="the events")
    write(page, "[data-part=trace-filter]", "ERR")
    shown = "return document.querySelectorAll('[data-part=trace-rows] > li:not([hidden])').length"
    page.until(lambda: page.run(shown) == 1, what="the filter")
    assert page.text("[data-part=trace-count]") == "3 events, 2 hidden by the filter"
    page.click("[data-part=trace-copy]")
    page.until(lambda: page.text("[data-part=trace-note]") == "1 event copied.", what="the copy")
    read = (
        "const done = arguments[0]; navigator.clipboard.readText().then(done, (error) => done(String(error)))"
    )
    copied = json.loads(page.driver.execute_async_script(read))
    assert [(one["topic"], one["offset"], one["event_type"]) for one in copied] == [
        ("room:kinds", 3, "error")
    ]


def test_an_agent_is_traced_by_its_inbox(page: Browser):
    follow(page, "agent:walker")
    say(page, "agent:walker", 1)
    page.until(lambda: offsets(page) == [1], what="the message to the agent")
    page.click("[data-part=trace-stop]")
    page.until(lambda: "Follow a topic" in page.text("[data-part=trace-empty]"), what="what to do next")
    assert "trace" not in page.driver.current_url


def test_a_name_that_is_none_is_said_beside_the_box(page: Browser):
    write(page, "[data-part=trace-of]", "two words")
    page.click("[data-part=trace-form] [type=submit]")
    page.until(lambda: "cannot be followed" in page.text("[data-part=trace-note]"), what="the complaint")


def test_shortcuts_work_are_listed_and_can_be_turned_off(page: Browser):
    from selenium.webdriver.common.keys import Keys

    def focused() -> Any:
        return page.run("return document.activeElement.id")

    def press(keys: str) -> None:
        page.driver.switch_to.active_element.send_keys(keys)

    press("/")
    page.until(lambda: focused() == "t-of", what="the box of the trace")
    press("?p")
    assert focused() == "t-of", "who writes gives no commands"
    assert not page.count("dialog[open]")
    page.run("document.activeElement.blur()")
    press("p")
    page.until(lambda: focused() == "p-topic", what="the box to publish")
    press(Keys.CONTROL + Keys.ENTER + Keys.NULL)
    page.until(lambda: "Published as event" in page.text("[data-part=publish] output"), what="the answer")
    page.run("document.activeElement.blur()")
    press("?")
    page.see("dialog[open]")
    page.click("dialog [name=shortcuts]")
    press(Keys.ESCAPE)
    page.miss("dialog[open]")
    page.run("document.activeElement.blur()")
    press("/")
    assert focused() != "t-of"
    page.run("localStorage.removeItem('xnai.shortcuts')")


def test_a_viewer_has_no_box_and_is_refused_by_the_server(site: Site, page: Browser):
    page.log_out()
    try:
        page.log_in("viewer")
        open_live(page)
        assert not page.count("[data-part=publish]")
        follow(page, "room:seen")
        publish(site, "room:seen", 1)
        page.until(lambda: offsets(page) == [1], what="the event, which a viewer may read")
        assert page.text("[data-part=trace-rows] [data-who]") == "server"
        body = "return await bus.publish('room:seen', 'output', {}).then(() => 'published', ({code}) => code)"
        assert scripted(page, body) == 103
    finally:
        page.log_out()
        page.log_in("root")


# Silence


def test_the_card_of_a_frozen_worker_says_so_and_then_ends_as_failed(site: Site, page: Browser):
    worker = Program(
        "frozen",
        [sys.executable, str(ROOT / "manage.py"), "shell", "--no-imports", "-c", FROZEN],
        site.environment,
        site.folder / "frozen.log",
    )
    worker.start()
    try:
        page.until(lambda: "1 of 4 steps" in page.text(card("frozen")), what="the card")
        freeze(site, worker)
        silent = f"{card('frozen')} [data-silent]"
        page.until(lambda: "no sign of life for" in page.text(silent), what="the silence")
        first = page.text(silent)
        page.until(lambda: page.text(silent) != first, what="the seconds to count")
        give_up = "from bus.tasks import end_lost_tasks; print(end_lost_tasks())"
        page.until(lambda: site.python(give_up) != "0", what="the end of the lease", timeout=120)
        page.miss(card("frozen"))
        assert page.text("[data-part=announce]") == "Task frozen failed"
    finally:
        worker.kill()


def test_what_cleanup_does_arrives_in_the_audit_feed(site: Site, page: Browser):
    page.until(lambda: page.is_shown("[data-part=feed-empty]"), what="the word on no entry")
    folder = site.folder / "staged"
    folder.mkdir()
    site.manage("cleanup", "areas", "add", "staged", str(folder))
    page.until(lambda: "area added" in page.text("[data-part=feed]"), what="the entry")
    assert "staged" in page.text("[data-part=feed]")
    assert not page.is_shown("[data-part=feed-empty]")
    open_live(page)
    page.until(lambda: "area added" in page.text("[data-part=feed]"), what="the entry, after a reload")


def test_live_connections_are_counted_and_drawn(site: Site, page: Browser):
    # A server that was killed before holds its lease for 45 s, so there may be more than this page.
    page.until(lambda: page.text("[data-part=connections]") in set("123456789"), what="this page itself")
    page.see("[data-part=chart] canvas")
    page.until(lambda: not page.is_shown("[data-part=chart-empty]"), what="the end of the word on no figures")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_in_either_scheme(page: Browser, size: tuple[int, int], scheme: str):
    try:
        page.prefer(color_scheme=scheme)
        page.resize(*size)
        open_live(page)
        page.see("[data-part=chart] canvas")
        page.fits()
        ground = page.run("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground.strip("rgb()").split(","))) < 300) == (scheme == "dark")
    finally:
        page.prefer(color_scheme="light")
        page.resize(*SIZES[0])


def test_the_scheme_chosen_in_the_console_holds_here(page: Browser):
    page.run("localStorage.setItem('adminTheme', JSON.stringify('dark'))")
    try:
        open_live(page)
        assert page.run("return document.documentElement.dataset.theme") == "dark"
    finally:
        page.run("localStorage.removeItem('adminTheme')")


def test_nothing_moves_for_whoever_asks_for_stillness(page: Browser):
    # In one breath, since the connection sets the state too.
    moving = (
        "document.querySelector('[data-part=state]').dataset.state = 'connecting';"
        "return getComputedStyle(document.querySelector('.dot')).animationName"
    )
    assert page.run(moving) == "breathe"
    page.prefer(reduced_motion="reduce")
    try:
        assert page.run(moving) == "none"
    finally:
        page.prefer(reduced_motion="no-preference")


def test_the_indicator_is_honest_when_the_server_dies_and_comes_back(site: Site, window: Browser):
    open_live(window)
    start(site, "survivor", 2)
    window.see(card("survivor"))
    web = site.web[0]
    web.kill()
    window.until(lambda: window.text("[data-part=state-text]") == "Reconnecting…", what="the loss")
    window.until(lambda: window.is_shown("[data-part=stale]"), what="the warning of old figures")
    assert window.text("[data-part=events]") == "—"
    let_go_on(site, "survivor")  # told while the page is away
    web.restart()
    window.until(lambda: window.text("[data-part=state-text]") == "Live", what="the return")
    window.until(lambda: "1 of 2" in window.text(card("survivor")), what="what was missed")
    window.until(lambda: not window.is_shown("[data-part=stale]"), what="fresh figures")
    let_go_on(site, "survivor")
    window.miss(card("survivor"))
    window.complaints()  # the browser complains of the dead server, rightly


def test_logging_out_elsewhere_leads_to_the_log_in(site: Site, window: Browser):
    open_live(window)
    window.driver.delete_cookie("sessionid")
    window.until(lambda: "/admin/login/" in window.driver.current_url, what="the log-in page")
    window.log_in("root")
    window.complaints()


def test_state_is_json_that_holds_no_secret(site: Site, page: Browser):
    shown = json.dumps(page.run("return fetch('/dashboard/state').then((reply) => reply.json())"))
    assert site.secret not in shown
    assert "address" not in shown
