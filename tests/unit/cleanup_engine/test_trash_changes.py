"""A file that is not what was planned any more, before the move or at the very moment of it, stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cleanup.engine import kernel, mover
from cleanup.engine.area import AreaHandle
from cleanup.engine.states import InTrash
from cleanup.engine.trash import move, observe, purge, restore
from tests.unit.cleanup_engine.kit import EXPIRY, Garden, outcomes


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

    monkeypatch.setattr(mover, "rename_new", rename)


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


@pytest.mark.parametrize("to", ["elsewhere in the area", "outside"])
def test_what_came_from_a_directory_that_was_moved_away_meanwhile_is_put_back_into_it(
    garden: Garden, area: AreaHandle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, to: str
) -> None:
    for name in ("a/one", "a/two", "b/three"):
        garden.write(name)
    away = garden.root / "away" if to.startswith("elsewhere") else tmp_path / "away"
    prepared = garden.prepare(area, garden.plan(area).items)
    exchange_at_the_rename(monkeypatch, lambda: os.rename(garden.path("a"), away))
    assert outcomes(move(area, prepared)) == ["changed", "changed", "trashed"]
    assert sorted(os.listdir(away)) == ["one", "two"]
    assert len(garden.trashed_files()) == 1


def test_a_pair_whose_directory_was_moved_away_meanwhile_is_put_back_as_a_pair(
    garden: Garden, area: AreaHandle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    garden.result("a/r")
    prepared = garden.prepare(area, garden.plan(area, EXPIRY).items)
    exchange_at_the_rename(
        monkeypatch, lambda: None, after=lambda: os.rename(garden.path("a"), tmp_path / "b")
    )
    assert outcomes(move(area, prepared)) == ["changed"]
    assert sorted(os.listdir(tmp_path / "b")) == ["r.metadata.json", "r.result.json.lz4"]
    assert garden.trashed_files() == set()
