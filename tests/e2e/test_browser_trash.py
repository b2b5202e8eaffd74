"""The trash in a real browser: all that a filter finds is restored, the page moves with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.browser import Browser, site_with_people, window_of
from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.sqlite_only, pytest.mark.timeout(400)]

_ROWS = """
from datetime import timedelta
from pathlib import Path
from tests.retention import Staging, write
staging = Staging(Path({folder!r}), "staged")
staging.fill(4)
staging.run(staging.policy("old"))
write(staging.root / "d1" / "f1", "younger", age=timedelta(0))
"""

_WORK = """
from cleanup.models import TrashOrder
from cleanup.operations import orders
orders.carry_out_order(TrashOrder.objects.get().pk)
"""


@pytest.fixture
def site() -> Iterator[Site]:
    with site_with_people() as site:
        site.python(_ROWS.format(folder=str(site.folder)))
        yield site


@pytest.fixture
def window(site: Site) -> Iterator[Browser]:
    with window_of(site, "operator") as window:
        yield window


def test_all_is_restored_and_a_taken_name_comes_back_beside_the_other(site: Site, window: Browser):
    window.open("/admin/cleanup/cleanupitem/")
    window.click(".x-found a")
    window.hears(".x-ask h2", "Restore all: 4\u00a0files")
    window.write("[name=rename]", "back")
    window.write("[name=number]", "4")
    window.click(".x-ask button[type=submit]")
    window.see("[data-progress]")
    window.hears("[data-part=amount]", "0 of 4 files")
    site.python(_WORK)
    window.miss("[data-progress]")
    window.hears(".x-badge", "done")
    assert (site.folder / "staged/d1/f1").read_text() == "younger"
    assert (site.folder / "staged/d1/f1.back").read_text() == "content"
    assert window.complaints() == []
