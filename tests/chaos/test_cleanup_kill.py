"""SIGKILL at random steps of runs, purges and restores of thousands of files, by real processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.trees import fingerprints, regular_files
from tests.harness import ROOT, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

FILES = 5_000
KILLS = 5


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(web=0)
    site.start()
    yield site
    site.stop()


def killed(site: Site, step: int, *words: str) -> bool:
    """Run a command that dies at its `step`th step; whether it got that far."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "cleanup", *words, "--json"],
        cwd=ROOT,
        env={**site.environment, "FAULT": f"*:{step}:kill"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if done.returncode == -signal.SIGKILL:
        return True
    assert done.returncode in (0, 1), f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return False


def states(site: Site) -> dict[str, int]:
    """How many rows are in each state."""
    return dict(site.sql("SELECT state, count(*) FROM cleanup_cleanupitem GROUP BY state"))


def in_trash(root: Path) -> int:
    return sum(path.parent.name == "data" for path in (root / ".trash").rglob("*"))


def test_kills_at_random_steps_lose_no_file_and_leave_none_stuck(site: Site) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    dice = random.Random(seed)
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

    # Two crash points a file, and a few a batch.
    assert killed(site, dice.randrange(5, FILES), "run", "many")
    run = json.loads(site.manage("cleanup", "report", "--json"))["runs"][0]["run"]
    for _ in range(KILLS - 1):
        assert len(regular_files(root)) + in_trash(root) == FILES
        killed(site, dice.randrange(5, FILES // 2), "run", "--resume", run)
    done = site.manage_json("cleanup", "run", "--resume", run)
    assert (done["state"], done["trashed"], done["skipped"], done["errors"], done["residue"]) == (
        "done", FILES, 0, 0, 0,
    )  # fmt: skip
    assert states(site) == {"trashed": FILES}

    ones = sum(path.rpartition(b"/")[2].startswith(b"1") for path in before)
    assert killed(site, dice.randrange(5, ones), "restore", "--area", "many", "--path", "1*.txt")
    site.manage("cleanup", "tick", "--json")
    restored = states(site)["restored"]
    assert 0 < restored <= ones
    assert states(site) == {"trashed": FILES - restored, "restored": restored}
    assert (len(regular_files(root)), in_trash(root)) == (restored, FILES - restored)

    purge = ("purge", "--area", "many", "--now", "--reason", "test", "--path", "2*.txt")
    assert killed(site, dice.randrange(5, 1_000), *purge)
    site.manage("cleanup", "tick", "--json")
    found = states(site)
    assert set(found) == {"trashed", "restored", "purged"}
    assert (len(regular_files(root)), in_trash(root)) == (restored, found["trashed"])
    assert site.manage_json("cleanup", "audit", "verify")["sound"]
    for path, after in fingerprints(root).items():
        assert after == before[path]
