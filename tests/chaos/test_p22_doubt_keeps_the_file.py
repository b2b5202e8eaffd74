"""P22: doubt keeps the file. Whatever a verifier meets that is no clear answer, nothing is trashed or purged.

Every kind of verifier is set up so that its files pass, which is shown first; then one thing at a time is
broken (`tests.chaos.doubts`), and neither a run nor a purge touches a file, and both say why.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cleanup import operations
from cleanup.models import CleanupItem, CleanupRun
from cleanup.verifiers import KINDS, canonical
from tests.chaos.doubts import AREAS, NEW, OLD, STAGES, Stage
from tests.retention import ANNA, DAY, Staging, write

#: Of both databases `record` asks; the others need one of them.
SQLITE_ONLY = pytest.mark.sqlite_only

CASES = [
    pytest.param(name, fault, id=f"{name}-{fault}", marks=[] if name == "record" else SQLITE_ONLY)
    for name, stage in STAGES.items()
    for fault in stage.FAULTS
]

Enter = Callable[..., Stage]


@pytest.fixture
def enter(tmp_path: Path, settings: Any) -> Any:
    """Sets a stage up, with settings that point to it and as much patience as a loaded machine needs."""
    with ExitStack() as stack:

        def begin(name: str) -> Stage:
            staging = Staging(tmp_path)
            folder = tmp_path / "elsewhere"
            folder.mkdir()
            stage = stack.enter_context(STAGES[name](staging, folder))
            settings.CLEANUP = {
                **settings.CLEANUP,
                **stage.settings,
                "VERIFIER_TIMEOUT": timedelta(seconds=20),
                "VERIFIER_BATCH_TIMEOUT": timedelta(seconds=30),
            }
            return stage

        yield begin


@pytest.fixture
def lose_patience(settings: Any) -> Callable[..., None]:
    """From now on a verifier waits a moment only: for answers that never come, or too late."""

    def change(stage: Stage, fault: str) -> None:
        settings.CLEANUP = {
            **settings.CLEANUP,
            "VERIFIER_TIMEOUT": stage.timeouts.get(fault, timedelta(milliseconds=150)),
            "VERIFIER_BATCH_TIMEOUT": timedelta(milliseconds=400),
        }

    return change


def arrive(stage: Stage, names: tuple[str, ...]) -> None:
    for name in names:
        write(stage.staging.root / name)
        stage.add(name)


def policy_of(stage: Stage, **fields: Any) -> Any:
    given = {"include": ["*.bin"], "verifiers": [stage.specification], "grace_period": timedelta(0), **fields}
    return stage.staging.policy(**given)


def bins(stage: Stage) -> set[str]:
    return {path.name for path in stage.staging.root.glob("*.bin")}


def test_the_matrix_has_every_kind_with_the_faults_that_it_can_meet() -> None:
    assert {stage.kind for stage in STAGES.values()} == set(KINDS)
    lacking = {name: stage.required - set(stage.FAULTS) for name, stage in STAGES.items()}
    assert not any(lacking.values()), lacking


@pytest.mark.django_db
@pytest.mark.parametrize(("name", "fault"), CASES)
def test_nothing_is_trashed_or_purged_in_doubt(
    name: str, fault: str, enter: Enter, lose_patience: Callable[..., None]
) -> None:
    stage = enter(name)
    policy = policy_of(stage)
    arrive(stage, OLD)
    if stage.passes:
        run = stage.staging.run(policy)
        assert (run.state, run.trashed) == ("done", 2), run.message
    before = bins(stage)
    arrive(stage, NEW)

    stage.FAULTS[fault](stage)
    lose_patience(stage, fault)

    run = stage.staging.run(policy)
    assert (run.state, run.trashed, run.kept.get("unverified")) == ("refused", 0, len(before) + 2), (
        run.message
    )
    assert "verifiers could not tell" in run.message
    spelled = canonical(stage.specification)
    assert run.facts["doubts"][spelled].startswith("unknown: ")
    assert [hit["brake"] for hit in run.brakes] == ["max_unknown_percent"]
    assert bins(stage) == before | set(NEW)

    if stage.passes:
        report = operations.purge_due(now=datetime.now(UTC) + DAY)
        assert (report.purged, report.kept) == (0, {"unverified": 2})
        assert stage.staging.in_trash() == 2
        for item in CleanupItem.objects.filter(area=stage.staging.area, state="trashed"):
            assert item.detail.startswith(f"unverified: {spelled} unknown: ")
            assert item.ask_again_at is not None


@pytest.mark.django_db
@pytest.mark.parametrize("name", [pytest.param(n, marks=SQLITE_ONLY) for n, s in STAGES.items() if s.passes])
def test_doubt_that_comes_between_plan_and_move_stops_the_run(
    name: str, enter: Enter, lose_patience: Callable[..., None]
) -> None:
    stage = enter(name)
    arrive(stage, OLD)
    run = stage.staging.run(policy_of(stage, max_files=1))
    assert run.state == "awaiting_approval"
    fault = next(iter(stage.FAULTS))
    stage.FAULTS[fault](stage)
    lose_patience(stage, fault)
    operations.approve(run, files=2, actor=ANNA)
    run = operations.execute(run.pk)
    assert (run.state, run.trashed) == ("failed", 0)
    assert "could not tell" in run.message
    assert bins(stage) == set(OLD)


@pytest.mark.sqlite_only
@pytest.mark.django_db
@pytest.mark.parametrize("fault", AREAS)
def test_an_area_that_is_not_the_one_it_was_is_left_alone(fault: str, enter: Enter, tmp_path: Path) -> None:
    stage = enter("sidecar")
    arrive(stage, OLD)
    policy = policy_of(stage)
    stage.staging.run(policy)
    arrive(stage, NEW)
    away = tmp_path / "area-away"
    away.mkdir()
    AREAS[fault](stage.staging.area, away)
    stage.staging.area.refresh_from_db()

    run = stage.staging.run(policy)
    assert (run.state, run.trashed) == ("refused", 0)
    report = operations.purge_due(now=datetime.now(UTC) + DAY)
    assert (report.purged, len(report.errors)) == (0, 1)
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".bin" for path in found) == 2
    assert sum(path.parent.name == "data" for path in found) == 2
    assert CleanupItem.objects.filter(state="trashed").count() == 2
    assert CleanupRun.objects.get(pk=run.pk).message
