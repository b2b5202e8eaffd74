"""Real mounts: other file systems below an area, and a full one. Skipped where we may not mount."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from cleanup.engine import kernel
from cleanup.engine.area import AreaHandle, open_area, register_area
from cleanup.engine.errors import AreaRefused
from cleanup.engine.policy import Reason
from cleanup.engine.scan import Skips, walk
from cleanup.engine.trash import move, purge
from tests.unit.cleanup_engine.kit import Garden

Mount = Callable[..., Path]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts that are gone after the test: ``mount(where, "-t", "tmpfs", "tmpfs")``."""
    program, mounted = shutil.which("mount"), list[Path]()
    if os.geteuid() != 0 or program is None:
        pytest.skip("mounting needs root and mount(8)")

    def make(where: Path, *arguments: str) -> Path:
        where.mkdir(exist_ok=True)
        done = subprocess.run([program, *arguments, str(where)], capture_output=True, check=False, timeout=60)
        if done.returncode:
            pytest.skip(f"this sandbox lets nobody mount: {done.stderr.decode().strip()}")
        if where not in mounted:
            mounted.append(where)
        return where

    yield make
    for where in reversed(mounted):
        subprocess.run(["umount", str(where)], check=True, timeout=60)


@pytest.mark.parametrize("way", ["openat2", "step by step"])
def test_another_file_system_below_the_area_is_skipped(
    garden: Garden, area: AreaHandle, mount: Mount, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(kernel, "has_openat2", lambda: way == "openat2")
    disk = mount(garden.root / "disk", "-t", "tmpfs", "tmpfs")
    (disk / "precious").write_text("precious")
    garden.write("file")
    skips = Skips()
    assert [candidate.path for candidate in walk(area, on_skip=skips)] == [b"file"]
    assert skips.counts == {Reason.MOUNT_POINT: 1}


@pytest.mark.skipif(not kernel.has_openat2(), reason="only openat2 sees a bind mount of the same device")
def test_a_bind_mount_of_the_same_device_is_skipped(
    garden: Garden, area: AreaHandle, mount: Mount, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    mount(garden.root / "bound", "--bind", str(outside))
    skips = Skips()
    assert list(walk(area, on_skip=skips)) == []
    assert skips.examples[0][:2] == (b"bound", Reason.MOUNT_POINT)


def test_a_parent_of_a_real_mount_is_no_area(tmp_path: Path, mount: Mount) -> None:
    mount(tmp_path / "disk", "-t", "tmpfs", "tmpfs")
    with pytest.raises(AreaRefused) as caught:
        register_area(tmp_path, uuid4())
    assert caught.value.reason == "mount_below"


def test_an_unmounted_area_is_refused_and_not_empty(tmp_path: Path, mount: Mount) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    registered = register_area(disk, uuid4())
    mount(disk, "-t", "tmpfs", "tmpfs")
    with pytest.raises(AreaRefused) as caught:
        open_area(disk, uuid=registered.uuid, device=registered.device)
    assert caught.value.reason == "marker_missing"


def fill(path: Path) -> None:
    """Write until the file system is full."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    for size in (65536, 4096):
        try:
            while True:
                os.write(fd, b"x" * size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    os.close(fd)


def test_on_a_full_disk_the_ballast_makes_room_for_one_more_batch(tmp_path: Path, mount: Mount) -> None:
    garden = Garden(mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs"))
    garden.write("first")
    with garden.open() as area, area.lock():
        garden.trash(area)
        garden.write("second", b"x" * 4096)
        fill(garden.root / "filler")
        items = [item for item in garden.plan(area).items if item.path == b"second"]
        [moved] = move(area, garden.prepare(area, items))
        assert moved.outcome == "trashed"
        assert purge(area, moved.trash_id).outcome == "purged"


def test_a_full_disk_without_ballast_changes_nothing(tmp_path: Path, mount: Mount) -> None:
    garden = Garden(mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs"))
    garden.write("file")
    fill(garden.root / "filler")
    before = garden.files()
    with garden.open() as area, area.lock():
        items = [item for item in garden.plan(area).items if item.path == b"file"]
        with pytest.raises(OSError, match="No space"):
            garden.prepare(area, items)
    assert garden.files() == before
    assert garden.trashed_files() == set()


def test_a_read_only_file_system_changes_nothing(tmp_path: Path, mount: Mount) -> None:
    garden = Garden(mount(tmp_path / "disk", "-t", "tmpfs", "tmpfs"))
    garden.write("file")
    with garden.open() as area, area.lock():
        prepared = garden.prepare(area, garden.plan(area).items)
    mount(garden.root, "-o", "remount,ro")
    with garden.open() as area, area.lock():
        [moved] = move(area, prepared)
    assert (moved.outcome, moved.detail) == ("error", "Read-only file system")
    assert garden.files() == {b"file"}
