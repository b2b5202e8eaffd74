"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cleanup.engine.area import AreaHandle
from tests.unit.cleanup_engine.kit import Garden


@pytest.fixture
def garden(tmp_path: Path) -> Garden:
    """An empty registered area."""
    root = tmp_path / "area"
    root.mkdir()
    return Garden(root)


@pytest.fixture
def area(garden: Garden) -> Iterator[AreaHandle]:
    """The same area, open and locked."""
    with garden.open() as handle, handle.lock():
        yield handle
