"""A process exchanges directories with links to a victim while the engine works: the victim loses nothing.

The same race, run against the obvious way of cleaning by path, must destroy something, or it proves nothing.
"""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cleanup.engine import kernel
from cleanup.engine.trash import move, purge_batch
from tests.unit.cleanup_engine.kit import NOW, Garden, ns

ROOT = Path(__file__).parents[2]

#: Seconds of racing. The naive way loses a file within the first tenth.
LENGTH = 4.0

FILES = 20

pytestmark = pytest.mark.skipif(not kernel.has_renameat2(), reason="exchanging names needs renameat2")


def exchange_for_ever(root: str) -> None:
    """Exchange every `NAME` with `NAME.lnk` in `root`, again and again; run in a process of its own."""
    libc = ctypes.CDLL(None)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    print("ready", flush=True)  # noqa: T201
    while True:
        links = [name for name in os.listdir(fd) if name.endswith(".lnk")]
        for _ in range(20):
            for name in links:
                libc.renameat2(fd, name.encode(), fd, name.removesuffix(".lnk").encode(), 2)


@contextmanager
def attacker(root: Path) -> Iterator[None]:
    code = f"from tests.property.test_engine_race import exchange_for_ever as go; go({str(root)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def fill(directory: Path) -> None:
    directory.mkdir()
    for number in range(FILES):
        path = directory / f"file{number}"
        path.write_bytes(b"content")
        os.utime(path, ns=(ns(NOW) - 10 * 86400 * 10**9,) * 2)


def add_bait(area: Path, workshop: Path, victim: Path, name: str) -> None:
    """Put a filled directory into the area, and beside it the link it is to be exchanged with."""
    fill(workshop / name)
    (workshop / name).rename(area / name)
    (area / f"{name}.lnk").symlink_to(victim)


def race(
    tmp_path: Path, clean: Callable[[Garden], int], *, until: Callable[[Path], bool]
) -> tuple[Path, int]:
    """Run `clean` on fresh bait until time or `until` ends it; return the victim and how much was cleaned."""
    root, workshop, victim = tmp_path / "area", tmp_path / "workshop", tmp_path / "victim"
    root.mkdir()
    workshop.mkdir()
    fill(victim)
    garden, cleaned, bait = Garden(root), 0, 0
    end = time.monotonic() + LENGTH
    with attacker(root):
        while time.monotonic() < end and not until(victim):
            for _ in range(4):
                bait += 1
                add_bait(root, workshop, victim, f"bait{bait % 40}-{bait}")
            cleaned += clean(garden)
    return victim, cleaned


def is_harmed(victim: Path) -> bool:
    return len(os.listdir(victim)) < FILES


def by_engine(garden: Garden) -> int:
    with garden.open() as area, area.lock():
        items = garden.plan(area).items
        if not items:
            return 0
        moved = move(area, garden.prepare(area, items))
        ids = [one.trash_id for one in moved if one.outcome == "trashed"]
        return sum(purged.outcome == "purged" for purged in purge_batch(area, ids))


def by_path(garden: Garden) -> int:
    """Clean as many a script does: look at a directory, then remove by path what was seen in it."""
    cleaned = 0
    for directory in os.scandir(garden.root):
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


@pytest.mark.timeout(60)
def test_no_exchange_of_directories_leads_the_engine_out_of_its_area(tmp_path: Path) -> None:
    victim, cleaned = race(tmp_path, by_engine, until=lambda victim: False)
    assert not is_harmed(victim)
    assert all((victim / f"file{number}").read_bytes() == b"content" for number in range(FILES))
    assert cleaned > FILES


@pytest.mark.timeout(60)
def test_the_same_race_destroys_a_victim_of_cleaning_by_path(tmp_path: Path) -> None:
    victim, _ = race(tmp_path, by_path, until=is_harmed)
    assert is_harmed(victim)
