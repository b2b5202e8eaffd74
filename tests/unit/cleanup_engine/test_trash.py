"""Into the trash: prepare, move, observe, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from uuid import uuid4

import msgspec
import pytest

from cleanup.engine import kernel, mover, trash
from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import AreaRefused, ManifestInvalid, TrashConflict
from cleanup.engine.plan import PlanItem
from cleanup.engine.shelf import BALLAST_BYTES, batch_of, read_manifest
from cleanup.engine.states import InTrash, Source
from cleanup.engine.trash import move, observe, prepare, purge, reopen, restore, trash_ids
from tests.unit.cleanup_engine.kit import DAY, EXPIRY, NOW, Garden, header, outcomes

ODD_NAMES = [b"plain", b"a/b/deep", b"new\nline", b"half \xc3", b"x" * 255, b"-rf", b"m\\n"]


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

    monkeypatch.setattr(mover, "rename_new", refuse)
    moved = garden.trash(area)
    assert outcomes(moved) == ["trashed", "error", "trashed"]
    assert moved[1].detail == "Operation not permitted"


def test_a_batch_in_which_nothing_moved_leaves_nothing_behind(garden: Garden, area: AreaHandle) -> None:
    garden.write("file")
    prepared = garden.prepare(area, garden.plan(area).items)
    os.unlink(garden.path("file"))
    move(area, prepared)
    assert os.listdir(garden.root / ".trash") == [".ballast"]


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
