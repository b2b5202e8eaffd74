"""Settings of cleanup, typed: `settings.CLEANUP` is a dictionary, `conf()` fills in the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import lru_cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.conf import settings
from django.core.signals import setting_changed

#: The broker delivers a task again that was not acknowledged for so long (CELERY_BROKER_TRANSPORT_OPTIONS).
_REDELIVERY = timedelta(minutes=10)


_PIPELINE_AREAS = {name: name for name in ("incoming", "extracted", "distilled", "rejected")}


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupSettings:
    """One field per key of `settings.CLEANUP`, in lower case."""

    #: Where `up` creates the demo areas.
    staging_root: Path = Path("var/staging")
    #: Zone of an `expires_at` that names none.
    naive_timezone: str = "UTC"
    #: The server that the `redis_task` verifier asks.
    redis_url: str = "redis://127.0.0.1:6379/0"
    #: A verifier that has not answered by then has said UNKNOWN.
    verifier_timeout: timedelta = timedelta(seconds=2)
    #: All verifiers of a policy together answer about a batch within this time: below `run_lease`.
    verifier_batch_timeout: timedelta = timedelta(seconds=20)
    #: Hosts that the `http` verifier may ask: `name` for the usual ports, `name:port` for another.
    verifier_hosts: tuple[str, ...] = ()
    #: The server that the `qdrant_points` verifier asks, or file:// and a folder; empty = there is none.
    qdrant_url: str = ""
    qdrant_api_key: str = ""
    #: Paths that no area may be, contain or lie in.
    forbidden_paths: tuple[Path, ...] = ()
    #: Bundles moved between two commits.
    batch_size: int = 2_000
    #: A worker that has not renewed the lease of its run for this long has lost it.
    run_lease: timedelta = timedelta(seconds=60)
    #: A task gives the worker back after this long and queues its continuation.
    slice_length: timedelta = timedelta(seconds=45)
    plan_lifetime: timedelta = timedelta(hours=24)
    #: The private key that signs checkpoints; its public keys lie beside it, under the same name and `.pub`.
    audit_key_file: Path = Path("var/audit_key")
    #: Where checkpoints are written outside the database.
    audit_log_file: Path = Path("var/audit_checkpoints.jsonl")
    #: Exported entries that are older may be pruned; None keeps all of them for ever.
    audit_keep: timedelta | None = None
    #: An orphan is one only if it was seen twice, at least this far apart.
    orphan_sighting_gap: timedelta = timedelta(hours=24)
    #: Bytes of the largest file that is staged.
    upload_max_size: int = 1 << 30
    #: Extensions that are taken; empty = all that are known. `*` stands for these, another is added to them.
    upload_types: tuple[str, ...] = ()
    #: Bytes of the largest part of an upload.
    upload_part_size: int = 8 << 20
    #: An upload that got no byte for this long is over.
    upload_lifetime: timedelta = timedelta(hours=24)
    #: Uploads that one uploader may have open at a time.
    upload_max_open: int = 200
    #: Bytes that one uploader may announce within 24 hours.
    upload_daily_bytes: int = 20 << 30
    #: Uploads that one uploader may begin within a minute.
    upload_rate: int = 600
    #: The area of an upload that names none; empty = each has to name one.
    upload_area: str = ""
    #: For so long the body of a request may be slower than `upload_slowest` (bytes a second).
    upload_patience: timedelta = timedelta(seconds=20)
    upload_slowest: int = 4_096
    #: Networks that sources may be fetched from although they are private, such as `10.1.0.0/16`.
    source_networks: tuple[str, ...] = ()
    #: One fetch of a source takes no longer than this; below the time after which a task comes again.
    source_timeout: timedelta = timedelta(minutes=5)
    #: A source that sends nothing for this long is given up until next time; below `run_lease`.
    source_idle_timeout: timedelta = timedelta(seconds=30)

    #: Areas whose new files go through the pipeline by themselves.
    pipeline_auto: tuple[str, ...] = ()
    #: The areas of its steps: what is there to begin with, and what came of it.
    pipeline_areas: Mapping[str, str] = field(default_factory=lambda: dict(_PIPELINE_AREAS))
    #: Bytes of the largest file of which text is extracted.
    pipeline_max_bytes: int = 16 << 20
    #: The pause after the first failure of something that it needs; it doubles with each.
    pipeline_pause: timedelta = timedelta(seconds=10)
    #: The collection of Qdrant that holds its points.
    pipeline_collection: str = "distilled"
    #: Where the status of a task is told, as the verifier `redis_task` asks for it, and for how long.
    pipeline_status_key: str = "task:{task_id}:status"
    pipeline_status_life: timedelta = timedelta(days=365)


@lru_cache(maxsize=1)
def conf() -> CleanupSettings:
    """The settings of cleanup. Raises `TypeError` for an unknown key (`manage.py check` says which)."""
    given: dict[str, Any] = {name.lower(): value for name, value in getattr(settings, "CLEANUP", {}).items()}
    if "forbidden_paths" in given:
        given["forbidden_paths"] = tuple(Path(path) for path in given["forbidden_paths"])
    for name in ("verifier_hosts", "upload_types", "source_networks", "pipeline_auto"):
        if name in given:
            given[name] = tuple(given[name])
    for name in ("audit_key_file", "audit_log_file"):
        if name in given:
            given[name] = Path(given[name])
    if "pipeline_areas" in given:
        given["pipeline_areas"] = {**_PIPELINE_AREAS, **given["pipeline_areas"]}
    return CleanupSettings(**given)


def problems() -> list[str]:
    """What is wrong with `settings.CLEANUP`, one sentence each."""
    known = {entry.name for entry in fields(CleanupSettings)}
    if unknown := [name for name in getattr(settings, "CLEANUP", {}) if name.lower() not in known]:
        return [f"CLEANUP has no setting {name!r}." for name in unknown]
    found = []
    try:
        ZoneInfo(conf().naive_timezone)
    except (ZoneInfoNotFoundError, ValueError):
        found.append(f"CLEANUP['NAIVE_TIMEZONE']: no time zone is called {conf().naive_timezone!r}.")
    if conf().batch_size < 1:
        found.append("CLEANUP['BATCH_SIZE'] must be at least 1.")
    if (conf().audit_keep or timedelta(0)) < timedelta(0):
        found.append("CLEANUP['AUDIT_KEEP'] must not be negative; None keeps the audit for ever.")
    if not timedelta(0) < conf().verifier_timeout <= conf().verifier_batch_timeout < conf().run_lease:
        found.append(
            "CLEANUP['VERIFIER_TIMEOUT'] must be above zero, VERIFIER_BATCH_TIMEOUT no less, RUN_LEASE more."
        )
    if conf().qdrant_url and not conf().qdrant_url.startswith(("http://", "https://", "file:///")):
        found.append("CLEANUP['QDRANT_URL'] begins with http://, https:// or file:///.")
    return found + _upload_problems() + _source_problems() + _pipeline_problems()


def _upload_problems() -> list[str]:
    numbers = ("max_size", "part_size", "max_open", "daily_bytes", "rate", "slowest")
    names = [f"upload_{name}" for name in numbers]
    found = [f"CLEANUP[{name.upper()!r}] must be at least 1." for name in names if getattr(conf(), name) < 1]
    for name in ("upload_lifetime", "upload_patience"):
        if getattr(conf(), name) <= timedelta(0):
            found.append(f"CLEANUP[{name.upper()!r}] must be above zero.")
    return found


def _source_problems() -> list[str]:
    found = []
    for text in conf().source_networks:
        try:
            ip_network(text)
        except ValueError as error:
            found.append(f"CLEANUP['SOURCE_NETWORKS']: {error}.")
    if not timedelta(0) < conf().source_idle_timeout < conf().run_lease:
        found.append("CLEANUP['SOURCE_IDLE_TIMEOUT'] must be above zero and below RUN_LEASE.")
    if not timedelta(0) < conf().source_timeout < _REDELIVERY:
        found.append("CLEANUP['SOURCE_TIMEOUT'] must be above zero and below 10 minutes.")
    return found


def _pipeline_problems() -> list[str]:
    found = []
    if unknown := sorted(set(conf().pipeline_areas) - set(_PIPELINE_AREAS)):
        found.append(f"CLEANUP['PIPELINE_AREAS']: the pipeline has no step {unknown[0]!r}.")
    if len(set(conf().pipeline_areas.values())) < len(_PIPELINE_AREAS):
        found.append("CLEANUP['PIPELINE_AREAS'] must name four different areas.")
    if "{task_id}" not in conf().pipeline_status_key:
        found.append("CLEANUP['PIPELINE_STATUS_KEY'] must have a {task_id}.")
    if conf().pipeline_max_bytes < 1:
        found.append("CLEANUP['PIPELINE_MAX_BYTES'] must be at least 1.")
    for name in ("pipeline_pause", "pipeline_status_life"):
        if getattr(conf(), name) <= timedelta(0):
            found.append(f"CLEANUP[{name.upper()!r}] must be above zero.")
    return found


def _forget(*, setting: str, **_: object) -> None:
    if setting == "CLEANUP":
        conf.cache_clear()


setting_changed.connect(_forget)
