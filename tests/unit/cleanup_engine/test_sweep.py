"""Cleaning by lines of tmpfiles.d: what goes, what stays, and why."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

import pytest

from cleanup.engine.sweep import MAX_DEPTH, Event, Sweep
from cleanup.engine.tmpfiles import read

DAY = 86_400
NOW = time.time()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "t").mkdir()
    return tmp_path / "t"


def aged(path: Path, days: float, text: str | None = "x") -> Path:
    """A file, or with no text a directory, that was changed and read so many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        path.mkdir(exist_ok=True)
    else:
        path.write_text(text)
    os.utime(path, (NOW - days * DAY, NOW - days * DAY))
    return path


def sweep(root: Path, *lines: str, dry_run: bool = False, remove: bool = False) -> list[Event]:
    text = "\n".join(line.replace("@", str(root)) for line in lines)
    config = read(text.encode())
    assert not config.troubles
    events: list[Event] = []
    cleaner = Sweep(config.lines, now_ns=int(NOW * 1e9), dry_run=dry_run, on_event=events.append)
    cleaner.remove() if remove else cleaner.clean()
    return events


def left(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_what_is_older_goes_and_what_is_younger_stays(root: Path):
    aged(root / "old", 3)
    aged(root / "new", 1)
    sweep(root, "d @ - - - am:2d")
    assert left(root) == {"new"}


def test_a_dry_run_tells_the_same_and_touches_nothing(root: Path):
    aged(root / "old", 3)
    said = sweep(root, "d @ - - - am:2d", dry_run=True)
    assert said == [Event("removed", os.fsencode(root / "old"))]
    assert left(root) == {"old"}


def test_every_named_stamp_must_be_older(root: Path):
    aged(root / "read", 3)
    os.utime(root / "read", (NOW, NOW - 3 * DAY))
    sweep(root, "d @ - - - am:2d")
    assert left(root) == {"read"}
    sweep(root, "d @ - - - m:2d")
    assert left(root) == set()


def test_a_stamp_of_the_future_keeps_a_file_at_age_zero(root: Path):
    aged(root / "future", -1)
    aged(root / "now", 1)
    sweep(root, "d @ - - - am:0")
    assert left(root) == {"future"}


def test_an_empty_old_directory_goes_and_its_parent_keeps_its_stamps(root: Path):
    folder = aged(root / "folder", 9, None)
    aged(folder / "file", 9)
    os.utime(folder, (NOW - 9 * DAY, NOW - 9 * DAY))
    sweep(root, "d @ - - - amAM:2d")
    assert left(root) == set()


def test_the_stamps_of_a_directory_are_put_back(root: Path):
    folder = aged(root / "folder", 9, None)
    aged(folder / "file", 9)
    os.utime(folder, (NOW - 9 * DAY, NOW - 9 * DAY))
    sweep(root, "d @/folder - - - am:2d")
    assert abs(folder.stat().st_mtime - (NOW - 9 * DAY)) < 1


def test_the_first_level_can_be_kept(root: Path):
    aged(root / "file", 9)
    aged(root / "folder" / "file", 9)
    sweep(root, "d @ - - - ~am:2d")
    assert left(root) == {"file", "folder"}


def test_what_has_a_line_of_its_own_is_left_to_it(root: Path):
    aged(root / "a" / "file", 9)
    aged(root / "b" / "file", 9)
    aged(root / "c" / "file", 9)
    sweep(root, "d @ - - - am:2d", "x @/a", "d @/b - - - am:20d")
    assert left(root) == {"a", "a/file", "b", "b/file", "c"}


def test_an_exception_for_the_directory_alone_has_the_age_of_the_line_above(root: Path):
    kept = aged(root / "kept", 9, None)
    aged(kept / "file", 9)
    aged(kept / "new", 1)
    sweep(root, "d @ - - - am:2d", "X @/kept - - - am:30d")
    assert left(root) == {"kept", "kept/file", "kept/new"} - {"kept/file"} | {"kept/new"}


def test_a_pattern_cleans_every_directory_that_fits(root: Path):
    aged(root / "job-1" / "file", 9)
    aged(root / "job-2" / "file", 9)
    aged(root / "other" / "file", 9)
    sweep(root, "e @/job-* - - - am:2d")
    assert left(root) == {"job-1", "job-2", "other", "other/file"}


def test_links_are_removed_and_never_followed(root: Path, tmp_path: Path):
    aged(tmp_path / "victim" / "file", 9)
    (root / "link").symlink_to(tmp_path / "victim")
    os.utime(root / "link", (NOW - 9 * DAY, NOW - 9 * DAY), follow_symlinks=False)
    sweep(root, "d @ - - - am:2d")
    assert left(root) == set()
    assert (tmp_path / "victim" / "file").exists()


def test_a_line_whose_path_is_a_link_cleans_nothing(root: Path, tmp_path: Path):
    aged(tmp_path / "victim" / "file", 9)
    (root / "link").symlink_to(tmp_path / "victim")
    sweep(root, "d @/link - - - am:2d", "e @/li* - - - am:2d")
    assert (tmp_path / "victim" / "file").exists()


def test_sticky_files_stay(root: Path):
    aged(root / "sticky", 9).chmod(0o1644)
    (event,) = sweep(root, "d @ - - - am:2d")
    assert event == Event("kept", os.fsencode(root / "sticky"), "its sticky bit is set")


def test_what_is_locked_stays(root: Path):
    file, folder = aged(root / "file", 9), aged(root / "folder", 9, None)
    aged(folder / "inside", 9)
    with file.open() as one:
        other = os.open(folder, os.O_RDONLY)
        fcntl.flock(one, fcntl.LOCK_SH)
        fcntl.flock(other, fcntl.LOCK_SH)
        events = sweep(root, "d @ - - - am:2d")
        os.close(other)
    assert left(root) == {"file", "folder", "folder/inside"}
    assert {event.why for event in events} == {"somebody holds a lock on it"}


def test_a_live_socket_stays_and_a_dead_one_goes(root: Path):
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as dead:
        live.bind(str(root / "live"))
        live.listen()
        dead.bind(str(root / "dead"))
        dead.close()
        for name in ("live", "dead"):
            os.utime(root / name, (NOW - 9 * DAY, NOW - 9 * DAY))
        sweep(root, "d @ - - - am:2d")
        assert left(root) == {"live"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_devices_stay(root: Path):
    try:
        os.mknod(root / "null", 0o020644, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this container makes no devices")
    os.utime(root / "null", (NOW - 9 * DAY, NOW - 9 * DAY))
    sweep(root, "d @ - - - am:2d")
    assert left(root) == {"null"}


def test_what_is_deeper_than_the_limit_is_reported_and_stays(root: Path):
    fd = os.open(root, os.O_RDONLY)
    for _ in range(MAX_DEPTH + 2):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    events = sweep(root, "d @ - - - am:2d")
    assert [event.why for event in events if event.action == "failed"] == [
        f"more than {MAX_DEPTH} directories deep"
    ]


def test_a_path_that_is_not_there_is_no_trouble(root: Path):
    assert sweep(root, "d @/gone - - - 2d", "e @/go* - - - 2d", "r @/gone", "R @/gone", remove=True) == []


def test_an_age_longer_than_all_time_cleans_nothing(root: Path):
    aged(root / "old", 9_000)
    assert sweep(root, "d @ - - - m:1000y") == []


def test_removal_takes_files_and_trees_whatever_their_age(root: Path):
    aged(root / "one", 0)
    aged(root / "tree" / "deep" / "file", 0)
    aged(root / "emptied" / "file", 0)
    aged(root / "other" / "file", 0)
    sweep(root, "r @/on*", "R @/tree", "D @/emptied", "r @/other", remove=True)
    assert left(root) == {"emptied", "other", "other/file"}


def test_removal_of_a_tree_leaves_what_has_a_line_of_its_own(root: Path):
    aged(root / "tree" / "kept", 0)
    aged(root / "tree" / "file", 0)
    sweep(root, "R @/tree", "x @/tree/kept", remove=True)
    assert left(root) == {"tree", "tree/kept"}
