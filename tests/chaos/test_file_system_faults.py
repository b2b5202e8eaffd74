"""What a file system may do to the engine, each with the outcome in the name of its test.

Mounts below an area, an unmounted one and a read-only one are in `tests.unit.cleanup_engine.test_mounts`,
exchanged links and foreign markers in `test_area`, vanished and replaced files in `test_trash_changes`.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import time_machine

from cleanup import operations
from cleanup.engine.area import AreaHandle
from cleanup.engine.shelf import BALLAST_BYTES
from cleanup.engine.trash import move, purge_batch, restore, restore_batch
from tests.chaos.test_p19_crash_at_every_step import needs_tracer, tracing
from tests.property.test_engine_crashes import check, plant
from tests.retention import DAY, Staging, later
from tests.unit.cleanup_engine.conftest import area, garden
from tests.unit.cleanup_engine.crasher import ROOT, job
from tests.unit.cleanup_engine.kit import Garden, outcomes
from tests.unit.cleanup_engine.test_mounts import Mount, fill, mount

__all__ = ["area", "garden", "mount"]

pytestmark = [pytest.mark.sqlite_only, pytest.mark.timeout(400)]

DEPTH = 300
MANY = 200_000
#: What walking and judging a directory of `MANY` files may need above the start (bytes).
MEMORY = 60 * 1024 * 1024


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, mount: Mount, tmp_path: Path) -> Path:
    """A file system of its own with room for a few megabytes."""
    where = tmp_path / "disk"
    if request.param == "tmpfs":
        return mount(where, "-t", "tmpfs", "-o", "size=8m", "tmpfs")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 16 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, capture_output=True, timeout=120)
    return mount(where, "-o", "loop", str(image))


def stuff(disk: Path) -> None:
    """Fill a file system to its last block, and its directories to their last entry's."""
    fill(disk / "filler")
    for number in range(10_000):
        try:
            (disk / f"{'x' * 200}{number}").touch()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return


def test_on_a_full_file_system_a_batch_is_trashed_and_purged_and_the_room_for_the_next_is_set_aside_again(
    small_disk: Path,
) -> None:
    (small_disk / "area").mkdir()
    garden = Garden(small_disk / "area")
    ballast = garden.root / ".trash" / ".ballast"
    garden.write("first")
    with garden.open() as area, area.lock():
        garden.trash(area)
        assert ballast.stat().st_size == BALLAST_BYTES
        for number in range(100):
            garden.write(f"dir/{number}", b"x" * 8192)
        stuff(small_disk)
        moved = garden.trash(area)
        assert outcomes(moved) == ["trashed"] * 100
        assert not ballast.exists()
        assert {one.outcome for one in purge_batch(area, [one.trash_id for one in moved])} == {"purged"}
        assert ballast.stat().st_blocks * 512 >= BALLAST_BYTES


def test_on_a_full_file_system_without_set_aside_room_nothing_is_trashed_and_nothing_changed(
    small_disk: Path,
) -> None:
    """What the ballast is for: with it gone, the same batch has no room."""
    (small_disk / "area").mkdir()
    garden = Garden(small_disk / "area")
    garden.write("first")
    with garden.open() as area, area.lock():
        garden.trash(area)
        names = {garden.write(f"dir/{number}", b"x" * 8192) for number in range(100)}
        (garden.root / ".trash" / ".ballast").unlink()
        stuff(small_disk)
        with pytest.raises(OSError, match="No space"):
            garden.trash(area)
    assert garden.files() == names
    assert len(garden.trashed_files()) == 1


def test_on_a_full_file_system_everything_in_the_trash_can_be_restored(small_disk: Path) -> None:
    (small_disk / "area").mkdir()
    garden = Garden(small_disk / "area")
    names = {garden.write(f"dir/{number}", b"x" * 4096) for number in range(50)}
    with garden.open() as area, area.lock():
        ids = [one.trash_id for one in garden.trash(area)]
        stuff(small_disk)
        assert {one.outcome for one in restore_batch(area, ids)} == {"restored"}
    assert garden.files() == names


@contextmanager
def immutable(path: bytes) -> Iterator[None]:
    done = subprocess.run(["chattr", "+i", path], capture_output=True, check=False, timeout=60)
    if done.returncode:
        pytest.skip(f"nothing can be made immutable here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True, capture_output=True, timeout=60)


@pytest.mark.skipif(shutil.which("chattr") is None, reason="needs chattr")
def test_an_immutable_file_stays_and_is_an_error_and_the_others_go(garden: Garden, area: AreaHandle) -> None:
    for name in ("a", "b", "c"):
        garden.write(name)
    with immutable(garden.path("b")):
        moved = garden.trash(area)
    assert outcomes(moved) == ["trashed", "error", "trashed"]
    assert moved[1].detail == "Operation not permitted"
    assert garden.files() == {b"b"}


@pytest.mark.skipif(shutil.which("chattr") is None, reason="needs chattr")
def test_a_file_made_immutable_in_the_trash_is_not_purged_but_an_error_until_it_is_free(
    garden: Garden, area: AreaHandle
) -> None:
    garden.write("a")
    [moved] = garden.trash(area)
    [inside] = garden.trashed_files()
    with immutable(garden.path(b".trash/" + inside)):
        assert purge_batch(area, [moved.trash_id])[0].outcome == "error"
        assert restore(area, moved.trash_id).outcome == "error"
        assert garden.trashed_files() == {inside}
    assert restore(area, moved.trash_id).outcome == "restored"


def test_files_300_directories_deep_with_names_of_255_bytes_go_and_come_back(
    garden: Garden, area: AreaHandle
) -> None:
    flags, made = os.O_RDONLY | os.O_DIRECTORY, os.open(garden.root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(DEPTH):
        os.mkdir("d" * 255, dir_fd=made)
        below = os.open("d" * 255, flags, dir_fd=made)
        os.close(made)
        made = below
    for name in (b"x" * 255, b"new\nline", b"half \xc3"):
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=made))
        os.utime(name, (1_000_000, 1_000_000), dir_fd=made)
    moved = garden.trash(area)
    assert outcomes(moved) == ["trashed"] * 3
    assert os.listdir(made) == []
    assert {one.outcome for one in restore_batch(area, [one.trash_id for one in moved])} == {"restored"}
    assert sorted(os.listdir(os.fsencode(f"/proc/self/fd/{made}"))) == [
        b"half \xc3",
        b"new\nline",
        b"x" * 255,
    ]
    os.close(made)


#: Walks and judges an area in a process of its own, and says how many files may go and what memory that took.
_JUDGE = """
import resource, sys
from uuid import UUID
from cleanup.engine.area import open_area
from cleanup.engine.policy import judge
from cleanup.engine.scan import Skips, walk
from tests.unit.cleanup_engine.kit import AGE, NOW
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
with open_area(sys.argv[1], uuid=UUID(sys.argv[2])) as area:
    found = sum(judge(AGE, one, now=NOW).action == "trash" for one in walk(area, policy=AGE, on_skip=Skips()))
print(found, peak() - before)
"""


def test_a_directory_of_200_000_files_is_judged_in_bounded_memory_and_a_batch_of_it_goes(
    tmp_path: Path, mount: Mount
) -> None:
    garden = Garden(mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=400m,nr_inodes=0", "tmpfs"))
    os.mkdir(garden.path("many"))
    fd = os.open(garden.path("many"), os.O_RDONLY | os.O_DIRECTORY)
    for number in range(MANY):
        os.close(os.open(f"{number}", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    for number in range(0, MANY, 100):
        os.utime(f"{number}", (1_000_000, 1_000_000), dir_fd=fd)
    os.close(fd)
    done = subprocess.run(
        [sys.executable, "-c", _JUDGE, str(garden.root), str(garden.uuid)],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    found, memory = map(int, done.stdout.split())
    assert found == MANY // 100
    assert memory < MEMORY
    with garden.open() as area, area.lock():
        moved = garden.trash(area)
        assert outcomes(moved) == ["trashed"] * (MANY // 100)
        assert {one.outcome for one in restore_batch(area, [one.trash_id for one in moved])} == {"restored"}


def _open(path: bytes) -> Callable[[], None]:
    fd = os.open(path, os.O_RDONLY)
    return lambda: os.close(fd)


def _write_to(path: bytes) -> Callable[[], None]:
    fd = os.open(path, os.O_WRONLY)
    return lambda: os.close(fd)


def _map(path: bytes) -> Callable[[], None]:
    fd = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    os.close(fd)
    return mapped.close


@pytest.mark.parametrize("use", [_open, _write_to, _map])
def test_a_file_in_use_stays_if_the_policy_says_so_and_goes_when_it_is_free(
    garden: Garden, area: AreaHandle, use: Callable[[bytes], Callable[[], None]]
) -> None:
    garden.write("file")
    if move(area, garden.prepare(area, garden.plan(area).items), skip_in_use=True)[0].outcome == "in_use":
        pytest.skip("this file system grants no leases")
    garden.write("file")
    end = use(garden.path("file"))
    assert outcomes(move(area, garden.prepare(area, garden.plan(area).items), skip_in_use=True)) == ["in_use"]
    assert garden.files() == {b"file"}
    end()
    assert outcomes(move(area, garden.prepare(area, garden.plan(area).items), skip_in_use=True)) == [
        "trashed"
    ]


@pytest.mark.django_db
def test_a_run_of_a_policy_that_skips_files_in_use_leaves_them_and_says_why(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    names = staging.fill(3)
    with (staging.root / "d0" / "f0").open():
        run = staging.run(staging.policy(skip_in_use=True))
    if run.trashed == 0:
        pytest.skip("this file system grants no leases")
    assert (run.state, run.trashed, run.skipped) == ("done", 2, 1)
    assert staging.files() == {"d0/f0"} < names
    assert list(staging.area.items.values_list("state", "reason").filter(path="d0/f0")) == [
        ("skipped", "in_use")
    ]


@pytest.mark.django_db
def test_a_file_under_flock_stays_and_says_why(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.fill(2)
    with (staging.root / "d0" / "f0").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        run = staging.run(staging.policy())
    assert (run.state, run.trashed, run.skipped) == ("done", 1, 1)
    assert list(staging.area.items.values_list("state", "reason").filter(path="d0/f0")) == [
        ("skipped", "locked")
    ]


@pytest.mark.django_db
def test_a_clock_set_back_trashes_nothing_and_purges_nothing_before_its_time(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    names = staging.fill(3)
    policy = staging.policy(grace_period=DAY)
    with time_machine.travel(later(-400), tick=False):
        run = staging.run(policy)
        assert (run.state, run.trashed, run.kept) == ("done", 0, {"future_timestamp": 3})
    assert staging.files() == names
    staging.run(policy)
    with time_machine.travel(later(-400), tick=False):
        assert operations.purge_due().purged == 0
    assert operations.purge_due().purged == 0
    assert operations.purge_due(now=later(2)).purged == 3


@needs_tracer
@pytest.mark.parametrize(
    ("call", "fault", "state"),
    [
        ("renameat2", "error=EIO:when=2", "error"),
        ("renameat2", "error=EDQUOT:when=2", "error"),
        ("mkdirat", "error=EDQUOT:when=2", "trashed"),
        ("mkdirat", "error=EDQUOT:when=2+", "intent"),
        ("fsync", "error=EIO:when=2", "intent"),
    ],
)
def test_an_error_of_the_disk_is_an_outcome_or_ends_the_run_and_recovery_loses_nothing(
    tmp_path: Path, call: str, fault: str, state: str
) -> None:
    """A rename concerns one file; what cannot be prepared, or be made durable, concerns all of them.

    A directory for which there is no room is tried once more without the ballast.
    """
    garden, contents = plant(tmp_path / "area")
    rows = tmp_path / "rows"
    (tmp_path / "jobs").write_text(job(garden, rows, "run"))
    tracing(tmp_path / "jobs", call, fault)
    text = rows.read_text()
    assert f'"{state}"' in text
    check(garden, rows, contents, "run")
