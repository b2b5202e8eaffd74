"""The walk, and the system calls below it."""

from __future__ import annotations

import errno
import os
import socket
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from cleanup.engine import kernel
from cleanup.engine.area import AreaHandle, register_area
from cleanup.engine.kernel import DIRECTORY, birth_ns, open_beneath, rename_new
from cleanup.engine.policy import Candidate, Reason, judge
from cleanup.engine.scan import Skips, find, walk
from tests.unit.cleanup_engine.kit import AGE, EXPIRY, NOW, Garden, ns


@pytest.fixture(params=["openat2", "step by step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of opening below a directory."""
    if request.param == "openat2" and not kernel.has_openat2():
        pytest.skip("this kernel or sandbox has no openat2")
    monkeypatch.setattr(kernel, "has_openat2", lambda: request.param == "openat2")
    return str(request.param)


def found(area: AreaHandle, **options: object) -> tuple[dict[bytes, Candidate], Skips]:
    skips = Skips()
    candidates = walk(area, on_skip=skips, **options)  # type: ignore[arg-type]
    return {candidate.path: candidate for candidate in candidates}, skips


@pytest.mark.usefixtures("way")
def test_every_regular_file_is_a_candidate_whatever_its_name(garden: Garden, area: AreaHandle) -> None:
    names = {b"plain", b"a/b/c/deep", b"new\nline", b"half \xc3", b"x" * 255, b"-rf", b"a/ ", "日本".encode()}
    for name in names:
        garden.write(name)
    candidates, skips = found(area)
    assert set(candidates) == names
    assert not skips.counts


def test_a_candidate_carries_what_the_system_says(garden: Garden, area: AreaHandle) -> None:
    garden.write("file", b"12345")
    stat = os.stat(garden.path("file"))
    candidate = found(area)[0][b"file"]
    assert candidate.stat.kind == "file"
    assert (candidate.stat.device, candidate.stat.inode, candidate.stat.size) == (stat.st_dev, stat.st_ino, 5)
    assert (candidate.stat.mtime_ns, candidate.stat.mode) == (stat.st_mtime_ns, stat.st_mode & 0o7777)


@pytest.mark.usefixtures("way")
def test_links_are_reported_and_never_followed(garden: Garden, area: AreaHandle, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    garden.write("real/file")
    os.symlink(outside, garden.path("to_directory"))
    os.symlink(outside / "precious", garden.path("real/to_file"))
    os.symlink("nowhere", garden.path("dangling"))
    os.symlink(garden.root, garden.path("real/loop"))
    candidates, skips = found(area)
    assert set(candidates) == {b"real/file"}
    assert skips.counts == {Reason.SYMLINK: 4}


def test_sockets_and_fifos_are_reported_and_never_opened(garden: Garden, area: AreaHandle) -> None:
    os.mkfifo(garden.path("fifo"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(garden.root / "socket"))
        candidates, skips = found(area)
    assert not candidates
    assert sorted(skips.examples) == [(b"fifo", Reason.SPECIAL, ""), (b"socket", Reason.SPECIAL, "")]


def test_a_fifo_as_metadata_is_bad_and_hangs_nobody(garden: Garden, area: AreaHandle) -> None:
    garden.result("r")
    os.unlink(garden.path("r.metadata.json"))
    os.mkfifo(garden.path("r.metadata.json"))
    candidates, _ = found(area, policy=EXPIRY)
    assert judge(EXPIRY, candidates[b"r.result.json.lz4"], now=NOW).reason is Reason.BAD_COMPANION


def test_the_engines_own_files_are_no_candidates(garden: Garden, area: AreaHandle) -> None:
    garden.write(".trash/20260101/x")
    garden.write(".staging-upload-1/part")
    garden.write("sub/.staging-note")
    garden.write(".ordinary")
    assert set(found(area)[0]) == {b".ordinary"}


def test_an_area_inside_an_area_is_left_to_itself(garden: Garden, area: AreaHandle) -> None:
    garden.write("inner/file")
    register_area(garden.root / "inner", uuid4())
    candidates, skips = found(area)
    assert not candidates
    assert skips.examples == [(b"inner", Reason.NESTED_AREA, "")]


@pytest.mark.usefixtures("way")
def test_another_file_system_is_skipped(area: AreaHandle) -> None:
    """/proc and /sys lie on other devices than /; nothing below them may be reached from it."""
    root = os.open(b"/", DIRECTORY)
    try:
        with pytest.raises(OSError, match=r".") as caught:
            os.close(open_beneath(root, b"proc/self"))
    finally:
        os.close(root)
    assert caught.value.errno in (errno.EXDEV, errno.ELOOP)


def test_a_file_on_another_device_is_no_candidate(garden: Garden, area: AreaHandle) -> None:
    garden.write("file")
    area.device += 1
    candidates, skips = found(area)
    assert not candidates
    assert skips.counts == {Reason.MOUNT_POINT: 1}


def test_a_directory_that_vanished_is_an_outcome(garden: Garden, area: AreaHandle) -> None:
    garden.write("here/file")
    garden.write("there/file")
    skips = Skips()
    walking = walk(area, on_skip=skips)
    first = next(walking)
    other = b"there" if first.path.startswith(b"here") else b"here"
    os.rename(garden.path(other), garden.path(b".staging-gone"))
    assert list(walking) == []
    assert skips.counts == {Reason.VANISHED: 1}


@pytest.mark.usefixtures("way")
def test_a_directory_that_became_a_link_is_not_entered(
    garden: Garden, area: AreaHandle, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("precious")
    garden.write("here/file")
    garden.write("there/file")
    skips = Skips()
    walking = walk(area, on_skip=skips)
    first = next(walking)
    other = b"there" if first.path.startswith(b"here") else b"here"
    os.rename(garden.path(other), garden.path(b".staging-gone"))
    os.symlink(tmp_path / "outside", garden.path(other))
    assert list(walking) == []
    assert sum(skips.counts.values()) == 1


@pytest.mark.usefixtures("way")
def test_a_tree_300_deep_needs_neither_descriptors_nor_recursion(garden: Garden, area: AreaHandle) -> None:
    fd = os.dup(area.fd)
    for level in range(300):
        name = b"d" * 40 + b"%d" % level
        os.mkdir(name, dir_fd=fd)
        following = os.open(name, DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = following
    os.close(os.open(b"deepest", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    seen = 0
    for candidate in walk(area, on_skip=Skips()):
        seen += candidate.path.endswith(b"/deepest")
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert seen == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_companions_are_read_beside_their_results(garden: Garden, area: AreaHandle) -> None:
    garden.result("expired")
    garden.result("deep/valid", expired=False)
    garden.result("broken", metadata={"expires_at": 7})
    garden.write("alone.result.json.lz4")
    candidates, _ = found(area, policy=EXPIRY)
    reasons = {path: judge(EXPIRY, candidate, now=NOW).reason for path, candidate in candidates.items()}
    assert reasons == {
        b"expired.result.json.lz4": Reason.EXPIRED,
        b"deep/valid.result.json.lz4": Reason.NOT_EXPIRED,
        b"broken.result.json.lz4": Reason.BAD_COMPANION,
        b"alone.result.json.lz4": Reason.NO_COMPANION,
        b"expired.metadata.json": Reason.NOT_INCLUDED,
        b"deep/valid.metadata.json": Reason.NOT_INCLUDED,
        b"broken.metadata.json": Reason.NOT_INCLUDED,
    }


def test_a_linked_companion_is_not_read(garden: Garden, area: AreaHandle, tmp_path: Path) -> None:
    garden.result("r")
    os.rename(garden.path("r.metadata.json"), tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", garden.path("r.metadata.json"))
    companion = found(area, policy=EXPIRY)[0][b"r.result.json.lz4"].companion
    assert companion is not None
    assert (companion.expires_at, companion.error) == (None, "not a regular file")


def test_births_are_looked_up_only_when_the_policy_asks(garden: Garden, area: AreaHandle) -> None:
    garden.write("file")
    by_birth = msgspec.structs.replace(AGE, age_by=frozenset("b"))
    assert found(area, policy=AGE)[0][b"file"].stat.btime_ns is None
    assert found(area, policy=by_birth)[0][b"file"].stat.btime_ns == birth_ns(area.fd, b"file")


def test_one_path_is_found_as_the_walk_finds_it(garden: Garden, area: AreaHandle) -> None:
    for name in ("top", "a/b/deep", "inner/file"):
        garden.write(name)
    os.symlink("b", garden.path("a/link"))
    register_area(garden.path("inner"), uuid4())
    candidates, _ = found(area, policy=AGE)
    assert set(candidates) == {b"top", b"a/b/deep"}
    for path, candidate in candidates.items():
        assert find(area, path, policy=AGE, on_skip=Skips()) == candidate
    for path, reason in {
        b"a/link": Reason.SYMLINK, b"a/link/deep": Reason.VANISHED, b"inner/file": Reason.NESTED_AREA,
        b"gone/file": Reason.VANISHED,
    }.items():  # fmt: skip
        skips = Skips()
        assert find(area, path, policy=AGE, on_skip=skips) is None
        assert list(skips.counts) == [reason]
    assert find(area, b"a/b/gone", policy=AGE, on_skip=Skips()) is None


WHOLE = msgspec.structs.replace(AGE, unit="bundle")


def test_a_walk_for_bundles_yields_what_no_policy_may_touch_barred(garden: Garden, area: AreaHandle) -> None:
    garden.write("job/file")
    os.symlink("nowhere", garden.path("job/link"))
    os.mkfifo(garden.path("job/pipe"))
    garden.write("job/.trash/file")
    os.mkdir(garden.path("job/area"))
    register_area(garden.path("job/area"), uuid4())
    candidates, skips = found(area, policy=WHOLE)
    assert {path: candidate.barred for path, candidate in candidates.items()} == {
        b"job/file": None, b"job/link": Reason.SYMLINK, b"job/pipe": Reason.SPECIAL,
        b"job/.trash": Reason.INTERNAL, b"job/area": Reason.NESTED_AREA,
    }  # fmt: skip
    assert not skips.counts


def test_what_is_below_one_directory_comes_together(garden: Garden, area: AreaHandle) -> None:
    for number in range(60):
        garden.write(f"{number % 4}/{number % 3}/{number}")
        garden.write(f"{number % 4}/_{number}")
    tops = [candidate.path.split(b"/")[0] for candidate in walk(area, policy=WHOLE, on_skip=Skips())]
    assert len([1 for one, other in pairwise(tops) if one != other]) == 3


def test_directories_are_candidates_where_their_stamps_count(garden: Garden, area: AreaHandle) -> None:
    garden.write("job/sub/file")
    old = ns(NOW - timedelta(days=40))
    for name in ("job/sub", "job"):
        os.utime(garden.path(name), ns=(old, old))
    by_all = msgspec.structs.replace(WHOLE, age_by=frozenset("mAMB"))
    for _ in range(2):  # looking must not make a directory younger
        candidates, _ = found(area, policy=by_all)
        assert set(candidates) == {b"job", b"job/sub", b"job/sub/file"}
        for name in (b"job", b"job/sub"):
            stat = candidates[name].stat
            assert (stat.kind, stat.atime_ns, stat.mtime_ns) == ("dir", old, old)
            assert stat.btime_ns == birth_ns(area.fd, name)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("path", [b"..", b"a/../..", b"link", b"link/x", b"a/link", b"/etc"])
def test_no_path_opens_anything_outside(garden: Garden, area: AreaHandle, path: bytes) -> None:
    garden.write("a/file")
    os.symlink("/etc", garden.path("link"))
    os.symlink("..", garden.path("a/link"))
    with pytest.raises(OSError, match=r"."):
        os.close(area.open(path))


@pytest.mark.usefixtures("way")
def test_an_empty_path_opens_the_area_itself(area: AreaHandle) -> None:
    fd = area.open(b"")
    assert os.fstat(fd).st_ino == os.fstat(area.fd).st_ino
    os.close(fd)


@pytest.mark.parametrize("renameat2", [True, False])
def test_a_rename_never_overwrites(
    garden: Garden, area: AreaHandle, renameat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "has_renameat2", lambda: renameat2)
    garden.write("one", b"1")
    garden.write("two", b"2")
    with pytest.raises(FileExistsError):
        rename_new(area.fd, b"one", area.fd, b"two")
    rename_new(area.fd, b"one", area.fd, b"three")
    assert garden.files() == {b"two", b"three"}
    assert garden.read("two") == b"2"
    with pytest.raises(FileNotFoundError):
        rename_new(area.fd, b"one", area.fd, b"four")
