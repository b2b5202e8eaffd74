"""A walk with the sieve makes the same plan as one without, on random trees and policies."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanup.engine.area import AreaHandle, open_area, register_area
from cleanup.engine.plan import Plan, build_plan
from cleanup.engine.policy import Policy
from cleanup.engine.scan import Skips, walk
from cleanup.engine.sieve import sieve_for
from tests.unit.cleanup_engine.kit import NOW

pytestmark = pytest.mark.sqlite_only

DAY = 86_400
POLICY = Policy(name="p", rule="age", age=timedelta(days=2))

names = st.sampled_from(["a", "b", "c.txt", ".hidden", ".staging-x", ".trash", "ü", "-rf"])
#: Ages in seconds; some to the second at the cut-off, some of the future.
ages = st.sampled_from([0, 1, DAY, 2 * DAY - 1, 2 * DAY, 2 * DAY + 1, 9 * DAY, -60])
kinds = st.sampled_from(["file", "file", "file", "file", "link", "fifo", "hard link"])
trees = st.lists(st.tuples(st.lists(names, min_size=1, max_size=3), kinds, ages), max_size=12)


@contextmanager
def area_of(tree: list[tuple[list[str], str, int]]) -> Iterator[AreaHandle]:
    root = Path(tempfile.mkdtemp())
    try:
        uuid = uuid4()
        register_area(root, uuid)
        for parts, kind, age in tree:
            plant(root.joinpath(*parts), kind, NOW.timestamp() - age)
        with open_area(root, uuid=uuid) as area:
            yield area
    finally:
        shutil.rmtree(root)


def plant(path: Path, kind: str, moment: float) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        return  # a file is where a directory was to be: another tree then
    if os.path.lexists(path):
        return
    if kind == "link":
        path.symlink_to("nowhere")
        return
    if kind == "fifo":
        os.mkfifo(path)
        return
    path.write_text("12345")
    os.utime(path, (moment, moment))
    if kind == "hard link":
        path.with_name(f"{path.name}-too").hardlink_to(path)


def planned(area: AreaHandle, policy: Policy, *, show: int | None) -> tuple[Plan, dict[str, int]]:
    """Make a plan; `show` None is without the sieve."""
    skips, sieve = Skips(), None if show is None else sieve_for(policy, now=NOW, show=show)
    candidates = walk(area, policy=policy, on_skip=skips, sieve=sieve)
    plan = build_plan(policy, candidates, now=NOW, area_uuid=area.uuid, sieve=sieve)
    return plan, {str(reason): count for reason, count in skips.counts.items()}


@given(
    tree=trees,
    show=st.integers(0, 3),
    links=st.booleans(),
    age=st.sampled_from([0, 2, 5]),
)
def test_a_plan_is_the_same_with_the_sieve_as_without(tree, show: int, links: bool, age: int) -> None:
    policy = msgspec.structs.replace(POLICY, allow_hardlinks=links, age=timedelta(days=age))
    with area_of(tree) as area:
        sieved, plain = planned(area, policy, show=show), planned(area, policy, show=None)
    assert sieved == plain
    assert sieved[0].digest == plain[0].digest


def test_the_sieve_keeps_what_is_young_from_becoming_a_candidate() -> None:
    with area_of([([name], "file", 60) for name in ("a", "b", "c.txt")]) as area:
        sieve = sieve_for(POLICY, now=NOW, show=1)
        assert sieve is not None
        counts = []
        sieve.on_count = counts.append
        assert len(list(walk(area, policy=POLICY, on_skip=Skips(), sieve=sieve))) == 1
        assert (sieve.files, sieve.bytes, counts) == (2, 10, [2])


@pytest.mark.parametrize(
    "change",
    [
        {"include": ("*.txt",)},
        {"exclude": ("*.txt",)},
        {"age_by": frozenset("am")},
        {"rule": "expires_at", "age": None},
        {"unit": "bundle"},
    ],
    ids=" ".join,
)
def test_a_policy_that_wants_more_than_the_age_gets_no_sieve(change: dict[str, object]) -> None:
    assert sieve_for(msgspec.structs.replace(POLICY, **change), now=NOW) is None
