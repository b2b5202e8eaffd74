"""Rows that are soft-deleted: hidden at once, restorable for the length of their grace, gone after it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from cleanup.models import StagedFile
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
