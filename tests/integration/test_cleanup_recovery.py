"""Interrupted at every step: what recovery makes of it, from rows and disk alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cleanup import operations
from cleanup.engine import faults
from cleanup.models import AuditEntry, CleanupItem, CleanupRun, PlanBatch
from cleanup.operations import schedule
from cleanup.stores.plans import OPEN
from tests.retention import ANNA, DAY, Staging, write

pytestmark = pytest.mark.django_db


class Interrupted(BaseException):
    """As if the process had died: nothing that handles errors sees it."""


@contextmanager
def interrupted(point: str, count: int = 1) -> Iterator[None]:
    """Leave everything as it is when `point` is passed for the `count`th time."""

    class Dying(faults.Armed):
        def passed(self, name: str) -> None:
            if name == self.name:
                self.left -= 1
                if not self.left:
                    raise Interrupted(name)

    faults._armed = Dying(f"{point}:{count}:kill")
    try:
        with pytest.raises(Interrupted):
            yield
    finally:
        faults._armed = None


@pytest.fixture
def staging(tmp_path: Path, settings: Any) -> Staging:
    settings.CLEANUP = {**settings.CLEANUP, "BATCH_SIZE": 8}
    return Staging(tmp_path)


def nothing_is_open() -> bool:
    unfinished = CleanupItem.objects.filter(state__in=["intent", "purge_intent", "restoring"])
    return not (PlanBatch.objects.filter(OPEN).exists() or unfinished.exists())


MOVING = [
    ("run.after_intent", 1),
    ("trash.before_mkdir", 1),
    ("trash.before_manifest", 1),
    ("trash.after_manifest", 2),
    ("trash.after_prepare", 1),
    ("trash.before_rename", 1),
    ("trash.after_rename", 1),
    ("trash.after_rename", 5),
    ("trash.before_fsync", 2),
    ("trash.after_fsync", 1),
    ("run.after_move", 2),
    ("run.after_settle", 1),
]


@pytest.mark.parametrize(("point", "count"), MOVING)
def test_a_run_that_was_interrupted_goes_on_to_its_end(staging: Staging, point: str, count: int) -> None:
    names = staging.fill(20)
    run = operations.start_run(staging.policy(), ANNA)
    with interrupted(point, count):
        operations.execute(run.pk)
    assert len(staging.files()) + staging.in_trash() == 20

    done = operations.execute(run.pk)
    assert (done.state, done.trashed, done.skipped, done.errors, done.residue) == ("done", 20, 0, 0, 0)
    assert staging.states() == {"trashed": 20}
    assert nothing_is_open()
    assert AuditEntry.objects.filter(action="trashed").count() == 20
    assert operations.verify_audit().sound
    assert operations.restore(staging.items(), actor=ANNA).restored == 20
    assert staging.files() == names


@pytest.mark.parametrize(("point", "count"), MOVING)
def test_of_a_run_that_was_stopped_after_the_crash_no_file_is_lost_or_stuck(
    staging: Staging, point: str, count: int
) -> None:
    names = staging.fill(20)
    run = operations.start_run(staging.policy(), ANNA)
    with interrupted(point, count):
        operations.execute(run.pk)
    before = staging.files()
    operations.stop(run, actor=ANNA)
    schedule.recover_all()
    assert schedule.recover_all() == 0
    assert staging.files() == before
    assert staging.states().get("trashed", 0) == 20 - len(before) == staging.in_trash()
    assert nothing_is_open()
    operations.restore(staging.items(), actor=ANNA)
    assert staging.files() == names


def test_recovery_of_the_whole_bundle(staging: Staging) -> None:
    for number in range(3):
        write(staging.root / f"{number}.result.json.lz4")
        write(staging.root / f"{number}.metadata.json", '{"expires_at": "2020-01-01T00:00:00Z"}')
    run = operations.start_run(staging.policy(rule="expires_at", age=""), ANNA)
    with interrupted("trash.after_rename", 3):
        operations.execute(run.pk)
    assert staging.in_trash() == 3
    done = operations.execute(run.pk)
    assert (done.state, done.trashed, staging.in_trash()) == ("done", 6, 6)
    assert staging.states() == {"trashed": 3}


def test_a_hold_placed_while_the_run_was_interrupted_keeps_what_had_not_moved(staging: Staging) -> None:
    staging.fill(8)
    run = operations.start_run(staging.policy(), ANNA)
    with interrupted("trash.after_rename", 3):
        operations.execute(run.pk)
    left = staging.files()
    assert len(left) == 5
    operations.hold(staging.area, "**", None, "wait", ANNA)
    done = operations.execute(run.pk)
    assert (done.state, done.trashed, done.skipped) == ("done", 3, 5)
    assert staging.files() == left
    assert staging.states() == {"trashed": 3, "held": 5}


def test_a_file_put_in_the_place_of_a_moved_one_stays_and_a_restore_says_conflict(staging: Staging) -> None:
    write(staging.root / "name", "old")
    run = operations.start_run(staging.policy(), ANNA)
    with interrupted("trash.after_rename"):
        operations.execute(run.pk)
    (staging.root / "name").write_text("new")
    assert operations.execute(run.pk).trashed == 1
    assert (staging.root / "name").read_text() == "new"
    assert len(operations.restore(staging.items(), actor=ANNA).conflicts) == 1


@pytest.mark.parametrize(
    ("point", "count"),
    [
        ("run.after_purge_intent", 1),
        ("purge.before_unlink", 1),
        ("purge.after_unlink", 4),
        ("purge.before_fsync", 1),
        ("purge.before_manifest", 1),
        ("purge.after_manifest", 1),
        ("run.after_purge", 1),
    ],
)
def test_an_interrupted_purge_is_finished(staging: Staging, point: str, count: int) -> None:
    staging.fill(8)
    staging.run(staging.policy(grace_period=timedelta(0)))
    with interrupted(point, count):
        operations.purge_due(now=datetime.now(UTC) + DAY)
    assert staging.states() == {"purge_intent": 8}
    assert schedule.recover_all() == 8
    assert schedule.recover_all() == 0
    assert staging.states() == {"purged": 8}
    assert staging.in_trash() == 0
    assert AuditEntry.objects.filter(action="purged").count() == 8
    assert not [path for path in (staging.root / ".trash").iterdir() if path.is_dir()]


@pytest.mark.parametrize("to", [None, "elsewhere"])
@pytest.mark.parametrize("point", ["restore.before_rename", "restore.after_rename", "restore.before_commit"])
def test_an_interrupted_restore_is_finished(staging: Staging, point: str, to: str | None) -> None:
    write(staging.root / "deep" / "name", "bytes")
    staging.run(staging.policy())
    with interrupted(point):
        operations.restore(staging.items(), actor=ANNA, to=to)
    assert staging.states() == {"restoring": 1}
    assert schedule.recover_all() == 1
    assert schedule.recover_all() == 0
    assert staging.states() == {"restored": 1}
    assert staging.files() == {to or "deep/name"}
    assert staging.in_trash() == 0


def test_recovery_leaves_alone_what_is_whole(staging: Staging) -> None:
    staging.fill(10)
    run = staging.run(staging.policy())
    entries = AuditEntry.objects.count()
    assert schedule.recover_all(with_adoption=True) == 0
    assert AuditEntry.objects.count() == entries
    assert CleanupRun.objects.get(pk=run.pk).trashed == 10


def test_a_full_disk_fails_the_run_and_loses_nothing(staging: Staging) -> None:
    names = staging.fill(8)
    run = operations.start_run(staging.policy(), ANNA)
    faults._armed = faults.Armed("trash.before_manifest:1:EIO")
    try:
        done = operations.execute(run.pk)
    finally:
        faults._armed = None
    assert (done.state, done.trashed) == ("failed", 0)
    assert done.lease_until is None
    assert staging.files() == names
    schedule.recover_all()
    assert nothing_is_open()
    assert staging.run(operations.find_policy("policy")).trashed == 8


def test_what_is_missing_from_the_trash_is_an_alarm_and_not_purged_and_is_in_the_trash_again_when_it_is_back(
    staging: Staging, tmp_path: Path
) -> None:
    staging.fill(10)
    staging.run(staging.policy())
    [batch] = [path for path in (staging.root / ".trash").glob("*/*/data") if len(list(path.iterdir())) == 8]
    batch.rename(tmp_path / "elsewhere")
    assert schedule.recover_all(with_adoption=True) == 8
    assert staging.states() == {"trashed": 2, "lost": 8}
    assert schedule.recover_all(with_adoption=True) == 0
    assert AuditEntry.objects.filter(action="lost").count() == 8
    assert operations.purge_due(now=datetime.now(UTC) + 30 * DAY).purged == 2
    (tmp_path / "elsewhere").rename(batch)
    assert schedule.recover_all(with_adoption=True) == 8
    assert staging.states() == {"trashed": 8, "purged": 2}
    assert operations.restore(staging.items(), actor=ANNA).restored == 8


def test_a_file_that_is_another_in_the_trash_is_an_error_and_can_still_be_brought_back(
    staging: Staging, tmp_path: Path
) -> None:
    write(staging.root / "r.result.json.lz4")
    write(staging.root / "r.metadata.json", '{"expires_at": "2020-01-01T00:00:00Z"}')
    staging.run(staging.policy(rule="expires_at", age=""))
    [first] = (staging.root / ".trash").glob("*/*/data/0")
    first.rename(tmp_path / "gone")
    assert schedule.recover_all(with_adoption=True) == 1
    assert staging.states() == {"error": 1}
    assert AuditEntry.objects.filter(action="damaged").count() == 1
    operations.restore(staging.items("error"), actor=ANNA)
    assert staging.files() == {"r.metadata.json"}
