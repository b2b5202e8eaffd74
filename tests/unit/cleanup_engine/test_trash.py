"""Into the trash and out of it again: move, put back, restore, purge."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable
from uuid import UUID, uuid4

import msgspec
import pytest

from cleanup.engine import kernel, trash
from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import AreaRefused, ManifestInvalid, TrashConflict
from cleanup.engine.plan import PlanItem
from cleanup.engine.shelf import BALLAST_BYTES, batch_of, read_manifest
from cleanup.engine.states import InTrash, Source
from cleanup.engine.trash import Moved, move, observe, prepare, purge, purge_batch, reopen, restore, trash_ids
from tests.unit.cleanup_engine.kit import DAY, EXPIRY, NOW, Garden, header

ODD_NAMES = [b"plain", b"a/b/deep", b"new\nline", b"half \xc3", b"x" * 255, b"-rf", b"m\\n"]


def outcomes(moved: list[Moved]) -> list[str]:
    return [one.outcome for one in moved]


def test_what_was_planned_is_in_the_trash_and_nothing_else(garden: Garden, area: AreaHandle) -> None:
    for name in ODD_NAMES:
        garden.write(name)
    garden.write("a/young", days=1)
    moved = garden.trash(area)
    assert outcomes(moved) == ["trashed"] * len(ODD_NAMES)
    assert garden.files() == {b"a/young"}
    assert len(garden.trashed_files()) == len(ODD_NAMES)


def test_the_trash_is_ours_alone(garden: Garden, area: AreaHandle) -> None:
    garden.write("file")
    garden.trash(area)
    for folder, _, _ in os.walk(garden.root / ".trash"):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_a_trash_that_others_can_reach_is_refused(garden: Garden, area: AreaHandle) -> None:
    garden.write("file")
    (garden.root / ".trash").mkdir(mode=0o755)
    with pytest.raises(AreaRefused) as caught:
        garden.trash(area)
    assert caught.value.reason == "trash_unsafe"
    assert garden.files() == {b"file"}


def test_a_trash_that_is_a_link_is_refused(garden: Garden, area: AreaHandle, tmp_path: object) -> None:
    garden.write("file")
    os.symlink(str(tmp_path), garden.path(".trash"))
    with pytest.raises(OSError, match=r"."):
        garden.trash(area)
    assert b"file" in garden.files()


def test_the_manifest_alone_says_how_to_bring_everything_back(garden: Garden, area: AreaHandle) -> None:
    for name in ODD_NAMES:
        garden.write(name, b"content of " + name)
    garden.trash(area)
    [manifest] = trash.scan_trash(area, on_bad=lambda batch, why: pytest.fail(why))
    assert (manifest.policy, manifest.policy_version, manifest.run) == ("old files", "3", "run-1")
    assert (manifest.trashed_at, manifest.purge_after) == (NOW, NOW + 7 * DAY)
    assert {item.plan_item().path for item in manifest.items} == set(ODD_NAMES)
    for item in manifest.items:
        assert observe(area, item.plan_item(), item.id).trash is InTrash.WHOLE
        assert restore(area, item.id).outcome == "restored"
    assert {name: garden.read(name) for name in ODD_NAMES} == {n: b"content of " + n for n in ODD_NAMES}


def test_the_manifest_is_on_disk_before_anything_moves(garden: Garden, area: AreaHandle) -> None:
    garden.write("file")
    prepared = garden.prepare(area, garden.plan(area).items)
    assert garden.files() == {b"file"}
    assert read_manifest(area, prepared.batch).items[0].members[0].path == "file"


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


def _rewrite(garden: Garden) -> None:
    garden.write("file", b"fresher by a day", days=10)


def _replace(garden: Garden) -> None:
    garden.write("fresh", b"content", days=10)
    os.replace(garden.path("fresh"), garden.path("file"))


def _relink(garden: Garden) -> None:
    os.unlink(garden.path("file"))
    os.symlink("/etc/passwd", garden.path("file"))


def _redirectory(garden: Garden) -> None:
    os.unlink(garden.path("file"))
    os.mkdir(garden.path("file"))


@pytest.mark.parametrize("change", [_rewrite, _replace, _relink, _redirectory])
def test_a_file_that_changed_since_the_plan_is_not_touched(
    garden: Garden, area: AreaHandle, change: Callable[[Garden], None]
) -> None:
    garden.write("file")
    plan = garden.plan(area)
    change(garden)
    before = os.lstat(garden.path("file"))
    [moved] = move(area, garden.prepare(area, plan.items))
    assert moved.outcome == "changed"
    assert os.lstat(garden.path("file")).st_ino == before.st_ino
    assert garden.trashed_files() == set()


@pytest.mark.parametrize("change", [_rewrite, _replace, _relink, _redirectory])
def test_a_file_that_changed_since_the_manifest_is_not_touched(
    garden: Garden, area: AreaHandle, change: Callable[[Garden], None]
) -> None:
    garden.write("file")
    prepared = garden.prepare(area, garden.plan(area).items)
    change(garden)
    assert outcomes(move(area, prepared)) == ["changed"]
    assert garden.trashed_files() == set()


def exchange_at_the_rename(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[], None], after: Callable[[], None] = lambda: None
) -> None:
    """Let somebody else act right between our last look and the first rename, and right after it."""
    real, turns = kernel.rename_new, iter([True])

    def rename(*names: object) -> None:
        first = next(turns, False)
        if first:
            change()
        real(*names)  # type: ignore[arg-type]
        if first:
            after()

    monkeypatch.setattr(trash, "rename_new", rename)


@pytest.mark.parametrize("change", [_rewrite, _replace, _relink, _redirectory])
def test_a_file_replaced_at_the_very_moment_is_put_back(
    garden: Garden, area: AreaHandle, monkeypatch: pytest.MonkeyPatch, change: Callable[[Garden], None]
) -> None:
    garden.write("file")
    prepared = garden.prepare(area, garden.plan(area).items)
    exchange_at_the_rename(monkeypatch, lambda: change(garden))
    assert outcomes(move(area, prepared)) == ["changed"]
    assert os.path.lexists(garden.path("file"))
    assert garden.trashed_files() == set()


def test_what_cannot_be_put_back_stays_in_the_trash_and_is_never_purged(
    garden: Garden, area: AreaHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    garden.write("file")
    prepared = garden.prepare(area, garden.plan(area).items)
    exchange_at_the_rename(
        monkeypatch, lambda: _replace(garden), after=lambda: _write(garden, "file", b"the newest")
    )
    [moved] = move(area, prepared)
    assert moved.outcome == "error"
    assert "stays in the trash" in moved.detail
    assert garden.read("file") == b"the newest"
    seen = observe(area, prepared.items[moved.trash_id].plan_item(), moved.trash_id)
    assert seen.trash is InTrash.OTHER
    assert purge(area, moved.trash_id).outcome == "error"
    assert restore(area, moved.trash_id).outcome == "conflict"
    assert restore(area, moved.trash_id, to=b"rescued").outcome == "restored"
    assert garden.read("rescued") == b"content"


def _write(garden: Garden, name: str, content: bytes) -> None:
    garden.write(name, content)


def test_a_bundle_whose_metadata_was_renewed_at_the_very_moment_is_put_back_whole(
    garden: Garden, area: AreaHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    garden.result("r")
    prepared = garden.prepare(area, garden.plan(area, EXPIRY).items)
    exchange_at_the_rename(monkeypatch, lambda: _write(garden, "r.metadata.json", b'{"expires_at": "2099"}'))
    [moved] = move(area, prepared)
    assert moved.outcome == "changed"
    assert garden.files() == {b"r.result.json.lz4", b"r.metadata.json"}
    assert garden.trashed_files() == set()


@pytest.mark.parametrize(
    ("gone", "outcome"), [("r.result.json.lz4", "vanished"), ("r.metadata.json", "changed")]
)
@pytest.mark.parametrize("when", ["before the manifest", "before the move"])
def test_a_bundle_that_lost_a_member_stays(
    garden: Garden, area: AreaHandle, gone: str, outcome: str, when: str
) -> None:
    garden.result("r")
    items = garden.plan(area, EXPIRY).items
    if when == "before the manifest":
        os.unlink(garden.path(gone))
    prepared = garden.prepare(area, items)
    if when == "before the move":
        os.unlink(garden.path(gone))
    assert outcomes(move(area, prepared)) == [outcome]
    assert len(garden.files()) == 1


def test_a_vanished_directory_is_a_vanished_file(garden: Garden, area: AreaHandle) -> None:
    garden.write("a/file")
    plan = garden.plan(area)
    os.unlink(garden.path("a/file"))
    os.rmdir(garden.path("a"))
    os.symlink("/etc", garden.path("a"))
    assert outcomes(move(area, garden.prepare(area, plan.items))) == ["vanished"]


def test_a_locked_file_stays(garden: Garden, area: AreaHandle) -> None:
    garden.write("file")
    with open(garden.path("file"), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert outcomes(garden.trash(area)) == ["locked"]
        assert garden.files() == {b"file"}
        plan = garden.plan(area)
        prepared = garden.prepare(area, plan.items)
        assert outcomes(move(area, prepared, respect_locks=False)) == ["trashed"]


def test_one_files_trouble_does_not_stop_the_others(
    garden: Garden, area: AreaHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        garden.write(name)
    real = kernel.rename_new

    def refuse(src_fd: int, src: bytes, dst_fd: int, dst: bytes) -> None:
        if src == b"b":
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real(src_fd, src, dst_fd, dst)

    monkeypatch.setattr(trash, "rename_new", refuse)
    moved = garden.trash(area)
    assert outcomes(moved) == ["trashed", "error", "trashed"]
    assert moved[1].detail == "Operation not permitted"


def test_a_batch_in_which_nothing_moved_leaves_nothing_behind(garden: Garden, area: AreaHandle) -> None:
    garden.write("file")
    prepared = garden.prepare(area, garden.plan(area).items)
    os.unlink(garden.path("file"))
    move(area, prepared)
    assert os.listdir(garden.root / ".trash") == [".ballast"]


def test_purge_frees_the_bytes_and_removes_the_batch_with_its_last_item(
    garden: Garden, area: AreaHandle
) -> None:
    garden.write("a", b"12345")
    garden.write("b", b"123")
    one, two = garden.trash(area)
    assert purge(area, one.trash_id) == trash.Purged(one.trash_id, "purged", 5)
    assert trash.locate(area, two.trash_id) is not None
    assert purge(area, two.trash_id) == trash.Purged(two.trash_id, "purged", 3)
    assert os.listdir(garden.root / ".trash") == [".ballast"]
    assert trash.locate(area, two.trash_id) is None


def test_purging_twice_does_no_harm(garden: Garden, area: AreaHandle) -> None:
    garden.write("a")
    garden.write("b")
    one, two = garden.trash(area)
    purge(area, one.trash_id)
    assert purge(area, one.trash_id).outcome == "lost"
    purge(area, two.trash_id)
    assert purge(area, two.trash_id).outcome == "lost"


def test_a_batch_is_purged_in_one_go_in_the_order_asked(garden: Garden, area: AreaHandle) -> None:
    for number in range(5):
        garden.write(f"{number}", b"x" * number)
    garden.result("r")
    first = garden.trash(area, EXPIRY)
    ids = [moved.trash_id for moved in [*garden.trash(area), *first]]
    purged = purge_batch(area, [ids[3], ids[5], ids[1]])
    assert [(one.trash_id, one.outcome) for one in purged] == [
        (i, "purged") for i in (ids[3], ids[5], ids[1])
    ]
    assert purge_batch(area, []) == []


def test_what_was_laid_into_the_trash_is_not_purged(garden: Garden, area: AreaHandle) -> None:
    garden.write("a")
    [moved] = garden.trash(area)
    [inside] = garden.trashed_files()
    inside_path = garden.path(b".trash/" + inside)
    os.unlink(inside_path)
    garden.write(b".trash/" + inside, b"something else")
    assert purge(area, moved.trash_id).outcome == "error"
    assert os.path.exists(inside_path)


@pytest.mark.parametrize("damage", ["gone", "torn", "foreign", "misleading"])
def test_without_a_good_manifest_nothing_is_purged_and_the_scan_says_so(
    garden: Garden, area: AreaHandle, damage: str
) -> None:
    garden.write("a")
    [moved] = garden.trash(area)
    manifest = garden.root / ".trash" / batch_of(moved.trash_id) / "manifest.json"
    content = json.loads(manifest.read_text())
    if damage == "gone":
        manifest.unlink()
    elif damage == "torn":
        manifest.write_text(manifest.read_text()[:-20])
    elif damage == "foreign":
        manifest.write_text(json.dumps({**content, "area": str(UUID(int=1))}))
    else:
        content["items"][0]["members"][0]["data"] = "../../../victim"
        manifest.write_text(json.dumps(content))
    told: list[str] = []
    assert list(trash.scan_trash(area, on_bad=lambda batch, why: told.append(batch))) == []
    assert told == [batch_of(moved.trash_id)]
    assert purge(area, moved.trash_id).outcome == "error"
    assert len(garden.trashed_files()) == 1
    with pytest.raises(ManifestInvalid):
        reopen(area, batch_of(moved.trash_id))


@pytest.mark.parametrize(
    "trash_id", ["", "x", "20260101/../0", f"20260101/{'0' * 32}/../x", f"20260101/{'0' * 32}/01"]
)
def test_what_is_no_trash_id_is_refused(area: AreaHandle, trash_id: str) -> None:
    for use in (purge, restore, trash.locate):
        with pytest.raises(ManifestInvalid):
            use(area, trash_id)


def test_an_unknown_trash_id_is_lost(area: AreaHandle) -> None:
    unknown = trash_ids(uuid4(), 1, day=NOW.date())[0]
    assert purge(area, unknown).outcome == "lost"
    assert restore(area, unknown).outcome == "lost"
    assert trash.locate(area, unknown) is None
    assert list(trash.scan_trash(area, on_bad=lambda batch, why: None)) == []


def test_a_batch_needs_one_fresh_id_for_each_item(garden: Garden, area: AreaHandle) -> None:
    garden.write("a")
    garden.write("b")
    items = garden.plan(area).items
    one, other = trash_ids(uuid4(), 2, day=NOW.date()), trash_ids(uuid4(), 2, day=NOW.date())
    for ids in (one[:1], [one[0], one[0]], [one[0], other[1]], []):
        with pytest.raises(TrashConflict):
            prepare(area, items, ids=ids, header=header())


def test_a_batch_that_holds_files_is_not_prepared_again(garden: Garden, area: AreaHandle) -> None:
    garden.write("a")
    items = garden.plan(area).items
    ids = trash_ids(uuid4(), 1, day=NOW.date())
    prepare(area, items, ids=ids, header=header())
    move(area, prepare(area, items, ids=ids, header=header()))
    garden.write("a")
    with pytest.raises(TrashConflict):
        prepare(area, garden.plan(area).items, ids=ids, header=header())


def test_moving_again_changes_nothing(garden: Garden, area: AreaHandle) -> None:
    garden.result("r")
    [moved] = garden.trash(area, EXPIRY)
    assert move(area, reopen(area, batch_of(moved.trash_id))) == [moved]
    assert len(garden.trashed_files()) == 2


def test_observation_tells_what_is_where(garden: Garden, area: AreaHandle) -> None:
    garden.result("r")
    [item] = garden.plan(area, EXPIRY).items
    [moved] = garden.trash(area, EXPIRY)

    def seen(planned: PlanItem = item) -> tuple[Source, InTrash]:
        observation = observe(area, planned, moved.trash_id)
        return observation.source, observation.trash

    assert seen() == (Source.GONE, InTrash.WHOLE)
    garden.write("r.metadata.json")
    assert seen() == (Source.OTHER, InTrash.WHOLE)
    os.unlink(garden.path("r.metadata.json"))
    data = garden.path(f".trash/{batch_of(moved.trash_id)}/data")
    os.rename(data + b"/0", garden.path("r.result.json.lz4"))
    assert seen() == (Source.PART, InTrash.PART)
    os.rename(data + b"/0.1", garden.path("r.metadata.json"))
    assert seen() == (Source.SAME, InTrash.NO)
    moved_elsewhere = msgspec.structs.replace(
        item, members=tuple(msgspec.structs.replace(m, path=b"to/" + m.path) for m in item.members)
    )
    assert seen(moved_elsewhere) == (Source.GONE, InTrash.NO)


def test_many_source_directories_are_made_durable(garden: Garden, area: AreaHandle) -> None:
    for number in range(40):
        garden.write(f"{number}/file")
    assert outcomes(garden.trash(area)) == ["trashed"] * 40


def test_room_is_set_aside_for_a_full_disk(garden: Garden, area: AreaHandle) -> None:
    garden.write("a")
    garden.trash(area)
    assert (garden.root / ".trash" / ".ballast").stat().st_blocks * 512 >= BALLAST_BYTES
