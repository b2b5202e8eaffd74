"""Orphans both ways: seen twice, refused in numbers, trashed by a plan or soft-deleted, and back again."""

from __future__ import annotations

import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from prometheus_client import CollectorRegistry

from cleanup import operations
from cleanup.metrics import CleanupCollector
from cleanup.models import AuditEntry, CleanupItem, CleanupRun, OrphanBatch, RunState, StagedFile
from cleanup.operations.areas import opened
from cleanup.operations.orphans import TooManyOrphans, confirmed, look, sight
from cleanup.operations.policies import engine_policy
from tests.retention import ANNA, DAY, Staging, write

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    """Thirty files, each with its row."""
    made = Staging(tmp_path)
    register(made, *made.fill(30))
    return made


def register(staging: Staging, *paths: str, age: timedelta = 9 * DAY) -> None:
    rows = [StagedFile(area=staging.area, path=path) for path in paths]
    StagedFile.objects.bulk_create(rows)
    StagedFile.objects.filter(path__in=paths).update(created_at=datetime.now(UTC) - age)


def seen_before(staging: Staging, ago: timedelta = 25 * HOUR) -> None:
    """Make the first sighting, so long ago."""
    with opened(staging.area) as handle:
        sight(handle, staging.area, now=datetime.now(UTC) - ago, actor=ANNA)


def orphan_policy(staging: Staging, **fields: Any) -> Any:
    return staging.policy(rule="orphan", **fields)


def candidates(staging: Staging, policy: Any, now: datetime) -> set[str]:
    with opened(staging.area) as handle:
        found = confirmed(handle, staging.area.pk, engine_policy(policy), now=now)
        return {one.path.decode() for one in found}


def test_a_file_goes_only_after_two_sightings_a_day_apart(staging: Staging) -> None:
    policy = orphan_policy(staging)
    write(staging.root / "d0/stray")
    first = staging.run(policy)
    assert (first.state, first.planned_files, first.facts["orphan_files"]) == (RunState.DONE, 0, 1)
    now = datetime.now(UTC)
    assert candidates(staging, policy, now + 23 * HOUR) == set()
    assert candidates(staging, policy, now + 25 * HOUR) == {"d0/stray"}
    OrphanBatch.objects.all().delete()
    seen_before(staging)
    second = staging.run(policy)
    assert (second.state, second.trashed, second.residue) == (RunState.DONE, 1, 0)
    assert "d0/stray" not in staging.files()
    item = CleanupItem.objects.get(state="trashed")
    assert (item.path, item.reason) == ("d0/stray", "orphaned")
    operations.restore([item.pk], actor=ANNA)
    assert "d0/stray" in staging.files()


@pytest.mark.sqlite_only
def test_a_preview_writes_no_sighting(staging: Staging) -> None:
    write(staging.root / "stray")
    found = operations.preview(orphan_policy(staging))
    assert (found.files, found.kept) == (0, {"seen_once": 1})
    assert not OrphanBatch.objects.exists()


@pytest.mark.sqlite_only
def test_an_orphan_that_became_another_file_begins_anew(staging: Staging) -> None:
    write(staging.root / "stray")
    write(staging.root / "other")
    seen_before(staging)
    os.unlink(staging.root / "stray")
    write(staging.root / "stray", "other content")
    assert candidates(staging, orphan_policy(staging), datetime.now(UTC)) == {"other"}


@pytest.mark.sqlite_only
def test_an_orphan_younger_than_the_longest_job_stays(staging: Staging) -> None:
    write(staging.root / "stray", age=30 * HOUR)
    seen_before(staging)
    run = staging.run(orphan_policy(staging, age="2d"))
    assert (run.trashed, run.kept["younger_than_age"]) == (0, 1)


@pytest.mark.sqlite_only
def test_an_age_by_birth_is_looked_at_too(staging: Staging) -> None:
    write(staging.root / "stray")
    seen_before(staging)
    run = staging.run(orphan_policy(staging, age="1h", age_by="b"))
    # Where the file system knows no birth times, nobody can tell.
    assert (run.trashed, set(run.kept) <= {"younger_than_age", "unknown_timestamp"}) == (0, True)


def test_what_was_just_restored_is_no_candidate(staging: Staging) -> None:
    policy = orphan_policy(staging, include=["stray"])
    write(staging.root / "stray")
    seen_before(staging)
    staging.run(policy)
    operations.restore(staging.items(), actor=ANNA, to="elsewhere")
    seen_before(staging)
    assert candidates(staging, policy, datetime.now(UTC)) == set()
    assert candidates(staging, policy, datetime.now(UTC) + 3 * DAY) == {"elsewhere"}


@pytest.mark.sqlite_only
def test_a_hold_keeps_an_orphan_and_an_orphaned_row(staging: Staging) -> None:
    policy = orphan_policy(staging)
    write(staging.root / "stray")
    register(staging, "missing")
    operations.hold(staging.area, "stray", None, "mine", ANNA)
    operations.hold(staging.area, "missing", None, "mine", ANNA)
    seen_before(staging)
    run = staging.run(policy)
    assert (run.state, run.trashed, run.kept["held"]) == (RunState.DONE, 0, 1)
    assert run.facts["rows_retired"] == 0
    assert StagedFile.objects.filter(path="missing").exists()


def test_a_file_that_was_registered_between_plan_and_run_stays(staging: Staging) -> None:
    write(staging.root / "stray")
    write(staging.root / "other")
    seen_before(staging)
    policy = orphan_policy(staging, max_files=1)
    run = staging.run(policy)
    assert run.state == RunState.AWAITING_APPROVAL
    register(staging, "stray")
    operations.approve(run, files=2, actor=ANNA)
    run = operations.execute(run.pk)
    assert (run.state, run.trashed, run.skipped, run.residue) == (RunState.DONE, 1, 1, 0)
    assert CleanupItem.objects.get(state="skipped").reason == "registered"
    assert "stray" in staging.files()
    assert "other" not in staging.files()


def test_above_a_fifth_of_the_files_the_run_is_refused_and_remembers_nothing(staging: Staging) -> None:
    StagedFile.all_objects.filter(path__startswith="d0/").delete()
    write(staging.root / "stray")
    run = staging.run(orphan_policy(staging))
    assert run.state == RunState.REFUSED
    assert "20 %" in run.message
    assert not OrphanBatch.objects.exists()
    assert len(staging.files()) == 31


def test_an_empty_registry_of_a_full_area_is_refused(staging: Staging) -> None:
    StagedFile.all_objects.all()._raw_delete("default")
    with opened(staging.area) as handle, pytest.raises(TooManyOrphans, match="knows none"):
        look(handle, staging.area.pk, now=datetime.now(UTC))


@pytest.mark.sqlite_only
def test_an_empty_area_with_a_full_registry_is_refused(staging: Staging) -> None:
    for path in staging.files():
        (staging.root / path).unlink()
    run = staging.run(orphan_policy(staging))
    assert run.state == RunState.REFUSED
    assert StagedFile.objects.count() == 30


def test_a_refused_scan_leaves_the_sightings_of_the_last_good_one(staging: Staging) -> None:
    write(staging.root / "stray")
    seen_before(staging, 30 * HOUR)
    gone = StagedFile.all_objects.filter(path__startswith="d0/")
    gone.delete()
    with pytest.raises(TooManyOrphans):
        seen_before(staging, 5 * HOUR)
    gone.restore()
    assert candidates(staging, orphan_policy(staging), datetime.now(UTC)) == {"stray"}


def test_a_row_without_a_file_is_soft_deleted_at_the_second_sighting_with_an_entry(staging: Staging) -> None:
    register(staging, "missing")
    policy = orphan_policy(staging, grace_period=3 * DAY)
    assert staging.run(policy).facts["rows_retired"] == 0
    OrphanBatch.objects.all().delete()
    seen_before(staging)
    run = staging.run(policy)
    assert (run.state, run.facts["orphan_rows"], run.facts["rows_retired"]) == (RunState.DONE, 1, 1)
    row = StagedFile.all_objects.get(path="missing")
    assert (row.delete_reason, row.purge_after - row.deleted_at) == ("its file is missing", 3 * DAY)
    entry = AuditEntry.objects.get(action="row_soft_deleted")
    assert (entry.path, entry.run, entry.actor) == ("missing", str(run.pk), "anna")


@pytest.mark.sqlite_only
def test_a_young_row_and_one_outside_the_patterns_stay(staging: Staging) -> None:
    register(staging, "young", age=HOUR)
    register(staging, "excluded/x", "odd//path", "../outside", "a\\b")
    seen_before(staging)
    run = staging.run(orphan_policy(staging, exclude=["excluded"]))
    assert run.facts["rows_retired"] == 0
    assert StagedFile.objects.count() == 35


@pytest.mark.sqlite_only
def test_more_orphaned_rows_than_the_brake_are_left_to_a_person(staging: Staging) -> None:
    register(staging, "gone1", "gone2")
    seen_before(staging)
    run = staging.run(orphan_policy(staging, max_files=1))
    assert run.facts["rows_above_brake"] == 2
    assert StagedFile.objects.count() == 32


@pytest.mark.sqlite_only
def test_a_dry_run_retires_no_row(staging: Staging) -> None:
    register(staging, "missing")
    seen_before(staging)
    run = operations.execute(operations.start_run(orphan_policy(staging), ANNA, dry_run=True).pk)
    assert (run.state, run.facts["orphan_rows"]) == (RunState.REPORTED, 1)
    assert StagedFile.objects.filter(path="missing").exists()


def test_a_row_whose_file_is_there_again_comes_back_to_life(staging: Staging) -> None:
    register(staging, "missing")
    seen_before(staging)
    staging.run(orphan_policy(staging))
    assert not StagedFile.objects.filter(path="missing").exists()
    write(staging.root / "missing")
    seen_before(staging, timedelta(0))
    assert StagedFile.objects.filter(path="missing").exists()
    assert AuditEntry.objects.filter(action="rows_revived").count() == 1
    assert not OrphanBatch.objects.filter(items__gt=0).exists()


@pytest.mark.sqlite_only
def test_a_directory_that_cannot_be_read_makes_no_orphans(staging: Staging) -> None:
    (staging.root / "d0/nested").mkdir()
    (staging.root / "d0/nested/.staging-area").touch()
    register(staging, "d0/nested/x", "link/y")
    (staging.root / "link").symlink_to(staging.root / "d1")
    with opened(staging.area) as handle:
        found = look(handle, staging.area.pk, now=datetime.now(UTC))
    assert (found.without_row.count, found.without_file.count) == (0, 0)


def test_names_that_are_no_text_find_their_rows(staging: Staging) -> None:
    root = os.fsencode(staging.root)
    for name in (b"\xff\xfe", b"new\nline", "ü".encode(), b"back\\slash", b"a.b", b"a0"):
        Path(os.fsdecode(root + b"/" + name)).touch()
    register(staging, "\\xff\\xfe", "new\\x0aline", "ü", "back\\x5cslash", "a.b", "a0")
    with opened(staging.area) as handle:
        found = look(handle, staging.area.pk, now=datetime.now(UTC))
    assert found.facts() == {"files": 36, "rows": 36, "orphan_files": 0, "orphan_rows": 0}


@pytest.mark.django_db(transaction=True)
def test_two_scans_at_once_leave_the_sightings_of_one(staging: Staging) -> None:
    write(staging.root / "stray")
    begin, done = Barrier(2), list[datetime]()

    def scan(moment: datetime) -> None:
        try:
            with opened(staging.area) as handle:
                begin.wait(timeout=60)
                sight(handle, staging.area, now=moment, actor=ANNA)
            done.append(moment)
        finally:
            connections.close_all()

    moments = [datetime.now(UTC), datetime.now(UTC) + DAY]
    threads = [Thread(target=scan, args=(moment,)) for moment in moments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(done) == moments
    batches = OrphanBatch.objects.order_by("kind")
    assert list(batches.values_list("kind", "number", "items")) == [("file", 0, 1), ("row", 0, 0)]
    assert len(set(batches.values_list("seen_at", flat=True))) == 1


# The command and the metric


def said(*words: str) -> Any:
    out = io.StringIO()
    call_command("cleanup", "orphans", *words, "--json", stdout=out)
    return json.loads(out.getvalue())


def test_the_command_tells_since_when_and_from_when_on_an_orphan_is_one(staging: Staging) -> None:
    write(staging.root / "stray")
    register(staging, "missing")
    assert said() == {"areas": []}
    seen = said("area", "--scan", "--dry-run")["areas"]
    assert not OrphanBatch.objects.exists()
    assert seen[0]["files"] == {"orphans": 1, "of": 31}
    kept = said("area", "--scan")["areas"][0]
    assert (kept["area"], kept["rows"]) == ("area", {"orphans": 1, "of": 31})
    assert [one["path"] for one in kept["examples"]] == ["stray", "missing"]
    first = datetime.fromisoformat(kept["examples"][0]["first_seen"])
    assert datetime.fromisoformat(kept["examples"][0]["counts_from"]) - first == DAY
    assert said("area")["areas"][0] == kept
    assert said("area", "--limit", "0")["areas"][0]["examples"] == []


@pytest.mark.sqlite_only
def test_the_command_refuses_as_a_run_does(staging: Staging) -> None:
    StagedFile.all_objects.all()._raw_delete("default")
    out = io.StringIO()
    with pytest.raises(SystemExit) as left:
        call_command("cleanup", "orphans", "area", "--scan", "--json", stdout=out)
    assert left.value.code == 2
    assert json.loads(out.getvalue())["error"] == "too_many_orphans"


@pytest.mark.sqlite_only
def test_an_area_that_is_refused_does_not_keep_the_others_from_being_scanned(staging: Staging) -> None:
    write(Staging(staging.root.parent, "full").root / "unregistered")
    out = io.StringIO()
    with pytest.raises(SystemExit) as left:
        call_command("cleanup", "orphans", "--scan", "--json", stdout=out)
    assert left.value.code == 1
    told = {one["area"]: one for one in json.loads(out.getvalue())["areas"]}
    assert (told["full"]["error"], told["area"]["files"]) == ("too_many_orphans", {"orphans": 0, "of": 30})


@pytest.mark.sqlite_only
def test_the_metric_is_absent_until_an_area_was_scanned(staging: Staging) -> None:
    registry = CollectorRegistry()
    registry.register(CleanupCollector())
    labels = {"area": "area", "kind": "file"}
    assert registry.get_sample_value("cleanup_orphans", labels) is None
    seen_before(staging)
    assert registry.get_sample_value("cleanup_orphans", labels) == 0
    write(staging.root / "stray")
    seen_before(staging, timedelta(0))
    assert registry.get_sample_value("cleanup_orphans", labels) == 1
    assert CleanupRun.objects.count() == 0
