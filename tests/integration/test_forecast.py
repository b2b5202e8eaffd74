"""How full the disks are: samples by the minute, thinned, and when they will be full."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from django.core.management import call_command
from prometheus_client import CollectorRegistry, generate_latest

from cleanup.engine.errors import AreaRefused
from cleanup.engine.forecast import Sample, seconds_until_full
from cleanup.metrics import CleanupCollector
from cleanup.models import UsageSample
from cleanup.operations import schedule, usage
from tests.retention import Staging, fill_up

NOW = datetime(2026, 5, 4, 12, 0, 30, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
TOTAL = 10**12


def series(used: list[float]) -> list[Sample]:
    """One sample a minute, the last a moment ago."""
    return [Sample(NOW - (len(used) - n) * MINUTE, int(one), TOTAL) for n, one in enumerate(used)]


@pytest.mark.sqlite_only
def test_a_disk_that_fills_up_steadily_is_full_when_the_line_says() -> None:
    used = [TOTAL / 2 + 10**9 * n for n in range(100)]
    # 500 GB at 1 GB a minute, of which 100 minutes are over.
    assert seconds_until_full(series(used), now=NOW) == pytest.approx(400 * 60, rel=0.01)


@pytest.mark.sqlite_only
def test_a_purge_and_a_few_wild_samples_do_not_bend_the_forecast() -> None:
    dice = Random(7)
    used = [TOTAL / 2 + 10**9 * n + dice.gauss(0, 10**8) for n in range(100)]
    for n in dice.sample(range(100), 15):
        used[n] += dice.choice([-1, 1]) * 10**11
    assert seconds_until_full(series(used), now=NOW) == pytest.approx(400 * 60, rel=0.05)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "used",
    [
        [],
        [1.0 * n for n in range(9)],
        [5e11] * 100,
        [6e11 - 1e9 * n for n in range(100)],
        [5e11 + 1e9 * Random(n).gauss(0, 1) for n in range(100)],
        [5e11 + 1e9 * (n % 7) for n in range(100)],
        [5e11 + n for n in range(100)],
    ],
    ids=["nothing", "too few", "flat", "falling", "noise", "up and down", "full in a thousand years"],
)
def test_where_nobody_can_tell_there_is_no_forecast(used: list[float]) -> None:
    assert seconds_until_full(series(used), now=NOW) is None


@pytest.mark.sqlite_only
def test_a_disk_that_is_full_already_is_full_now() -> None:
    assert seconds_until_full(series([TOTAL + 10**9 * n for n in range(50)]), now=NOW) == 0


@pytest.mark.sqlite_only
def test_many_samples_are_no_trouble() -> None:
    used = [TOTAL / 2 + 10**7 * n for n in range(40_000)]
    assert seconds_until_full(series(used), now=NOW) == pytest.approx(10_000 * 60, rel=0.01)


@pytest.mark.django_db
def test_each_tick_notes_each_area_once_a_minute(tmp_path: Path) -> None:
    one, two = Staging(tmp_path, "one"), Staging(tmp_path, "two")
    for seconds in (0, 20, 29, 30, 59):
        schedule.tick(NOW + timedelta(seconds=seconds))
    assert UsageSample.objects.count() == 4
    found = UsageSample.objects.filter(area=one.area).earliest("at")
    assert found.at == NOW.replace(second=0)
    disk = shutil.disk_usage(one.root)
    assert found.total_bytes == disk.total
    assert found.used_bytes == pytest.approx(disk.total - disk.free, abs=disk.total // 20)
    two.root.rename(tmp_path / "away")
    schedule.tick(NOW + 5 * MINUTE)
    assert UsageSample.objects.filter(area=two.area).count() == 2


@pytest.mark.django_db
def test_another_disk_under_the_path_of_an_area_is_not_taken_for_it(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.area.device = "1"
    staging.area.save()
    with pytest.raises(AreaRefused):
        usage.disk_of(staging.area)
    schedule.tick(NOW)
    assert not UsageSample.objects.exists()


@pytest.mark.django_db
def test_old_samples_are_thinned_to_one_an_hour_and_go_after_a_week(tmp_path: Path) -> None:
    area = Staging(tmp_path).area
    for start, count in ((NOW - 8 * DAY, 200), (NOW - 2 * DAY, 200), (NOW - HOUR, 50), (NOW + DAY, 3)):
        UsageSample.objects.bulk_create(
            UsageSample(area=area, at=start + n * MINUTE, used_bytes=n, total_bytes=TOTAL)
            for n in range(count)
        )
    usage.thin(NOW)
    kept = list(UsageSample.objects.order_by("at").values_list("at", flat=True))
    assert all(at >= NOW - 7 * DAY for at in kept)
    old = [at for at in kept if at < NOW - DAY]
    assert [at.hour for at in old] == [12, 13, 14, 15]
    assert len(kept) - len(old) == 50
    usage.thin(NOW)
    assert UsageSample.objects.count() == 54


@pytest.mark.django_db
def test_report_and_metrics_tell_how_full_each_disk_is_and_when_it_will_be(tmp_path: Path) -> None:
    filling, quiet = Staging(tmp_path, "filling"), Staging(tmp_path, "quiet")
    fill_up(filling.area, rate=10**9, total=10**12)
    out = StringIO()
    call_command("cleanup", "report", "--json", stdout=out)
    rows: dict[str, Any] = {row["area"]: row for row in json.loads(out.getvalue())["areas"]}
    assert rows["filling"]["forecast_full_seconds"] == pytest.approx(440 * 60, rel=0.05)
    assert rows["quiet"]["forecast_full_seconds"] is None
    assert 0 < rows["quiet"]["used_bytes"] < rows["quiet"]["total_bytes"]
    registry = CollectorRegistry()
    registry.register(CleanupCollector())
    text = generate_latest(registry).decode()
    assert 'cleanup_forecast_full_seconds{area="filling"}' in text
    assert 'cleanup_forecast_full_seconds{area="quiet"}' not in text
    out = StringIO()
    call_command("cleanup", "report", stdout=out)
    assert "7.3 h" in out.getvalue() or "7.4 h" in out.getvalue() or "7.2 h" in out.getvalue()
    assert quiet.area.name in out.getvalue()
