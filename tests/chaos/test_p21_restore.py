"""P21: a restore brings back the same bytes and metadata and overwrites nothing, and has one winner."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from cleanup import operations
from cleanup.engine import restore as restoring
from cleanup.engine.area import AreaHandle
from cleanup.engine.observe import Directories
from cleanup.engine.trash import restore, restore_batch
from cleanup.models import Hold
from tests.figures import figure
from tests.harness import ROOT, Site
from tests.retention import ANNA, DAY, Staging
from tests.unit.cleanup_engine.conftest import area, garden
from tests.unit.cleanup_engine.kit import EXPIRY, Garden

__all__ = ["area", "garden"]

#: Files that a restore and a purge are after at the same time.
PAIRS = figure(50, 1_000)

only_once = pytest.mark.sqlite_only

#: An access control list: the owner rw-, user 1000 r--, the group ---, the mask r--, others ---.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, rights, who)
    for tag, rights, who in (
        (1, 6, 2**32 - 1),
        (2, 4, 1000),
        (4, 0, 2**32 - 1),
        (16, 4, 2**32 - 1),
        (32, 0, 2**32 - 1),
    )
)


def everything(path: bytes) -> dict[str, Any]:
    """All that a file is, as far as its file system tells; the times before the bytes are read."""
    seen = os.lstat(path)
    names = ("st_ino", "st_mode", "st_uid", "st_gid", "st_size", "st_nlink", "st_mtime_ns", "st_atime_ns")
    found = {name: getattr(seen, name) for name in names}
    found["attributes"] = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    with open(path, "rb") as file:
        found["bytes"] = file.read()
    return found


def adorn(path: bytes, number: int) -> None:
    """Give a file metadata that nothing else has."""
    os.chmod(path, (0o600, 0o640, 0o4755, 0o444)[number % 4])
    if os.geteuid() == 0:
        os.chown(path, 1000 + number, 2000 + number)
        os.chmod(path, (0o600, 0o640, 0o4755, 0o444)[number % 4])
    for name, value in (("user.note", b"%d" % number), ("system.posix_acl_access", ACL)):
        try:
            os.setxattr(path, name, value)
        except OSError:
            continue  # not on this file system: then there is nothing to keep
    os.utime(path, ns=(1_500_000_000_123_456_789 + number, 1_400_000_000_987_654_321 + number))


@only_once
def test_every_byte_and_all_metadata_come_back(garden: Garden, area: AreaHandle) -> None:
    names = [b"plain", b"deep/er/one", b"new\nline", b"half \xc3", b"x" * 255, b"empty"]
    for number, name in enumerate(names):
        garden.write(name, os.urandom(1000 * number))
        adorn(garden.path(name), number)
    before = {name: everything(garden.path(name)) for name in names}
    for name in names:
        os.utime(garden.path(name), ns=(before[name]["st_atime_ns"], before[name]["st_mtime_ns"]))
    ids = [moved.trash_id for moved in garden.trash(area)]
    assert garden.files() == set()
    assert {one.outcome for one in restore_batch(area, ids)} == {"restored"}
    assert {name: everything(garden.path(name)) for name in names} == before


@only_once
def test_directories_that_are_gone_are_made_anew_with_their_modes(garden: Garden, area: AreaHandle) -> None:
    garden.write("private/group/usual/file")
    modes = {"private": 0o700, "private/group": 0o750, "private/group/usual": 0o755}
    for name, mode in modes.items():
        os.chmod(garden.path(name), mode)
    [moved] = garden.trash(area)
    os.removedirs(garden.path("private/group/usual"))
    assert restore(area, moved.trash_id).outcome == "restored"
    assert {name: stat.S_IMODE(os.stat(garden.path(name)).st_mode) for name in modes} == modes


def _file(path: bytes) -> None:
    Path(os.fsdecode(path)).write_bytes(b"newer")


def _link(path: bytes) -> None:
    os.symlink("/etc/hostname", path)


def _dangling(path: bytes) -> None:
    os.symlink("nowhere", path)


def _socket(path: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(os.path.dirname(path))  # the path may be longer than a socket's
        try:
            listener.bind(os.path.basename(path))
        finally:
            os.chdir(here)


OBSTACLES = [_file, _link, _dangling, os.mkdir, os.mkfifo, _socket]


@only_once
@pytest.mark.parametrize("when", ["before", "while restoring"])
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_whatever_stands_in_the_place_is_not_overwritten(
    garden: Garden,
    area: AreaHandle,
    monkeypatch: pytest.MonkeyPatch,
    obstacle: Callable[[bytes], None],
    when: str,
) -> None:
    place = garden.path(garden.write("dir/file", b"old"))
    [moved] = garden.trash(area)
    if when == "before":
        obstacle(place)
    else:
        real = restoring.rename_new

        def late(*names: Any) -> None:
            if not os.path.lexists(place):
                obstacle(place)
            real(*names)

        monkeypatch.setattr(restoring, "rename_new", late)
    assert restore(area, moved.trash_id).outcome == "conflict"
    monkeypatch.undo()
    assert os.lstat(place).st_size != len(b"old")
    assert len(garden.trashed_files()) == 1
    assert restore(area, moved.trash_id, to=b"dir/rescued").outcome == "restored"
    assert garden.read("dir/rescued") == b"old"


@only_once
def test_a_parent_that_has_become_a_link_is_refused(garden: Garden, area: AreaHandle, tmp_path: Path) -> None:
    garden.write("a/b/file")
    [moved] = garden.trash(area)
    os.removedirs(garden.path("a/b"))
    (tmp_path / "elsewhere" / "b").mkdir(parents=True)
    os.symlink(tmp_path / "elsewhere", garden.path("a"))
    assert restore(area, moved.trash_id).outcome == "conflict"
    assert list((tmp_path / "elsewhere" / "b").iterdir()) == []


@only_once
def test_what_came_into_a_directory_that_was_moved_away_meanwhile_is_taken_back(
    garden: Garden, area: AreaHandle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    garden.write("a/one")
    garden.write("a/two")
    garden.write("b/three")
    ids = [moved.trash_id for moved in garden.trash(area)]
    real, turns = restoring.rename_new, iter([True])

    def rename(*names: Any) -> None:
        real(*names)
        if next(turns, False):
            os.rename(garden.path("a"), tmp_path / "away")

    monkeypatch.setattr(restoring, "rename_new", rename)
    outcomes = [one.outcome for one in restore_batch(area, ids)]
    assert outcomes == ["conflict", "conflict", "restored"]
    assert list((tmp_path / "away").iterdir()) == []
    assert len(garden.trashed_files()) == 2
    assert [one.outcome for one in restore_batch(area, ids[:2])] == ["restored"] * 2


@only_once
def test_a_pair_of_which_a_crash_has_brought_back_a_half_returns_to_the_trash_whole_on_a_conflict(
    garden: Garden, area: AreaHandle
) -> None:
    garden.write("r.result.json.lz4", b"result")
    garden.write("r.metadata.json", b'{"expires_at": "2020-01-01T00:00:00Z"}')
    [moved] = garden.trash(area, EXPIRY)
    [inside] = [name for name in garden.trashed_files() if name.endswith(b".1")]
    os.rename(garden.path(b".trash/" + inside), garden.path("r.metadata.json"))
    garden.write("r.result.json.lz4", b"a new result")
    assert restore(area, moved.trash_id).outcome == "conflict"
    assert garden.files() == {b"r.result.json.lz4"}
    assert len(garden.trashed_files()) == 2


@only_once
def test_a_directory_is_opened_once_for_all_its_files(
    garden: Garden, area: AreaHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        garden.write(f"{number % 3}/{number}")
    ids = [moved.trash_id for moved in garden.trash(area)]
    left: list[bytes] = []
    real = Directories.leave

    def leave(self: Directories) -> None:
        if self._path is not None:
            left.append(self._path)
        real(self)

    monkeypatch.setattr(Directories, "leave", leave)
    assert {one.outcome for one in restore_batch(area, ids)} == {"restored"}
    assert len(left) == 3


@pytest.mark.django_db
def test_what_was_restored_is_held_for_the_grace_period_or_until_it_is_released(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    names = staging.fill(12)
    policy = staging.policy(grace_period=3 * DAY)
    staging.run(policy)
    assert operations.restore(staging.items(), actor=ANNA).restored == 12
    held = Hold.objects.get()
    assert (held.created_by, held.reason) == ("restore", "12 files restored by anna")
    assert held.until is not None
    assert abs(held.until - held.created_at - 3 * DAY) < DAY / 100
    again = staging.run(policy)
    assert (again.state, again.trashed, again.kept) == ("done", 0, {"held": 12})
    assert staging.files() == names
    operations.release(held, ANNA)
    assert staging.run(policy).trashed == 12


@pytest.mark.django_db
def test_only_what_did_come_back_stays_held(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.fill(3)
    policy = staging.policy()
    staging.run(policy)
    (staging.root / "d1" / "f1").write_text("new")
    os.utime(staging.root / "d1" / "f1", (1_000_000_000, 1_000_000_000))
    report = operations.restore(staging.items(), actor=ANNA)
    assert (report.restored, len(report.conflicts)) == (2, 1)
    run = staging.run(policy)
    assert (run.trashed, run.kept) == (1, {"held": 2})
    (staging.root / "d1" / "f1").write_text("newer")
    assert operations.restore(staging.items(), actor=ANNA).restored == 0
    assert Hold.objects.filter(released_at__isnull=True).count() == 1


@pytest.mark.django_db
def test_without_a_grace_period_nothing_is_held(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.fill(2)
    staging.run(staging.policy(grace_period=0 * DAY))
    assert operations.restore(staging.items(), actor=ANNA).restored == 2
    assert not Hold.objects.exists()


@pytest.mark.django_db
def test_the_statements_of_a_restore_do_not_grow_with_its_files(tmp_path: Path) -> None:
    counts = []
    for number in (10, 200):
        staging = Staging(tmp_path, f"area{number}")
        staging.fill(number)
        staging.run(staging.policy(f"policy{number}"))
        with CaptureQueriesContext(connection) as queries:
            assert operations.restore(staging.items(), actor=ANNA).restored == number
        counts.append(len(queries))
    assert counts[1] <= counts[0] + 2


@contextmanager
def rival(site: Site, verb: str) -> Iterator[subprocess.Popen[str]]:
    """A process that goes after items in its own way."""
    command = [sys.executable, "-m", "tests.chaos.rivals", verb]
    process = subprocess.Popen(
        command, cwd=ROOT, env=site.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait(60)


def ask(rivals: list[subprocess.Popen[str]], item: str) -> list[int]:
    """Let all go after one item; return how many files each has got."""
    for one in rivals:
        assert one.stdin is not None
        one.stdin.write(f"{item}\n")
        one.stdin.flush()
    return [int(one.stdout.readline()) for one in rivals if one.stdout is not None]


@pytest.mark.e2e
@pytest.mark.timeout(400 + PAIRS)
def test_of_a_restore_and_a_purge_in_two_processes_exactly_one_wins() -> None:
    site = Site(web=0)
    with ExitStack() as stack:
        stack.callback(site.stop)
        site.start()
        root = site.folder / "staging"
        root.mkdir()
        for number in range(PAIRS):
            (root / f"{number}").write_text(f"content {number}")
            os.utime(root / f"{number}", (1_000_000_000, 1_000_000_000))
        command = [sys.executable, "-m", "tests.chaos.rivals", "trash", str(root)]
        subprocess.run(command, cwd=ROOT, env=site.environment, check=True, timeout=240)
        items = site.sql("SELECT id, path FROM cleanup_cleanupitem")
        assert len(items) == PAIRS
        rivals = [stack.enter_context(rival(site, verb)) for verb in ("restore", "purge")]
        for item, path in items:
            restored, purged = ask(rivals, str(item))
            assert restored + purged == 1, (path, restored, purged)
            assert (root / path).exists() is bool(restored)
        states = dict(site.sql("SELECT state, count(*) FROM cleanup_cleanupitem GROUP BY state"))
        kept = {path.name: path.read_text() for path in root.iterdir() if path.name.isdigit()}
        assert states == {k: n for k, n in (("restored", len(kept)), ("purged", PAIRS - len(kept))) if n}
        assert all(text == f"content {name}" for name, text in kept.items())
        assert not [path for path in (root / ".trash").rglob("*") if path.parent.name == "data"]
