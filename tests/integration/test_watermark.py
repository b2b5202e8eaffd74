"""A disk above its high mark: the oldest trash goes first and nothing before its floor, then files go too."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.core.management import call_command

from cleanup import operations
from cleanup.models import AuditEntry, CleanupItem, PlanBatch, RetentionPolicy, StagingArea
from cleanup.operations import watermarks
from cleanup.operations.policies import engine_policy
from cleanup.operations.usage import Disk
from tests.retention import ANNA, DAY, Staging, write

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
SIZE = 1_000
TEXT = "x" * SIZE


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


class Gauge:
    """A disk of 100 files that holds nothing but the area and its trash."""

    def __init__(self, staging: Staging, *, others: int = 0) -> None:
        self.root, self.others = staging.root, others * SIZE
        #: Bytes in use at each look.
        self.seen: list[int] = []

    def __call__(self, area: StagingArea) -> Disk:
        files = (path for path in self.root.rglob("*") if path.is_file() and path.stat().st_size == SIZE)
        self.seen.append(self.others + SIZE * sum(1 for _ in files))
        return Disk(used=self.seen[-1], total=100 * SIZE)


def trashed(staging: Staging, name: str, count: int, *, floor: timedelta | None, ago: timedelta) -> list[str]:
    """Trash `count` files under a policy with this floor; as if it had been so long ago."""
    names = [f"{name}/{number}" for number in range(count)]
    for one in names:
        write(staging.root / one, TEXT)
    policy = staging.policy(name, include=[f"{name}/**"], floor=floor)
    run = staging.run(policy)
    assert run.trashed == count
    for item in CleanupItem.objects.filter(run=run):
        assert item.trashed_at is not None
        assert item.purge_after is not None
        item.trashed_at -= ago
        item.purge_after -= ago
        item.purge_floor = item.purge_floor - ago if item.purge_floor else None
        item.save()
    return names


def in_state(state: str) -> list[str]:
    return sorted(CleanupItem.objects.filter(state=state).values_list("path", flat=True))


@pytest.mark.parametrize(("used", "wanted"), [(0, 0), (80, 0), (90, 0), (90.5, 10.5), (91, 11), (100, 20)])
def test_bytes_are_needed_from_the_high_mark_on_and_down_to_the_low_one(
    staging: Staging, used: float, wanted: float
) -> None:
    assert watermarks.needed(staging.area, used=int(used * 10), total=1_000) == int(wanted * 10)


def test_the_floor_is_promised_when_a_file_is_trashed(staging: Staging) -> None:
    trashed(staging, "soon", 2, floor=2 * HOUR, ago=timedelta(0))
    trashed(staging, "whole", 2, floor=None, ago=timedelta(0))
    for item in CleanupItem.objects.filter(path__startswith="soon"):
        assert item.purge_floor == item.trashed_at + 2 * HOUR
        assert item.purge_after == item.trashed_at + 7 * DAY
    assert set(
        PlanBatch.objects.exclude(purge_floor=None).values_list("run__policy_version__policy__name")
    ) == {("soon",)}
    assert not CleanupItem.objects.filter(path__startswith="whole").exclude(purge_floor=None).exists()


def test_another_floor_of_the_policy_and_a_longer_grace_never_shorten_the_promise(staging: Staging) -> None:
    trashed(staging, "a", 1, floor=2 * HOUR, ago=timedelta(0))
    item = CleanupItem.objects.get()
    policy = RetentionPolicy.objects.get(name="a")
    policy.floor, policy.grace_period = timedelta(0), timedelta(0)
    operations.save_policy(policy, ANNA)
    assert watermarks.relieve(staging.area, measure=lambda _: Disk(used=100, total=100)).freed == 0
    operations.extend_grace([item.pk], by=DAY, actor=ANNA)
    item.refresh_from_db()
    assert item.purge_floor == item.trashed_at + 2 * HOUR + DAY
    full = Disk(used=100, total=100)
    assert watermarks.relieve(staging.area, now=now() + DAY, measure=lambda _: full).freed == 0
    assert in_state("trashed") == ["a/0"]


def test_the_oldest_trash_goes_first_and_no_more_than_it_takes(staging: Staging) -> None:
    trashed(staging, "new", 10, floor=HOUR, ago=2 * HOUR)
    trashed(staging, "old", 10, floor=HOUR, ago=9 * HOUR)
    trashed(staging, "floor", 10, floor=9 * HOUR, ago=8 * HOUR)
    gauge = Gauge(staging, others=65)
    # 95 of 100 in use: 15 have to go.
    relief = watermarks.relieve(staging.area, measure=gauge)
    assert (relief.needed, relief.freed, relief.short) == (15 * SIZE, 15 * SIZE, 0)
    assert gauge.seen[-1] == 80 * SIZE
    assert len(in_state("purged")) == 15
    assert {name for name in in_state("purged") if name.startswith("old")} == {f"old/{n}" for n in range(10)}
    assert not [name for name in in_state("purged") if name.startswith("floor")]
    assert AuditEntry.objects.filter(action="purged").count() == 15
    assert operations.verify_audit().sound


def test_below_the_high_mark_nothing_is_purged(staging: Staging) -> None:
    trashed(staging, "old", 10, floor=HOUR, ago=9 * HOUR)
    assert watermarks.relieve(staging.area, measure=Gauge(staging, others=80)).needed == 0
    assert len(in_state("trashed")) == 10


def test_what_a_hold_or_a_verifier_keeps_stays_under_pressure_and_is_counted(staging: Staging) -> None:
    trashed(staging, "kept", 4, floor=HOUR, ago=9 * HOUR)
    trashed(staging, "free", 4, floor=HOUR, ago=2 * HOUR)
    operations.hold(staging.area, "kept/**", None, "evidence", ANNA)
    relief = watermarks.relieve(staging.area, measure=Gauge(staging, others=90))
    assert (relief.freed, relief.short) == (4 * SIZE, 14 * SIZE)
    assert relief.blocked == {"held": 4 * SIZE}
    assert (len(in_state("trashed")), len(in_state("purged"))) == (4, 4)


def test_what_is_on_its_way_out_is_not_planned_for_a_second_time(staging: Staging) -> None:
    trashed(staging, "soon", 5, floor=HOUR, ago=timedelta(0))
    trashed(staging, "late", 5, floor=None, ago=timedelta(0))
    policy = engine_policy(
        RetentionPolicy(name="w", area=staging.area, rule="watermark", floor=2 * HOUR, grace_period=DAY)
    )
    staging.area.high_watermark, staging.area.low_watermark = 1, 0
    all_of_it = watermarks.needed(staging.area)
    found = watermarks.to_plan(staging.area, policy, now=now())
    # The disk is the real one, so that other processes may have written to it in between.
    assert abs(all_of_it - 5 * SIZE - found.short) < 10**9
    relief = watermarks.Relief(needed=20 * SIZE, short=20 * SIZE)
    assert watermarks.to_plan(staging.area, policy, now=now(), relief=relief).short == 15 * SIZE
    # What a relief could not purge although its floor is over is blocked: it does not count.
    later = now() + 90 * timedelta(minutes=1)
    assert watermarks.to_plan(staging.area, policy, now=later, relief=relief).short == 20 * SIZE


def test_a_run_says_how_many_bytes_are_blocked_by_which_reason(staging: Staging) -> None:
    """The marks of the area are set below what is in use on any disk, so that everything would have to go."""
    trashed(staging, "promised", 3, floor=None, ago=timedelta(0))
    for number in range(4):
        write(staging.root / "free" / str(number), TEXT)
        write(staging.root / "held" / str(number), TEXT)
        write(staging.root / "fixed" / str(number), TEXT)
    operations.hold(staging.area, "held/**", None, "evidence", ANNA)
    watermarks.set_marks(staging.area, high=1, low=0, actor=ANNA)
    policy = staging.policy("space", rule="watermark", age="", exclude=["fixed/**"], floor=timedelta(0))
    run = staging.run(policy)
    assert (run.state, run.trashed) == ("done", 4)
    facts = run.facts
    assert facts["needed"] > 0
    assert facts["short"] > 0
    assert facts["planned"] == 4 * SIZE
    assert facts["blocked"]["held"] == facts["blocked"]["excluded"] == 4 * SIZE
    assert facts["blocked"]["within_floor"] == 3 * SIZE
    assert "cannot be freed" in run.message
    assert f"held {4 * SIZE}" in run.message
    # Without a floor the run also purges what it has trashed.
    assert in_state("purged") == [f"free/{number}" for number in range(4)]
    assert len(staging.files()) == 8


def test_a_policy_that_reports_purges_nothing_and_says_the_same(staging: Staging) -> None:
    trashed(staging, "old", 3, floor=timedelta(0), ago=HOUR)
    write(staging.root / "free", TEXT)
    watermarks.set_marks(staging.area, high=1, low=0, actor=ANNA)
    policy = staging.policy("space", rule="watermark", age="", mode="report")
    run = staging.run(policy)
    assert (run.state, run.planned_files, run.facts["freed"]) == ("reported", 1, 0)
    assert len(in_state("trashed")) == 3
    assert operations.preview(policy).files == 1
    assert len(in_state("trashed")) == 3


def test_marks_are_set_by_a_person_and_audited(staging: Staging) -> None:
    call_command("cleanup", "areas", "marks", "area", "70", "50", "--dry-run")
    assert StagingArea.objects.get().high_watermark == 90
    call_command("cleanup", "areas", "marks", "area", "70", "50")
    area = StagingArea.objects.get()
    assert (area.high_watermark, area.low_watermark) == (70, 50)
    assert AuditEntry.objects.filter(action="watermarks_set").count() == 1
    for high, low in ((50, 50), (101, 50), (50, 60)):
        with pytest.raises(operations.OperationRefused, match="percent"):
            watermarks.set_marks(area, high=high, low=low, actor=ANNA)


# On a real disk

MEGABYTE = 1_000_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=20m,mode=0755", "cleanup-test", str(place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_on_a_full_disk_a_run_clears_down_to_the_low_mark(small_disk: Path) -> None:
    staging = Staging(small_disk)
    watermarks.set_marks(staging.area, high=80, low=50, actor=ANNA)
    # The trash keeps a little space for itself from its first file on.
    write(staging.root / "first")
    staging.run(staging.policy("first", include=["first"]))
    for number in range(17):
        write(staging.root / f"{number:02}", "x" * MEGABYTE, age=(100 - number) * HOUR)
    policy = staging.policy("space", rule="watermark", age="", floor=timedelta(0), max_percent=100)
    run = staging.run(policy)
    assert run.state == "done", run.message
    disk = shutil.disk_usage(small_disk)
    assert 0.40 < disk.used / disk.total <= 0.50
    # The oldest went, and not one more than was needed.
    left = sorted(staging.files())
    assert left == [f"{number:02}" for number in range(17 - len(left), 17)]
    assert disk.used + MEGABYTE > disk.total * 0.5
    assert len(in_state("purged")) == 17 - len(left)
    again = staging.run(policy)
    assert (again.trashed, again.facts["needed"]) == (0, 0)
