"""Fixtures of the chaos ring: one site for all that breaks processes and comes back, and seeded dice.

`TEST_DEEP=1` runs the deep figures, `TEST_SEED` repeats a schedule. A test that fails shows its seed and the
logs of the site's processes.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Iterator

import pytest

from tests.harness import Site, pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]

#: Room for every storm.
SETTINGS = {"BUS_MAX_CONNECTIONS": "4000"}


@pytest.fixture(scope="session")
def shared_site() -> Iterator[Site]:
    site = Site(web=2, **SETTINGS)
    yield site.start()
    site.stop()


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """Two web servers and a Valkey, all of which the test may break: they are mended afterwards."""
    yield shared_site
    shared_site.mend()


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers from a seed that a failed test shows."""
    seed = os.environ.get("TEST_SEED") or secrets.token_hex(4)
    request.node.add_report_section("setup", "seed", f"TEST_SEED={seed}")
    return random.Random(seed)
