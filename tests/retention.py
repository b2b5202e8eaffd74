"""A staging area with files of chosen ages, and the verbs on it, for the tests of cleanup."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

from django.db import connection

from cleanup import operations
from cleanup.models import CleanupItem, CleanupRun, RetentionPolicy, StagingArea, UsageSample
from cleanup.operations import Actor

DAY = timedelta(days=1)

ANNA = Actor(name="anna")
BEN = Actor(name="ben")


def write(path: Path, text: str = "content", *, age: timedelta = 5 * DAY) -> Path:
    """Write a file that was last changed `age` ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    moment = time.time() - age.total_seconds()
    os.utime(path, (moment, moment))
    return path


def files_below(root: Path) -> set[str]:
    """Every file of an area but the engine's own."""
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {str(path) for path in found if not path.parts[0].startswith((".trash", ".staging-area"))}


def fill_up(area: StagingArea, *, rate: int = 1_000_000, total: int = 10**12, minutes: int = 60) -> None:
    """Samples of the last hour or so, in which the disk was filled by `rate` bytes a minute from half on."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    UsageSample.objects.bulk_create(
        UsageSample(
            area=area, at=now - timedelta(minutes=minutes - number), used_bytes=total // 2 + rate * number,
            total_bytes=total,
        )
        for number in range(minutes)
    )  # fmt: skip


class Staging:
    """One registered area under `root`, with as many policies as a test wants."""

    def __init__(self, root: Path, name: str = "area", **options: Any) -> None:
        self.root = root / name
        self.root.mkdir()
        self.area: StagingArea = operations.add_area(name, self.root, ANNA, **options)

    def fill(self, count: int, *, age: timedelta = 5 * DAY, text: str = "content") -> set[str]:
        """Make `count` files in a few directories; return their names."""
        names = {f"d{number % 5}/f{number}" for number in range(count)}
        for name in names:
            write(self.root / name, text, age=age)
        return names

    def policy(self, name: str = "policy", **fields: Any) -> RetentionPolicy:
        """A policy that acts, without the brake that any small area is above."""
        given = {"age": "2d", "mode": "enforce", "max_percent": 100, **fields}
        return operations.add_policy(name, self.area, ANNA, **given)

    def run(self, policy: RetentionPolicy) -> CleanupRun:
        """Start a run and carry it out."""
        return operations.execute(operations.start_run(policy, ANNA).pk)

    def files(self) -> set[str]:
        """What is in the area."""
        return files_below(self.root)

    def in_trash(self) -> int:
        """How many files lie in the trash, on disk."""
        return sum(path.parent.name == "data" for path in (self.root / ".trash").rglob("*"))

    def states(self) -> dict[str, int]:
        """How many rows are in each state."""
        found: dict[str, int] = {}
        for state in CleanupItem.objects.filter(area=self.area).values_list("state", flat=True):
            found[state] = found.get(state, 0) + 1
        return found

    def items(self, state: str = "trashed") -> list[Any]:
        """The ids of the rows in a state."""
        return list(CleanupItem.objects.filter(area=self.area, state=state).values_list("pk", flat=True))


def later(days: float) -> datetime:
    """So many days from now."""
    return datetime.now(UTC) + timedelta(days=days)


def in_threads(count: int, work: Any) -> None:
    """Call `work(number)` in so many threads at once, each with its own connection."""
    start = Barrier(count)

    def body(number: int) -> None:
        start.wait()
        try:
            work(number)
        finally:
            connection.close()

    threads = [Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
