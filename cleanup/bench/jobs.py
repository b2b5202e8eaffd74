"""What a child does with the engine alone: find and judge, expire pairs, fill a trash, empty it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from cleanup.engine.area import AreaHandle, marker_uuid, open_area, register_area
from cleanup.engine.daemon import ResultCleanupDaemon
from cleanup.engine.items import PlanItem
from cleanup.engine.packing import Counting, Tally
from cleanup.engine.plan import build_plan
from cleanup.engine.policy import Policy
from cleanup.engine.scan import Skips, walk
from cleanup.engine.sieve import sieve_for
from cleanup.engine.trash import Header, move, prepare, purge_batch, trash_ids

POLICY = Policy(name="bench", rule="age", age=timedelta(days=2))

#: Items of one batch, as `CLEANUP["BATCH_SIZE"]` has it.
BATCH = 2_000


class Measured:
    """The time and the most memory of what is done in a ``with`` statement."""

    seconds = 0.0
    #: Of processor time.
    cpu = 0.0
    #: Above what the process had before (MB).
    memory = 0.0

    def said(self, count: int) -> dict[str, Any]:
        """Return it for the parent."""
        return {"seconds": self.seconds, "cpu": self.cpu, "memory": self.memory, "count": count}


@contextmanager
def measured() -> Iterator[Measured]:
    """Measure what is done inside."""
    found = Measured()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, began, cpu = _status("VmRSS"), time.perf_counter(), time.process_time()
    yield found
    found.seconds, found.cpu = time.perf_counter() - began, time.process_time() - cpu
    found.memory = (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """A line of this process's status (kB)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise KeyError(name)


@contextmanager
def _area(root: str) -> Iterator[AreaHandle]:
    uuid = marker_uuid(root) or str(uuid4())
    register_area(root, uuid)
    with open_area(root, uuid=uuid) as area:
        yield area


def _count(items: Iterable[PlanItem]) -> Tally:
    """Count and pack items as a store does, and let them go."""
    counting = Counting()
    batch: list[PlanItem] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            counting.add(batch)
            batch = []
    counting.add(batch)
    return counting.tally()


def scan(root: str) -> dict[str, Any]:
    """Walk a tree and judge every file by its age."""
    with _area(root) as area, measured() as found:
        now = datetime.now(UTC)
        sieve = sieve_for(POLICY, now=now)
        candidates = walk(area, policy=POLICY, on_skip=Skips(), sieve=sieve)
        plan = build_plan(POLICY, candidates, now=now, area_uuid=area.uuid, store=_count, sieve=sieve)
    return {**found.said(plan.scanned), "planned": plan.files}


def fill(root: str, ids: str) -> dict[str, Any]:
    """Move everything that is old into the trash; write the trash ids to a file."""
    now = datetime.now(UTC)
    header = Header(policy="bench", policy_version="1", run="", trashed_at=now, purge_after=now)
    moved = []
    with _area(root) as area, measured() as found, area.lock():
        candidates = walk(area, policy=POLICY, on_skip=Skips())
        plan = build_plan(POLICY, candidates, now=now, area_uuid=area.uuid)
        for start in range(0, len(plan.items), BATCH):
            items = plan.items[start : start + BATCH]
            names = trash_ids(uuid4(), len(items), day=now.date())
            done = move(area, prepare(area, items, ids=names, header=header))
            moved += [one.trash_id for one in done if one.outcome == "trashed"]
    Path(ids).write_text("\n".join(moved))
    return {**found.said(len(moved)), "uuid": area.uuid}


def empty(root: str, uuid: str, ids: str) -> dict[str, Any]:
    """Purge items from the trash."""
    names = Path(ids).read_text().split()
    with open_area(root, uuid=uuid) as area, measured() as found, area.lock():
        purged = 0
        for start in range(0, len(names), BATCH):
            done = purge_batch(area, names[start : start + BATCH])
            purged += sum(one.outcome == "purged" for one in done)
    return found.said(purged)


def rename(root: str) -> dict[str, Any]:
    """Move every file into one directory by a bare rename: what any trash costs at least."""
    moved, target = 0, Path(root, "moved")
    target.mkdir()
    below = [entry for entry in os.listdir(root) if entry != "moved"]
    to_fd = os.open(target, os.O_RDONLY)
    with measured() as found:
        for entry in below:
            from_fd = os.open(os.path.join(root, entry), os.O_RDONLY)
            for name in os.listdir(from_fd):
                os.rename(name, name, src_dir_fd=from_fd, dst_dir_fd=to_fd)
                moved += 1
            os.close(from_fd)
    os.close(to_fd)
    return found.said(moved)


def expire(root: str) -> dict[str, Any]:
    """Remove what has expired, as `ResultCleanupDaemon` does on its rounds."""
    daemon = ResultCleanupDaemon(cache_dir=root, metrics_url=None)
    with measured() as found:
        stats = asyncio.run(daemon._cleanup_expired())
    return found.said(stats["deleted_count"])


def expire_plainly(root: str) -> dict[str, Any]:
    """Remove what has expired in the plain way: list, read the metadata, unlink both."""
    deleted, now = 0, datetime.now(UTC)
    with measured() as found:
        for metadata in Path(root).glob("*.metadata.json"):
            expires_at = datetime.fromisoformat(json.loads(metadata.read_text())["expires_at"])
            if now > expires_at:
                result = metadata.with_name(metadata.name.replace(".metadata.json", ".result.json.lz4"))
                result.unlink(missing_ok=True)
                metadata.unlink()
                deleted += 1
    return found.said(deleted)


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "scan": scan,
    "fill": fill,
    "empty": empty,
    "rename": rename,
    "expire": expire,
    "expire plainly": expire_plainly,
}
