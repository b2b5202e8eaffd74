"""In a real browser: an `EventSource` on a stream, and the page that documents the HTTP API."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.browser import SIZES, Browser, site_with_people, window_of
from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.sqlite_only, pytest.mark.timeout(400)]

_LISTEN = """
window.told = [];
window.source = new EventSource(arguments[0]);
for (const name of ["output", "task.completed", "disconnect"])
  source.addEventListener(name, (e) => told.push([name, e.lastEventId.split(":")[1], JSON.parse(e.data)]));
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with site_with_people() as site:
        yield site


@pytest.fixture(scope="module")
def window(site: Site) -> Iterator[Browser]:
    with window_of(site, "viewer") as window:
        yield window


def test_a_browser_reads_a_stream_comes_again_and_stays_away_in_the_end(site: Site, window: Browser) -> None:
    headers = {"X-API-Key": site.api_key("publish:task")}

    def call(command: str, **body: object) -> None:
        answer = httpx.post(f"{site.web[0].url}/api/{command}", json=body, headers=headers, timeout=60)
        assert "result" in answer.json(), answer.text

    def told(count: int) -> list[list[object]]:
        ready = f"return window.told.length >= {count} && JSON.stringify(window.told)"
        what = f"{count} events"
        return list(json.loads(window.until(lambda: window.run(ready), what=what)))

    def step(number: int) -> None:
        call("publish", channel="task:browser", data={"event_type": "output", "n": number})

    step(1)
    window.run(_LISTEN, "/events/task:browser?since=0")
    step(2)
    assert [offset for _, offset, _ in told(2)] == ["1", "2"]
    site.web[0].terminate()
    site.web[0].restart()
    step(3)
    call("rpc", method="bus.end", params={"topic": "task:browser"})
    names = [(name, offset) for name, offset, _ in told(6) if name != "disconnect"]
    assert names == [("output", "1"), ("output", "2"), ("output", "3"), ("task.completed", "4")]
    closed = "return window.source.readyState === EventSource.CLOSED"
    window.until(lambda: window.run(closed), what="the browser to stay away")


@pytest.mark.parametrize(("size", "scheme"), list(zip(SIZES, ("light", "dark", "dark"), strict=True)))
def test_the_page_of_the_api_works_under_the_policy(
    window: Browser, size: tuple[int, int], scheme: str
) -> None:
    window.prefer(color_scheme=scheme)
    window.resize(*size)
    window.rest()
    window.open("/api/docs")
    window.click("#operations-topics-publish .opblock-summary-control")
    window.hears("#operations-topics-publish", "task.progress")
    window.until(lambda: window.count(".opblock") >= 20, what="all operations")
    window.fits()
    assert window.complaints() == []
    background = window.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
