"""Rows that are soft-deleted: hidden at once, restorable for the length of their grace, gone after it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection, models
from django.test.utils import isolate_apps
from django.utils import timezone

from cleanup.models import AuditEntry, StagedFile
from cleanup.operations.rows import purge_due_rows
from cleanup.softdelete import SoftDeleteModel
from tests.retention import Staging

pytestmark = pytest.mark.django_db


@pytest.fixture
def rows(tmp_path: Path) -> list[StagedFile]:
    area = Staging(tmp_path).area
    return [StagedFile.objects.create(area=area, path=str(number)) for number in range(4)]


def paths(rows: object) -> set[str]:
    return set(rows.values_list("path", flat=True))  # type: ignore[attr-defined]


def test_a_deleted_row_is_hidden_and_comes_back(rows: list[StagedFile]) -> None:
    assert rows[0].delete() == (1, {"cleanup.StagedFile": 1})
    assert paths(StagedFile.objects) == {"1", "2", "3"}
    assert paths(StagedFile.all_objects.deleted()) == {"0"}
    assert rows[0].restore()
    assert not rows[0].restore()
    assert paths(StagedFile.objects) == {"0", "1", "2", "3"}


def test_a_set_is_deleted_and_restored_in_one_statement(
    rows: list[StagedFile], django_assert_num_queries: object
) -> None:
    with django_assert_num_queries(1):  # type: ignore[operator]
        assert StagedFile.objects.exclude(path="0").delete()[0] == 3
    with django_assert_num_queries(1):  # type: ignore[operator]
        assert StagedFile.all_objects.restore() == 3


def test_nothing_is_purged_before_its_grace_is_over(rows: list[StagedFile]) -> None:
    now = timezone.now()
    StagedFile.objects.filter(path="0").soft_delete(grace_period=timedelta(days=1), reason="old")
    StagedFile.objects.filter(path="1").soft_delete(grace_period=timedelta(days=30))
    assert StagedFile.all_objects.purge(now + timedelta(hours=23)) == 0
    assert StagedFile.all_objects.purge(now + timedelta(hours=25)) == 1
    assert paths(StagedFile.all_objects) == {"1", "2", "3"}


def test_deleting_twice_keeps_the_first_promise(rows: list[StagedFile]) -> None:
    rows[0].delete()
    promised = StagedFile.all_objects.get(path="0").purge_after
    StagedFile.all_objects.filter(path="0").soft_delete(grace_period=timedelta(0))
    assert StagedFile.all_objects.get(path="0").purge_after == promised


def test_living_rows_are_never_purged(rows: list[StagedFile]) -> None:
    assert StagedFile.objects.purge(timezone.now() + timedelta(days=9999)) == 0
    assert StagedFile.all_objects.purge(timezone.now() + timedelta(days=9999)) == 0
    assert StagedFile.objects.count() == 4


def test_a_row_that_was_deleted_and_is_saved_again_stays_deleted(rows: list[StagedFile]) -> None:
    rows[0].delete()
    rows[0].save()
    assert paths(StagedFile.objects) == {"1", "2", "3"}
    rows[0].restore()
    rows[0].save()
    assert paths(StagedFile.objects) == {"0", "1", "2", "3"}


@pytest.fixture
def family() -> Iterator[Any]:
    """Three models of which the second and third refer to the first; their tables go with the transaction."""
    with isolate_apps("cleanup"):

        class Parent(SoftDeleteModel):
            class Meta(SoftDeleteModel.Meta):
                app_label = "cleanup"
                db_table = "family_parent"

        class Child(SoftDeleteModel):
            parent = models.ForeignKey(Parent, on_delete=models.CASCADE)

            class Meta(SoftDeleteModel.Meta):
                app_label = "cleanup"
                db_table = "family_child"

        class Note(models.Model):
            parent = models.ForeignKey(Parent, on_delete=models.PROTECT)

            class Meta:
                app_label = "cleanup"
                db_table = "family_note"

        moments = "deleted_at timestamp with time zone, purge_after timestamp with time zone"
        with connection.cursor() as cursor:
            soft = f"id bigint PRIMARY KEY, {moments}, delete_reason varchar(200) NOT NULL"
            cursor.execute(f"CREATE TABLE family_parent ({soft})")
            cursor.execute(f"CREATE TABLE family_child ({soft}, parent_id bigint NOT NULL)")
            cursor.execute("CREATE TABLE family_note (id bigint PRIMARY KEY, parent_id bigint NOT NULL)")
        Parent.objects.bulk_create([Parent(pk=number) for number in range(1, 4)])
        yield SimpleNamespace(Parent=Parent, Child=Child, Note=Note)


def test_a_row_on_which_another_insists_stays_and_the_others_go(family: Any) -> None:
    family.Note.objects.create(pk=1, parent_id=2)
    family.Parent.objects.all().soft_delete(grace_period=timedelta(0))
    done = family.Parent.all_objects.remove(timezone.now())
    assert (done.removed, done.kept) == (2, [2])
    family.Note.objects.all().delete()
    assert family.Parent.all_objects.purge(timezone.now()) == 1


def test_a_living_row_is_not_deleted_with_the_one_it_belongs_to(family: Any) -> None:
    family.Child.objects.create(pk=1, parent_id=1)
    family.Child.objects.create(pk=2, parent_id=3)
    family.Parent.objects.all().soft_delete(grace_period=timedelta(0))
    family.Child.objects.filter(pk=2).soft_delete(grace_period=timedelta(0))
    assert family.Parent.all_objects.purge(timezone.now()) == 2
    assert list(family.Parent.all_objects.values_list("pk", flat=True)) == [1]
    assert list(family.Child.all_objects.values_list("pk", flat=True)) == [1]


def test_a_row_is_not_deleted_with_the_one_it_belongs_to_while_it_can_be_restored(family: Any) -> None:
    now = timezone.now()
    family.Child.objects.create(pk=1, parent_id=1)
    family.Child.objects.all().soft_delete(grace_period=timedelta(days=30))
    family.Parent.objects.all().soft_delete(grace_period=timedelta(0))
    assert family.Parent.all_objects.purge(now + timedelta(days=29)) == 2
    assert family.Parent.all_objects.purge(now + timedelta(days=31)) == 1
    assert not family.Child.all_objects.exists()


def test_the_clock_keeps_a_row_on_which_another_insists_tells_of_it_and_tries_again_in_an_hour(
    family: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hour = timedelta(hours=1)
    family.Note.objects.create(pk=1, parent_id=2)
    family.Parent.objects.all().soft_delete(grace_period=timedelta(0))
    now = timezone.now()
    report = purge_due_rows(now, models=[family.Parent])
    assert (report.rows, report.kept) == (2, ["cleanup.Parent/2"])
    assert "cleanup.Parent/2" in caplog.text
    assert AuditEntry.objects.filter(action="row_purged").count() == 2
    family.Note.objects.all().delete()
    assert purge_due_rows(now + hour / 2, models=[family.Parent]).rows == 0
    assert purge_due_rows(now + hour, models=[family.Parent]).rows == 1


def test_no_more_rows_are_removed_at_a_time_than_was_said(family: Any) -> None:
    family.Parent.objects.all().soft_delete(grace_period=timedelta(0))
    now = timezone.now()
    assert purge_due_rows(now, models=[family.Parent], limit=2).rows == 2
    assert purge_due_rows(now, models=[family.Parent], limit=2).rows == 1
