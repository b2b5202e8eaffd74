"""From a plan to its run: report mode, brakes, approval by one person or two, expiry, what changed since."""

from __future__ import annotations

from pathlib import Path

import pytest

from cleanup import operations
from cleanup.models import CleanupRun, PlanBatch
from cleanup.operations import OperationRefused, RunActive
from cleanup.operations.runs import expire_plans
from tests.retention import ANNA, BEN, DAY, Staging, later, write

pytestmark = pytest.mark.django_db


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def test_a_policy_in_report_mode_ends_with_its_plan(staging: Staging) -> None:
    names = staging.fill(5)
    run = staging.run(staging.policy(mode="report"))
    assert (run.state, run.planned_files, run.trashed, run.dry_run) == ("reported", 5, 0, True)
    assert staging.files() == names
    assert len(run.plan_digest) == 64


def test_a_new_policy_reports_only(staging: Staging) -> None:
    policy = operations.add_policy("plain", staging.area, ANNA, age="1d")
    assert policy.mode == "report"
    assert policy.grace_period == 7 * DAY


def test_a_plan_above_a_brake_waits_for_a_person_who_names_the_number(staging: Staging) -> None:
    names = staging.fill(12)
    run = staging.run(staging.policy(max_files=10))
    assert run.state == "awaiting_approval"
    assert run.brakes == [{"brake": "max_files", "limit": 10, "value": 12}]
    assert staging.files() == names
    assert operations.execute(run.pk).state == "awaiting_approval"

    with pytest.raises(OperationRefused, match="12 files, not 11"):
        operations.approve(run, files=11, actor=BEN)
    assert operations.approve(run, files=12, actor=BEN).state == "approved"
    with pytest.raises(OperationRefused, match="not awaiting"):
        operations.approve(run, files=12, actor=BEN)
    run = operations.execute(run.pk)
    assert (run.state, run.trashed) == ("done", 12)
    assert staging.files() == set()


def test_a_protected_area_needs_two_different_persons(tmp_path: Path) -> None:
    staging = Staging(tmp_path, "vault", protected=True)
    staging.fill(2)
    run = staging.run(staging.policy(max_files=1))
    assert operations.approve(run, files=2, actor=ANNA).state == "awaiting_approval"
    with pytest.raises(OperationRefused, match="second person"):
        operations.approve(run, files=2, actor=ANNA)
    assert operations.execute(run.pk).state == "awaiting_approval"
    assert operations.approve(run, files=2, actor=BEN).state == "approved"


def test_a_rejected_run_frees_its_area(staging: Staging) -> None:
    staging.fill(2)
    policy = staging.policy(max_files=1)
    run = staging.run(policy)
    with pytest.raises(RunActive, match="active run"):
        operations.start_run(policy, ANNA)
    with pytest.raises(OperationRefused, match="reason"):
        operations.reject(run, reason="", actor=BEN)
    assert operations.reject(run, reason="not now", actor=BEN).state == "rejected"
    assert operations.execute(run.pk).state == "rejected"
    operations.start_run(policy, ANNA)


def test_a_plan_expires_and_nothing_of_it_is_carried_out(staging: Staging) -> None:
    names = staging.fill(2)
    run = staging.run(staging.policy(max_files=1))
    operations.approve(run, files=2, actor=ANNA)
    CleanupRun.objects.filter(pk=run.pk).update(plan_expires_at=later(-0.01))
    assert operations.execute(run.pk).state == "expired"
    assert staging.files() == names

    run = staging.run(operations.find_policy("policy"))
    assert run.state == "awaiting_approval"
    assert expire_plans(later(0.9)) == 0
    assert expire_plans(later(1.1)) == 1
    assert operations.find_run(run.pk).state == "expired"


def test_a_stored_plan_that_was_changed_is_refused(staging: Staging) -> None:
    names = staging.fill(3)
    run = staging.run(staging.policy(max_files=1))
    write(staging.root / "precious")
    other = operations.preview(operations.find_policy("policy"))
    assert other.files == 4
    batch = PlanBatch.objects.get(run=run)
    forged = Staging(staging.root.parent, "other")
    forged.fill(1)
    body = PlanBatch.objects.get(run=forged.run(forged.policy("other", mode="report"))).body
    PlanBatch.objects.filter(pk=batch.pk).update(body=body)
    operations.approve(run, files=3, actor=ANNA)
    run = operations.execute(run.pk)
    assert run.state == "refused"
    assert "digest" in run.message
    assert staging.files() == names | {"precious"}


def test_a_file_that_changed_after_the_plan_stays(staging: Staging) -> None:
    staging.fill(3)
    run = staging.run(staging.policy(max_files=1))
    (staging.root / "d0" / "f0").write_text("somebody works on it")
    (staging.root / "d1" / "f1").unlink()
    operations.approve(run, files=3, actor=ANNA)
    run = operations.execute(run.pk)
    assert (run.state, run.trashed, run.skipped, run.residue) == ("done", 1, 2, 0)
    assert staging.files() == {"d0/f0"}
    assert staging.states() == {"trashed": 1, "changed": 1, "vanished": 1}
