"""Who may act: leases, tokens, the lock on the area; and what happens by the clock."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cleanup import operations, tasks
from cleanup.engine.errors import AreaBusy
from cleanup.engine.states import ItemState
from cleanup.models import AuditEntry, CleanupRun, RetentionPolicy, StagedFile
from cleanup.operations import purging, schedule
from cleanup.operations.areas import locked, opened
from cleanup.stores import leases
from cleanup.stores.items import move_rows
from cleanup.stores.leases import LeaseLost
from tests.retention import ANNA, DAY, Staging, in_threads, write
from tests.servers import python


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def now() -> datetime:
    return datetime.now(UTC)


def lease(run: CleanupRun, owner: str, until: datetime) -> None:
    """Let somebody else have taken the run up."""
    CleanupRun.objects.filter(pk=run.pk).update(
        state="running", lease_owner=owner, lease_until=until, fencing_token=1
    )


@pytest.mark.django_db(transaction=True)
def test_of_several_executors_at_once_one_acts(staging: Staging) -> None:
    staging.fill(300)
    run = operations.start_run(staging.policy(), ANNA)
    in_threads(4, lambda _: operations.execute(run.pk))
    run = operations.find_run(run.pk)
    assert (run.state, run.trashed, run.fencing_token) == ("done", 300, 1)
    assert staging.states() == {"trashed": 300}
    assert AuditEntry.objects.filter(action="trashed").count() == 300
    assert operations.verify_audit().sound


@pytest.mark.django_db(transaction=True)
def test_of_several_starters_at_once_one_gets_the_area(staging: Staging) -> None:
    policy, refused = staging.policy(), []

    def start(number: int) -> None:
        try:
            operations.start_run(policy, ANNA)
        except operations.RunActive as error:
            refused.append(error)

    in_threads(4, start)
    assert CleanupRun.objects.count() == 1
    assert len(refused) == 3


@pytest.mark.django_db(transaction=True)
def test_of_a_restore_and_a_purge_at_once_one_gets_each_file(staging: Staging) -> None:
    staging.fill(200)
    staging.run(staging.policy())
    ids = staging.items()
    reports: dict[int, Any] = {}

    def act(number: int) -> None:
        if number:
            reports[1] = operations.purge_now(ids, reason="race", actor=ANNA)
        else:
            reports[0] = operations.restore(ids, actor=ANNA)

    in_threads(2, act)
    assert reports[0].restored + reports[1].purged == 200
    assert len(staging.files()) == reports[0].restored
    assert set(staging.states()) <= {"restored", "purged"}
    assert reports[0].lost == reports[1].lost == 0


@pytest.mark.django_db
def test_a_run_that_another_worker_holds_is_left_to_it(staging: Staging) -> None:
    staging.fill(2)
    run = operations.start_run(staging.policy(), ANNA)
    lease(run, "elsewhere:1:1:1", now() + timedelta(minutes=1))
    assert operations.execute(run.pk).lease_owner == "elsewhere:1:1:1"
    assert len(staging.files()) == 2
    assert schedule.abandoned(now()) == []


@pytest.mark.django_db
def test_an_expired_lease_is_taken_over_and_the_old_token_is_worth_nothing(staging: Staging) -> None:
    staging.fill(2)
    run = staging.run(staging.policy(max_files=1))
    operations.approve(run, files=2, actor=ANNA)
    lease(run, "elsewhere:1:1:1", now() - timedelta(seconds=1))
    assert schedule.abandoned(now()) == [run.pk]
    done = operations.execute(run.pk)
    assert (done.state, done.fencing_token, done.trashed) == ("done", 2, 2)
    with pytest.raises(LeaseLost):
        leases.advance(run.pk, 1, now=now(), trashed=0)
    assert not leases.release(run.pk, 1, state="failed")
    assert operations.find_run(run.pk).state == "done"


@pytest.mark.django_db
def test_a_worker_whose_run_was_taken_over_commits_nothing_more(staging: Staging, settings: Any) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "BATCH_SIZE": 10}
    staging.fill(50)
    run = operations.start_run(staging.policy(), ANNA)

    def take_over(progress: operations.Progress) -> None:
        if progress.done == 20 and progress.state == "running":
            CleanupRun.objects.filter(pk=run.pk).update(
                fencing_token=7, lease_owner="elsewhere:1:1:1", lease_until=now() + DAY
            )

    found = operations.execute(run.pk, on_progress=take_over)
    assert (found.state, found.fencing_token, found.lease_owner) == ("running", 7, "elsewhere:1:1:1")
    assert found.trashed == staging.states()["trashed"] == 20
    assert len(staging.files()) == 30
    lease(run, "elsewhere:1:1:1", now() - DAY)
    found = operations.execute(run.pk)
    assert (found.state, found.trashed, staging.states()) == ("done", 50, {"trashed": 50})


@pytest.mark.django_db
def test_a_grace_that_was_extended_a_moment_before_the_purge_counts(staging: Staging) -> None:
    staging.fill(3)
    staging.run(staging.policy(grace_period=timedelta(0)))
    due = purging._Order(actor=ANNA, reason="due", due_at=now())
    ids = staging.items()
    operations.extend_grace(ids[:1], by=DAY, actor=ANNA)
    with opened(staging.area) as handle:
        assert purging._purge_part(handle, staging.area, ids, due, purging.Clearing(now=now())).purged == 2
    assert staging.states() == {"purged": 2, "trashed": 1}


@pytest.mark.django_db
def test_an_item_makes_no_move_that_the_table_of_states_lacks(staging: Staging) -> None:
    staging.fill(1)
    staging.run(staging.policy())
    with pytest.raises(ValueError, match="no item goes"):
        move_rows(staging.items(), ItemState.TRASHED, ItemState.PURGED, now=now())
    assert staging.states() == {"trashed": 1}


@pytest.mark.django_db
def test_the_lease_of_a_dead_process_of_this_host_ends_at_once(staging: Staging) -> None:
    staging.fill(2)
    run = operations.start_run(staging.policy(), ANNA)
    child = subprocess.Popen([python(), "-c", "input()"], stdin=subprocess.PIPE)
    owner = leases._owner_name(child.pid)
    assert not leases.is_dead(owner)
    CleanupRun.objects.filter(pk=run.pk).update(lease_owner=owner, lease_until=now() + DAY)
    assert operations.execute(run.pk).state == "queued"
    child.communicate(b"\n")
    assert leases.is_dead(owner)
    assert schedule.abandoned(now()) == [run.pk]
    assert operations.execute(run.pk).state == "done"


def test_an_owner_elsewhere_is_never_taken_for_dead() -> None:
    assert not leases.is_dead("other-host:1:1:1")
    assert not leases.is_dead("nonsense")
    assert not leases.is_dead("")
    assert not leases.is_dead(leases.owner_name())


@pytest.mark.django_db
def test_while_another_process_holds_the_area_the_run_waits(staging: Staging, settings: Any) -> None:
    names = staging.fill(3)
    run = operations.start_run(staging.policy(), ANNA)
    with opened(staging.area) as handle, handle.lock():
        with pytest.raises(AreaBusy), opened(staging.area) as other, locked(other, patience=timedelta(0)):
            pass
        assert schedule.recover_all(with_adoption=True) == 0
    assert staging.files() == names
    assert operations.execute(run.pk).state == "done"


@pytest.mark.django_db
def test_stop_ends_a_waiting_run_at_once_and_a_working_one_before_its_next_batch(
    staging: Staging, settings: Any
) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "BATCH_SIZE": 10}
    staging.fill(50)
    policy = staging.policy()
    run = operations.start_run(policy, ANNA)
    assert operations.stop(run, actor=ANNA).state == "stopped"
    with pytest.raises(operations.OperationRefused, match="over"):
        operations.stop(run, actor=ANNA)

    run = operations.start_run(policy, ANNA)

    def stop_early(progress: operations.Progress) -> None:
        if progress.state == "running" and progress.done >= 20:
            CleanupRun.objects.filter(pk=run.pk).update(stop_requested=True)

    done = operations.execute(run.pk, on_progress=stop_early)
    assert (done.state, done.trashed) == ("stopped", 20)
    assert len(staging.files()) == 30
    assert staging.run(policy).trashed == 30


@pytest.mark.django_db
@pytest.mark.parametrize("state", ["queued", "planning", "awaiting_approval", "approved", "running"])
def test_a_run_can_be_stopped_in_every_state_and_moves_no_more_files(
    staging: Staging, settings: Any, state: str
) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "BATCH_SIZE": 10}
    staging.fill(50)
    waits = state in ("awaiting_approval", "approved")
    run = operations.start_run(staging.policy(max_files=1 if waits else 50), ANNA)

    def stop_in(progress: operations.Progress) -> None:
        if progress.state == state and not CleanupRun.objects.get().stop_requested:
            operations.stop(run, actor=ANNA)

    if state != "queued":
        operations.execute(run.pk, on_progress=None if waits else stop_in)
    if state == "approved":
        operations.approve(operations.find_run(run.pk), files=50, actor=ANNA)
    if waits or state == "queued":
        assert operations.find_run(run.pk).state == state
        operations.stop(operations.find_run(run.pk), actor=ANNA)
    found = operations.execute(run.pk)
    assert found.state == "stopped"
    moved = 10 if state == "running" else 0
    assert (found.trashed, len(staging.files())) == (moved, 50 - moved)
    said = AuditEntry.objects.filter(run=str(run.pk), action__startswith="run_")
    assert list(said.order_by("seq").values_list("action", flat=True)) == ["run_started", "run_stopped"]
    assert schedule.abandoned(now() + DAY) == []


@pytest.mark.django_db
def test_a_slice_gives_the_run_back_and_the_next_one_goes_on(staging: Staging, settings: Any) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "BATCH_SIZE": 10}
    staging.fill(30)
    run = operations.start_run(staging.policy(), ANNA)
    found = operations.execute(run.pk, slice_length=timedelta(0))
    assert (found.state, found.lease_until, found.trashed) == ("running", None, 0)
    slices = 1
    while found.state == "running":
        tasks.continue_run(str(run.pk))
        found, slices = operations.find_run(run.pk), slices + 1
    assert (found.state, found.trashed) == ("done", 30)
    assert slices == 2
    tasks.continue_run(str(run.pk))
    assert operations.find_run(run.pk).trashed == 30


# By the clock


@pytest.mark.django_db
def test_a_due_policy_is_started_once_however_many_ticks_and_catches_up_once(staging: Staging) -> None:
    staging.fill(2)
    policy = staging.policy(schedule="6h")
    assert schedule.tick(now()).started == []
    missed = now() - timedelta(hours=20)
    RetentionPolicy.objects.filter(pk=policy.pk).update(next_due_at=missed)
    done = [schedule.tick(now()), schedule.tick(now())]
    assert [len(one.started) for one in done] == [1, 0]
    policy.refresh_from_db()
    assert policy.next_due_at == missed + timedelta(hours=24)
    schedule.run_inline(done[0], operations.execute)
    assert operations.find_run(done[0].started[0]).state == "done"
    assert CleanupRun.objects.count() == 1


@pytest.mark.django_db
def test_of_two_ticks_that_saw_the_same_due_policy_one_claims_it(staging: Staging) -> None:
    policy = staging.policy()
    both = [RetentionPolicy.objects.get(pk=policy.pk) for _ in range(2)]
    assert [schedule._move(row, now() + DAY) for row in both] == [True, False]


@pytest.mark.django_db
def test_a_due_policy_whose_area_is_busy_is_tried_again_soon(staging: Staging) -> None:
    policy = staging.policy(max_files=0)
    staging.fill(1)
    staging.run(policy)
    RetentionPolicy.objects.filter(pk=policy.pk).update(next_due_at=now())
    assert schedule.tick(now()).started == []
    policy.refresh_from_db()
    assert now() < policy.next_due_at < now() + timedelta(minutes=2)


@pytest.mark.django_db
def test_a_policy_that_is_off_is_never_due(staging: Staging) -> None:
    policy = staging.policy(mode="off")
    RetentionPolicy.objects.filter(pk=policy.pk).update(next_due_at=now() - DAY)
    assert schedule.tick(now()).started == []


@pytest.mark.django_db
def test_a_tick_purges_soft_deleted_rows_after_their_grace_alone(staging: Staging) -> None:
    rows = [StagedFile.objects.create(area=staging.area, path=str(number)) for number in range(3)]
    rows[0].delete()
    StagedFile.objects.filter(path="1").soft_delete(grace_period=timedelta(0))
    assert schedule.tick(now() + timedelta(seconds=1)).rows_purged == 1
    assert set(StagedFile.all_objects.values_list("path", flat=True)) == {"0", "2"}


@pytest.mark.django_db
def test_the_task_of_the_tick_hands_due_work_to_a_worker_and_needs_no_broker(
    staging: Staging, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    policy = staging.policy()
    RetentionPolicy.objects.filter(pk=policy.pk).update(next_due_at=now())
    tasks.tick()
    assert CleanupRun.objects.get().state == "queued"


# After the loss of the database


@pytest.mark.django_db
def test_what_lies_in_the_trash_without_a_row_is_adopted_and_can_be_restored(staging: Staging) -> None:
    write(staging.root / "a" / "precious", "bytes")
    run = staging.run(staging.policy())
    purge_after = run.items.get().purge_after
    uuid = staging.area.uuid
    run.items.all().delete()
    run.batches.all().delete()
    run.delete()
    RetentionPolicy.objects.all().delete()
    staging.area.delete()

    staging.area = operations.add_area("area", staging.root, ANNA)
    assert staging.area.uuid == uuid
    assert schedule.recover_all(with_adoption=True) == 1
    assert schedule.recover_all(with_adoption=True) == 0
    item = staging.area.items.get()
    assert (item.state, item.path, item.purge_after, item.run) == ("trashed", "a/precious", purge_after, None)
    assert operations.purge_due(now=purge_after + DAY).kept == {"unverified": 1}
    assert operations.restore([item.pk], actor=ANNA).restored == 1
    assert (staging.root / "a" / "precious").read_text() == "bytes"


@pytest.mark.django_db
def test_a_file_taken_out_of_the_trash_by_hand_is_lost_and_never_counted_as_purged(staging: Staging) -> None:
    staging.fill(2)
    staging.run(staging.policy(grace_period=timedelta(0)))
    data = sorted(path for path in (staging.root / ".trash").rglob("data/*"))
    os.unlink(data[0])
    report = operations.purge_due(now=now() + DAY)
    assert (report.purged, report.lost) == (1, 1)
    assert staging.states() == {"purged": 1, "lost": 1}
    assert AuditEntry.objects.filter(action="lost").count() == 1
