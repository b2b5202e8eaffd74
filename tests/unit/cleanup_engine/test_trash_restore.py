"""Out of the trash again: every byte back in its place, a pair as a pair, nothing overwritten."""

from __future__ import annotations

import os

import pytest

from cleanup.engine import trash
from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import AreaRefused
from cleanup.engine.trash import restore
from tests.unit.cleanup_engine.kit import EXPIRY, Garden


def test_restore_brings_back_bytes_mode_times_and_parents(garden: Garden, area: AreaHandle) -> None:
    garden.write("a/b/file", b"bytes")
    os.chmod(garden.path("a/b/file"), 0o640)
    before = os.stat(garden.path("a/b/file"))
    [moved] = garden.trash(area)
    os.removedirs(garden.path("a/b"))
    assert restore(area, moved.trash_id) == trash.Restored("restored", "a/b/file")
    after = os.stat(garden.path("a/b/file"))
    for field in ("st_ino", "st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_size"):
        assert getattr(after, field) == getattr(before, field)
    assert garden.read("a/b/file") == b"bytes"


def test_restore_undoes_what_was_done_to_a_mode_in_the_trash(garden: Garden, area: AreaHandle) -> None:
    garden.write("file")
    before = os.stat(garden.path("file"))
    [moved] = garden.trash(area)
    [inside] = garden.trashed_files()
    os.chmod(garden.path(b".trash/" + inside), 0o600)
    restore(area, moved.trash_id)
    after = os.stat(garden.path("file"))
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_restore_never_overwrites(garden: Garden, area: AreaHandle) -> None:
    garden.write("file", b"old")
    [moved] = garden.trash(area)
    garden.write("file", b"new")
    restored = restore(area, moved.trash_id)
    assert (restored.outcome, restored.path) == ("conflict", "file")
    assert garden.read("file") == b"new"
    assert restore(area, moved.trash_id, to=b"kept/old").outcome == "restored"
    assert garden.read("kept/old") == b"old"


@pytest.mark.parametrize("block", ["file", "link"])
def test_a_parent_that_is_no_directory_any_more_is_a_conflict(
    garden: Garden, area: AreaHandle, block: str
) -> None:
    garden.write("a/file")
    [moved] = garden.trash(area)
    os.rmdir(garden.path("a"))
    if block == "file":
        garden.write("a")
    else:
        os.symlink("/etc", garden.path("a"))
    assert restore(area, moved.trash_id).outcome == "conflict"
    assert len(garden.trashed_files()) == 1


@pytest.mark.parametrize("to", [b"../out", b"/etc/x", b"", b"a//b", b".trash/x", b".staging-area"])
def test_restore_goes_nowhere_outside_and_into_nothing_of_ours(
    garden: Garden, area: AreaHandle, to: bytes
) -> None:
    garden.write("file")
    [moved] = garden.trash(area)
    with pytest.raises(AreaRefused):
        restore(area, moved.trash_id, to=to)


def test_a_second_restore_finds_nothing(garden: Garden, area: AreaHandle) -> None:
    garden.write("one")
    garden.write("two")
    one, _ = garden.trash(area)
    restore(area, one.trash_id)
    assert restore(area, one.trash_id).outcome == "restored"  # it is back, which is what was asked for
    os.unlink(garden.path("one"))
    assert restore(area, one.trash_id).outcome == "lost"


def test_a_pair_goes_and_returns_together(garden: Garden, area: AreaHandle) -> None:
    garden.result("dir/r")
    [moved] = garden.trash(area, EXPIRY)
    assert moved.outcome == "trashed"
    assert garden.files() == set()
    assert restore(area, moved.trash_id).outcome == "restored"
    assert garden.files() == {b"dir/r.result.json.lz4", b"dir/r.metadata.json"}


def test_a_pair_is_restored_whole_or_not_at_all(garden: Garden, area: AreaHandle) -> None:
    garden.result("r")
    [moved] = garden.trash(area, EXPIRY)
    garden.write("r.result.json.lz4", b"a new result")
    assert restore(area, moved.trash_id).outcome == "conflict"
    assert garden.files() == {b"r.result.json.lz4"}
    assert len(garden.trashed_files()) == 2


def test_a_pair_goes_back_under_another_name_as_a_pair(garden: Garden, area: AreaHandle) -> None:
    garden.result("r")
    [moved] = garden.trash(area, EXPIRY)
    with pytest.raises(AreaRefused):
        restore(area, moved.trash_id, to=b"other.txt")
    assert restore(area, moved.trash_id, to=b"s.result.json.lz4").outcome == "restored"
    assert garden.files() == {b"s.result.json.lz4", b"s.metadata.json"}
