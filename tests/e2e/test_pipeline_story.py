"""The whole way of a file: from a server to text, chunks and points, watched, and out again by policies.

A real HTTP server is the source. Its good page goes through the pipeline, its bad one is rejected; a person
sees a card on the dashboard. Then policies with short lives clean every stage, each file asked about:
Valkey for the task, Qdrant for the points. What is in the trash comes back, or goes for good.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.e2e.browser import Browser, site_with_people, window_of
from tests.e2e.dashboard_page import card, open_live
from tests.harness import Site
from tests.servers import free_port, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.sqlite_only, pytest.mark.timeout(600)]

PAGES = {
    "/tides.html": (
        "text/html",
        b"<!doctype html><html><head><title>Tides</title></head><body><p>The tide follows the moon.</p>"
        b"<h2>Winds</h2><p>Wind moves sand.</p></body></html>",
    ),
    "/broken.json": ("application/json", b'{"tides": [1, 2,'),
}
ROLES = ("incoming", "extracted", "distilled", "rejected")
#: Long enough to bring a file back on a busy machine, for those that are to be brought back.
LONG, SHORT = "1d", "1s"


class Pages(BaseHTTPRequestHandler):
    """Serves `PAGES`, each with an ETag."""

    def do_GET(self) -> None:
        content_type, body = PAGES[self.path]
        tag = f'"{len(body)}"'
        known = self.headers.get("If-None-Match") == tag
        self.send_response(304 if known else 200)
        self.send_header("ETag", tag)
        if not known:
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not known:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def source() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", free_port()), Pages)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    pytest.importorskip("qdrant_client")
    index = tmp_path_factory.mktemp("qdrant") / "index"
    with site_with_people(
        DJANGO_SETTINGS_MODULE="tests.e2e.story_settings",
        CLEANUP_SOURCE_NETWORKS="127.0.0.0/8",
        CLEANUP_PIPELINE_AUTO="incoming",
        CLEANUP_QDRANT_URL=f"file://{index}",
    ) as site:
        for role in ROLES[:2]:
            add_area(site, role)
        site.start_worker()
        site.start_beat()
        yield site


@pytest.fixture(scope="module")
def window(site: Site) -> Iterator[Browser]:
    with window_of(site, "root") as window:
        yield window


def add_area(site: Site, role: str) -> None:
    root = site.folder / "staging" / role
    root.mkdir(parents=True)
    site.manage("cleanup", "areas", "add", role, str(root))


def job(site: Site, name: str) -> dict[str, Any] | None:
    """The job of the pipeline with the file of that name."""
    names = ("raw", "state", "message", "task_id", "points")
    query = "SELECT raw, state, message, task_id, points FROM cleanup_pipelinejob WHERE name = %s"
    found = site.sql(query, name)
    return dict(zip(names, found[0], strict=True)) if found else None


def over(site: Site, name: str, state: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        one = job(site, name)
        return one if one is not None and one["state"] == state else None

    return wait_until(found, timeout=180, interval=0.5, what=f"{name} {state}")


def fetch(site: Site, source: str, page: str) -> None:
    """Have the worker ask the server for a page."""
    name = page.partition(".")[0]
    site.manage("cleanup", "sources", "add", name, f"{source}/{page}", "--area", "incoming")
    site.manage("cleanup", "sources", "refresh", name, "--queue")


def files(site: Site, role: str) -> dict[str, bytes]:
    """Whole files of an area, by their path."""
    root = site.folder / "staging" / role
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {
        str(path): (root / path).read_bytes()
        for path in found
        if not path.parts[0].startswith((".trash", ".staging-"))
    }


def living(site: Site, role: str) -> int:
    """Rows of the registry that are alive."""
    ((count,),) = site.sql(
        "SELECT count(*) FROM cleanup_stagedfile f JOIN cleanup_stagingarea a ON a.id = f.area_id "
        "WHERE a.name = %s AND f.deleted_at IS NULL",
        role,
    )
    return int(count)


def status(site: Site, task_id: str) -> str | None:
    with redis.Redis.from_url(site.valkey.url, decode_responses=True) as client:
        return client.get(f"task:{task_id}:status")


def policy(site: Site, role: str, grace: str, *verifiers: str) -> None:
    """A policy that takes what is a second old, if all who are asked agree."""
    asked = [word for verifier in verifiers for word in ("--verifier", verifier)]
    site.manage(
        *("cleanup", "policies", "add", role, "--area", role, "--rule", "age", "--age", SHORT),
        *("--grace", grace, "--mode", "enforce", "--max-percent", "100", *asked),
    )


def trash(site: Site, role: str, count: int) -> dict[str, Any]:
    """Run a policy until it has trashed `count` files, as soon as they are old enough."""

    def ran() -> dict[str, Any] | None:
        run = site.manage_json("cleanup", "run", role, accept=(0, 1))
        return run if run["trashed"] else None

    run: dict[str, Any] = wait_until(ran, timeout=180, interval=0.5, what=f"the end of {role}")
    assert (run["trashed"], run["errors"]) == (count, 0)
    return run


def test_a_page_goes_all_the_way_in_and_out_again_while_somebody_watches(
    site: Site, source: str, window: Browser
) -> None:
    open_live(window)
    good_page(site, source, window)
    bad_page(site, source)
    policies(site)


def good_page(site: Site, source: str, window: Browser) -> None:
    fetch(site, source, "tides.html")
    waiting = wait_until(lambda: job(site, "tides.html"), interval=0.5, timeout=180, what="the job")
    shown = card(f"pipeline-{waiting['raw']}")
    # The area of the next step is not there yet: the card stands where the pipeline waits.
    window.see(shown)
    window.until(lambda: "needs an area" in window.text(shown), what="why it waits", timeout=180)
    assert len(files(site, "extracted")) == 1
    for role in ROLES[2:]:
        add_area(site, role)
    done = over(site, "tides.html", "done")
    ended = f"Task pipeline-{done['raw']} completed"
    window.until(lambda: window.text("[data-part=announce]") == ended, what=ended)
    window.miss(shown)
    assert done["points"] == 2
    assert status(site, done["task_id"]) == "Complete"
    (text,) = files(site, "extracted").values()
    assert text.decode() == "# Tides\n\nThe tide follows the moon.\n\n# Winds\n\nWind moves sand."
    (chunks,) = files(site, "distilled").values()
    assert [json.loads(line)["title"] for line in chunks.splitlines()] == ["Tides", "Winds"]
    assert files(site, "rejected") == {}
    assert PAGES["/tides.html"][1] in files(site, "incoming").values()


def bad_page(site: Site, source: str) -> None:
    """Nothing of a broken file is lost: it is rejected whole, with the reason beside it.

    That takes less than the dashboard needs to look again, so the end is read in the log and not on a card.
    """
    fetch(site, source, "broken.json")
    refused = over(site, "broken.json", "refused")
    assert "no JSON" in refused["message"]
    topic = f"task:pipeline-{refused['raw']}"
    assert site.sql("SELECT end_status FROM bus_topic WHERE name = %s", topic) == [("failed",)]
    assert status(site, refused["task_id"]) == "Failed"
    found = files(site, "rejected")
    assert PAGES["/broken.json"][1] in found.values()
    reason = next(json.loads(data) for data in found.values() if b'"reason"' in data)
    assert (reason["file"], len(found)) == ("broken.json", 2)
    assert len(files(site, "incoming")) == 2
    assert len(files(site, "extracted")) == len(files(site, "distilled")) == 1


def policies(site: Site) -> None:
    """Every stage is cleaned, each file asked about; what was taken comes back, or goes for good."""
    policy(site, "incoming", SHORT, "redis_task")
    policy(site, "extracted", SHORT, "redis_task")
    policy(site, "distilled", LONG, "redis_task", "qdrant_points:collection=distilled,exactly=2")
    policy(site, "rejected", SHORT)
    (chunks,) = files(site, "distilled").items()

    # The task of the bad page has failed, so its raw file stays where it is.
    trash(site, "incoming", 1)
    assert list(files(site, "incoming").values()) == [PAGES["/broken.json"][1]]
    trash(site, "extracted", 1)
    trash(site, "distilled", 1)
    trash(site, "rejected", 2)
    assert [living(site, role) for role in ROLES] == [1, 0, 0, 0]
    assert {role for role in ROLES[1:] if files(site, role)} == set()

    restored = site.manage_json("cleanup", "restore", "--area", "distilled")
    assert restored == {"restored": 1, "conflicts": []}
    assert files(site, "distilled") == dict([chunks])
    assert living(site, "distilled") == 1

    wait_until(lambda: is_purged(site), timeout=180, interval=0.5, what="the purge of what was not restored")
    assert [path for role in ROLES for path in in_trash(site.folder / "staging" / role)] == []
    assert site.manage_json("cleanup", "audit", "verify")["sound"]


def is_purged(site: Site) -> bool:
    """Whether all that went into the trash, and did not come back, is gone for good: by the worker."""
    rows = site.sql("SELECT state FROM cleanup_cleanupitem WHERE state <> 'restored'")
    return len(rows) == 4 and all(state == "purged" for (state,) in rows)


def in_trash(root: Path) -> list[Path]:
    return [path for path in (root / ".trash").rglob("*") if path.is_file() and path.name != ".ballast"]
