"""The box for uploads in a real browser: files are sent by session, and gone on with after a cut."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.e2e.browser import Browser, site_with_people, window_of
from tests.e2e.test_browser_modules import run
from tests.harness import Site
from tests.servers import PATIENCE, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.sqlite_only, pytest.mark.timeout(600)]

#: Bytes that the server takes at once.
PART = 8 * 1024 * 1024
#: Three parts and a bit: after the first is acknowledged, most of it is still to come.
SIZE = 3 * PART + 12_345
#: Bytes a second while the server is about to be killed: the rest would take half a minute.
SLOW = 600_000

_AREA = """
from pathlib import Path
from cleanup import operations
folder = Path({folder!r}) / "incoming"
folder.mkdir()
operations.add_area("incoming", folder, operations.Actor(name="anna", kind="user"))
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with site_with_people() as site:
        site.python(_AREA.format(folder=str(site.folder)))
        yield site


@pytest.fixture
def window(site: Site) -> Iterator[Browser]:
    with window_of(site, "operator") as window:
        window.open("/admin/cleanup/upload/")
        yield window


def choose(window: Browser, *files: Path) -> None:
    """Pick files, as by the dialogue of the browser."""
    window.see("#u-choose")
    window.driver.find_element("css selector", "#u-choose").send_keys("\n".join(map(str, files)))


def throttle(window: Browser, bytes_a_second: int) -> None:
    """Let the page send so fast and no faster; -1 = as it can."""
    window.driver.execute_cdp_cmd("Network.enable", {})
    given = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_a_second}
    window.driver.execute_cdp_cmd("Network.emulateNetworkConditions", given)


def offset(site: Site, file: Path) -> int:
    """Bytes of the upload of a file that are acknowledged."""
    found = site.sql('SELECT "offset" FROM cleanup_upload WHERE name = %s', file.name)
    return int(found[0][0]) if found else 0


def states(window: Browser) -> list[str]:
    return list(
        window.run("return [...document.querySelectorAll('.u-file')].map((one) => one.dataset.state)")
    )


def noise(path: Path, size: int) -> Path:
    """A text file of its own, in lines."""
    line = f"{path.name} 0123456789abcdef\n".encode()
    path.write_bytes((line * (size // len(line) + 1))[:size])
    return path


def test_an_upload_survives_the_death_of_the_server_and_the_file_is_there_whole(
    site: Site, window: Browser, tmp_path: Path
):
    file = noise(tmp_path / "long.txt", SIZE)
    throttle(window, SLOW)
    choose(window, file)
    wait_until(lambda: offset(site, file) >= PART, timeout=2 * PATIENCE, what="the first part")
    site.web[0].kill()
    window.until(lambda: states(window) == ["trying"], what="the page to notice", timeout=2 * PATIENCE)
    window.hears(".u-reason", "The server does not answer")
    kept = offset(site, file)
    assert PART <= kept < SIZE
    throttle(window, -1)
    site.web[0].restart()
    window.until(lambda: states(window) == ["done"], what="the whole file", timeout=4 * PATIENCE)
    assert offset(site, file) == SIZE
    name, digest, size = site.sql(
        "SELECT name, sha256, size FROM cleanup_stagedfile WHERE name = %s", file.name
    )[0]
    assert (name, digest, size) == (file.name, sha256(file.read_bytes()).hexdigest(), SIZE)
    window.open("/admin/cleanup/stagedfile/")
    window.hears("#result_list", "long.txt")


def test_a_file_chosen_again_on_a_new_page_goes_on_where_it_stopped(
    site: Site, window: Browser, tmp_path: Path
):
    file = noise(tmp_path / "again.txt", SIZE)
    throttle(window, SLOW)
    choose(window, file)
    wait_until(lambda: offset(site, file) >= PART, timeout=2 * PATIENCE, what="the first part")
    window.open("/admin/cleanup/upload/")
    uploads = site.sql("SELECT count(*) FROM cleanup_upload")
    throttle(window, -1)
    choose(window, file)
    window.until(lambda: states(window) == ["done"], what="the whole file", timeout=4 * PATIENCE)
    assert site.sql("SELECT count(*) FROM cleanup_upload") == uploads, "no second upload was begun"


def test_several_files_are_sent_and_one_that_is_refused_says_why(site: Site, window: Browser, tmp_path: Path):
    files = [noise(tmp_path / f"note-{number}.txt", 1_000 + number) for number in range(4)]
    lie = tmp_path / "picture.png"
    lie.write_bytes(b"no picture at all")
    choose(window, *files, lie)
    window.until(lambda: states(window) == ["done"] * 4 + ["refused"], what="all of them")
    window.hears(".u-file:last-child .u-reason", "A .png file begins with")
    window.click(".u-file:first-child [data-part=page]")
    window.hears("#x-became", "What became of it")
    window.hears("body", "It is in the registry")
    assert [said for said in window.complaints() if "/files/" not in said] == []


def test_an_upload_is_paused_and_given_up_by_the_keyboard(site: Site, window: Browser, tmp_path: Path):
    from selenium.webdriver.common.keys import Keys

    file = noise(tmp_path / "never.txt", SIZE)
    throttle(window, SLOW)
    choose(window, file)
    window.until(lambda: window.is_shown("[data-part=page]"), what="the server to have taken it up")
    window.driver.find_element("css selector", "[data-part=pause]").send_keys(Keys.ENTER)
    window.until(lambda: states(window) == ["paused"], what="the pause")
    assert window.run("return document.activeElement.className") == "u-file"
    window.driver.find_element("css selector", "[data-part=end]").send_keys(Keys.ENTER)
    window.until(lambda: states(window) == ["ended"], what="the end")
    state = "SELECT state FROM cleanup_upload WHERE name = %s"
    wait_until(lambda: site.sql(state, file.name) == [("terminated",)], timeout=2 * PATIENCE, what="the row")
    throttle(window, -1)


def test_the_deciding_parts_of_the_box():
    run("uploads.test.mjs")
