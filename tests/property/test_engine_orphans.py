"""Random trees with nasty names against random registries: the merge finds what a set difference finds."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cleanup.engine.area import open_area, register_area
from cleanup.engine.listing import Listing
from cleanup.engine.names import escape
from cleanup.engine.orphans import Comparison
from tests.figures import figure

UUID = "6b9b3f0e-7c1c-4a0a-9a44-1f0f0c9b9f10"

#: What sorts before and after a slash, what is escaped, and what is longer escaped than not.
ALPHABET = [
    b"a",
    b"b",
    b".",
    b"-",
    b"0",
    b" ",
    b"\\",
    b"\n",
    b"\x7f",
    b"\x80",
    b"\xff",
    "é".encode(),
    "𝄞".encode(),
]

names = (
    st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=3)
    .map(b"".join)
    .filter(lambda name: name not in (b".", b"..") and not name.startswith((b".trash", b".staging-")))
)
paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)


@pytest.fixture(scope="module")
def ground() -> Iterator[Path]:
    shm = Path("/dev/shm")
    found = Path(tempfile.mkdtemp(prefix="orphans-", dir=shm if os.access(shm, os.W_OK) else None))
    yield found
    shutil.rmtree(found)


def grow(root: bytes, wanted: set[bytes]) -> set[bytes]:
    """Make the files that can be made; a name cannot be a file and a directory at once."""
    made = set()
    for path in sorted(wanted):
        try:
            os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
            os.close(os.open(os.path.join(root, path), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
        made.add(path)
    return made


def in_pages(values: list[str], size: int) -> list[list[str]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


@settings(
    max_examples=figure(150, 5_000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    files=st.sets(paths, max_size=25),
    strangers=st.sets(paths, max_size=10),
    data=st.data(),
    size=st.integers(1, 7),
)
def test_the_merge_finds_what_a_set_difference_finds(
    ground: Path, files: set[bytes], strangers: set[bytes], data: st.DataObject, size: int
) -> None:
    root = tempfile.mkdtemp(dir=ground)
    try:
        made = sorted(grow(os.fsencode(root), files))
        known = {path for path in made if data.draw(st.booleans())} | strangers
        register_area(root, UUID)
        rows = sorted(escape(path) for path in known)
        with open_area(root, uuid=UUID) as area:
            listed = [path for page in Listing(area) for path in page]
            parts = list(Comparison(in_pages(listed, size), in_pages(rows, size + 1)).parts())
    finally:
        shutil.rmtree(root)
    there = {escape(path) for path in made}
    assert listed == sorted(there)
    assert [path for part, _ in parts for path in part] == sorted(there - set(rows))
    assert [path for _, part in parts for path in part] == sorted(set(rows) - there)


numbers = st.sets(st.integers(0, 500), max_size=400)


@settings(max_examples=figure(100, 5_000), deadline=None)
@given(files=numbers, rows=numbers, size=st.integers(1, 250), other_size=st.integers(1, 250))
def test_long_pages_are_compared_run_by_run(
    files: set[int], rows: set[int], size: int, other_size: int
) -> None:
    there, known = sorted(f"{one:03}" for one in files), sorted(f"{one:03}" for one in rows)
    comparison = Comparison(in_pages(there, size), in_pages(known, other_size))
    parts = list(comparison.parts())
    assert [path for part, _ in parts for path in part] == sorted(set(there) - set(known))
    assert [path for _, part in parts for path in part] == sorted(set(known) - set(there))
    assert (comparison.files, comparison.rows) == (len(files), len(rows))
