"""Expired pairs on their short way out: killed at every step, and exchanged at every moment."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cleanup.engine import faults
from cleanup.engine.area import AreaHandle
from cleanup.engine.discard import Discarded, discard, discard_leftovers, expired, shelve
from cleanup.engine.reasons import Reason
from cleanup.engine.scan import Skips
from cleanup.engine.shelf import batches
from tests.unit.cleanup_engine.crasher import Crasher, Rows, discard_all
from tests.unit.cleanup_engine.kit import EXPIRY, NOW, Garden, header

#: More steps than it takes to remove three pairs.
MANY = 48

HEADER = msgspec.structs.replace(header(), purge_after=NOW)


@pytest.fixture(scope="module")
def crasher() -> Iterator[Crasher]:
    with Crasher() as crasher:
        yield crasher


def ignore(batch: str, why: str) -> None:
    """Of a batch that cannot be read."""


def complain(batch: str, why: str) -> None:
    raise AssertionError(f"{batch}: {why}")


def plant(root: Path) -> Garden:
    root.mkdir()
    garden = Garden(root)
    for stem in ("one", "deep/two", "deep/three"):
        garden.result(stem)
    garden.result("deep/young", expired=False)
    return garden


def left(garden: Garden) -> list[bytes]:
    """What is in the area or in its trash, by content."""
    names = [*garden.files(), *(b".trash/" + name for name in garden.trashed_files())]
    return sorted(garden.read(name) or b"" for name in names)


def check_cut_short(garden: Garden) -> None:
    """A result that is there has its metadata, in its place or in the trash."""
    contents = left(garden)
    results = sum(content.startswith(b"result ") for content in contents)
    assert len(contents) - results >= results


def check_finished(garden: Garden, area: AreaHandle, rows: Path) -> None:
    discard_all(garden, area, Rows(rows))
    assert garden.files() == {b"deep/young.result.json.lz4", b"deep/young.metadata.json"}
    assert garden.trashed_files() == set()
    assert list(batches(area)) == []


def test_a_kill_at_any_step_leaves_what_the_next_cleanup_finishes(tmp_path: Path, crasher: Crasher) -> None:
    for step in range(1, MANY):
        garden = plant(tmp_path / str(step))
        code = crasher.crash(garden, tmp_path / "rows", "discard", f"*:{step}:kill")
        check_cut_short(garden)
        with garden.open() as area, area.lock():
            check_finished(garden, area, tmp_path / "rows")
        if code == 0:
            break
    else:
        pytest.fail("it never ended by itself")
    assert step > 30


def test_a_kill_while_leftovers_are_finished_is_finished_too(tmp_path: Path, crasher: Crasher) -> None:
    rows = tmp_path / "rows"
    for first in ("trash.after_rename:3", "purge.after_unlink:1"):
        for step in range(1, MANY):
            garden = plant(tmp_path / f"{first}-{step}")
            assert crasher.crash(garden, rows, "discard", f"{first}:kill") < 0
            code = crasher.crash(garden, rows, "discard", f"*:{step}:kill")
            check_cut_short(garden)
            with garden.open() as area, area.lock():
                check_finished(garden, area, rows)
            if code == 0:
                break
        else:
            pytest.fail("it never ended by itself")


def test_a_disk_that_fails_once_at_any_step_loses_nothing(tmp_path: Path, crasher: Crasher) -> None:
    for step in range(1, MANY):
        garden = plant(tmp_path / str(step))
        crasher.crash(garden, tmp_path / "rows", "discard", f"*:{step}:EIO")
        check_cut_short(garden)
        with garden.open() as area, area.lock():
            check_finished(garden, area, tmp_path / "rows")


# Exchanged while it goes

RESULT, METADATA = b"r.result.json.lz4", b"r.metadata.json"


class At:
    """Lets somebody else act when a crash point is passed for the nth time."""

    def __init__(self, name: str, turn: int, act: Callable[[], object]) -> None:
        self.name, self.left, self.act = name, turn, act

    def passed(self, name: str) -> None:
        if name == self.name:
            self.left -= 1
            if self.left == 0:
                self.act()


def replace(garden: Garden, name: bytes, content: bytes = b"new") -> None:
    garden.write(".staging-new", content)
    os.replace(garden.path(".staging-new"), garden.path(name))


def cleaned(garden: Garden, area: AreaHandle) -> Discarded:
    found = expired(area, EXPIRY, now=NOW, on_kept=Skips()).candidates
    return discard(area, shelve(area, found, header=HEADER))


def act_at(monkeypatch: pytest.MonkeyPatch, point: str, turn: int, act: Callable[[], object]) -> None:
    monkeypatch.setattr(faults, "_armed", At(point, turn, act))


@pytest.mark.parametrize("name", [RESULT, METADATA])
@pytest.mark.parametrize("moment", ["trash.after_manifest", "trash.before_rename"])
def test_a_replaced_file_keeps_the_pair_in_its_place(
    garden: Garden, area: AreaHandle, monkeypatch: pytest.MonkeyPatch, name: bytes, moment: str
) -> None:
    garden.result("r")
    turn = 2 if name == METADATA and moment == "trash.before_rename" else 1
    act_at(monkeypatch, moment, turn, lambda: replace(garden, name))
    assert cleaned(garden, area) == Discarded()
    assert garden.read(name) == b"new"
    assert garden.files() == {RESULT, METADATA}
    assert garden.trashed_files() == set()


def test_what_was_put_in_the_place_of_a_replaced_file_is_not_overwritten(
    garden: Garden, area: AreaHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    garden.result("r")

    def between() -> None:
        replace(garden, RESULT, b"first")
        act_at(monkeypatch, "trash.after_rename", 1, lambda: garden.write(RESULT, b"second"))

    act_at(monkeypatch, "trash.before_rename", 1, between)
    done = cleaned(garden, area)
    assert (done.removed, len(done.problems)) == (0, 1)
    assert garden.read(RESULT) == b"second"
    [stuck] = garden.trashed_files()
    assert garden.read(b".trash/" + stuck) == b"first"
    monkeypatch.undo()
    [again] = discard_leftovers(area, HEADER.policy, now=NOW, on_bad=ignore)
    assert again.removed == 0
    assert garden.read(b".trash/" + stuck) == b"first"


@pytest.mark.parametrize("data", [b"0", b"0.1"])
def test_what_is_written_to_in_the_trash_stays_there(
    garden: Garden, area: AreaHandle, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    garden.result("r")

    def write() -> None:
        [name] = [name for name in garden.trashed_files() if name.endswith(b"/" + data)]
        garden.write(b".trash/" + name, b"late", days=1)

    act_at(monkeypatch, "trash.after_fsync", 1, write)
    done = cleaned(garden, area)
    assert (done.removed, len(done.problems)) == (0, 1)
    assert len(garden.trashed_files()) == 2


def test_what_came_from_a_directory_that_was_moved_away_goes_back_to_it(
    garden: Garden, area: AreaHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    garden.result("here/r")
    before = left(garden)
    act_at(monkeypatch, "trash.after_rename", 1, lambda: os.rename(garden.path("here"), garden.path("there")))
    assert cleaned(garden, area) == Discarded()
    assert garden.files() == {b"there/" + RESULT, b"there/" + METADATA}
    assert left(garden) == before


@pytest.mark.parametrize("name", [RESULT, METADATA])
def test_a_pair_of_which_one_file_is_locked_stays(garden: Garden, area: AreaHandle, name: bytes) -> None:
    garden.result("r")
    garden.result("other")
    with open(garden.path(name), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert cleaned(garden, area).removed == 1
    assert garden.files() == {RESULT, METADATA}


def test_metadata_alone_in_the_trash_goes_although_its_result_has_a_successor(
    tmp_path: Path, crasher: Crasher
) -> None:
    """The old result is gone for good already; the new one has, or will have, metadata of its own."""
    (tmp_path / "area").mkdir()
    garden = Garden(tmp_path / "area")
    garden.result("r")
    assert crasher.crash(garden, tmp_path / "rows", "discard", "purge.after_unlink:1:kill") < 0
    assert len(garden.trashed_files()) == 1
    garden.write(RESULT, b"successor")
    with garden.open() as area, area.lock():
        [done] = discard_leftovers(area, HEADER.policy, now=NOW, on_bad=ignore)
    assert (done.removed, done.problems) == (1, [])
    assert garden.files() == {RESULT}
    assert garden.trashed_files() == set()


def test_another_file_that_arrived_before_a_kill_goes_back_to_its_place(
    tmp_path: Path, crasher: Crasher
) -> None:
    """Between the rename and the look at what arrived; so does the other half of the pair."""
    (tmp_path / "area").mkdir()
    garden = Garden(tmp_path / "area")
    garden.result("r")
    assert crasher.crash(garden, tmp_path / "rows", "discard", "trash.after_rename:2:kill") < 0
    [name] = [name for name in garden.trashed_files() if name.endswith(b"/0")]
    replace(garden, b".trash/" + name)
    with garden.open() as area, area.lock():
        [done] = discard_leftovers(area, HEADER.policy, now=NOW, on_bad=ignore)
        assert list(batches(area)) == []
    assert done == Discarded()
    assert garden.files() == {RESULT, METADATA}
    assert garden.read(RESULT) == b"new"


def test_a_torn_manifest_of_a_batch_without_files_is_removed(garden: Garden, area: AreaHandle) -> None:
    garden.write(".trash/20260101/" + "a" * 32 + "/manifest.json", b'{"version"')
    bad: list[str] = []
    assert (
        list(discard_leftovers(area, HEADER.policy, now=NOW, on_bad=lambda batch, why: bad.append(batch)))
        == []
    )
    assert bad == []
    assert list(batches(area)) == []


def test_batches_of_others_and_of_later_are_left_alone(garden: Garden, area: AreaHandle) -> None:
    garden.result("r")
    garden.trash(area, EXPIRY)  # may be purged in a week
    assert list(discard_leftovers(area, header().policy, now=NOW, on_bad=ignore)) == []
    assert list(discard_leftovers(area, "another", now=header().purge_after, on_bad=ignore)) == []
    assert len(garden.trashed_files()) == 2


def test_what_stays_is_told_with_its_reason(garden: Garden, area: AreaHandle) -> None:
    garden.result("young", expired=False)
    garden.result("bad", metadata={"expires_at": "soon"})
    garden.write("alone.result.json.lz4")
    garden.write("other")
    garden.result("linked")
    os.link(garden.path("linked.result.json.lz4"), garden.path("second"))
    garden.write(".result.json.lz4")
    skips = Skips()
    doomed = expired(area, EXPIRY, now=NOW, on_kept=skips)
    assert (doomed.candidates, doomed.checked) == ([], 4)
    assert skips.counts == {
        Reason.NOT_EXPIRED: 1,
        Reason.BAD_COMPANION: 1,
        Reason.NO_COMPANION: 1,
        Reason.HARD_LINKED: 1,
        Reason.NOT_INCLUDED: 1,
    }
