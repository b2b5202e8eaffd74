"""What is freed for good, and what never is."""

from __future__ import annotations

import json
import os
from uuid import UUID

import pytest

from cleanup.engine import trash
from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import ManifestInvalid
from cleanup.engine.shelf import batch_of
from cleanup.engine.trash import purge, purge_batch, reopen
from tests.unit.cleanup_engine.kit import EXPIRY, Garden


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
