"""P23: a policy that suddenly finds far too much stops before its first file, until a person has looked.

Beat ticks, the worker plans, and every plan waits. One is then approved by the number of its files; what
nobody has approved stays as it was.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.chaos.runaways import FOUND, POLICIES
from tests.e2e.trees import fingerprints
from tests.harness import ROOT, Site
from tests.servers import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600), pytest.mark.sqlite_only]


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(web=0, DJANGO_SETTINGS_MODULE="tests.chaos.brisk_settings")
    site.start()
    yield site
    site.stop()


def states(site: Site) -> dict[str, str]:
    """The state of the newest run of each policy, but for its history."""
    return dict(
        site.sql(
            "SELECT a.name, r.state FROM cleanup_cleanuprun r JOIN cleanup_stagingarea a ON a.id = r.area_id "
            "WHERE r.plan_digest <> '' OR r.state IN ('queued', 'planning')"
        )
    )


def run_of(site: Site, name: str) -> str:
    ((found,),) = site.sql(
        "SELECT r.id FROM cleanup_cleanuprun r JOIN cleanup_stagingarea a ON a.id = r.area_id "
        "WHERE a.name = %s AND r.state = 'awaiting_approval'",
        name,
    )
    return str(found)


def count(site: Site, query: str) -> int:
    ((found,),) = site.sql(f"SELECT count(*) FROM {query}")  # noqa: S608 - of this file
    return int(found)


def test_p23_a_runaway_policy_deletes_nothing_before_a_person_approves(site: Site) -> None:
    root = site.folder / "areas"
    subprocess.run(
        [sys.executable, "-m", "tests.chaos.runaways", str(root)], cwd=ROOT, env=site.environment, check=True
    )
    before = fingerprints(root)
    site.start_worker()
    site.start_beat()

    def all_wait() -> bool:
        return states(site) == dict.fromkeys(POLICIES, "awaiting_approval")

    wait_until(all_wait, timeout=180, interval=0.2, what="a plan of every policy that waits")
    # What the worker does on its own it does now: beat goes on ticking.
    ticks = site.worker.log.read_text().count("Task cleanup.tasks.tick")
    wait_until(
        lambda: site.worker.log.read_text().count("Task cleanup.tasks.tick") > ticks + 3, timeout=120,
        interval=0.2, what="more ticks",
    )  # fmt: skip
    assert all_wait()
    assert fingerprints(root) == before
    assert count(site, "cleanup_cleanupitem") == 0
    assert count(site, "cleanup_auditentry WHERE action IN ('intent', 'trashed', 'purged')") == 0

    site.manage("cleanup", "approve", run_of(site, "ten-times"), "--files", str(FOUND))
    wait_until(
        lambda: states(site)["ten-times"] == "done", timeout=120, interval=0.2, what="the end of a run"
    )
    site.beat.kill()
    after = fingerprints(root)
    gone = {path for path in before if path not in after and b".trash" not in path}
    assert {path.split(b"/")[0] for path in gone} == {b"ten-times"}
    assert len(gone) == FOUND == count(site, "cleanup_cleanupitem WHERE state = 'trashed'")
    assert list(states(site).values()).count("awaiting_approval") == len(POLICIES) - 1
