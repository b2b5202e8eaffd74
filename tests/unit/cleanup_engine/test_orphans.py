"""The merge of files with rows, who is an orphan since when, and which scans are refused."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cleanup.engine.area import open_area, register_area
from cleanup.engine.listing import Listing, Looker
from cleanup.engine.orphans import (
    Comparison,
    Memory,
    OrderBroken,
    Sighting,
    decode_sightings,
    encode_sightings,
    refusal,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)

UUID = "6b9b3f0e-7c1c-4a0a-9a44-1f0f0c9b9f10"


def compared(files: list[list[str]], rows: list[list[str]]) -> tuple[list[str], list[str]]:
    without_row, without_file = list[str](), list[str]()
    for some, others in Comparison(files, rows).parts():
        without_row += some
        without_file += others
    return without_row, without_file


def test_pages_may_be_cut_anywhere() -> None:
    files = [["a", "b"], [], ["c"], ["e", "f", "g"]]
    rows = [["b", "c", "d"], ["e"], ["g", "h"]]
    assert compared(files, rows) == (["a", "f"], ["d", "h"])


def test_an_empty_side_makes_orphans_of_the_other() -> None:
    assert compared([["a"], ["b"]], []) == (["a", "b"], [])
    assert compared([], [["a"], ["b"]]) == ([], ["a", "b"])
    assert compared([], []) == ([], [])


def test_several_rows_of_one_path_have_the_same_file() -> None:
    assert compared([["a", "b"]], [["a", "a"], ["a", "b"], ["b"]]) == ([], [])


def test_both_sides_are_counted() -> None:
    comparison = Comparison([["a", "b"], ["c"]], [["b"], ["d"]])
    list(comparison.parts())
    assert (comparison.files, comparison.rows) == (3, 2)


@pytest.mark.parametrize("pages", [[["b", "a"]], [["b"], ["a"]], [["a/b", "a.b"]]])
def test_a_stream_that_is_not_sorted_is_refused_rather_than_believed(pages: list[list[str]]) -> None:
    with pytest.raises(OrderBroken):
        compared(pages, [["a", "a.b", "a/b", "b"]])
    with pytest.raises(OrderBroken):
        compared([["a", "a.b", "a/b", "b"]], pages)


@pytest.mark.parametrize(
    ("figures", "refused"),
    [
        ((100, 100, 20, 20), False),
        ((100, 100, 21, 0), True),
        ((100, 100, 0, 21), True),
        ((1000, 1, 0, 0), False),
        ((6, 3, 5, 0), False),
        ((6, 3, 6, 0), True),
        ((1, 0, 1, 0), True),
        ((0, 1, 0, 1), True),
        ((0, 0, 0, 0), False),
    ],
)
def test_a_scan_with_too_many_orphans_is_refused(figures: tuple[int, int, int, int], refused: bool) -> None:
    files, rows, without_row, without_file = figures
    why = refusal(files=files, rows=rows, without_row=without_row, without_file=without_file)
    assert (why is not None) == refused


def seen(path: str, *identity: int, at: datetime = NOW) -> Sighting:
    return Sighting(path, identity, at)


def test_a_first_sighting_lasts_as_long_as_the_very_same_thing_is_seen() -> None:
    before = [seen("a", 1), seen("b", 1), seen("c", 1), seen("d", 1), seen("d", 2)]
    later = NOW + HOUR
    now_seen = [
        seen("a", 1, at=later), seen("c", 9, at=later), seen("d", 2, at=later), seen("e", 1, at=later)
    ]  # fmt: skip
    memory = Memory(before)
    dated = [*memory.dated(now_seen[:2]), *memory.dated(now_seen[2:])]
    assert [one.first_seen for one in dated] == [NOW, later, NOW, later]
    assert [one.path for one in dated] == ["a", "c", "d", "e"]


def test_an_orphan_counts_from_the_second_sighting_far_enough_apart() -> None:
    one = seen("a", 1)
    day = timedelta(hours=24)
    assert not one.confirmed(now=NOW, gap=day)
    assert not one.confirmed(now=NOW + day - timedelta(microseconds=1), gap=day)
    assert one.confirmed(now=NOW + day, gap=day)


def test_a_clock_that_was_set_back_confirms_nothing() -> None:
    assert not seen("a", 1).confirmed(now=NOW - HOUR, gap=timedelta(0))


def test_sightings_are_stored_exactly_and_rubbish_is_no_sighting() -> None:
    sightings = [seen("a\\xff/b", 2**63, 0, 1_700_000_000_123_456_789), seen("ü", 1)]
    assert decode_sightings(encode_sightings(sightings)) == sightings
    assert decode_sightings(b"rubbish") == []


def listed(root: Path) -> tuple[list[str], Listing]:
    register_area(root, UUID)
    with open_area(root, uuid=UUID) as area:
        listing = Listing(area)
        return [path for page in listing for path in page], listing


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_are_listed_in_the_order_of_their_whole_paths(tmp_path: Path) -> None:
    touch(tmp_path, "a/b", "a.b", "a0", "a/b.c/d", "a-b", "z", "a/c", "B", "back\\slash", "line\nbreak/x")
    paths, _ = listed(tmp_path)
    assert paths == sorted(paths)
    assert set(paths) == {
        "a/b", "a.b", "a0", "a/b.c/d", "a-b", "z", "a/c", "B", "back\\x5cslash", "line\\x0abreak/x"
    }  # fmt: skip


def test_names_that_are_no_utf_8_are_listed_escaped(tmp_path: Path) -> None:
    for name in (b"\xff", "é".encode(), b"\xc3", b"z"):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).touch()
    paths, _ = listed(tmp_path)
    assert paths == sorted(["\\xff", "é", "\\xc3", "z"])


def test_nothing_is_known_of_what_could_not_be_looked_into(tmp_path: Path) -> None:
    touch(tmp_path, "file", "nested/.staging-area", "nested/x", ".trash/20260101/x", "dir/.staging-tmp")
    (tmp_path / "link").symlink_to("dir")
    os.mkfifo(tmp_path / "pipe")
    paths, listing = listed(tmp_path)
    assert paths == ["file"]
    hidden = {"nested/x", "link", "link/y", "pipe", "file", "dir/x", "nest", "dirt"}
    assert {path for path in hidden if listing.hides(path)} == {"nested/x", "link", "link/y", "pipe"}


def test_a_file_is_gone_only_if_nothing_has_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "dir/file")
    (tmp_path / "link").symlink_to("dir")
    (tmp_path / "dangling").symlink_to("nowhere")
    register_area(tmp_path, UUID)
    with open_area(tmp_path, uuid=UUID) as area, Looker(area) as looker:
        assert looker.is_gone(b"dir/other")
        assert looker.is_gone(b"other/file")
        for name in (b"dir/file", b"link/other", b"dangling", b"dir/file/below"):
            assert not looker.is_gone(name)
