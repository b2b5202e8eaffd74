"""What a child does with a database: runs with rows and a chained audit, purges, orphans.

Django is started on the database that the environment names; its tables are made first and that is not
measured. The bus tells its news to this process alone: what other servers make of hints is not measured here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import django
from django.conf import settings

from cleanup.bench.jobs import measured
from cleanup.bench.trees import directory_of, name_of


def job(name: str) -> Callable[..., dict[str, Any]]:
    """Start Django on an empty database and return the job of this name."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "xnai_site.settings")
    django.setup()
    settings.CHANNEL_LAYERS["default"] = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    jobs: dict[str, Callable[..., dict[str, Any]]] = {"run": run_and_purge, "orphans": orphans}
    return jobs[name]


def run_and_purge(root: str) -> dict[str, Any]:
    """Plan a tree, trash what is old, count the residue, purge it: each step on the clock."""
    from cleanup import operations

    actor = operations.Actor.system("bench")
    area = operations.add_area("bench", root, actor)
    # Above no brake: who waits for approval is not measured.
    limits: dict[str, Any] = {"max_files": 10**9, "max_bytes": 10**18, "max_percent": 100}
    policy = operations.add_policy("bench", area, actor, age="2d", mode="enforce", **limits)
    run = operations.start_run(policy, actor)
    with measured() as found:
        marks = _Marks()
        done = operations.execute(run.pk, on_progress=marks)
        steps = marks.steps()
    if done.state != "done":
        raise RuntimeError(f"the run ended as {done.state}: {done.message}")
    with measured() as purging:
        purged = operations.purge_due(now=datetime.now(UTC) + timedelta(days=365))
    return {
        **found.said(done.trashed), **steps, "purged": purged.purged,
        "purge": (purging.seconds, purging.cpu), "purge_memory": purging.memory,
    }  # fmt: skip


class _Marks:
    """Notes when a run went from one step to the next."""

    def __init__(self) -> None:
        self.began = self.planned = self.moved = _clocks()
        self._is_counting, self._done = False, 0

    def __call__(self, progress: Any) -> None:
        now = _clocks()
        if progress.state in ("queued", "planning", "approved"):
            self.planned = self.moved = now
        elif progress.state == "running":
            # Batch by batch more is done; counting what is left over begins anew.
            self._is_counting = self._is_counting or progress.done <= self._done
            self._done = progress.done
            self.moved = self.moved if self._is_counting else now

    def steps(self) -> dict[str, tuple[float, float]]:
        """The seconds of each step, and those of processor time."""
        marks = {"plan": self.planned, "move": self.moved, "residue": _clocks()}
        before, steps = self.began, {}
        for name, mark in marks.items():
            steps[name] = (mark[0] - before[0], mark[1] - before[1])
            before = mark
        return steps


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def orphans(root: str, files: int) -> dict[str, Any]:
    """Compare a tree with as many rows; one file in a hundred has no row, and one row no file."""
    from cleanup import operations
    from cleanup.operations.areas import opened
    from cleanup.operations.orphans import look

    area = operations.add_area("bench", root, operations.Actor.system("bench"))
    _register(area.pk, files)
    with opened(area) as handle, measured() as found:
        seen = look(handle, area.pk, now=datetime.now(UTC))
    counts = {"without_row": seen.without_row.count, "without_file": seen.without_file.count}
    return {**found.said(files), **counts, "area": area.pk, **_sampled(root, area.pk, files)}


def _register(area_id: int, files: int) -> None:
    """A row for all but every hundredth file, and for as many files that never were."""
    from cleanup.models import StagedFile
    from cleanup.stores.sql import as_time, chunks, insert_rows

    now = as_time(datetime.now(UTC))
    fields = (
        "area",
        "path",
        "sha256",
        "size",
        "content_type",
        "task_id",
        "uploader",
        "created_at",
        "delete_reason",
    )
    for part in chunks(range(files), 20_000):
        rows = [(area_id, _path(number), "", 0, "", "", "bench", now, "") for number in part]
        insert_rows(StagedFile, fields, rows)


def _path(number: int) -> str:
    suffix = ".gone" if number % 100 == 0 else ""
    return f"{directory_of(number)}/{name_of(number)}{suffix}"


def _sampled(root: str, area_id: int, files: int) -> dict[str, Any]:
    """The plain ways, for comparison: a query a directory; a query a file, measured on some."""
    from cleanup.models import StagedFile

    sample = min(files, 2_000)
    began = time.perf_counter()
    for number in range(sample):
        StagedFile.objects.filter(area_id=area_id, path=f"{directory_of(number)}/{name_of(number)}").exists()
    each = (time.perf_counter() - began) / sample
    with measured() as found:
        _by_directory(root, area_id)
    return {"each": each, "directories": found.said(files)}


def _by_directory(root: str, area_id: int) -> int:
    """A query a directory and a set difference."""
    from cleanup.models import StagedFile

    lonely = 0
    for entry in sorted(os.listdir(root)):
        if not entry.startswith("."):
            begin, end = f"{entry}/", f"{entry}0"  # 0 follows / in the order of characters
            rows = StagedFile.objects.filter(area_id=area_id, path__gte=begin, path__lt=end).order_by()
            known = set(rows.values_list("path", flat=True).iterator(chunk_size=2_000))
            lonely += len(known ^ {begin + name for name in os.listdir(f"{root}/{entry}")})
    return lonely
