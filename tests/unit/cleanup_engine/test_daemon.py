"""ResultCleanupDaemon, as code that was written for it uses it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cleanup.engine import ResultCleanupDaemon, faults
from cleanup.engine.area import open_area
from cleanup.engine.daemon import local_zone


def write_pair(directory: Path, name: str, expires_at: object, *, size: int = 10) -> tuple[Path, Path]:
    directory.mkdir(parents=True, exist_ok=True)
    result, metadata = directory / f"{name}.result.json.lz4", directory / f"{name}.metadata.json"
    result.write_bytes(b"x" * size)
    metadata.write_text(json.dumps({"expires_at": expires_at, "file_size": size}))
    return result, metadata


def passed() -> str:
    return (datetime.now(UTC) - timedelta(hours=1)).isoformat()


def coming() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).isoformat()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    directory = tmp_path / "cached_results"
    directory.mkdir()
    return directory


@pytest.fixture
def daemon(cache: Path) -> ResultCleanupDaemon:
    return ResultCleanupDaemon(cache_dir=str(cache), metrics_url=None)


async def test_expired_results_go_with_their_metadata_and_valid_ones_stay(
    cache: Path, daemon: ResultCleanupDaemon
) -> None:
    gone = [*write_pair(cache, "old", passed(), size=1000), *write_pair(cache / "nested", "old", passed())]
    kept = write_pair(cache, "new", coming())
    sizes = sum(path.stat().st_size for path in gone)
    stats = await daemon._cleanup_expired()
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)
    assert (stats["deleted_count"], stats["checked_count"], stats["errors"]) == (2, 3, 0)
    assert stats["freed_bytes"] == sizes
    assert stats["duration_ms"] > 0


async def test_a_time_without_a_zone_is_local(cache: Path, daemon: ResultCleanupDaemon) -> None:
    now = datetime.now()  # noqa: DTZ005 - as a writer without zones does
    old, _ = write_pair(cache, "old", (now - timedelta(hours=2)).isoformat())
    new, _ = write_pair(cache, "new", (now + timedelta(hours=2)).isoformat())
    await daemon._cleanup_expired()
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", ":Asia/Tokyo", ""])
def test_the_zone_of_the_machine_is_found(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    key = zone.lstrip(":")
    found = local_zone()
    assert not key or str(found) == key
    assert found.utcoffset(datetime.now()) is not None  # noqa: DTZ005


async def test_what_is_wrong_is_counted_and_stays(cache: Path, daemon: ResultCleanupDaemon) -> None:
    broken = write_pair(cache, "broken", "soon")
    alone, metadata = write_pair(cache, "alone", passed())
    metadata.unlink()
    other = cache / "notes.txt"
    other.write_text("notes")
    old, _ = write_pair(cache, "old", passed())
    stats = await daemon._cleanup_expired()
    assert all(path.exists() for path in (*broken, alone, other))
    assert not old.exists()
    assert (stats["deleted_count"], stats["errors"]) == (1, 1)


async def test_links_lead_to_nothing_that_could_be_deleted(
    cache: Path, daemon: ResultCleanupDaemon, tmp_path: Path
) -> None:
    outside = write_pair(tmp_path / "outside", "old", passed())
    (cache / "link").symlink_to(tmp_path / "outside")
    (cache / "old.result.json.lz4").symlink_to(outside[0])
    (cache / "old.metadata.json").symlink_to(outside[1])
    stats = await daemon._cleanup_expired()
    assert all(path.exists() for path in outside)
    assert stats["deleted_count"] == 0


async def test_a_directory_that_is_not_there_is_nothing_to_clean(tmp_path: Path) -> None:
    daemon = ResultCleanupDaemon(cache_dir=tmp_path / "none", metrics_url=None)
    stats = await daemon._cleanup_expired()
    assert (stats["deleted_count"], stats["errors"]) == (0, 0)
    assert not (tmp_path / "none").exists()


async def test_a_dangerous_directory_is_an_error_and_stays_untouched() -> None:
    daemon = ResultCleanupDaemon(cache_dir="/usr", metrics_url=None)
    assert (await daemon._cleanup_expired())["errors"] == 1


def test_only_what_resolves_below_the_cache_is_safe(
    cache: Path, daemon: ResultCleanupDaemon, tmp_path: Path
) -> None:
    (cache / "link").symlink_to(tmp_path)
    assert daemon._is_safe_path(cache / "a.result.json.lz4")
    assert daemon._is_safe_path(cache / "nested" / "a.result.json.lz4")
    for path in (cache, cache / ".." / "x", cache / "link" / "x", Path("/etc/passwd"), tmp_path):
        assert not daemon._is_safe_path(path)


async def test_it_runs_until_it_is_stopped(cache: Path) -> None:
    daemon = ResultCleanupDaemon(cache_dir=cache, metrics_url=None, check_interval=0.01)
    old, _ = write_pair(cache, "old", passed())
    await daemon.start()
    await daemon.start()
    assert daemon.get_stats()["running"]
    while daemon.get_stats()["total_cleanups"] < 2:
        await asyncio.sleep(0)
    await daemon.stop()
    stats = daemon.get_stats()
    assert not stats["running"]
    assert not old.exists()
    assert stats["total_deleted"] == 1
    await daemon.stop()
    old, _ = write_pair(cache, "old", passed())
    assert (await daemon._cleanup_expired())["deleted_count"] == 1


def test_the_statistics_have_the_promised_names(cache: Path) -> None:
    assert ResultCleanupDaemon(cache_dir=cache).get_stats() == {
        "running": False,
        "check_interval_hours": 6.0,
        "total_cleanups": 0,
        "total_deleted": 0,
        "total_freed_bytes": 0,
        "total_freed_mb": 0.0,
        "total_errors": 0,
        "cache_directory": str(cache),
    }


@pytest.mark.parametrize("options", [{"check_interval": 0}, {"metrics_url": "file:///etc/passwd"}])
def test_senseless_settings_are_refused(cache: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"check_interval|metrics_url"):
        ResultCleanupDaemon(cache_dir=cache, **options)


class Collector(ThreadingHTTPServer):
    """A metrics service that remembers what it was sent."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, dict[str, Any]]] = []
        super().__init__(("127.0.0.1", 0), Receiver)


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.reports.append((self.path, json.loads(body)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_each_cleanup_is_reported_to_the_metrics_service(cache: Path, collector: Collector) -> None:
    url = f"http://127.0.0.1:{collector.server_address[1]}/"
    write_pair(cache, "old", passed())
    await ResultCleanupDaemon(cache_dir=cache, metrics_url=url)._cleanup_expired()
    [(path, report)] = collector.reports
    assert path == "/track/cleanup"
    assert report["deleted_count"] == 1
    assert set(report) == {
        "deleted_count",
        "freed_bytes",
        "checked_count",
        "errors",
        "duration_ms",
        "timestamp",
    }
    assert datetime.fromisoformat(report["timestamp"])


async def test_a_dead_metrics_service_changes_nothing(
    cache: Path, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    old, _ = write_pair(cache, "old", passed())
    # Port 9 on loopback has no listener here: the connection is refused at once.
    with caplog.at_level(logging.WARNING):
        stats = await ResultCleanupDaemon(
            cache_dir=cache, metrics_url="http://127.0.0.1:9"
        )._cleanup_expired()
    assert (stats["deleted_count"], stats["errors"], old.exists()) == (1, 0, False)
    assert "did not take the report" in caplog.text


async def test_what_could_not_be_removed_is_finished_by_the_next_cleanup(
    cache: Path, daemon: ResultCleanupDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(cache, "old", passed())
    with monkeypatch.context() as patch:
        patch.setattr(faults, "_armed", faults.Armed("purge.before_unlink:1:EIO"))
        stats = await daemon._cleanup_expired()
    assert (stats["deleted_count"], stats["errors"]) == (0, 1)
    assert any((cache / ".trash").rglob("data/*"))
    stats = await daemon._cleanup_expired()
    assert stats["deleted_count"] == 1
    assert not any((cache / ".trash").rglob("data/*"))


async def test_a_cache_in_use_by_another_process_is_left_for_later(
    cache: Path, daemon: ResultCleanupDaemon
) -> None:
    await daemon._cleanup_expired()
    old, _ = write_pair(cache, "old", passed())
    uuid = json.loads((cache / ".staging-area").read_text())["area"]
    with open_area(cache, uuid=uuid) as area, area.lock():
        assert (await daemon._cleanup_expired())["errors"] == 1
    assert old.exists()
    assert (await daemon._cleanup_expired())["deleted_count"] == 1


async def test_the_named_directory_may_be_a_link_to_the_real_one(cache: Path, tmp_path: Path) -> None:
    old, _ = write_pair(cache, "old", passed())
    (tmp_path / "short").symlink_to(cache)
    daemon = ResultCleanupDaemon(cache_dir=tmp_path / "short", metrics_url=None)
    assert (await daemon._cleanup_expired())["deleted_count"] == 1
    assert not old.exists()
