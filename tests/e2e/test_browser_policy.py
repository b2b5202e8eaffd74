"""The life of a policy in a real browser: written, looked at, saved, run, approved; then its files.

Half of what it trashed is restored, one file is held, and the rest is purged. Worker and beat are real; the
worker is started when the page has said that none is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.e2e.browser import SIZES, Browser, site_with_people, window_of
from tests.harness import Site
from tests.retention import DAY, files_below, write
from tests.servers import PATIENCE, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.sqlite_only,
    pytest.mark.timeout(600),
]

OLD, YOUNG = [f"batch-{number}/old-{number}" for number in range(8)], ["batch-0/young", "young"]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with site_with_people(DJANGO_SETTINGS_MODULE="tests.chaos.brisk_settings") as site:
        yield site


@pytest.fixture(scope="module")
def inbox(site: Site) -> Path:
    root = Path(site.folder) / "inbox"
    for name in OLD:
        write(root / name, "x" * 1000, age=5 * DAY)
    for name in YOUNG:
        write(root / name, age=timedelta(minutes=5))
    site.manage("cleanup", "areas", "add", "inbox", str(root))
    return root


@pytest.fixture(scope="module")
def window(site: Site) -> Iterator[Browser]:
    with window_of(site, "admin") as window:
        yield window


def fill(window: Browser, **fields: str) -> None:
    """Write into fields of a form, as somebody who types or chooses."""
    for name, value in fields.items():
        window.see(f"[name={name}]")
        if window.count(f"select[name={name}]"):
            window.choose(f"[name={name}]", value)
        else:
            window.write(f"[name={name}]", value)


#: What another page than the one that asked says, when it is whole.
_ANSWER = """
const is = location.href !== arguments[0] && document.readyState === "complete";
return is && !document.querySelector(".x-ask") ? document.body.textContent : "";
"""


def is_shown(window: Browser, name: str) -> bool:
    return window.is_shown(f"[name={name}]")


def confirm(window: Browser, **answers: str) -> str:
    """Answer the page that asks; return what the next page says."""
    window.see(".x-ask")
    fill(window, **answers)
    asked = window.run("return location.href")
    window.click(".x-ask button[type=submit]")
    return str(window.until(lambda: window.run(_ANSWER, asked), what="the answer"))


def press(window: Browser, label: str) -> None:
    """Click a button of the page by what is written on it."""
    find = "return [...document.querySelectorAll('.x-bar a')].find((a) => a.innerText === arguments[0])"
    window.press(find, label, what=f"the button {label}")


def state_of_run(site: Site) -> str:
    rows = site.sql("SELECT state FROM cleanup_cleanuprun ORDER BY created_at DESC LIMIT 1")
    return rows[0][0] if rows else ""


def ids_in_trash(site: Site) -> list[str]:
    rows = site.sql("SELECT id FROM cleanup_cleanupitem WHERE state = 'trashed' ORDER BY path")
    return [str(row[0]) for row in rows]


def test_the_form_shows_the_fields_of_the_chosen_rule_and_says_what_it_would_do(
    site: Site, window: Browser, inbox: Path
) -> None:
    window.open("/admin/cleanup/retentionpolicy/add/")
    window.until(lambda: not is_shown(window, "keep"), what="the script")
    assert is_shown(window, "age_by")
    assert not is_shown(window, "model")
    fill(window, area="inbox", rule="keep_newest", keep="3")
    assert is_shown(window, "keep")
    says = "all files in inbox but the newest 3 of each directory"
    window.until(lambda: says in window.text(".x-says p"), what="the sentence")
    fill(window, rule="age", age="soon")
    assert not is_shown(window, "keep")
    window.until(lambda: "is not understood" in window.text("[data-problem]"), what="the problem")
    window.fits()
    assert [line for line in window.complaints() if "400" not in line] == []


def test_a_policy_is_looked_at_before_it_is_saved_then_runs_and_its_files_end_in_four_ways(
    site: Site, window: Browser, inbox: Path
) -> None:
    # Written, and looked at: the page says that nobody is at it, moves with what the bus tells, and ends.
    window.open("/admin/cleanup/retentionpolicy/add/")
    fill(window, name="old", area="inbox", mode="enforce", age="2d", max_files="5", max_percent="100")
    window.click("[name=_preview]")
    window.until(lambda: "/policypreview/" in window.driver.current_url, what="the preview")
    window.hears("body", "Nothing is deleted by this page")
    late = "!document.querySelector('[data-late]').hidden"
    window.until(lambda: window.run(f"return {late}"), what="no worker")
    preview = window.driver.current_url.rstrip("/").split("/")[-2]
    told = {"state": "running", "done": 600, "total": 1000}
    site.manage("bus", "publish", f"cleanup:preview:{preview}", "preview.progress", json.dumps(told))
    window.until(lambda: window.text("[data-part=percent]") == "60 %", what="the progress")
    window.hears("[data-part=amount]", "600 of 1,000 entries")
    site.start_worker()
    site.start_beat()
    goes = "8\u00a0files, 8.0\u00a0kB would go to the trash"
    window.hears(".x-sum", goes)
    window.hears("body", "8 files, where 5 is the limit")
    assert site.sql("SELECT count(*) FROM cleanup_retentionpolicy") == [(0,)]
    look_at_every_size(window)
    window.click(".x-tabs a:nth-child(2)")
    window.hears(".x-table tbody", "not older than 2d")
    for name in YOUNG:
        window.hears(".x-table tbody", name)

    # Saved, run, approved.
    press(window, "Save this version")
    assert "old is saved: version 1, in mode enforce." in confirm(window)
    press(window, "Run now")
    window.hears(".x-ask h2", "8\u00a0files")
    assert "Queued:" in confirm(window)
    until_sql(lambda: state_of_run(site) == "awaiting_approval", what="the plan")
    assert len(files_below(inbox)) == 10, "nothing moves before it is approved"
    window.open("/admin/cleanup/cleanuprun/")
    window.click("#result_list tbody th a, #result_list tbody td a")
    window.goes_to("/change/")
    press(window, "Approve")
    confirm(window, number="8")
    until_sql(lambda: state_of_run(site) == "done", what="the run")
    assert files_below(inbox) == set(YOUNG)

    # Half of it restored, one file held, the rest purged.
    trash = "/admin/cleanup/cleanupitem/do"
    half = ids_in_trash(site)[:4]
    window.open(f"{trash}/restore/?ids={','.join(half)}")
    confirm(window)
    until_sql(lambda: files_below(inbox) == {*YOUNG, *OLD[:4]}, what="the restore")
    window.open("/admin/cleanup/hold/add/")
    fill(window, area="inbox", pattern=OLD[4], reason="asked for by legal")
    window.click("#submit-row [name=_save]")
    window.until(lambda: "/hold/add/" not in window.driver.current_url, what="the hold")
    window.open(f"{trash}/purge_now/?ids={','.join(ids_in_trash(site))}")
    confirm(window, reason="the disk is full")
    until_sql(lambda: len(ids_in_trash(site)) == 1, what="the purge")
    assert site.sql("SELECT path FROM cleanup_cleanupitem WHERE state = 'trashed'") == [(OLD[4],)]
    assert files_below(inbox) == {*YOUNG, *OLD[:4]}
    actors = site.sql("SELECT DISTINCT actor FROM cleanup_auditentry WHERE action IN ('restored', 'purged')")
    assert actors == [("admin",)]


def until_sql(condition: Callable[[], object], *, what: str) -> None:
    """Wait for what a worker does."""
    wait_until(condition, timeout=2 * PATIENCE, interval=0.1, what=what)


def look_at_every_size(window: Browser) -> None:
    """No size of the window makes the page scroll sideways, and nothing in it is refused."""
    try:
        for size in SIZES:
            window.resize(*size)
            window.fits()
    finally:
        window.resize(*SIZES[0])
    assert window.complaints() == []
