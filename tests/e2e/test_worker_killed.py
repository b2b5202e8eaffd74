"""The worker is killed in the middle of a run: no file is lost or stuck, the run ends by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.trees import fingerprints
from tests.harness import Site
from tests.servers import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

FILES, MOVED = 5_000, 2_700


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(web=0)
    site.start()
    yield site
    site.stop()


def test_a_killed_worker_loses_no_file_and_the_run_ends_by_itself(site: Site) -> None:
    root = site.folder / "staging"
    for number in range(FILES):
        file = root / f"{number % 50}" / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{number}" * 10)
        os.utime(file, (1_000_000_000 + number, 1_000_000_000 + number))
    site.manage("cleanup", "areas", "add", "many", str(root))
    site.manage(
        *("cleanup", "policies", "add", "many", "--area", "many", "--rule", "age", "--age", "1d"),
        *("--mode", "enforce", "--max-percent", "100"),
    )
    before = fingerprints(root)
    assert len(before) == FILES

    environment = site.worker.environment
    # It stands still in the middle of a batch, however fast it is.
    site.worker.environment = {**environment, "FAULT": f"trash.after_rename:{MOVED}:stop"}
    site.start_worker()
    site.start_beat()
    run = site.manage_json("cleanup", "run", "many", "--queue")["run"]
    wait_until(lambda: count(root) == FILES - MOVED, timeout=120, what="the files that are moved first")
    site.worker.kill()
    assert count(root) == FILES - MOVED
    site.worker.environment = environment
    site.start_worker()

    def state() -> str:
        ((found,),) = site.sql("SELECT state FROM cleanup_cleanuprun WHERE id = %s", run_id(site, run))
        return str(found)

    wait_until(lambda: state() == "done", timeout=240, interval=0.5, what="the end of the run")
    assert count(root) == 0
    counts = dict(site.sql("SELECT state, count(*) FROM cleanup_cleanupitem GROUP BY state"))
    assert counts == {"trashed": FILES}
    restored = site.manage_json("cleanup", "restore", "--area", "many")
    assert restored == {"restored": FILES, "conflicts": []}
    assert fingerprints(root) == before
    assert site.manage_json("cleanup", "audit", "verify")["sound"]


def count(root: Path) -> int:
    """Files below the root by name alone, for they may go while we look."""
    return sum(len(list(root.glob(f"{number}/*.txt"))) for number in range(50))


def run_id(site: Site, run: str) -> str:
    """The id as the database keeps it: SQLite has no type for it and stores the digits alone."""
    return run if site.database_url.startswith("postgres") else run.replace("-", "")
