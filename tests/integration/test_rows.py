"""The rule `rows`: records of a model go by age through plan, brakes, approval and audit, and come back."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import msgspec
import pytest
from django.core.management import call_command
from django.db import connections

from cleanup import operations
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.packing import Counting, squeeze
from cleanup.models import (
    AuditEntry,
    CleanupItem,
    CleanupRun,
    PlanBatch,
    RetentionPolicy,
    RunState,
    StagedFile,
)
from cleanup.operations import RunActive, schedule
from cleanup.operations.rows import RowReport, purge_due_rows, restore_rows, retire_rows
from cleanup.stores.plans import items_of
from tests.integration.test_cleanup_recovery import interrupted
from tests.retention import ANNA, BEN, DAY, Staging, write

pytestmark = pytest.mark.django_db

MODEL = "cleanup.StagedFile"


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def make(staging: Staging, count: int, *, age: timedelta = 40 * DAY, **fields: Any) -> None:
    rows = [StagedFile(area=staging.area, path=f"{age.days}/{number}", **fields) for number in range(count)]
    StagedFile.objects.bulk_create(rows)
    old = StagedFile.objects.filter(path__startswith=f"{age.days}/")
    old.update(created_at=datetime.now(UTC) - age)


def row_policy(name: str = "rows", **fields: Any) -> RetentionPolicy:
    given = {"age": "30d", "mode": "enforce", "max_percent": 100, "model": MODEL, **fields}
    return operations.add_policy(name, None, ANNA, rule="rows", **given)  # type: ignore[arg-type]


def run(policy: RetentionPolicy) -> CleanupRun:
    return operations.execute(operations.start_run(policy, ANNA).pk)


def living() -> int:
    return int(StagedFile.objects.count())


def test_old_rows_are_soft_deleted_with_an_entry_each(staging: Staging) -> None:
    make(staging, 5)
    make(staging, 3, age=DAY)
    done = run(row_policy(grace_period=3 * DAY))
    assert (done.state, done.trashed, done.skipped, done.residue) == (RunState.DONE, 5, 0, 0)
    assert (done.rows_of, done.area, done.scope, done.scanned) == (MODEL, None, MODEL, 8)
    assert done.kept == {"younger_than_age": 3}
    assert living() == 3
    row = StagedFile.all_objects.deleted().order_by("pk")[0]
    assert row.purge_after - row.deleted_at == 3 * DAY
    assert row.delete_reason == "policy rows v1"
    entries = AuditEntry.objects.filter(action="row_soft_deleted", run=str(done.pk))
    assert entries.count() == 5
    assert entries.order_by("seq")[0].path == f"{MODEL}/{row.pk}"
    assert not CleanupItem.objects.exists()
    assert operations.verify_audit().sound


@pytest.mark.sqlite_only
def test_a_preview_and_a_report_touch_nothing(staging: Staging) -> None:
    make(staging, 4)
    policy = row_policy(mode="report")
    found = operations.preview(policy, limit=2)
    assert (found.files, len(found.items), found.scanned) == (4, 2, 4)
    assert found.items[0].path.startswith(f"{MODEL}/")
    assert (run(policy).state, living()) == (RunState.REPORTED, 4)


def test_the_filter_of_the_policy_says_which_rows(staging: Staging) -> None:
    make(staging, 2, content_type="text/plain")
    make(staging, 3, age=50 * DAY, content_type="image/png")
    done = run(row_policy(row_filter={"content_type__startswith": "text/", "size__lte": 10}))
    assert (done.trashed, done.kept) == (2, {"not_included": 3})


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": "cleanup.Nothing"}, "there is no model"),
        ({"model": "cleanup.CleanupRun"}, "could not be brought back"),
        ({"model": "auth.User"}, "could not be brought back"),
        ({"model": "cleanup.stagedfile"}, "is written cleanup.StagedFile"),
        ({"stamp_field": "nothing"}, "no field 'nothing'"),
        ({"stamp_field": "path"}, "holds no moment"),
        ({"row_filter": {"nothing": 1}}, "no field 'nothing'"),
        ({"row_filter": {"area__name__nothing": 1}}, "cannot be asked"),
        ({"row_filter": {"size": "many"}}, "cannot be asked"),
        ({"age": ""}, "needs an age"),
    ],
)
def test_a_policy_that_the_model_cannot_obey_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(PolicyInvalid, match=why):
        row_policy(**fields)
    assert not RetentionPolicy.objects.exists()


@pytest.mark.sqlite_only
def test_above_a_brake_a_person_approves_by_the_number_of_rows(staging: Staging) -> None:
    make(staging, 4)
    waiting = run(row_policy(max_files=3))
    assert (waiting.state, living()) == (RunState.AWAITING_APPROVAL, 4)
    operations.approve(waiting, files=4, actor=BEN)
    assert operations.execute(waiting.pk).trashed == 4


def test_a_row_that_changed_since_the_plan_stays(staging: Staging) -> None:
    make(staging, 5)
    waiting = run(row_policy(max_files=1, row_filter={"size": 0}))
    first, second, third = StagedFile.objects.order_by("pk")[:3]
    StagedFile.objects.filter(pk=first.pk).update(created_at=datetime.now(UTC) - 35 * DAY)
    StagedFile.objects.filter(pk=second.pk).update(size=1)
    third.delete()
    promised = third.purge_after
    operations.approve(waiting, files=5, actor=BEN)
    done = operations.execute(waiting.pk)
    assert (done.state, done.trashed, done.skipped, done.residue) == (RunState.DONE, 2, 3, 0)
    assert set(StagedFile.objects.values_list("pk", flat=True)) == {first.pk, second.pk}
    assert StagedFile.all_objects.get(pk=third.pk).purge_after == promised
    told = AuditEntry.objects.filter(run=str(done.pk), action__in=["changed", "vanished"])
    assert sorted(told.values_list("action", flat=True)) == ["changed", "changed", "vanished"]


@pytest.mark.sqlite_only
def test_a_plan_that_was_tampered_with_is_not_carried_out(staging: Staging) -> None:
    make(staging, 4)
    waiting = run(row_policy(max_files=3))
    make(staging, 1, age=DAY)
    young = f"{MODEL}/{StagedFile.objects.order_by('-pk')[0].pk}".encode()
    batch = PlanBatch.objects.get(run=waiting)
    first, *others = items_of(batch)
    batch.body = squeeze(Counting().add([msgspec.structs.replace(first, path=young), *others]))
    batch.save()
    operations.approve(waiting, files=4, actor=BEN)
    done = operations.execute(waiting.pk)
    assert (done.state, living()) == (RunState.REFUSED, 5)
    assert "digest" in done.message


def test_a_model_has_one_active_run(staging: Staging) -> None:
    make(staging, 4)
    run(row_policy(max_files=3))
    with pytest.raises(RunActive, match=MODEL):
        operations.start_run(row_policy("others"), ANNA)


@pytest.mark.sqlite_only
def test_a_run_goes_on_in_slices_and_after_a_stop_in_none(staging: Staging, settings: Any) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "BATCH_SIZE": 2}
    make(staging, 6)
    started = operations.start_run(row_policy(), ANNA)
    assert operations.execute(started.pk, slice_length=timedelta(0)).state == RunState.RUNNING
    assert living() == 6
    operations.stop(started, actor=ANNA)
    assert operations.execute(started.pk).state == RunState.STOPPED
    assert living() == 6


def test_a_run_that_was_interrupted_goes_on_with_the_next_batch(staging: Staging, settings: Any) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "BATCH_SIZE": 2}
    make(staging, 6)
    started = operations.start_run(row_policy(), ANNA)
    with interrupted("run.after_rows", 2):
        operations.execute(started.pk)
    assert living() == 2
    CleanupRun.objects.filter(pk=started.pk).update(lease_until=None, lease_owner="")
    done = operations.execute(started.pk)
    assert (done.state, done.trashed, done.residue, living()) == (RunState.DONE, 6, 0, 0)
    assert AuditEntry.objects.filter(action="row_soft_deleted").count() == 6


@pytest.mark.sqlite_only
def test_a_tick_starts_a_due_policy_over_rows(staging: Staging) -> None:
    make(staging, 2)
    policy = row_policy()
    RetentionPolicy.objects.filter(pk=policy.pk).update(next_due_at=datetime.now(UTC) - timedelta(minutes=1))
    done = schedule.tick()
    assert len(done.started) == 1
    schedule.run_inline(done, operations.execute)
    assert living() == 0


def test_rows_come_back_all_or_by_key(staging: Staging) -> None:
    make(staging, 5)
    run(row_policy())
    first = StagedFile.all_objects.order_by("pk")[0]
    assert restore_rows(MODEL, [str(first.pk), "999999"], actor=ANNA).rows == 1
    assert StagedFile.objects.get().pk == first.pk
    assert restore_rows(MODEL, actor=ANNA).rows == 4
    assert restore_rows(MODEL, actor=ANNA).rows == 0
    assert AuditEntry.objects.filter(action="row_restored").count() == 5
    with pytest.raises(operations.OperationRefused, match="no key"):
        restore_rows(MODEL, ["x"], actor=ANNA)
    with pytest.raises(PolicyInvalid):
        restore_rows("auth.User", actor=ANNA)


def test_rows_are_retired_by_hand_and_come_back_and_no_file_is_touched(staging: Staging) -> None:
    make(staging, 3)
    write(staging.root / "40" / "0")
    first, second, _ = StagedFile.objects.order_by("pk")
    with pytest.raises(operations.OperationRefused, match="reason"):
        retire_rows(MODEL, [str(first.pk)], actor=ANNA, reason=" ")
    keys = [str(first.pk), str(second.pk), str(first.pk), "999999"]
    assert retire_rows(MODEL, keys, actor=ANNA, reason="twice", dry_run=True).rows == 2
    assert living() == 3
    report = retire_rows(MODEL, keys, actor=ANNA, reason="twice")
    assert (report.rows, report.kept, living()) == (2, [f"{MODEL}/999999"], 1)
    assert staging.files() == {"40/0"}
    row = StagedFile.all_objects.get(pk=first.pk)
    assert row.delete_reason == "retired by anna: twice"
    assert row.purge_after - row.deleted_at == 7 * DAY
    entries = AuditEntry.objects.filter(action="row_soft_deleted")
    assert set(entries.values_list("actor", "reason", "path")) == {
        ("anna", "twice", f"{MODEL}/{key}") for key in (first.pk, second.pk)
    }
    assert retire_rows(MODEL, keys, actor=ANNA, reason="again").rows == 0
    assert restore_rows(MODEL, actor=BEN).rows == 2
    with pytest.raises(operations.OperationRefused, match="no key"):
        retire_rows(MODEL, ["x"], actor=ANNA, reason="r")


@pytest.mark.sqlite_only
def test_the_command_retires_rows_and_says_so_before_it_does(staging: Staging) -> None:
    make(staging, 2)
    key = str(StagedFile.objects.order_by("pk")[0].pk)

    def said(*words: str) -> tuple[int, Any]:
        out, code = io.StringIO(), 0
        try:
            call_command("cleanup", "retire", "--rows", MODEL, "--pk", key, *words, "--json", stdout=out)
        except SystemExit as end:
            code = int(end.code or 0)
        return code, json.loads(out.getvalue())

    planned = {"retired": 0, "kept": [], "rows": 1, "dry_run": True}
    assert said("--reason", "r", "--dry-run") == (0, planned)
    assert said("--reason", "r") == (0, {"retired": 1, "kept": []})
    assert said("--reason", "r") == (1, {"retired": 0, "kept": [f"{MODEL}/{key}"]})
    assert living() == 1


def test_a_row_whose_file_is_in_the_trash_is_not_restored_without_it(staging: Staging) -> None:
    names = staging.fill(2)
    StagedFile.objects.bulk_create(StagedFile(area=staging.area, path=path) for path in names)
    staging.run(staging.policy())
    report = restore_rows(MODEL, actor=ANNA)
    assert (report.rows, len(report.kept), living()) == (0, 2, 0)


def test_rows_are_removed_after_their_grace_by_the_tick_with_an_entry_each(
    staging: Staging, settings: Any
) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "BATCH_SIZE": 2}
    make(staging, 5)
    make(staging, 1, age=DAY)
    run(row_policy(grace_period=DAY))
    now = datetime.now(UTC)
    assert schedule.tick(now + timedelta(hours=23)).rows_purged == 0
    assert schedule.tick(now + timedelta(hours=25)).rows_purged == 5
    assert (living(), StagedFile.all_objects.count()) == (1, 1)
    assert AuditEntry.objects.filter(action="row_purged", area=MODEL).count() == 5
    assert purge_due_rows(now + 9 * DAY).rows == 0


@pytest.mark.sqlite_only
def test_a_policy_over_rows_is_made_planned_and_run_by_commands(staging: Staging) -> None:
    make(staging, 3)

    def said(*words: str) -> Any:
        out = io.StringIO()
        call_command("cleanup", *words, "--json", stdout=out)
        return json.loads(out.getvalue())

    words = ("--rule", "rows", "--model", MODEL, "--age", "30d", "--max-percent", "100", "--mode", "enforce")
    assert said("policies", "add", "rows", *words, "--row-filter", '{"size": 0}')["policy"] == "rows"
    assert said("plan", "rows")["files"] == 3
    assert said("run", "rows")["state"] == "done"
    assert living() == 0


@pytest.mark.sqlite_only
def test_the_command_brings_rows_back_and_says_so_before_it_does(staging: Staging) -> None:
    make(staging, 3)
    run(row_policy())

    def said(*words: str) -> Any:
        out = io.StringIO()
        call_command("cleanup", "restore", "--rows", MODEL, *words, "--json", stdout=out)
        return json.loads(out.getvalue())

    assert said("--dry-run") == {"restored": 0, "rows": 3, "dry_run": True}
    key = str(StagedFile.all_objects.order_by("pk")[0].pk)
    assert said("--pk", key)["restored"] == 1
    assert said() == {"restored": 2, "kept": []}


@pytest.mark.django_db(transaction=True)
def test_of_a_restore_and_a_removal_of_the_same_rows_each_row_has_one_winner(
    staging: Staging, settings: Any
) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "BATCH_SIZE": 5}
    make(staging, 40)
    StagedFile.objects.all().soft_delete(grace_period=timedelta(0))
    now, begin = datetime.now(UTC) + DAY, Barrier(2)
    counts: dict[str, int] = {}

    def work(name: str, verb: Callable[[], RowReport]) -> None:
        begin.wait(timeout=60)
        try:
            counts[name] = verb().rows
        finally:
            connections.close_all()

    threads = [
        Thread(target=work, args=("restored", lambda: restore_rows(MODEL, actor=ANNA))),
        Thread(target=work, args=("purged", lambda: purge_due_rows(now))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert counts["restored"] == living() == StagedFile.all_objects.count()
    assert counts["purged"] == 40 - living()
    entries = Counter(AuditEntry.objects.values_list("action", flat=True))
    assert (entries["row_restored"], entries["row_purged"]) == (counts["restored"], counts["purged"])
