"""P27: no exchange of names leads deletion out of its area: no victim is changed, and no file is lost.

A process exchanges directories and files with links to a victim, and moves directories out of the area and
into it, while the engine walks and moves, restores, purges, and sweeps by tmpfiles.d. The same tricks played
on the obvious way of cleaning by path must destroy something, or this proves nothing.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cleanup.engine import kernel
from cleanup.engine.sweep import Sweep
from cleanup.engine.tmpfiles import read
from cleanup.engine.trash import move, purge_batch, restore_batch, scan_trash
from tests.chaos.tricks import tricked
from tests.figures import figure
from tests.servers import PATIENCE
from tests.unit.cleanup_engine.kit import NOW, Garden, ns

#: Seconds of each cleaner: 20 s together, 10 min deep. The naive way loses a file within the first tenth.
LENGTH = figure(5.0, 150.0)

FILES = 10

pytestmark = [
    pytest.mark.sqlite_only,
    pytest.mark.timeout(LENGTH + 300),
    pytest.mark.skipif(not kernel.has_renameat2(), reason="exchanging names needs renameat2"),
]


class Stage:
    """An area, a victim outside of it, and bait."""

    def __init__(self, tmp_path: Path) -> None:
        self.root, self.outside, self.victim = (tmp_path / name for name in ("area", "outside", "victim"))
        self.workshop = tmp_path / "workshop"
        for place in (self.root, self.outside, self.victim, self.workshop):
            place.mkdir()
        self.garden = Garden(self.root)
        self.contents: Counter[bytes] = Counter()
        fill(self.victim, "victim")
        self.before = look(self.victim)

    def lay(self, name: str) -> None:
        """Lay out a filled directory, and beside it the links that it and its files are exchanged with."""
        place = self.workshop / name
        place.mkdir()
        self.contents.update(fill(place, name))
        for number in range(0, FILES, 5):
            (place / f"file{number}.swp").symlink_to(self.victim / f"file{number}")
        place.rename(self.root / name)
        if not name.startswith("out-"):
            (self.root / f"{name}.lnk").symlink_to(self.victim)

    def lay_many(self) -> None:
        for number in range(4):
            self.lay(f"bait{number}")
            self.lay(f"out-{number}")

    def is_harmed(self) -> bool:
        return look(self.victim) != self.before

    def found(self) -> Counter[bytes]:
        """Every content of ours that is anywhere."""
        places = (self.root, self.outside, self.workshop)
        files = [
            Path(folder) / name for place in places for folder, _, names in os.walk(place) for name in names
        ]
        contents = [file.read_bytes() for file in files if not file.is_symlink()]
        return Counter(content for content in contents if content in self.contents)


def fill(directory: Path, label: str) -> list[bytes]:
    contents = [f"{label} {number}".encode() for number in range(FILES)]
    for number, content in enumerate(contents):
        path = directory / f"file{number}"
        path.write_bytes(content)
        os.utime(path, ns=(ns(NOW) - 10 * 86400 * 10**9,) * 2)
    return contents


def look(victim: Path) -> dict[str, tuple[object, ...]]:
    """All that a cleaner could change of a victim."""
    found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(victim)}
    return {
        name: (seen.st_ino, seen.st_mode, seen.st_nlink, seen.st_mtime_ns, (victim / name).read_bytes())
        for name, seen in found.items()
    }


def trash_all(stage: Stage) -> int:
    """Walk and move whatever may go; return how many went."""
    with stage.garden.open() as area, area.lock():
        items = stage.garden.plan(area).items
        if not items:
            return 0
        return sum(one.outcome == "trashed" for one in move(area, stage.garden.prepare(area, items)))


def restore_all(stage: Stage) -> int:
    """Bring everything back that is in the trash; return how many came."""
    with stage.garden.open() as area, area.lock():
        manifests = list(scan_trash(area, on_bad=lambda batch, why: pytest.fail(why)))
        back = restore_batch(area, [item.id for manifest in manifests for item in manifest.items])
        return sum(one.outcome == "restored" for one in back)


def walk_and_move(stage: Stage) -> int:
    stage.lay(f"bait{time.monotonic_ns()}")
    stage.lay(f"out-{time.monotonic_ns()}")
    return trash_all(stage)


def move_and_restore(stage: Stage) -> int:
    return trash_all(stage) + restore_all(stage)


def move_and_purge(stage: Stage) -> int:
    stage.lay(f"bait{time.monotonic_ns()}")
    stage.lay(f"out-{time.monotonic_ns()}")
    trash_all(stage)
    with stage.garden.open() as area, area.lock():
        manifests = list(scan_trash(area, on_bad=lambda batch, why: pytest.fail(why)))
        done = purge_batch(area, [item.id for manifest in manifests for item in manifest.items])
    return sum(one.outcome == "purged" for one in done)


def sweep(stage: Stage) -> int:
    stage.lay(f"bait{time.monotonic_ns()}")
    stage.lay(f"out-{time.monotonic_ns()}")
    gone: list[object] = []
    lines = read(f"e {stage.root} - - - m:2d".encode()).lines
    Sweep(lines, now_ns=ns(NOW), on_event=gone.append).clean()
    return len(gone)


def by_path(stage: Stage) -> int:
    """Clean as many a script does: look at a directory, then remove by path what was seen in it."""
    stage.lay(f"bait{time.monotonic_ns()}")
    cleaned = 0
    for directory in os.scandir(stage.root):
        if not directory.is_dir(follow_symlinks=False) or directory.name.startswith("."):
            continue
        for name in _names(directory.path):
            path = os.path.join(directory.path, name)
            try:
                if stat.S_ISREG(os.lstat(path).st_mode):
                    os.unlink(path)
                    cleaned += 1
            except OSError:
                continue
    return cleaned


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def race(stage: Stage, clean: Callable[[Stage], int], *, until: Callable[[], bool] | None = None) -> int:
    """Let `clean` work among tricks until `until` ends it, or its time is over; return how much it did.

    On a machine on which it came to little in its time it has more.
    """
    cleaned, began = 0, time.monotonic()
    with tricked(stage.root, stage.outside):
        while (spent := time.monotonic() - began) < LENGTH + PATIENCE:
            if until() if until is not None else spent > LENGTH and cleaned > FILES:
                break
            cleaned += clean(stage)
    return cleaned


@pytest.mark.parametrize("clean", [walk_and_move, move_and_restore])
def test_walking_moving_and_restoring_among_tricks_changes_no_victim_and_loses_no_file(
    tmp_path: Path, clean: Callable[[Stage], int]
) -> None:
    stage = Stage(tmp_path)
    stage.lay_many()
    assert race(stage, clean) > FILES
    assert not stage.is_harmed()
    assert stage.found() == stage.contents
    restore_all(stage)
    assert stage.found() == stage.contents


@pytest.mark.parametrize("clean", [move_and_purge, sweep])
def test_purging_and_sweeping_among_tricks_changes_no_victim(
    tmp_path: Path, clean: Callable[[Stage], int]
) -> None:
    stage = Stage(tmp_path)
    assert race(stage, clean) > FILES
    assert not stage.is_harmed()
    assert max(stage.found().values(), default=0) <= 1


def test_the_same_tricks_destroy_a_victim_of_cleaning_by_path(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    race(stage, by_path, until=stage.is_harmed)
    assert stage.is_harmed()
