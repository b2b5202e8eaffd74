"""A kill, or a failing disk, at every single step: nothing is lost, nothing is stuck after one recovery."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cleanup.engine import faults
from cleanup.engine.states import Decision, ItemState
from cleanup.engine.trash import observe, scan_trash
from tests.unit.cleanup_engine.crasher import Crasher, Rows, decisions, recover_rows
from tests.unit.cleanup_engine.kit import Garden

ROOT = Path(__file__).parents[2]

#: More steps than any verb takes on the small garden below; a verb that needs them all did not end by itself.
MANY = 200


@pytest.fixture(scope="module")
def crasher() -> Iterator[Crasher]:
    with Crasher() as crasher:
        yield crasher


def plant(root: Path) -> tuple[Garden, Counter[bytes]]:
    """Make an area with files that go and files that stay; return it and the contents of all."""
    root.mkdir()
    garden = Garden(root)
    garden.write(b"old\n\xff", b"old one")
    garden.write("deep/er/old", b"old two")
    garden.result("deep/r")
    garden.write("young", b"young", days=0)
    return garden, contents(garden)


def contents(garden: Garden) -> Counter[bytes]:
    """Count every content in the area and in its trash."""
    found = [garden.read(name) for name in garden.files()]
    found += [garden.read(b".trash/" + name) for name in garden.trashed_files()]
    return Counter(content for content in found if content is not None)


def check(garden: Garden, rows_path: Path, before: Counter[bytes], verb: str) -> Rows:
    """Recover once, then demand that rows and disk agree and that nothing was lost."""
    rows = Rows(rows_path)
    with garden.open() as area, area.lock():
        recover_rows(area, rows)
        assert [d for d in decisions(area, rows) if d[1] is not Decision.NOTHING] == []
        manifests = scan_trash(area, on_bad=lambda batch, why: None)
        known = {
            name
            for manifest in manifests
            for item in manifest.items
            if observe(area, item.plan_item(), item.id).trash != "no"
            for name in (f"{manifest.batch}/data/{member.data}".encode() for member in item.members)
        }
        assert garden.trashed_files() <= known
    assert not {ItemState.LOST, ItemState.CHANGED, ItemState.VANISHED} & set(rows.states.values())
    if verb != "purge":
        assert contents(garden) == before
    assert garden.read("young") == b"young"
    return rows


@pytest.mark.parametrize("action", ["kill", "EIO"])
@pytest.mark.parametrize("verb", ["run", "restore", "purge"])
@pytest.mark.timeout(600)
def test_a_fault_at_any_step_loses_nothing_and_leaves_nothing_stuck(
    tmp_path: Path, crasher: Crasher, verb: str, action: str
) -> None:
    for step in range(1, MANY):
        garden, before = plant(tmp_path / str(step))
        rows = tmp_path / f"rows{step}"
        if verb != "run":
            assert crasher.crash(garden, rows, "run", "") == 0
        code = crasher.crash(garden, rows, verb, f"*:{step}:{action}")
        after = check(garden, rows, before, verb) if rows.exists() else None
        if code == 0 and not _was_hit(after, verb):
            break
    else:
        pytest.fail("the verb never ended by itself")
    assert step > 10


def _was_hit(rows: Rows | None, verb: str) -> bool:
    """Whether an injected error showed as an outcome, so that later steps are still to be tried."""
    return rows is None or ItemState.ERROR in rows.states.values()


def test_an_unreadable_fault_is_refused_at_once() -> None:
    for spec in ("x", "x:0:kill", "x:1:explode", "x:y:kill"):
        with pytest.raises(ValueError, match="FAULT"):
            faults.Armed(spec)


def test_every_crash_point_in_the_source_is_listed_and_used() -> None:
    source = "".join(path.read_text() for path in (ROOT / "cleanup" / "engine").glob("*.py"))
    assert set(re.findall(r'crash_point\("([a-z_.]+)"\)', source)) == faults.POINTS
