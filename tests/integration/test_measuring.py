"""What areas hold, measured in the background: right figures, kept as long as they hold, never in the way."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from django.core.management import call_command
from django.utils import timezone

from cleanup import operations
from cleanup.models import AreaUsage, CleanupItem, CleanupRun, DailyTotal, Mode, RunState
from cleanup.operations import measuring
from tests.retention import ANNA, DAY, Staging, write

pytestmark = pytest.mark.django_db


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def now() -> datetime:
    return datetime.now(UTC)


def measured(staging: Staging, **options: object) -> AreaUsage:
    return measuring.measure_area(staging.area, now=now(), **options)  # type: ignore[arg-type]


def figures(row: AreaUsage) -> dict[str, tuple[int, int]]:
    names = ("live", "eligible", "held", "trash")
    return {name: (getattr(row, f"{name}_files"), getattr(row, f"{name}_bytes")) for name in names}


def test_live_eligible_and_held_are_counted_with_their_bytes(staging: Staging):
    write(staging.root / "old-1", "12345")
    write(staging.root / "old-2", "123")
    write(staging.root / "legal/old-3", "1234567")
    write(staging.root / "young", "1", age=timedelta(hours=1))
    staging.policy()
    operations.hold(staging.area, "legal/**", None, "asked for", ANNA)
    row = measured(staging)
    assert figures(row) == {"live": (4, 16), "eligible": (2, 8), "held": (1, 7), "trash": (0, 0)}
    assert (row.message, row.measured_at == row.tried_at) == ("", True)


def test_what_two_policies_choose_counts_once_and_one_that_is_off_chooses_nothing(staging: Staging):
    staging.fill(3)
    staging.policy("all")
    staging.policy("some", include=["d0/*"], mode=Mode.REPORT)
    staging.policy("none", age="1h", mode=Mode.OFF)
    write(staging.root / "recent", age=timedelta(hours=3))
    assert measured(staging).eligible_files == 3


def test_verifiers_are_not_asked(staging: Staging):
    staging.fill(2)
    # Nobody answers there: a run would keep both.
    staging.policy(verifiers=["redis_task"])
    assert measured(staging).eligible_files == 2


def test_an_area_that_is_away_says_so_and_keeps_the_last_figures(staging: Staging):
    staging.fill(2)
    first = measured(staging)
    staging.root.rename(staging.root.with_name("elsewhere"))
    row = measured(staging)
    assert "area" in row.message
    assert (row.live_files, row.measured_at) == (2, first.measured_at)
    assert row.tried_at > first.tried_at


def test_an_area_that_is_too_big_is_given_up(staging: Staging):
    staging.fill(2)
    row = measured(staging, limit=timedelta(0))
    assert "too big" in row.message
    assert row.measured_at is None


def test_a_run_at_work_is_left_alone(staging: Staging):
    staging.fill(2)
    policy = staging.policy()
    run = operations.start_run(policy, ANNA)
    assert "run is at work" in measured(staging).message
    assert measuring.measure_due() == []
    CleanupRun.objects.filter(pk=run.pk).update(state=RunState.DONE)
    assert measured(staging).message == ""


def test_what_is_due_is_measured_once_a_minute(staging: Staging):
    staging.fill(2)
    first = now()
    assert [row.live_files for row in measuring.measure_due(first)] == [2]
    assert measuring.measure_due(first + timedelta(seconds=30)) == []
    assert len(measuring.measure_due(first + timedelta(seconds=60))) == 1
    # Measuring may take a twentieth of the time: what took a minute waits for twenty.
    AreaUsage.objects.update(seconds=60, tried_at=first)
    assert measuring.measure_due(first + timedelta(minutes=19)) == []
    assert len(measuring.measure_due(first + timedelta(minutes=20))) == 1


def test_a_small_trash_is_summed_on_the_spot(staging: Staging):
    names = staging.fill(3)
    staging.run(staging.policy())
    (found,) = measuring.holdings([staging.area])
    assert (found.trash_files, found.trash_bytes, found.trash_at) == (len(names), 3 * len("content"), None)
    day = timezone.localdate(CleanupItem.objects.first().purge_after)
    assert found.purges == {day: (3, 21)}
    operations.restore(staging.items(), actor=ANNA)
    (found,) = measuring.holdings([staging.area])
    assert (found.trash_files, found.purges) == (0, {})


def test_a_big_trash_is_summed_by_the_worker_and_only_when_something_changed(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
):
    staging.fill(3)
    policy = staging.policy()
    staging.run(policy)
    monkeypatch.setattr(measuring, "SMALL", 2)
    (found,) = measuring.holdings([staging.area])
    assert (found.trash_files, found.trash_at) == (0, None)
    at = now()
    measuring.measure_due(at)
    (found,) = measuring.holdings([staging.area])
    assert (found.trash_files, found.trash_bytes, found.trash_at) == (3, 21, at)
    # Nothing has happened: the sums hold, however old they are.
    measuring.measure_due(at + DAY)
    assert AreaUsage.objects.get().trash_at == at
    write(staging.root / "one-more")
    staging.run(policy)
    measuring.measure_due(at + 2 * DAY)
    (found,) = measuring.holdings([staging.area])
    assert (found.trash_files, found.trash_at) == (4, at + 2 * DAY)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/Los_Angeles"])
def test_purges_are_counted_by_the_day_of_the_site(staging: Staging, settings, zone: str):
    settings.TIME_ZONE = zone
    staging.fill(2)
    staging.run(staging.policy())
    # 18:45 UTC is 00:15 of the next day in Kolkata, and still the forenoon in Los Angeles.
    CleanupItem.objects.update(purge_after=datetime(2026, 12, 24, 18, 45, tzinfo=UTC))
    (found,) = measuring.holdings([staging.area])
    assert found.purges == {date(2026, 12, 25 if zone == "Asia/Kolkata" else 24): (2, 14)}


def test_what_became_of_files_is_kept_by_day(staging: Staging):
    staging.fill(4)
    staging.run(staging.policy())
    one, *others = staging.items()
    operations.restore([one], actor=ANNA)
    operations.purge_now(others, reason="room", actor=ANNA)
    row = DailyTotal.objects.get()
    assert (row.area, row.day) == ("area", timezone.localdate())
    assert (row.files_trashed, row.files_restored, row.files_purged) == (4, 1, 3)
    assert (row.bytes_trashed, row.bytes_restored, row.bytes_purged) == (28, 7, 21)


def test_the_command_counts_now_and_says_what_it_found(staging: Staging, capsys: pytest.CaptureFixture[str]):
    staging.fill(3)
    staging.policy()
    call_command("cleanup", "measure", "--json")
    (area,) = json.loads(capsys.readouterr().out)["areas"]
    assert (area["area"], area["live"], area["eligible"], area["trash"]) == ("area", [3, 21], [3, 21], [0, 0])
    call_command("cleanup", "measure", "--area", "area")
    assert "3 files" in capsys.readouterr().out
    staging.root.rename(staging.root.with_name("elsewhere"))
    with pytest.raises(SystemExit) as ended:
        call_command("cleanup", "measure", "--json")
    assert ended.value.code == 1
