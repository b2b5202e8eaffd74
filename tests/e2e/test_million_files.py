"""A whole life of many small files through the Celery worker: preview, run, restore, purge.

20,000 files as a rule; a million with `TEST_DEEP=1`, on a memory file system if there is one with room:

    TEST_DEEP=1 .venv/bin/python -m pytest tests/e2e/test_million_files.py -s -p no:randomly

Then it also says what each step took and how much memory the worker had.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from cleanup.bench.trees import make
from tests.harness import Site
from tests.retention import files_below
from tests.servers import wait_until

DEEP = bool(os.environ.get("TEST_DEEP"))
FILES = 1_000_000 if DEEP else 20_000
#: Each directory holds a thousand files.
RESTORED, PATTERN = (10_000, "d0000?/*") if DEEP else (1_000, "d00000/*")
#: What a step may take at most, on a machine that is busy with other things.
PATIENCE = 1_800.0 if DEEP else 120.0
#: What the worker may have more than when it was idle (MB), however many files there are.
MEMORY = 150.0

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3_600 if DEEP else 300)]
if not DEEP:
    pytestmark.append(pytest.mark.sqlite_only)


#: One process instead of two commands: starting Django is what a step of the short form takes.
SETUP = """
from cleanup import operations
from cleanup.operations import Actor
me = Actor.system("test")
area = operations.add_area("many", {root!r}, me)
operations.add_policy("many", area, me, age="2d", mode="enforce", max_files=2_000_000, max_percent=100)
"""


class Timing:
    """How long each step took, and what the worker has at most (MB)."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.lines: list[str] = []
        self.before = self.peak()

    def pool(self) -> list[psutil.Process]:
        return psutil.Process(self.site.worker.pid).children()

    def peak(self) -> float:
        return max(_peak(process.pid) for process in self.pool())

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        found = work()
        seconds = time.monotonic() - began
        self.lines.append(f"{name:28} {seconds:8.1f} s   worker at most {self.peak():6.0f} MB")
        return found


def _peak(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise KeyError(pid)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(web=0)
    site.start()
    site.start_worker()
    yield site
    site.stop()


@pytest.fixture
def root(site: Site) -> Iterator[Path]:
    shared = Path("/dev/shm")
    has_room = DEEP and shared.is_dir() and os.statvfs(shared).f_favail > 2 * FILES
    folder = Path(tempfile.mkdtemp(prefix="million-", dir=shared if has_room else site.folder))
    make(folder / "area", FILES)
    yield folder / "area"
    shutil.rmtree(folder)


def newest_run(site: Site, *fields: str) -> tuple[Any, ...]:
    columns = ", ".join(fields)
    return site.sql(f"SELECT {columns} FROM cleanup_cleanuprun ORDER BY created_at DESC LIMIT 1")[0]  # noqa: S608


def finished(site: Site, state: str) -> None:
    """Wait for the newest run to end, and say how if not as it should."""

    def is_over() -> bool:
        found, message = newest_run(site, "state", "message")
        assert found in ("queued", "planning", "approved", "running", state), (found, message)
        return bool(found == state)

    wait_until(is_over, timeout=PATIENCE, interval=0.1, what=f"the run to be {state}")


def queued(site: Site, state: str, *options: str) -> None:
    site.manage("cleanup", "run", "many", "--queue", *options)
    finished(site, state)


def in_state(site: Site, state: str) -> int:
    return int(site.sql("SELECT COUNT(*) FROM cleanup_cleanupitem WHERE state = %s", state)[0][0])


def restore(site: Site) -> None:
    """Have the worker bring back what matches."""
    words = ("cleanup", "restore", "--area", "many", "--path", PATTERN, "--queue")
    assert site.manage_json(*words, timeout=PATIENCE) == {"queued": RESTORED}
    wait_until(
        lambda: in_state(site, "restored") == RESTORED,
        timeout=PATIENCE,
        interval=0.2,
        what="everything to be back",
    )


def purge(site: Site, count: int) -> None:
    """Let the grace of everything be over, and the worker purge it."""
    site.sql("UPDATE cleanup_cleanupitem SET purge_after = trashed_at WHERE state = %s", "trashed")
    site.python("from cleanup.operations.runs import send; send('cleanup.tasks.purge')")
    wait_until(
        lambda: in_state(site, "purged") == count,
        timeout=PATIENCE,
        interval=0.2,
        what="everything to be purged",
    )


def told(site: Site) -> list[tuple[str, dict[str, Any]]]:
    """What the newest run told on its topic, in order: the kind of each event and its data."""
    (run,) = newest_run(site, "id")
    rows = site.sql(
        "SELECT e.event_type, e.payload FROM bus_event e JOIN bus_topic t ON t.id = e.topic_id"
        ' WHERE t.name = %s ORDER BY e."offset"',
        f"cleanup:run:{UUID(str(run))}",
    )
    return [(kind, json.loads(payload)["data"]) for kind, payload in rows]


def test_many_files_live_through_preview_run_restore_and_purge_in_the_worker(site: Site, root: Path) -> None:
    timing = Timing(site)
    site.python(SETUP.format(root=str(root)))

    timing.step("preview", lambda: queued(site, "reported", "--dry-run"))
    assert newest_run(site, "planned_files", "trashed") == (FILES, 0)

    timing.step("run", lambda: queued(site, "done"))
    assert newest_run(site, "trashed", "skipped", "errors", "residue") == (FILES, 0, 0, 0)
    assert files_below(root) == set()
    assert_told(told(site))

    timing.step(f"restore of {RESTORED}", lambda: restore(site))
    assert len(files_below(root)) == RESTORED

    timing.step("purge", lambda: purge(site, FILES - RESTORED))
    assert in_state(site, "restored") == RESTORED
    assert len(files_below(root)) == RESTORED
    assert not list((root / ".trash").glob("2*/*"))

    verified = timing.step(
        "audit verify", lambda: site.manage_json("cleanup", "audit", "verify", timeout=PATIENCE)
    )
    assert verified["sound"]
    if DEEP:
        sys.stderr.write("\n" + "\n".join([f"{FILES:,} files on {root}", *timing.lines]) + "\n")
    assert timing.peak() - timing.before < MEMORY


def assert_told(events: list[tuple[str, dict[str, Any]]]) -> None:
    """Progress was told while there was some, there was one last word, and with it the topic ended."""
    kinds = [kind for kind, _ in events]
    assert kinds.count("run.finished") == 1
    assert kinds[-2:] == ["run.finished", "task.completed"]
    data = [one for _, one in events]
    assert {"planning", "running", "done"} <= {one["state"] for one in data}
    assert data[-1]["done"] == data[-1]["total"] == FILES
