"""ResultCleanupDaemon: expired results of a cache directory, removed every few hours.

The smallest user of the engine: no database, no Celery, one directory. It becomes an area at the first
cleanup (with a marker file), its ``*.result.json.lz4`` are judged by the rule ``expires_at``, and what has
expired goes through the trash with a grace period of nothing, so that every guard of the mover holds here as
well. One file's trouble is counted and the rest goes on; a cleanup that fails as a whole is logged and tried
again at the next turn.
"""

import asyncio
import json
import logging
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import msgspec

from cleanup.engine.area import AreaHandle, marker_uuid, open_area, register_area
from cleanup.engine.candidates import Candidate
from cleanup.engine.discard import Discarded, Doomed, discard, discard_leftovers, expired, shelve
from cleanup.engine.errors import EngineError, PolicyInvalid
from cleanup.engine.expiry import zone_from_name
from cleanup.engine.kernel import DIRECTORY
from cleanup.engine.names import escape
from cleanup.engine.places import check_place
from cleanup.engine.policy import Policy
from cleanup.engine.reasons import Reason
from cleanup.engine.shelf import Header

logger = logging.getLogger(__name__)

#: The policy's name, by which a later cleanup knows what an earlier one left in the trash.
_NAME = "result-cleanup"

#: Items moved at a time: one manifest and a handful of fsyncs for each batch.
_BATCH = 2000

#: The metrics service is near; one that takes longer is as good as dead.
_METRICS_TIMEOUT = timedelta(seconds=5)

#: Not troubles, but files that were rightly left alone.
_QUIET = frozenset({Reason.SYMLINK, Reason.SPECIAL, Reason.MOUNT_POINT, Reason.NESTED_AREA, Reason.VANISHED})


class CleanupStats(msgspec.Struct, kw_only=True):
    """What one cleanup did."""

    deleted_count: int = 0  #: results; their metadata files are not counted
    freed_bytes: int = 0  #: of results and metadata
    checked_count: int = 0  #: results looked at
    errors: int = 0
    duration_ms: float = 0.0


class ResultCleanupDaemon:
    """Removes expired cached results in the background of an asyncio program."""

    #: Where the results are if the caller does not say.
    DEFAULT_DIRECTORY: ClassVar[str] = "~/.omnimemory/cached_results"

    def __init__(
        self,
        result_store: Any = None,
        check_interval: float = 21600,
        cache_dir: str | Path = DEFAULT_DIRECTORY,
        metrics_url: str | None = "http://localhost:8003",
        *,
        naive_timezone: tzinfo | None = None,
    ) -> None:
        """Remember the settings; nothing is touched before `start` or the first cleanup.

        Args:
            result_store: kept as an attribute for callers; the files themselves say when they expire.
            check_interval: seconds between two cleanups.
            cache_dir: the directory; ``~`` is expanded.
            metrics_url: of the metrics service; None or "" posts nothing.
            naive_timezone: of an `expires_at` without a zone; None is the zone of this machine.

        Raises:
            ValueError: `check_interval` is not positive, or `metrics_url` is not http or https.
        """
        if not check_interval > 0:
            raise ValueError("check_interval is a positive number of seconds")
        if metrics_url and not metrics_url.startswith(("http://", "https://")):
            raise ValueError("metrics_url starts with http:// or https://")
        self.result_store = result_store
        self.check_interval = check_interval
        self.cache_dir = Path(cache_dir).expanduser().absolute()
        self.metrics_url = metrics_url.rstrip("/") if metrics_url else None
        self._naive_timezone = naive_timezone
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        #: Tells the thread that cleans to end after its batch.
        self._halt = threading.Event()
        self._busy = threading.Lock()
        self._totals = CleanupStats()
        self._cleanups = 0

    async def start(self) -> None:
        """Clean now and then every `check_interval` seconds; a second call changes nothing."""
        if self._is_running():
            logger.warning("the cleanup of %s is running already", self.cache_dir)
            return
        self._wake.clear()
        self._task = asyncio.create_task(self._run(), name="result-cleanup")

    async def stop(self) -> None:
        """Stop after the batch in hand; a daemon that was never started is stopped already."""
        task, self._task = self._task, None
        if task is None:
            return
        self._halt.set()
        self._wake.set()
        await task
        self._halt.clear()

    def get_stats(self) -> dict[str, Any]:
        """Return the totals since this object was made."""
        return {
            "running": self._is_running(),
            "check_interval_hours": self.check_interval / 3600,
            "total_cleanups": self._cleanups,
            "total_deleted": self._totals.deleted_count,
            "total_freed_bytes": self._totals.freed_bytes,
            "total_freed_mb": round(self._totals.freed_bytes / (1024 * 1024), 2),
            "total_errors": self._totals.errors,
            "cache_directory": str(self.cache_dir),
        }

    def _is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def _is_safe_path(self, path: str | Path) -> bool:
        """Whether `path`, with every link resolved, lies below the cache directory."""
        try:
            root, resolved = self.cache_dir.resolve(), Path(path).resolve()
        except (OSError, RuntimeError, ValueError):
            return False
        return resolved != root and resolved.is_relative_to(root)

    async def _run(self) -> None:
        while not self._wake.is_set():
            try:
                await self._cleanup_expired()
            except Exception:  # the loop must outlive whatever one cleanup runs into
                logger.exception("the cleanup of %s failed; the next one is due as planned", self.cache_dir)
                self._totals.errors += 1
            try:
                await asyncio.wait_for(self._wake.wait(), self.check_interval)
            except TimeoutError:
                continue

    async def _cleanup_expired(self) -> dict[str, Any]:
        """Clean once, report it to the metrics service, and return what was done."""
        stats = await asyncio.to_thread(self._clean)
        self._cleanups += 1
        self._totals.deleted_count += stats.deleted_count
        self._totals.freed_bytes += stats.freed_bytes
        self._totals.errors += stats.errors
        logger.info(
            "Cleanup completed: %d of %d results removed, %d bytes freed, %d errors",
            stats.deleted_count,
            stats.checked_count,
            stats.freed_bytes,
            stats.errors,
        )
        report = msgspec.structs.asdict(stats)
        if self.metrics_url is not None:
            await asyncio.to_thread(_post, f"{self.metrics_url}/track/cleanup", report)
        return report

    def preview(self) -> dict[str, Any]:
        """Say what a cleanup would remove now; touches nothing, not even for a marker.

        Raises:
            AreaRefused: the directory may not be cleaned.
        """
        directory, stats = self.cache_dir.resolve(), CleanupStats()
        check_place(directory)
        handle = AreaHandle(fd=os.open(directory, DIRECTORY), path=str(directory), uuid=str(uuid4()))
        with handle as area:
            doomed = self._expired(area, datetime.now(UTC), stats)
        return {
            "deleted_count": 0,
            "expired_count": len(doomed.candidates),
            "expired_bytes": doomed.bytes,
            "checked_count": stats.checked_count,
            "errors": stats.errors,
            "dry_run": True,
        }

    def _clean(self) -> CleanupStats:
        begun, stats = time.perf_counter(), CleanupStats()
        if self.cache_dir.is_dir():
            try:
                self._clean_area(stats)
            except (EngineError, OSError) as error:
                logger.error("the cleanup of %s was given up: %s", self.cache_dir, error)
                stats.errors += 1
        stats.duration_ms = round((time.perf_counter() - begun) * 1000, 3)
        return stats

    def _clean_area(self, stats: CleanupStats) -> None:
        # Whoever names a link means the directory behind it; from here on no link is followed.
        directory = self.cache_dir.resolve()
        uuid = marker_uuid(directory) or register_area(directory, uuid4()).uuid
        now = datetime.now(UTC)
        with self._busy, open_area(directory, uuid=uuid) as area, area.lock():
            _finish_leftovers(area, now, stats)
            doomed = self._expired(area, now, stats)
            for found in _batches(doomed.candidates):
                if self._halt.is_set():
                    break
                _remove(area, found, now, stats)

    def _expired(self, area: AreaHandle, now: datetime, stats: CleanupStats) -> Doomed:
        policy = Policy(
            name=_NAME,
            rule="expires_at",
            grace_period=timedelta(0),
            naive_timezone=self._naive_timezone or local_zone(),
        )
        doomed = expired(area, policy, now=now, on_kept=_Listener(stats))
        stats.checked_count = doomed.checked
        return doomed


async def serve(daemon: ResultCleanupDaemon) -> dict[str, Any]:
    """Run `daemon` until SIGTERM or SIGINT, and return its totals."""
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, told.set)
    try:
        await daemon.start()
        await told.wait()
        await daemon.stop()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
    return daemon.get_stats()


def local_zone() -> tzinfo:
    """Return the zone of this machine, with its rules for summer time if they can be found.

    Else the one of its two offsets that makes a wall clock time the later: in doubt files stay.
    """
    linked = os.path.realpath("/etc/localtime").partition("/zoneinfo/")[2]
    key = os.environ.get("TZ", "").lstrip(":") or linked
    try:
        return zone_from_name(key)
    except PolicyInvalid:
        logger.debug("the zone %r of this machine has no rules here; its offset is taken", key)
    west = max(time.timezone, time.altzone) if time.daylight else time.timezone
    return timezone(timedelta(seconds=-west))


class _Listener:
    """Counts and logs what stays because something is wrong with it."""

    def __init__(self, stats: CleanupStats) -> None:
        self._stats = stats

    def __call__(self, path: bytes, reason: Reason, detail: str) -> None:
        if reason in (Reason.BAD_COMPANION, Reason.UNREADABLE):
            self._stats.errors += 1
            logger.warning("%s stays: %s (%s)", escape(path), reason.meaning, detail)
        elif reason in _QUIET:
            logger.debug("%s is skipped: %s", escape(path), reason.meaning)


def _batches(found: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    for start in range(0, len(found), _BATCH):
        yield found[start : start + _BATCH]


def _remove(area: AreaHandle, found: Sequence[Candidate], now: datetime, stats: CleanupStats) -> None:
    header = Header(policy=_NAME, policy_version="1", run="", trashed_at=now, purge_after=now)
    _note(discard(area, shelve(area, found, header=header)), stats)


def _finish_leftovers(area: AreaHandle, now: datetime, stats: CleanupStats) -> None:
    for done in discard_leftovers(area, _NAME, now=now, on_bad=partial(logger.error, "trash: %s: %s")):
        _note(done, stats)


def _note(done: Discarded, stats: CleanupStats) -> None:
    stats.deleted_count += done.removed
    stats.freed_bytes += done.bytes
    stats.errors += len(done.problems)
    for problem in done.problems:
        logger.error("a result could not be removed: %s", problem)


def _post(url: str, report: dict[str, Any]) -> None:
    """Tell the metrics service; whether it lives changes nothing here."""
    payload = {**report, "timestamp": datetime.now(UTC).isoformat()}
    request = urllib.request.Request(  # noqa: S310 - the constructor refuses all but http and https
        url, json.dumps(payload).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_METRICS_TIMEOUT.total_seconds()):  # noqa: S310
            pass
    except (OSError, ValueError, urllib.error.URLError) as error:
        logger.warning("the metrics service at %s did not take the report: %s", url, error)
