"""The figures of cleanup, as a scrape sees them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from cleanup import operations
from cleanup.metrics import CleanupCollector
from tests.retention import ANNA, DAY, Staging

pytestmark = pytest.mark.django_db


def scraped() -> dict[str, float]:
    """Every sample by its name and labels, through a real exposition."""
    registry = CollectorRegistry()
    registry.register(CleanupCollector())
    lines = generate_latest(registry).decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def test_registering_touches_no_database(django_assert_num_queries: object) -> None:
    with django_assert_num_queries(0):  # type: ignore[operator]
        CollectorRegistry().register(CleanupCollector())


def test_totals_count_what_was_purged_and_survive_the_rows(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.fill(5)
    staging.run(staging.policy(grace_period=timedelta(0)))
    label = '{area="area",policy="policy"}'
    assert scraped()[f"staging_files_deleted_total{label}"] == 0
    found = scraped()
    assert found['cleanup_items{state="trashed"}'] == 5
    assert found['cleanup_trash_bytes{area="area"}'] == 35
    assert 0 <= found['cleanup_oldest_trash_seconds{area="area"}'] < 60
    assert found['cleanup_runs_total{outcome="done"}'] == 1
    assert found['cleanup_residue_files{policy="policy"}'] == 0
    assert 0 < found['cleanup_area_used_ratio{area="area"}'] < 1

    operations.restore(staging.items()[:1], actor=ANNA)
    operations.purge_due(now=datetime.now(UTC) + DAY)
    staging.area.items.all().delete()
    found = scraped()
    assert found[f"staging_files_deleted_total{label}"] == 4
    assert found[f"staging_bytes_freed_total{label}"] == 28
    assert found[f"staging_files_restored_total{label}"] == 1
    assert found['cleanup_trash_bytes{area="area"}'] == 0
    assert 'cleanup_oldest_trash_seconds{area="area"}' not in found


def test_an_area_that_is_not_there_has_no_ratio(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.root.rename(tmp_path / "away")
    assert 'cleanup_area_used_ratio{area="area"}' not in scraped()
    assert "cleanup_residue_files" not in str(scraped())
