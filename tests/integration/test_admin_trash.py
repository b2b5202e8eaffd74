"""The pages of the trash, of orders on it, and of runs: what they say, and what is ordered from a filter."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import QueryDict
from django.test import Client
from django.urls import reverse

from cleanup import operations
from cleanup.admin.orders import filter_of
from cleanup.models import CleanupItem, CleanupRun, TrashOrder
from cleanup.operations import OperationRefused, glimpses, orders
from tests.retention import ANNA, BEN, Staging, write

pytestmark = [pytest.mark.django_db, pytest.mark.sqlite_only]


@pytest.fixture
def client() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    made = Staging(tmp_path, "staged")
    made.fill(4)
    made.run(made.policy("old"))
    return made


def text_of(client: Client, page: str, *given: Any, query: str = "", **answers: str) -> str:
    url = f"{reverse(f'admin:cleanup_{page}', args=given)}{query}"
    reply = client.post(url, answers, follow=True) if answers else client.get(url)
    assert reply.status_code == 200
    return str(reply.content.decode()).replace("\u00a0", " ")


def test_all_that_a_filter_finds_is_ordered_by_typing_the_number(client, staging):
    query = f"?area={staging.area.pk}&q=d1"
    asked = text_of(client, "trashorder_do", "restore_found", query=query)
    assert "Restore all: 1 file, 7 B?" in asked
    assert "area staged, path with d1" in asked
    refused = text_of(client, "trashorder_do", "restore_found", query=query, number="4", rename="")
    assert "the filter finds 1 files, not 4" in refused
    assert TrashOrder.objects.count() == 0
    shown = text_of(client, "trashorder_do", "restore_found", query=query, number="1", rename="")
    made = TrashOrder.objects.get()
    assert (made.filter, made.actor, made.files) == ({"area": "staged", "contains": "d1"}, "root", 1)
    assert f'data-progress="cleanup:order:{made.pk}"' in shown
    assert orders.carry_out_order(made.pk).done_files == 1
    assert staging.files() == {"d1/f1"}
    assert "data-progress" not in text_of(client, "trashorder_change", made.pk)


def test_where_not_all_was_looked_at_the_page_says_so_and_only_the_number_of_all_is_taken(
    client, staging, monkeypatch
):
    monkeypatch.setattr(glimpses, "LOOK_AT", 1)
    rows = CleanupItem.objects.order_by("path")
    for hours, row in enumerate(rows):
        CleanupItem.objects.filter(pk=row.pk).update(trashed_at=row.trashed_at - timedelta(hours=hours))
    newest, others = rows[0].path, [row.path for row in rows[1:]]
    asked = text_of(client, "trashorder_do", "restore_found", query="?reason=older_than_age")
    assert "Restore all: at least 1 file, 7 B?" in asked
    assert newest in asked
    assert not any(path in asked for path in others)
    assert 'href="?reason=older_than_age&amp;count=all"' in asked
    refused = text_of(
        client, "trashorder_do", "restore_found", query="?reason=older_than_age", number="1", rename=""
    )
    assert "the filter finds 4 files, not 1" in refused
    assert TrashOrder.objects.count() == 0
    query = "?reason=older_than_age&count=all"
    counted = text_of(client, "trashorder_do", "restore_found", query=query)
    assert "Restore all: 4 files, 28 B?" in counted
    assert "Count all of them" not in counted
    text_of(client, "trashorder_do", "restore_found", query=query, number="4", rename="")
    assert TrashOrder.objects.get().files == 4


def test_a_filter_of_what_is_not_in_the_trash_orders_nothing(client, staging):
    listed = text_of(client, "cleanupitem_changelist", query="?state=purged")
    assert "Purge all now" not in listed
    assert "Purge all now" in text_of(client, "cleanupitem_changelist")
    asked = text_of(client, "trashorder_do", "purge_found", query="?state=purged", number="4", reason="full")
    assert "set its state to in trash" in asked
    assert TrashOrder.objects.count() == 0


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("policy=old&reason=changed&size=7", {"policy": "old", "reason": "changed", "min_size": "7"}),
        ("trashed_to=2026-01-01", {"trashed_before": "2026-01-02T00:00:00+00:00"}),
        ("purge_from=2026-01-01", {"purge_from": "2026-01-01T00:00:00+00:00"}),
        ("purge_day=2020-01-01", {"purge_before": "2020-01-02T00:00:00+00:00"}),
        ("purge_day=2999-01-01", {
            "purge_from": "2999-01-01T00:00:00+00:00", "purge_before": "2999-01-02T00:00:00+00:00",
        }),
        ("q=d1*", {"begins": "d1"}),
    ],
)  # fmt: skip
def test_an_order_is_about_what_the_list_shows(query, found):
    assert filter_of(QueryDict(query)) == found


@pytest.mark.parametrize("query", ["area=99", "area=x", "purge_from=soon", "state=lost"])
def test_a_filter_that_cannot_be_understood_is_refused(query):
    with pytest.raises(OperationRefused):
        filter_of(QueryDict(query))


def test_restore_says_which_names_are_taken_and_brings_files_back_beside_them(client, staging):
    write(staging.root / "d1" / "f1", "younger", age=timedelta(0))
    ids = ",".join(str(pk) for pk in CleanupItem.objects.values_list("pk", flat=True))
    asked = text_of(client, "cleanupitem_do", "restore", query=f"?ids={ids}")
    assert "1 of them cannot go back" in asked
    assert "restored-2" in asked
    said = text_of(client, "cleanupitem_do", "restore", query=f"?ids={ids}", rename="back")
    assert "Restored 4 files, 28 B." in said
    assert (staging.root / "d1/f1").read_text() == "younger"
    assert (staging.root / "d1/f1.back").read_text() == "content"


def test_one_file_is_restored_under_the_path_that_is_typed(client, staging):
    item = CleanupItem.objects.get(path="d1/f1")
    query = f"?ids={item.pk}"
    assert 'name="to" value="d1/f1"' in text_of(client, "cleanupitem_do", "restore", query=query)
    for wrong, words in (
        ("../f1", "no place below the area"),
        (".trash/x", "no place below the area"),
        ("x" * 300, "at most 255 bytes"),
    ):
        assert words in text_of(client, "cleanupitem_do", "restore", query=query, to=wrong)
    write(staging.root / "taken", "younger", age=timedelta(0))
    said = text_of(client, "cleanupitem_do", "restore", query=query, to="taken", rename="")
    assert "1 stay in the trash, since the name is taken: taken." in said
    assert (staging.root / "taken").read_text() == "younger"
    said = text_of(client, "cleanupitem_do", "restore", query=query, to=" d9/f 1", rename="")
    assert "Restored 1 file, 7 B as  d9/f 1." in said
    assert (staging.root / " d9/f 1").read_text() == "content"


def test_several_files_and_bundles_keep_their_paths(client, staging, tmp_path):
    ids = ",".join(str(pk) for pk in CleanupItem.objects.values_list("pk", flat=True)[:2])
    assert 'name="to"' not in text_of(client, "cleanupitem_do", "restore", query=f"?ids={ids}")
    boxes = Staging(tmp_path, "boxes")
    for name in "ab":
        write(boxes.root / "box" / name)
    boxes.run(boxes.policy("whole", unit="bundle"))
    (bundle,) = boxes.items()
    assert 'name="to"' not in text_of(client, "cleanupitem_do", "restore", query=f"?ids={bundle}")
    said = text_of(client, "cleanupitem_do", "restore", query=f"?ids={bundle}", to="other", rename="")
    assert "Restored 2 files" in said
    assert boxes.files() == {"box/a", "box/b"}


def test_a_file_tells_its_life_and_its_hold(client, staging):
    item = CleanupItem.objects.get(path="d1/f1")
    operations.extend_grace([item.pk], by=timedelta(days=7), actor=BEN)
    operations.hold(staging.area, "d1/**", None, "asked for", ANNA)
    shown = text_of(client, "cleanupitem_change", item.pk)
    assert shown.index("<strong>trashed</strong>") < shown.index("<strong>grace extended</strong> by ben")
    assert "A hold keeps it from being purged" in shown
    for label in ("Hold this path", "Explain this path", "Extend grace"):
        assert label in shown


def test_a_run_shows_its_plan_its_biggest_files_and_when_what_happened(client, staging):
    run = CleanupRun.objects.get()
    shown = text_of(client, "cleanuprun_change", run.pk)
    assert [one["size"] for one in run.facts["biggest"]] == [7] * 4
    for words in (
        "queued by anna",
        "planned: 4 files, 28 B",
        "moved to the trash",
        "older than age",
        "d1/f1",
    ):
        assert words in shown, words
    assert "data-progress" not in shown


def test_two_persons_are_explained_where_an_area_is_protected(client, tmp_path):
    staging = Staging(tmp_path, "guarded", protected=True)
    staging.fill(3)
    run = staging.run(staging.policy("few", max_files=1))
    operations.approve(run, files=3, actor=operations.Actor(name="root"))
    shown = text_of(client, "cleanuprun_change", run.pk)
    assert "1 of 2 approvals: root; you may not approve twice" in shown
