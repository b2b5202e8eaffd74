"""Rules that see more than one file, through the whole of a run: plan, brakes, trash, residue, restore."""

from __future__ import annotations

import fcntl
import io
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from cleanup import operations
from cleanup.engine.errors import PolicyInvalid
from cleanup.models import CleanupItem, CleanupRun, RetentionPolicy, RunState, StagedFile
from cleanup.operations.planning import preview
from cleanup.operations.policies import current_version, engine_policy, policy_of
from tests.retention import ANNA, DAY, Staging, later, write

pytestmark = pytest.mark.django_db


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def jobs(staging: Staging) -> None:
    """Two jobs that are old, and one of which a part is young."""
    for name in ("job-1/a", "job-1/deep/b", "job-2/a", "job-3/a"):
        write(staging.root / name)
    write(staging.root / "job-3/b", age=DAY)


def test_bundles_go_whole_and_come_back_whole(staging: Staging) -> None:
    jobs(staging)
    before = staging.files()
    run = staging.run(staging.policy(unit="bundle"))
    assert (run.state, run.trashed, run.residue) == (RunState.DONE, 3, 0)
    assert staging.files() == {"job-3/a", "job-3/b"}
    assert sorted(len(item.members) for item in CleanupItem.objects.all()) == [1, 2]
    assert operations.restore(staging.items(), actor=ANNA).restored == 3
    assert staging.files() == before


@pytest.mark.sqlite_only
def test_a_lock_on_one_member_keeps_the_bundle(staging: Staging) -> None:
    jobs(staging)
    with (staging.root / "job-1/deep/b").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        run = staging.run(staging.policy(unit="bundle"))
    assert (run.state, run.trashed, run.skipped, run.residue) == (RunState.DONE, 1, 2, 0)
    assert {"job-1/a", "job-1/deep/b"} <= staging.files()


def test_a_hold_that_comes_after_the_plan_keeps_the_bundle(staging: Staging) -> None:
    jobs(staging)
    policy = staging.policy(unit="bundle", max_files=1)
    run = operations.execute(operations.start_run(policy, ANNA).pk)
    operations.hold(staging.area, "b", None, "evidence", ANNA)
    operations.approve(run, files=run.planned_files, actor=ANNA)
    run = operations.execute(run.pk)
    assert (run.state, run.trashed, run.residue) == (RunState.DONE, 1, 0)
    assert staging.states() == {"held": 1, "trashed": 1}


def approved_later(staging: Staging, policy: RetentionPolicy, between: Callable[[], object]) -> CleanupRun:
    """Plan, let something happen, approve and carry out."""
    run = operations.execute(operations.start_run(policy, ANNA).pk)
    assert run.state == RunState.AWAITING_APPROVAL
    between()
    operations.approve(run, files=run.planned_files, actor=ANNA)
    return operations.execute(run.pk)


@pytest.mark.parametrize("pattern", ["", r"^(?P<key>job-\d)"])
def test_a_bundle_that_somebody_added_to_since_the_plan_stays(staging: Staging, pattern: str) -> None:
    jobs(staging)
    policy = staging.policy(unit="bundle", bundle_pattern=pattern, max_files=1)
    run = approved_later(staging, policy, lambda: write(staging.root / "job-1/new", age=timedelta(0)))
    assert (run.state, run.trashed, run.skipped, run.residue) == (RunState.DONE, 1, 2, 0)
    assert {"job-1/a", "job-1/deep/b", "job-1/new"} <= staging.files()
    assert staging.states() == {"changed": 1, "trashed": 1}


def test_what_has_become_one_of_the_newest_since_the_plan_stays(staging: Staging) -> None:
    for days in range(1, 6):
        write(staging.root / f"db/{days}", age=days * DAY)
    policy = staging.policy(rule="keep_newest", keep=2, age="", max_files=1)
    run = approved_later(staging, policy, lambda: (staging.root / "db/1").unlink())
    assert (run.state, run.trashed, run.skipped, run.residue) == (RunState.DONE, 2, 1, 0)
    assert staging.files() == {"db/2", "db/3"}


def test_a_file_that_was_planned_and_never_moved_is_residue_of_a_bundle_too(staging: Staging) -> None:
    jobs(staging)
    run = operations.execute(operations.start_run(staging.policy(unit="bundle", max_files=1), ANNA).pk)
    batch = run.batches.get()
    batch.settled_at = run.plan_created_at
    batch.save()
    operations.approve(run, files=run.planned_files, actor=ANNA)
    run = operations.execute(run.pk)
    assert (run.state, run.trashed, run.residue) == (RunState.FAILED, 0, 3)


@pytest.mark.sqlite_only
def test_the_newest_of_each_group_stay(staging: Staging) -> None:
    for days in range(1, 6):
        write(staging.root / f"db/{days}", age=days * DAY)
        write(staging.root / f"web/{days}", age=days * DAY)
    policy = staging.policy(rule="keep_newest", keep=3, age="")
    run = staging.run(policy)
    assert (run.state, run.trashed, run.residue) == (RunState.DONE, 4, 0)
    assert staging.files() == {f"{folder}/{days}" for folder in ("db", "web") for days in (1, 2, 3)}
    assert staging.run(policy).trashed == 0


def test_a_watermark_that_is_not_reached_plans_nothing_and_says_so(staging: Staging) -> None:
    staging.fill(3)
    staging.area.high_watermark, staging.area.low_watermark = 100, 99
    staging.area.save()
    found = preview(staging.policy(rule="watermark", age=""))
    assert (found.files, found.kept) == (0, {"not_needed": 3})
    assert found.facts["needed"] == 0


@pytest.mark.parametrize(
    ("fields", "files"),
    [
        ({"rule": "age", "age": "2d"}, 3),
        ({"rule": "age", "age": "2d", "unit": "bundle"}, 3),
        ({"rule": "expires_at"}, 0),
        ({"rule": "keep_newest", "keep": 1}, 2),
        ({"rule": "watermark"}, 0),
        ({"rule": "orphan", "age": "2d"}, 0),
        ({"rule": "rows", "age": "2d", "model": "cleanup.StagedFile"}, 1),
    ],
)
def test_a_policy_that_was_never_saved_can_be_previewed(
    staging: Staging, fields: dict[str, Any], files: int
) -> None:
    for name in "abc":
        write(staging.root / "d" / name)
        StagedFile.objects.create(area=staging.area, path=f"d/{name}")
    StagedFile.objects.filter(path="d/a").update(created_at=later(-3))
    area = None if fields["rule"] == "rows" else staging.area
    found = preview(RetentionPolicy(name="draft", area=area, **fields))
    assert (found.files, found.scanned) == (files, 0 if fields["rule"] == "orphan" else 3)
    assert len(staging.files()) == 3


FIELDS: dict[str, Any] = {
    "unit": "bundle", "bundle_pattern": r"(?P<key>\d+)", "keep": 4, "group_pattern": r"^(\w+)/",
    "floor": timedelta(days=1), "max_median_factor": 3, "max_unknown_percent": 1, "age_by": "am",
}  # fmt: skip


def test_a_saved_policy_is_the_policy_that_was_asked_for(staging: Staging) -> None:
    row = staging.policy(rule="keep_newest", **FIELDS)
    made = policy_of(current_version(row))
    assert made == engine_policy(RetentionPolicy.objects.get(pk=row.pk))
    for field, value in FIELDS.items():
        assert getattr(made, field) == (frozenset(value) if field == "age_by" else value)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "fields",
    [
        {"keep": 3},
        {"rule": "expires_at"},
        {"rule": "keep_newest"},
        {"unit": "bundle", "bundle_pattern": "x"},
        {"rule": "rows", "model": "cleanup.StagedFile"},
        {"floor": timedelta(days=30)},
        {"row_filter": []},
        {"age_by": "M"},
    ],
)
def test_a_policy_that_could_not_be_obeyed_is_not_saved(staging: Staging, fields: dict[str, Any]) -> None:
    with pytest.raises(PolicyInvalid):
        staging.policy(**fields)
    assert not RetentionPolicy.objects.exists()


@pytest.mark.sqlite_only
def test_a_policy_about_files_needs_an_area() -> None:
    with pytest.raises(PolicyInvalid, match="area"):
        operations.add_policy("lost", None, ANNA, age="2d")


@pytest.mark.sqlite_only
def test_every_field_of_a_policy_is_an_option_of_the_command(staging: Staging) -> None:
    words = [
        "--unit", "bundle", "--bundle-pattern", r"(?P<key>\d+)", "--keep", "4", "--group-pattern", r"^(\w+)/",
        "--floor", "1d", "--max-median-factor", "3", "--max-unknown-percent", "1", "--age-by", "am",
    ]  # fmt: skip
    out = io.StringIO()
    call_command(
        "cleanup", "policies", "add", "p", "--area", "area", "--rule", "keep_newest", *words, "--json",
        stdout=out,
    )  # fmt: skip
    assert json.loads(out.getvalue())["policy"] == "p"
    made = engine_policy(RetentionPolicy.objects.get())
    for field, value in FIELDS.items():
        assert getattr(made, field) == (frozenset(value) if field == "age_by" else value)


def test_a_policy_over_rows_is_made_by_the_command_and_names_its_model() -> None:
    call_command(
        "cleanup", "policies", "add", "old", "--rule", "rows", "--model", "cleanup.StagedFile",
        "--age", "90d", "--row-filter", '{"task_id": ""}', "--json", stdout=io.StringIO(),
    )  # fmt: skip
    row = RetentionPolicy.objects.get()
    assert (row.area, row.scope, engine_policy(row).row_lookups) == (
        None, "cleanup.StagedFile", {"task_id": ""},
    )  # fmt: skip
