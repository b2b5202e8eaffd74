"""What is superseded goes by policies, as docs/staging.md shows: first its row, then its file."""

from __future__ import annotations

import os
import re
import shlex
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import call_command

from cleanup import operations
from cleanup.models import CleanupItem, Source, StagedFile
from cleanup.operations.areas import opened
from cleanup.operations.orphans import sight
from cleanup.stores.sql import database_now
from tests.integration.fetched import notes, refreshed
from tests.integration.staged import visible
from tests.retention import ANNA, DAY, Staging
from tests.web import Web

PAGE = Path(__file__).resolve().parents[2] / "docs" / "staging.md"

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nearby")]


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path, "incoming")


@pytest.fixture
def source(web: Web, staging: Staging) -> Source:
    return notes(web, staging)


def policies_of_the_page() -> None:
    """Make the policies that the page shows, as it shows them."""
    section = PAGE.read_text().split("### What is superseded")[1].split("\n## ")[0]
    for line in re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1].splitlines():  # type: ignore[index]
        call_command(*shlex.split(line)[2:], verbosity=0)


def seen_yesterday(staging: Staging) -> None:
    """Let all files be old, and what is an orphan now have been one 25 hours ago, too."""
    moment = time.time() - 90 * DAY.total_seconds()
    for path in visible(staging.area):
        os.utime(staging.root / path, (moment, moment))
    with opened(staging.area) as handle:
        sight(handle, staging.area, now=database_now() - timedelta(hours=25), actor=ANNA)


def carry_out(name: str) -> None:
    policy = operations.find_policy(name)
    policy.max_percent = 100  # any small area is above it
    operations.save_policy(policy, ANNA)
    operations.execute(operations.start_run(policy, ANNA).pk)


def test_superseded_versions_go_by_the_policies_that_are_shown_and_the_newest_stays(source, web, staging):
    for text in (b"first\n", b"second\n", b"third\n"):
        web.serve("/notes.txt", text)
        refreshed(source)
    policies_of_the_page()
    # All of it is old; the second version was superseded a moment ago only.
    rows = StagedFile.objects.filter(source=source)
    rows.update(created_at=database_now() - 90 * DAY)
    rows.filter(version=1).update(superseded_at=database_now() - 31 * DAY)
    carry_out("superseded")
    assert sorted(rows.values_list("version", flat=True)) == [2, 3]
    seen_yesterday(staging)
    carry_out("unclaimed")
    assert sorted(visible(staging.area).values()) == [b"second\n", b"third\n"]
    (item,) = CleanupItem.objects.all()
    assert item.state == "trashed"
    operations.restore([item.pk], actor=ANNA)
    assert b"first\n" in visible(staging.area).values()


def test_bytes_that_came_back_as_the_newest_version_stay_though_their_first_row_goes(source, web, staging):
    for text in (b"first\n", b"second\n", b"first\n"):
        web.serve("/notes.txt", text)
        refreshed(source)
    policies_of_the_page()
    StagedFile.objects.filter(source=source, version=1).update(superseded_at=database_now() - 31 * DAY)
    carry_out("superseded")
    seen_yesterday(staging)
    carry_out("unclaimed")
    assert sorted(visible(staging.area).values()) == [b"first\n", b"second\n"]
    assert not CleanupItem.objects.exists()
