"""Settings of cleanup, typed: `settings.CLEANUP` is a dictionary, `conf()` fills in the defaults."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.conf import settings
from django.core.signals import setting_changed


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


@lru_cache(maxsize=1)
def conf() -> CleanupSettings:
    """The settings of cleanup. Raises `TypeError` for an unknown key (`manage.py check` says which)."""
    given: dict[str, Any] = {name.lower(): value for name, value in getattr(settings, "CLEANUP", {}).items()}
    if "forbidden_paths" in given:
        given["forbidden_paths"] = tuple(Path(path) for path in given["forbidden_paths"])
    if "verifier_hosts" in given:
        given["verifier_hosts"] = tuple(given["verifier_hosts"])
    for name in ("audit_key_file", "audit_log_file"):
        if name in given:
            given[name] = Path(given[name])
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
    return found


def _forget(*, setting: str, **_: object) -> None:
    if setting == "CLEANUP":
        conf.cache_clear()


setting_changed.connect(_forget)
