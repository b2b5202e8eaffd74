"""An area whose trash holds files and that is disabled, moved, removed, or forgotten by the database."""

from __future__ import annotations

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from cleanup import operations
from cleanup.engine.errors import AreaRefused
from cleanup.models import AuditEntry, CleanupItem, CleanupRun, Hold, PlanBatch, RetentionPolicy, StagingArea
from cleanup.operations import OperationRefused, RunActive, schedule
from tests.retention import ANNA, DAY, Staging, files_below, later, write

pytestmark = pytest.mark.django_db


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


@pytest.fixture
def full(staging: Staging) -> set[str]:
    """The names of six files that are in the trash."""
    names = staging.fill(6)
    staging.run(staging.policy(grace_period=DAY))
    assert staging.states() == {"trashed": 6}
    return names


def disabled(staging: Staging) -> StagingArea:
    return operations.set_enabled(staging.area, False, ANNA)


def test_in_a_disabled_area_nothing_is_trashed_or_purged_and_everything_can_be_restored(
    staging: Staging, full: set[str]
) -> None:
    policy = operations.find_policy("policy")
    disabled(staging)
    with pytest.raises(OperationRefused, match="disabled"):
        operations.start_run(operations.find_policy("policy"), ANNA)
    assert operations.purge_due(now=later(30)).purged == 0
    assert schedule.tick(later(30)).started == []
    assert operations.restore(staging.items()[:2], actor=ANNA).restored == 2
    operations.set_enabled(staging.area, True, ANNA)
    policy.refresh_from_db()
    assert operations.purge_due(now=later(30)).purged == 4
    assert set(AuditEntry.objects.filter(action__startswith="area_").values_list("action", flat=True)) == {
        "area_added", "area_disabled", "area_enabled",
    }  # fmt: skip


def test_disabling_stops_a_run_that_waits(staging: Staging) -> None:
    staging.fill(3)
    run = operations.execute(operations.start_run(staging.policy(max_files=1), ANNA).pk)
    assert run.state == "awaiting_approval"
    disabled(staging)
    assert CleanupRun.objects.get(pk=run.pk).state == "stopped"


def test_a_directory_that_was_moved_is_known_by_its_marker_and_its_trash_comes_along(
    staging: Staging, full: set[str], tmp_path: Path
) -> None:
    with pytest.raises(AreaRefused, match="does not exist"):
        operations.move_area(staging.area, tmp_path / "nowhere", ANNA)
    staging.root.rename(tmp_path / "moved")
    operations.move_area(staging.area, tmp_path / "moved", ANNA)
    assert operations.restore(staging.items(), actor=ANNA).restored == 6
    assert files_below(tmp_path / "moved") == full
    entry = AuditEntry.objects.get(action="area_moved")
    assert json.loads(entry.evidence) == {"from": str(staging.root), "to": str(tmp_path / "moved")}


@pytest.mark.parametrize("other", ["unmarked", "foreign", "copy", "link"])
def test_an_area_is_not_moved_to_a_directory_that_is_not_it(
    staging: Staging, full: set[str], tmp_path: Path, other: str
) -> None:
    place = tmp_path / other
    if other == "foreign":
        Staging(tmp_path, "foreign")
    elif other == "copy":
        shutil.copytree(staging.root, place)
    elif other == "link":
        staging.root.rename(tmp_path / "real")
        place.symlink_to(tmp_path / "real")
    else:
        place.mkdir()
    with pytest.raises((AreaRefused, OperationRefused)):
        operations.move_area(staging.area, place, ANNA)
    assert StagingArea.objects.get(pk=staging.area.pk).path == str(staging.root)


def test_an_area_with_a_run_under_way_is_neither_moved_nor_removed(staging: Staging) -> None:
    operations.start_run(staging.policy(), ANNA)
    with pytest.raises(RunActive):
        operations.move_area(staging.area, staging.root, ANNA)
    StagingArea.objects.update(enabled=False)
    staging.area.refresh_from_db()
    with pytest.raises(RunActive):
        operations.remove_area(staging.area, ANNA)


def test_an_area_is_not_removed_while_anything_is_in_its_trash(staging: Staging, full: set[str]) -> None:
    with pytest.raises(OperationRefused, match="disable it first"):
        operations.remove_area(staging.area, ANNA)
    disabled(staging)
    with pytest.raises(OperationRefused, match="6 items are still in the trash"):
        operations.remove_area(staging.area, ANNA)
    CleanupItem.objects.all().delete()
    with pytest.raises(OperationRefused, match="something is still in the trash"):
        operations.remove_area(staging.area, ANNA)
    assert staging.in_trash() == 6


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_area_with_an_empty_trash_is_removed_without_a_file(staging: Staging, dry_run: bool) -> None:
    names = staging.fill(4)
    staging.run(staging.policy())
    operations.restore(staging.items(), actor=ANNA)
    disabled(staging)
    operations.remove_area(staging.area, ANNA, dry_run=dry_run)
    assert staging.files() == names
    assert StagingArea.objects.exists() is dry_run
    assert (staging.root / ".staging-area").exists() is dry_run
    assert AuditEntry.objects.filter(action="area_removed").exists() is not dry_run
    if not dry_run:
        assert not (staging.root / ".trash").exists()
        assert not any(model.objects.exists() for model in (CleanupRun, RetentionPolicy, Hold))
        assert AuditEntry.objects.filter(action="trashed").count() == 4
        operations.add_area("again", staging.root, ANNA)
    assert operations.verify_audit().sound


def test_an_area_whose_directory_is_gone_is_removed_only_if_its_trash_was_empty(
    staging: Staging, full: set[str]
) -> None:
    disabled(staging)
    shutil.rmtree(staging.root)
    with pytest.raises(OperationRefused, match="still in the trash"):
        operations.remove_area(staging.area, ANNA)
    CleanupItem.objects.update(state="lost")
    operations.remove_area(staging.area, ANNA)
    assert not StagingArea.objects.exists()


def forget_everything() -> None:
    """What a fresh database knows of areas: nothing. The audit of the old one is gone with it."""
    for model in (CleanupItem, PlanBatch, CleanupRun, Hold, RetentionPolicy, StagingArea):
        model.objects.all().delete()


def test_the_trash_survives_the_loss_of_the_database(staging: Staging) -> None:
    names = staging.fill(5) | {"result.result.json.lz4", "result.metadata.json"}
    write(staging.root / "result.result.json.lz4", "result")
    write(staging.root / "result.metadata.json", '{"expires_at": "2020-01-01T00:00:00Z"}')
    os.chmod(staging.root / "d1" / "f1", 0o640)
    results = staging.policy("results", rule="expires_at", age="", grace_period=3 * DAY)
    old = staging.policy("old", exclude=["*.lz4", "*.metadata.json"])
    staging.run(results)
    staging.run(old)
    promised = {row.trash_id: row.purge_after for row in CleanupItem.objects.all()}
    assert staging.files() == set()
    forget_everything()

    again = operations.add_area("again", staging.root, ANNA)
    assert again.uuid == staging.area.uuid
    assert schedule.recover_all(with_adoption=True) == 6
    assert schedule.recover_all(with_adoption=True) == 0
    rows = CleanupItem.objects.filter(area=again, state="trashed")
    assert {row.trash_id: row.purge_after for row in rows} == promised
    report = operations.restore([row.pk for row in rows], actor=ANNA)
    assert (report.restored, report.conflicts, report.errors) == (7, [], [])
    assert staging.files() == names
    assert (staging.root / "d1" / "f1").stat().st_mode & 0o777 == 0o640
    held = Hold.objects.get()
    assert held.until is not None
    assert timedelta(days=6) < held.until - held.created_at < timedelta(days=8)


def test_what_was_adopted_is_purged_by_a_person_alone_since_nobody_knows_whom_to_ask(
    staging: Staging, full: set[str]
) -> None:
    forget_everything()
    operations.add_area("again", staging.root, ANNA)
    schedule.recover_all(with_adoption=True)
    report = operations.purge_due(now=later(30))
    assert (report.purged, report.kept) == (0, {"unverified": 6})
    assert staging.in_trash() == 6
    adopted = list(CleanupItem.objects.values_list("pk", flat=True))
    report = operations.purge_now(adopted, reason="the disk is full", actor=ANNA)
    assert (report.purged, report.kept, staging.in_trash()) == (6, {}, 0)


def command(*words: str) -> int:
    try:
        call_command("cleanup", *words, "--json")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_verbs_do_what_they_say_and_nothing_when_dry(staging: Staging, tmp_path: Path) -> None:
    def now() -> Any:
        return StagingArea.objects.filter(name="area").values_list("enabled", "path").first()

    before = now()
    for words in (("areas", "disable", "area"), ("areas", "enable", "area")):
        assert command(*words, "--dry-run") == 0
        assert now() == before
    assert command("areas", "remove", "area") == 2
    assert command("areas", "disable", "area") == 0
    assert now() == (False, str(staging.root))
    staging.root.rename(tmp_path / "moved")
    assert command("areas", "move", "area", str(tmp_path / "moved"), "--dry-run") == 0
    assert now() == (False, str(staging.root))
    assert command("areas", "move", "area", str(tmp_path / "moved")) == 0
    assert now() == (False, str(tmp_path / "moved"))
    assert command("areas", "remove", "area", "--dry-run") == 0
    assert now() is not None
    assert command("areas", "remove", "area") == 0
    assert now() is None
