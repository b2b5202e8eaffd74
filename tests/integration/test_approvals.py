"""Plans above their brakes: who may let them go ahead, until when, and what wins when people differ."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cleanup import operations
from cleanup.models import AuditEntry, CleanupRun
from cleanup.operations import schedule
from cleanup.operations.runs import expire_plans
from tests.retention import ANNA, BEN, DAY, Staging, in_threads, write


def waiting(staging: Staging, files: int = 5, **fields: Any) -> CleanupRun:
    """A run that waits for approval."""
    staging.fill(files)
    run = staging.run(staging.policy(max_files=1, **fields))
    assert (run.state, run.planned_files) == ("awaiting_approval", files)
    return run


def again(run: CleanupRun) -> CleanupRun:
    return operations.find_run(run.pk)


def said(run: CleanupRun) -> Counter[str]:
    """What the audit has of the run."""
    return Counter(AuditEntry.objects.filter(run=str(run.pk)).values_list("action", flat=True))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("protected", "approvals"), [(False, 1), (True, 2)])
def test_of_many_persons_at_once_as_many_approve_as_are_needed(
    tmp_path: Path, protected: bool, approvals: int
) -> None:
    staging = Staging(tmp_path, protected=protected)
    run = waiting(staging)
    refused: list[str] = []

    def approve(number: int) -> None:
        try:
            operations.approve(run, files=5, actor=operations.Actor(name=f"person {number}"))
        except operations.OperationRefused as refusal:
            refused.append(str(refusal))

    in_threads(4, approve)
    found = again(run)
    assert found.state == "approved"
    assert len(found.approvals) == approvals == said(run)["approved"]
    assert len(refused) == 4 - approvals
    assert operations.execute(run.pk).trashed == 5


@pytest.mark.django_db(transaction=True)
def test_one_person_twice_at_the_same_moment_is_one_person(tmp_path: Path) -> None:
    staging = Staging(tmp_path, protected=True)
    run = waiting(staging)
    refused: list[str] = []

    def approve(_: int) -> None:
        try:
            operations.approve(run, files=5, actor=ANNA)
        except operations.OperationRefused as refusal:
            refused.append(str(refusal))

    in_threads(3, approve)
    assert (again(run).state, len(again(run).approvals), len(refused)) == ("awaiting_approval", 1, 2)
    assert operations.execute(run.pk).trashed == 0
    operations.approve(run, files=5, actor=BEN)
    assert operations.execute(run.pk).trashed == 5


@pytest.mark.django_db(transaction=True)
def test_of_approve_reject_stop_and_expire_at_once_one_decides(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    names = staging.fill(3)
    policy = staging.policy(max_files=1)
    for _ in range(5):
        run = staging.run(policy)
        assert run.state == "awaiting_approval"

        def act(number: int, run: CleanupRun = run) -> None:
            try:
                if number == 0:
                    operations.approve(run, files=3, actor=ANNA)
                elif number == 1:
                    operations.reject(run, reason="no", actor=BEN)
                elif number == 2:
                    operations.stop(run, actor=BEN)
                else:
                    expire_plans(datetime.now(UTC) + 2 * DAY)
            except operations.OperationRefused:
                return

        in_threads(4, act)
        found, log = again(run), said(run)
        if found.state == "approved":
            operations.stop(run, actor=ANNA)
            found, log = again(run), said(run)
        assert found.state in ("rejected", "stopped", "expired")
        assert sum(log[f"run_{state}"] for state in ("rejected", "stopped", "expired")) == 1
        assert log[f"run_{found.state}"] == 1
        assert operations.execute(run.pk).trashed == 0
    assert staging.files() == names
    assert operations.verify_audit().sound


@pytest.mark.django_db
def test_a_plan_that_nobody_approved_in_time_expires_and_cannot_be_approved(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    run = waiting(staging)
    late = datetime.now(UTC) + timedelta(hours=25)
    assert schedule.tick(late).expired == 1
    assert again(run).state == "expired"
    with pytest.raises(operations.OperationRefused, match="expired"):
        operations.approve(run, files=5, actor=ANNA)
    assert len(staging.files()) == 5


@pytest.mark.django_db
def test_a_plan_that_was_approved_and_not_taken_up_in_time_touches_nothing(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    run = waiting(staging)
    operations.approve(run, files=5, actor=ANNA)
    CleanupRun.objects.filter(pk=run.pk).update(plan_expires_at=datetime.now(UTC) - DAY)
    assert operations.execute(run.pk).trashed == 0
    assert again(run).state in ("expired", "refused")
    assert len(staging.files()) == 5


@pytest.mark.django_db
@pytest.mark.parametrize(
    "change", [{"age": "1d"}, {"mode": "off"}, {"mode": "report"}, {"exclude": ["d0/**"]}]
)
def test_the_plan_of_an_old_version_is_not_approved_into_something_else(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    staging = Staging(tmp_path)
    run = waiting(staging)
    policy = run.policy_version.policy
    for name, value in change.items():
        setattr(policy, name, value)
    operations.save_policy(policy, ANNA)
    with pytest.raises(operations.OperationRefused, match="version 1 of the policy, which is at 2"):
        operations.approve(run, files=5, actor=ANNA)
    assert again(run).state == "awaiting_approval"
    operations.reject(run, reason="the policy was changed", actor=BEN)
    assert said(run)["run_rejected"] == 1
    assert len(staging.files()) == 5


@pytest.mark.django_db
def test_an_approved_plan_moves_its_own_files_and_none_that_came_or_changed_since(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    run = waiting(staging)
    changed = staging.root / "d0" / "f0"
    changed.unlink()
    write(changed, "another file")
    (staging.root / "d1" / "f1").unlink()
    write(staging.root / "came" / "later")
    operations.approve(run, files=5, actor=ANNA)
    done = operations.execute(run.pk)
    assert (done.trashed, staging.states()) == (3, {"trashed": 3, "changed": 1, "vanished": 1})
    assert staging.files() == {"d0/f0", "came/later"}
    assert changed.read_text() == "another file"


@pytest.mark.django_db
@pytest.mark.parametrize("files", [0, 4, 6, 50])
def test_whoever_approves_another_number_of_files_has_not_read_the_plan(tmp_path: Path, files: int) -> None:
    staging = Staging(tmp_path)
    run = waiting(staging)
    with pytest.raises(operations.OperationRefused, match="the plan has 5 files"):
        operations.approve(run, files=files, actor=ANNA)
    with pytest.raises(operations.OperationRefused, match="needs a reason"):
        operations.reject(run, reason=" ", actor=ANNA)
    assert again(run).state == "awaiting_approval"


@pytest.mark.django_db
def test_every_brake_of_a_policy_can_be_set_and_stops_a_plan(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.fill(4)
    for number, (brake, limit) in enumerate({"max_files": 3, "max_bytes": 27, "max_percent": 99}.items()):
        policy = staging.policy(f"p{number}", **{"max_percent": 100, brake: limit})
        run = staging.run(policy)
        assert [hit["brake"] for hit in run.brakes] == [brake]
        operations.reject(run, reason="next", actor=ANNA)
    policy = staging.policy("habit", max_median_factor=3)
    CleanupRun.objects.bulk_create(
        CleanupRun(
            policy_version=policy.versions.get(), area=staging.area, state="done", trashed=1, actor="beat"
        )
        for _ in range(5)
    )
    run = staging.run(policy)
    assert run.brakes == [{"brake": "max_median_factor", "limit": 3, "value": 4}]
