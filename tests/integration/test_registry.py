"""A row of the registry follows its file: into the trash, back, and away, whatever was interrupted."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from cleanup import operations
from cleanup.models import CleanupItem, CleanupRun, PlanBatch, StagedFile
from cleanup.operations import schedule
from cleanup.operations.rows import purge_due_rows
from cleanup.stores.registry import living_pages
from cleanup.stores.sql import is_postgresql
from tests.integration.test_cleanup_recovery import interrupted
from tests.retention import ANNA, DAY, Staging, write

pytestmark = pytest.mark.django_db


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def register(staging: Staging, *paths: str) -> None:
    StagedFile.objects.bulk_create(StagedFile(area=staging.area, path=path) for path in paths)


def filled(staging: Staging, count: int = 12) -> set[str]:
    names = staging.fill(count)
    register(staging, *names)
    return names


def living() -> set[str]:
    return set(StagedFile.objects.values_list("path", flat=True))


def deleted() -> set[str]:
    return set(StagedFile.all_objects.deleted().values_list("path", flat=True))


def test_rows_of_trashed_files_are_soft_deleted_for_as_long_as_the_files(staging: Staging) -> None:
    names = filled(staging)
    register(staging, "elsewhere")
    assert staging.run(staging.policy(grace_period=3 * DAY)).trashed == 12
    assert (living(), deleted()) == ({"elsewhere"}, names)
    item = CleanupItem.objects.first()
    assert item is not None
    row = StagedFile.all_objects.get(path=item.path)
    assert (row.deleted_at, row.purge_after) == (item.trashed_at, item.purge_after)
    assert row.delete_reason == "its file is in the trash"


def test_the_row_comes_back_with_its_file(staging: Staging) -> None:
    names = filled(staging)
    staging.run(staging.policy())
    some = CleanupItem.objects.order_by("path")[:5]
    operations.restore([row.pk for row in some], actor=ANNA)
    assert living() == {row.path for row in some}
    assert deleted() == names - living()


@pytest.mark.sqlite_only
def test_the_row_of_a_file_restored_under_another_name_gets_that_name(staging: Staging) -> None:
    write(staging.root / "one.result.json.lz4")
    write(staging.root / "one.metadata.json", '{"expires_at": "2020-01-01T00:00:00Z"}')
    register(staging, "one.result.json.lz4", "one.metadata.json")
    staging.run(staging.policy(rule="expires_at", age=""))
    operations.restore(staging.items(), actor=ANNA, to="two.result.json.lz4")
    assert staging.files() == living() == {"two.result.json.lz4", "two.metadata.json"}


@pytest.mark.sqlite_only
def test_a_conflict_leaves_the_row_with_the_file_in_the_trash(staging: Staging) -> None:
    write(staging.root / "name", "old")
    register(staging, "name")
    staging.run(staging.policy())
    write(staging.root / "name", "new", age=timedelta(0))
    register(staging, "name")
    assert len(operations.restore(staging.items(), actor=ANNA).conflicts) == 1
    assert [row.deleted_at is None for row in StagedFile.all_objects.order_by("pk")] == [False, True]


def test_of_two_files_that_had_one_name_each_takes_its_own_row_along(staging: Staging) -> None:
    policy = staging.policy()
    for text in ("first", "second"):
        write(staging.root / "name", text)
        StagedFile.objects.create(area=staging.area, path="name", sha256=text)
        staging.run(policy)
    items = CleanupItem.objects.filter(state="trashed").order_by("trashed_at")
    operations.restore([items[0].pk], actor=ANNA)
    assert (staging.root / "name").read_text() == StagedFile.objects.get().sha256 == "first"


def test_the_row_goes_for_good_with_its_file(staging: Staging) -> None:
    filled(staging)
    staging.run(staging.policy())
    operations.purge_now(staging.items()[:4], reason="space", actor=ANNA)
    assert StagedFile.all_objects.count() == 8
    assert StagedFile.all_objects.alive().count() == 0


def test_no_row_is_purged_while_its_file_can_still_be_restored(staging: Staging) -> None:
    filled(staging, 2)
    policy = staging.policy(grace_period=DAY)
    staging.run(policy)
    operations.extend_grace(staging.items()[:1], by=9 * DAY, actor=ANNA)
    extended = CleanupItem.objects.get(pk=staging.items()[0])
    assert StagedFile.all_objects.get(path=extended.path).purge_after == extended.purge_after
    later = datetime.now(UTC) + 2 * DAY
    # The file of the other has not been purged yet: a verifier or a hold may keep it for long.
    assert purge_due_rows(later).rows == 0
    assert StagedFile.all_objects.count() == 2
    operations.purge_due(now=later)
    assert deleted() == {extended.path}
    operations.restore([extended.pk], actor=ANNA)
    assert living() == {extended.path}


@pytest.mark.parametrize("point", ["run.after_intent", "trash.after_rename", "run.after_move"])
def test_after_a_crash_rows_and_files_agree(staging: Staging, point: str, settings: Any) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "BATCH_SIZE": 5}
    filled(staging)
    run = operations.start_run(staging.policy(), ANNA)
    with interrupted(point, 2):
        operations.execute(run.pk)
    operations.stop(run, actor=ANNA)
    schedule.recover_all()
    assert living() == staging.files()
    assert len(deleted()) == staging.in_trash() > 0


@pytest.mark.parametrize("to", [None, "elsewhere"])
@pytest.mark.parametrize("point", ["restore.before_rename", "restore.before_commit"])
def test_a_restore_that_was_interrupted_brings_the_row_back(
    staging: Staging, point: str, to: str | None
) -> None:
    write(staging.root / "name")
    register(staging, "name")
    staging.run(staging.policy())
    with interrupted(point):
        operations.restore(staging.items(), actor=ANNA, to=to)
    assert living() == set()
    schedule.recover_all()
    assert living() == staging.files() == {to or "name"}


def test_a_purge_that_was_interrupted_takes_the_rows(staging: Staging) -> None:
    filled(staging)
    staging.run(staging.policy())
    with interrupted("run.after_purge"):
        operations.purge_now(staging.items(), reason="space", actor=ANNA)
    assert StagedFile.all_objects.count() == 12
    schedule.recover_all()
    assert not StagedFile.all_objects.exists()


def test_the_trash_that_a_lost_database_does_not_know_takes_the_restored_rows_along(staging: Staging) -> None:
    """The database came back from a backup older than the run: the files are in the trash, the rows alive."""
    names = filled(staging)
    staging.run(staging.policy())
    CleanupItem.objects.all().delete()
    PlanBatch.objects.all().delete()
    CleanupRun.objects.all().delete()
    StagedFile.all_objects.restore()
    assert schedule.recover_all(with_adoption=True) == 12
    assert (living(), deleted()) == (set(), names)
    operations.restore(staging.items(), actor=ANNA)
    assert living() == names


@pytest.mark.sqlite_only
def test_a_row_that_lost_its_file_comes_back_when_the_file_is_restored(staging: Staging) -> None:
    write(staging.root / "name")
    staging.run(staging.policy())
    register(staging, "name")
    missing = StagedFile.objects.filter(path="name")
    missing.soft_delete(reason="its file is missing")
    operations.restore(staging.items(), actor=ANNA)
    assert living() == {"name"}


@pytest.mark.sqlite_only
def test_an_area_without_rows_costs_one_look_per_batch(staging: Staging) -> None:
    other = Staging(staging.root.parent, "other")
    register(other, "row")
    staging.fill(50)
    run = operations.start_run(staging.policy(), ANNA)
    with CaptureQueriesContext(connection) as asked:
        operations.execute(run.pk)
    registry = [query["sql"] for query in asked if "cleanup_stagedfile" in query["sql"]]
    assert len(registry) == 1


def test_rows_are_read_in_the_order_of_their_bytes_and_from_the_index(staging: Staging) -> None:
    names = ["a/b", "a.b", "a0", "a-b", "B", "z", "é", "\\xff", "a", "ab", "a b", "𝄞", "A/b"]
    register(staging, *names)
    assert [path for page in living_pages(staging.area.pk) for path in page] == sorted(names, key=os.fsencode)
    plan = StagedFile.objects.filter(area=staging.area, path__gt="").order_by("path").values("path").explain()
    assert "cleanup_staged_living" in plan or is_postgresql()
    assert "TEMP B-TREE" not in plan
