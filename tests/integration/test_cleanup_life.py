"""The life of a file: planned, trashed, restored or purged; and everything that keeps it where it is."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from cleanup import operations
from cleanup.engine.errors import PolicyInvalid
from cleanup.models import AuditEntry, CleanupItem, CleanupRun, CleanupTotal, Hold, PlanBatch
from cleanup.operations import OperationRefused
from cleanup.operations.areas import active_holds, held_by
from tests.retention import ANNA, BEN, DAY, Staging, later, write

pytestmark = pytest.mark.django_db


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def test_a_preview_lists_what_the_run_trashes_and_nothing_else(staging: Staging) -> None:
    old, young = staging.fill(20), {"new/one", "new/two"}
    for name in young:
        write(staging.root / name, age=timedelta(hours=1))
    policy = staging.policy()

    found = operations.preview(policy)
    assert {one.path for one in found.items} == old
    assert (found.files, found.bytes) == (20, 20 * len("content"))
    assert found.kept == {"younger_than_age": 2}
    assert staging.files() == old | young
    assert not CleanupRun.objects.exists()

    run = staging.run(policy)
    assert (run.state, run.trashed, run.skipped, run.errors, run.residue) == ("done", 20, 0, 0, 0)
    assert run.lease_until is None
    assert staging.files() == young
    assert staging.states() == {"trashed": 20}


def test_restore_brings_back_bytes_mode_and_times(staging: Staging) -> None:
    path = write(staging.root / "deep" / "er" / "file.bin", "precious")
    path.chmod(0o640)
    before = path.stat()
    staging.run(staging.policy())
    assert not path.exists()
    (staging.root / "deep" / "er").rmdir()

    report = operations.restore(staging.items(), actor=BEN)
    assert (report.restored, report.bytes, report.conflicts) == (1, 8, [])
    after = path.stat()
    assert path.read_text() == "precious"
    assert (after.st_mode, after.st_mtime_ns, after.st_uid) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_uid,
    )
    assert staging.states() == {"restored": 1}
    assert AuditEntry.objects.filter(action="restored", actor="ben", path="deep/er/file.bin").exists()


def test_restore_never_overwrites_and_can_use_another_name(staging: Staging) -> None:
    path = write(staging.root / "report", "old")
    staging.run(staging.policy())
    path.write_text("new")

    report = operations.restore(staging.items(), actor=ANNA)
    assert report.restored == 0
    assert [conflict.path for conflict in report.conflicts] == ["report"]
    assert path.read_text() == "new"
    assert staging.states() == {"trashed": 1}

    report = operations.restore(staging.items(), actor=ANNA, to="report.old")
    assert report.restored == 1
    assert (staging.root / "report.old").read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    "target",
    [
        "../out",
        "/etc/x",
        ".trash/x",
        "a/.staging-x",
        "",
        "a//b",
        r"a\q",
        r"a\x00",
        "n" * 256,
        "é" * 128,
        "a/" * 3000 + "b",
    ],
)
def test_restore_to_a_place_outside_the_area_is_refused(staging: Staging, target: str) -> None:
    write(staging.root / "file")
    staging.run(staging.policy())
    with pytest.raises(OperationRefused):
        operations.restore(staging.items(), actor=ANNA, to=target)
    assert staging.states() == {"trashed": 1}


def test_another_name_is_kept_in_one_spelling_and_held(staging: Staging) -> None:
    write(staging.root / "file")
    staging.run(staging.policy())
    assert operations.restore(staging.items(), actor=ANNA, to=r"deep/\x61 \xff").restored == 1
    assert (staging.root / "deep" / os.fsdecode(b"a \xff")).read_text() == "content"
    entry = AuditEntry.objects.get(action="restored")
    assert (entry.path, json.loads(entry.evidence)["to"]) == ("file", r"deep/a \xff")
    assert held_by(active_holds(staging.area.pk, now=later(0)), [r"deep/a \xff"])


def test_where_the_other_name_is_taken_too_the_file_comes_back_beside_that(staging: Staging) -> None:
    write(staging.root / "file", "old")
    staging.run(staging.policy())
    write(staging.root / "taken.txt", "theirs", age=timedelta(0))
    (conflict,) = operations.restore(staging.items(), actor=ANNA, to="taken.txt").conflicts
    assert conflict.path == "taken.txt"
    assert operations.restore(staging.items(), actor=ANNA, to="taken.txt", rename="back").restored == 1
    assert (staging.root / "taken.back.txt").read_text() == "old"
    assert (staging.root / "taken.txt").read_text() == "theirs"
    assert held_by(active_holds(staging.area.pk, now=later(0)), ["taken.back.txt"])


def test_what_goes_together_comes_back_under_its_names(staging: Staging) -> None:
    write(staging.root / "box" / "a")
    write(staging.root / "box" / "b")
    staging.run(staging.policy(unit="bundle"))
    with pytest.raises(OperationRefused, match="a bundle goes back under its old names"):
        operations.restore(staging.items(), actor=ANNA, to="other")
    assert operations.restore(staging.items(), actor=ANNA).restored == 2


def test_nothing_is_purged_before_the_end_of_its_grace(staging: Staging) -> None:
    staging.fill(10)
    staging.run(staging.policy(grace_period=7 * DAY))
    assert operations.purge_due(now=later(6.9)).purged == 0
    assert staging.in_trash() == 10

    report = operations.purge_due(now=later(7.1))
    assert (report.purged, report.bytes, report.errors) == (10, 10 * len("content"), [])
    assert staging.in_trash() == 0
    assert staging.states() == {"purged": 10}
    total = CleanupTotal.objects.get(area="area", policy="policy")
    assert (total.files_trashed, total.files_purged, total.bytes_purged) == (10, 10, 70)
    assert operations.purge_due(now=later(8)).purged == 0


def test_a_changed_policy_never_shortens_the_grace_of_what_is_in_the_trash(staging: Staging) -> None:
    staging.fill(3)
    policy = staging.policy(grace_period=30 * DAY)
    staging.run(policy)
    policy.grace_period = timedelta(0)
    operations.save_policy(policy, ANNA)
    assert operations.purge_due(now=later(29)).purged == 0
    assert operations.purge_due(now=later(31)).purged == 3


def test_extended_grace_is_longer_by_exactly_that_and_never_shorter(staging: Staging) -> None:
    staging.fill(2)
    staging.run(staging.policy(grace_period=DAY))
    first, second = staging.items()
    assert operations.extend_grace([first], by=10 * DAY, actor=ANNA) == 1
    with pytest.raises(OperationRefused, match="not shortened"):
        operations.extend_grace([first], by=-DAY, actor=ANNA)
    assert operations.purge_due(now=later(2)).purged == 1
    assert CleanupItem.objects.get(pk=second).state == "purged"
    assert CleanupItem.objects.get(pk=first).state == "trashed"
    assert operations.purge_due(now=later(11.5)).purged == 1


def test_purge_now_wants_a_reason_and_writes_it_down(staging: Staging) -> None:
    staging.fill(4)
    staging.run(staging.policy())
    with pytest.raises(OperationRefused, match="reason"):
        operations.purge_now(staging.items(), reason=" ", actor=BEN)
    report = operations.purge_now(staging.items()[:3], reason="disk full", actor=BEN)
    assert report.purged == 3
    assert staging.in_trash() == 1
    assert AuditEntry.objects.filter(action="purged", actor="ben", reason="disk full").count() == 3


def test_what_is_not_in_the_trash_is_passed_over(staging: Staging) -> None:
    staging.fill(2)
    staging.run(staging.policy())
    ids = staging.items()
    operations.purge_now(ids[:1], reason="x", actor=ANNA)
    assert operations.restore(ids, actor=ANNA).restored == 1
    assert operations.purge_now(ids, reason="x", actor=ANNA).purged == 0
    assert operations.extend_grace(ids, by=DAY, actor=ANNA) == 0


def test_a_result_and_its_metadata_go_and_come_back_together(staging: Staging) -> None:
    for name, expires in (("old", "2020-01-01T00:00:00"), ("new", "2999-01-01T00:00:00Z")):
        write(staging.root / f"{name}.result.json.lz4", "result")
        write(staging.root / f"{name}.metadata.json", json.dumps({"expires_at": expires}))
    write(staging.root / "bad.result.json.lz4")
    write(staging.root / "bad.metadata.json", "{")
    write(staging.root / "alone.result.json.lz4")
    before = staging.files()
    policy = staging.policy(rule="expires_at", age="")

    found = operations.preview(policy)
    assert {one.path for one in found.items} == {"old.result.json.lz4", "old.metadata.json"}
    assert [one.path for one in found.errors] == ["bad.result.json.lz4"]
    run = staging.run(policy)
    assert (run.state, run.trashed) == ("done", 2)
    assert before - staging.files() == {"old.result.json.lz4", "old.metadata.json"}
    assert run.kept["bad_companion"] == 1
    assert run.kept["no_companion"] == 1
    assert operations.restore(staging.items(), actor=ANNA).restored == 2
    assert staging.files() == before


def test_files_left_without_a_reason_fail_the_run(staging: Staging) -> None:
    staging.fill(3)
    run = staging.run(staging.policy(max_files=1))
    operations.approve(run, files=3, actor=ANNA)
    PlanBatch.objects.filter(run=run).update(settled_at=datetime.now(UTC))
    run = operations.execute(run.pk)
    assert (run.state, run.residue, run.trashed) == ("failed", 3, 0)


def test_holds_stop_the_trash_and_the_purge(staging: Staging) -> None:
    names = staging.fill(10)
    policy = staging.policy(grace_period=timedelta(0))
    held = operations.hold(staging.area, "d0/*", None, "litigation", BEN)
    run = staging.run(policy)
    assert (run.state, run.trashed, run.kept["held"], run.residue) == ("done", 8, 2, 0)
    assert staging.files() == {name for name in names if name.startswith("d0/")}

    operations.hold(staging.area, "d1", later(1), "look at these", BEN)
    report = operations.purge_due(now=later(0.1))
    assert (report.purged, report.kept) == (6, {"held": 2})
    assert operations.purge_now(staging.items(), reason="now", actor=BEN).kept == {"held": 2}
    Hold.objects.exclude(pk=held.pk).update(until=later(-1))
    assert operations.purge_due(now=later(0.1)).purged == 2

    operations.release(held, ANNA)
    with pytest.raises(OperationRefused, match="released before"):
        operations.release(held, ANNA)
    assert staging.run(policy).trashed == 2


def test_a_hold_placed_after_the_plan_keeps_the_file(staging: Staging) -> None:
    staging.fill(5)
    run = staging.run(staging.policy(max_files=1))
    operations.hold(staging.area, "f3", None, "wait", BEN)
    operations.approve(run, files=5, actor=ANNA)
    run = operations.execute(run.pk)
    assert (run.state, run.trashed, run.skipped, run.residue) == ("done", 4, 1, 0)
    assert staging.files() == {"d3/f3"}
    assert staging.states() == {"trashed": 4, "held": 1}


@pytest.mark.parametrize(("pattern", "reason"), [("re:(", "x"), ("", "x"), ("*", "  ")])
def test_a_hold_that_means_nothing_is_refused(staging: Staging, pattern: str, reason: str) -> None:
    with pytest.raises((OperationRefused, PolicyInvalid)):
        operations.hold(staging.area, pattern, None, reason, ANNA)


def test_odd_names_survive_the_way_there_and_back(staging: Staging) -> None:
    names = [
        b"new\nline",
        b"half-\xff\xfe",
        b"n" * 255,
        b"back\\slash",
        "ünï".encode(),
        b"-rf *",
        b"tab\there",
    ]
    root = os.fsencode(staging.root)
    for name in names:
        path = root + b"/" + name
        with open(path, "wb") as file:
            file.write(name)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    run = staging.run(staging.policy())
    assert (run.state, run.trashed) == ("done", len(names))
    assert operations.restore(staging.items(), actor=ANNA).restored == len(names)
    for name in names:
        with open(root + b"/" + name, "rb") as file:
            assert file.read() == name
    assert operations.verify_audit().sound


def test_many_files_cost_no_more_statements_than_few(tmp_path: Path) -> None:
    counts = []
    for name, files in (("few", 10), ("many", 500)):
        staging = Staging(tmp_path, name)
        staging.fill(files)
        run = operations.start_run(staging.policy(name), ANNA)
        with CaptureQueriesContext(connection) as queries:
            assert operations.execute(run.pk).trashed == files
        counts.append(len(queries))
    # Progress is told ten times a second, so a slow machine adds a few.
    assert counts[1] < counts[0] + 40


def test_demo_areas_are_made_once_and_existing_ones_left_alone(tmp_path: Path, settings: Any) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "STAGING_ROOT": tmp_path / "staging"}
    made = operations.ensure_demo_areas()
    assert [area.name for area in made] == ["incoming", "rejected", "extracted", "distilled", "results"]
    policy = operations.find_policy("rejected")
    assert (policy.mode, policy.age) == ("report", "2d")
    operations.set_mode(policy, "enforce", ANNA)
    assert operations.ensure_demo_areas() == []
    assert operations.find_policy("rejected").mode == "enforce"
