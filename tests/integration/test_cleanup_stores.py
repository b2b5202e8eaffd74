"""Rows by the thousand: plans written while they are made, items read and moved past the ORM, COPY."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from django.db import transaction

from cleanup import operations
from cleanup.engine.errors import PlanTampered
from cleanup.engine.items import Member, PlanItem
from cleanup.engine.packing import Counting
from cleanup.engine.reasons import Reason
from cleanup.engine.states import ItemState
from cleanup.models import CleanupItem, CleanupRun, PlanBatch
from cleanup.stores.items import NewItem, claim_rows, insert_items, load, move_rows, new_ids
from cleanup.stores.leases import LeaseLost, revoke, take
from cleanup.stores.plans import PlanWriter, planned, stored_plan
from tests.retention import ANNA, Staging

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
#: What COPY's text format and JSON have to spell out.
ODD = ["a\\b", "tab\\x09", "n\\x0a", "ü 日本", "\\x00", "\\N", '"quoted"', "percent %s"]


@pytest.fixture
def staging(tmp_path: Path, settings) -> Staging:
    settings.CLEANUP = {**settings.CLEANUP, "BATCH_SIZE": 3}
    return Staging(tmp_path)


@pytest.fixture
def run(staging: Staging) -> CleanupRun:
    return operations.start_run(staging.policy(), ANNA)


def an_item(number: int, *, members: int = 1, name: str = "f") -> PlanItem:
    found = tuple(Member(b"d/%d.%d" % (number, index), 1, number, 5, 6) for index in range(members))
    return PlanItem(f"{name}{number}".encode(), found, 5 * members, Reason.OLDER_THAN_AGE)


def lease(run: CleanupRun) -> int:
    token = take(run.pk, now=datetime.now(UTC))
    assert token is not None
    return token


def test_batches_are_written_while_the_items_are_found(run: CleanupRun) -> None:
    seen: list[int] = []

    def found() -> Iterator[PlanItem]:
        for number in range(60):
            seen.append(PlanBatch.objects.filter(run=run).count())
            yield an_item(number)

    tally = PlanWriter(run.pk, lease(run))(found())
    assert (tally.items, tally.files) == (60, 60)
    assert 0 < seen[-1] < PlanBatch.objects.filter(run=run).count() == 20
    assert [item.shown for item in planned(run)] == [f"f{number}" for number in range(60)]


def test_a_batch_is_cut_by_its_files_not_by_its_bundles(run: CleanupRun) -> None:
    PlanWriter(run.pk, lease(run))([an_item(1, members=5), an_item(2), an_item(3, members=2), an_item(4)])
    assert list(run.batches.order_by("number").values_list("items", flat=True)) == [1, 2, 1]


def test_a_planner_whose_run_has_passed_on_adds_nothing_to_the_plan(run: CleanupRun) -> None:
    token = lease(run)

    def found() -> Iterator[PlanItem]:
        yield from (an_item(number) for number in range(3))
        revoke(run.pk)
        yield from (an_item(number) for number in range(3, 60))

    with pytest.raises(LeaseLost):
        PlanWriter(run.pk, token)(found())
    assert not PlanBatch.objects.filter(run=run).exists()


def test_a_second_attempt_takes_the_place_of_the_first(run: CleanupRun) -> None:
    token = lease(run)
    for count in (30, 4):
        PlanWriter(run.pk, token)(an_item(number) for number in range(count))
    assert len(list(planned(run))) == 4


@pytest.mark.parametrize("harm", ["missing", "swapped", "changed"])
def test_a_stored_plan_that_was_changed_has_another_digest_or_none(run: CleanupRun, harm: str) -> None:
    tally = PlanWriter(run.pk, lease(run))(an_item(number) for number in range(9))
    CleanupRun.objects.filter(pk=run.pk).update(
        plan_created_at=NOW, plan_expires_at=NOW, planned_files=9, planned_bytes=45
    )
    run.refresh_from_db()
    made = stored_plan(run, policy_json="{}")
    assert made.tally == tally
    first, second = run.batches.order_by("number")[:2]
    if harm == "missing":
        first.delete()
        with pytest.raises(PlanTampered):
            stored_plan(run, policy_json="{}")
        return
    if harm == "swapped":
        first.body, second.body = second.body, first.body
        second.save()
    else:
        first.body = PlanBatch.objects.get(pk=second.pk).body
    first.save()
    with pytest.raises(PlanTampered):
        stored_plan(run, policy_json="{}").check(now=NOW, digest=made.digest)


def insert(staging: Staging, run: CleanupRun | None, count: int) -> list[NewItem]:
    new = [
        NewItem(
            id, an_item(number, name=ODD[number % len(ODD)]), ItemState.TRASHED, Reason.OLDER_THAN_AGE,
            detail=ODD[number % len(ODD)], trash_id=f"20260102/{'a' * 32}/{number}",
        )
        for number, id in enumerate(new_ids(count))
    ]  # fmt: skip
    with transaction.atomic():
        insert_items(new, run_id=run and run.pk, area=staging.area, now=NOW, trashed_at=NOW, purge_after=NOW)
    return new


@pytest.mark.parametrize("has_run", [True, False])
def test_rows_are_read_back_as_the_orm_reads_them(staging: Staging, run: CleanupRun, has_run: bool) -> None:
    new = insert(staging, run if has_run else None, 20)
    found = {row.pk: row for row in load([one.id for one in new], area=staging.area)}
    assert len(found) == 20
    for slow in CleanupItem.objects.all():
        fast = found[slow.pk]
        assert {
            field.attname: getattr(fast, field.attname) for field in CleanupItem._meta.concrete_fields
        } == {field.attname: getattr(slow, field.attname) for field in CleanupItem._meta.concrete_fields}
        assert (fast.run, fast.area, fast._state.adding) == (slow.run, slow.area, False)


def test_text_is_stored_as_it_is(staging: Staging) -> None:
    texts = ["plain", "a\ttab", "a\nline", "a\rreturn", "\\", "\\N", "\\t", "\t", "a\t\\\n\rb", ""]
    new = [
        NewItem(id, an_item(number), ItemState.SKIPPED, Reason.HELD, detail=text)
        for number, (id, text) in enumerate(zip(new_ids(len(texts)), texts, strict=True))
    ]
    insert_items(new, run_id=None, area=staging.area, now=NOW, trashed_at=None, purge_after=None)
    assert [row.detail for row in CleanupItem.objects.order_by("pk")] == texts


def test_rows_of_another_area_are_not_read(staging: Staging, tmp_path: Path) -> None:
    new = insert(staging, None, 3)
    assert load([one.id for one in new], area=Staging(tmp_path, "other").area) == []


def test_a_row_that_was_read_can_be_saved(staging: Staging) -> None:
    (row,) = load([insert(staging, None, 1)[0].id], area=staging.area)
    row.detail = "looked at"
    row.save()
    assert CleanupItem.objects.get().detail == "looked at"


def test_thousands_of_rows_move_in_one_statement_and_only_from_their_state(
    staging: Staging, django_assert_num_queries
) -> None:
    ids = [one.id for one in insert(staging, None, 3_000)]
    CleanupItem.objects.filter(pk=ids[0]).update(state=ItemState.RESTORED)
    with django_assert_num_queries(1):
        moved = move_rows(ids, ItemState.TRASHED, ItemState.PURGE_INTENT, now=NOW)
    assert moved == 2_999
    with transaction.atomic():
        assert claim_rows(ids, ItemState.TRASHED, ItemState.PURGE_INTENT, now=NOW) == []
    assert CleanupItem.objects.get(pk=ids[0]).state == ItemState.RESTORED


def test_a_claim_takes_only_what_meets_its_conditions(staging: Staging) -> None:
    ids = [one.id for one in insert(staging, None, 4)]
    CleanupItem.objects.filter(pk__in=ids[:3]).update(purge_after=NOW.replace(year=2030))
    with transaction.atomic():
        claimed = claim_rows(ids, ItemState.TRASHED, ItemState.PURGE_INTENT, now=NOW, purge_after__lte=NOW)
    assert claimed == [ids[3]]


def test_nothing_to_move_is_no_statement(staging: Staging, django_assert_num_queries) -> None:
    with django_assert_num_queries(0):
        assert move_rows([], ItemState.TRASHED, ItemState.PURGE_INTENT, now=NOW) == 0


def test_the_tally_of_a_stored_plan_is_that_of_its_items(run: CleanupRun) -> None:
    items = [an_item(number, members=1 + number % 4) for number in range(25)]
    counting = Counting()
    counting.add(items)
    assert PlanWriter(run.pk, lease(run))(items) == counting.tally()
