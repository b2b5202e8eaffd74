"""Fixtures that every ring may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import Valkey


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A Valkey server that the test may kill, freeze or empty."""
    server = Valkey().start()
    yield server
    server.stop()
