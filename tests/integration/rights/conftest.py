"""One site of two servers for all tests of rights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Site
from tests.integration.rights.kit import Cast


@pytest.fixture(scope="package")
def site() -> Iterator[Site]:
    """Two web processes with the rules of `site_settings`."""
    started = Site(web=2, DJANGO_SETTINGS_MODULE="tests.integration.rights.site_settings").start()
    yield started
    started.stop()


@pytest.fixture(scope="package")
def cast(site: Site) -> Cast:
    """Everybody of the matrix."""
    return Cast(site)
