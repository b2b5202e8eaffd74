"""Looking for orphans because somebody asked for it, and letting the registry know files that it did not.

    ask_look        ask a worker to look at an area; the audit keeps who asked
    carry_out_look  the look itself: counts as a sighting, and its result goes into the audit
    last_look       what became of the newest look that was asked for
    register_files  make rows of files that no row knows, so that they are no orphans

How far a look is stands on the topic `cleanup:orphans:<area>`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any

from django.db import transaction

from cleanup.engine.errors import EngineError
from cleanup.engine.listing import Looker
from cleanup.engine.names import patterns, unescape
from cleanup.engine.orphans import Sighting
from cleanup.models import AuditEntry, StagedFile, StagingArea
from cleanup.operations.areas import opened
from cleanup.operations.orphans import sight
from cleanup.operations.outcomes import OperationRefused
from cleanup.operations.runs import send
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.feed import tell
from cleanup.stores.orphans import stored
from cleanup.stores.registry import registered
from cleanup.stores.sql import chunks, database_now

#: By name, since tasks stand above operations.
TASK = "cleanup.tasks.look_for_orphans"

ASKED, LOOKED = "orphans_look_asked", "orphans_looked"

#: Entries among which the last look of an area is searched: somebody pressed a button for each.
_NEWEST = 200

#: Files registered at once.
MOST = 10_000

#: Seconds between two words on how far a look is.
_PAUSE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LastLook:
    """The newest look at an area that somebody asked for."""

    actor: str
    at_us: int
    #: Whether a worker has yet to do it.
    is_waiting: bool
    #: Why its result was refused; empty if it was not.
    refused: str = ""


def topic_of(area: StagingArea) -> str:
    """Where a look tells how far it is."""
    return f"cleanup:orphans:{area.pk}"


def ask_look(area: StagingArea, actor: Actor) -> None:
    """Ask a worker to look for orphans now.

    Raises:
        OperationRefused: the area is disabled.
    """
    if not area.enabled:
        raise OperationRefused(f"area {area.name!r} is disabled: enable it first")
    with transaction.atomic():
        _write(area, ASKED, actor)
        transaction.on_commit(partial(send, TASK, str(area.pk), actor.name, actor.kind), robust=True)


def carry_out_look(area: StagingArea, actor: Actor) -> dict[str, Any]:
    """Look, keep what is seen as a sighting, and return the figures, or why the look was refused."""
    try:
        with opened(area) as handle:
            found = sight(handle, area, now=database_now(), actor=actor, beat=_Told(area))
        evidence: dict[str, Any] = found.facts()
    except (EngineError, OSError) as refusal:
        evidence = {"refused": str(refusal)[:500]}
    with transaction.atomic():
        _write(area, LOOKED, actor, evidence)
    tell(topic_of(area), "orphans.finished", {"state": "done", **evidence})
    return evidence


class _Told:
    """Tells how many files a look has seen, now and then."""

    def __init__(self, area: StagingArea) -> None:
        self._topic, self._next = topic_of(area), 0.0

    def __call__(self, files: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PAUSE
            tell(self._topic, "orphans.progress", {"state": "running", "done": files, "total": None})


def last_look(area: StagingArea) -> LastLook | None:
    """The newest look that somebody asked for; None if nobody did lately."""
    asked, looked = _newest(ASKED, area), _newest(LOOKED, area)
    if asked is not None and (looked is None or looked.seq < asked.seq):
        return LastLook(actor=asked.actor, at_us=asked.at_us, is_waiting=True)
    if looked is None:
        return None
    refused = json.loads(looked.evidence).get("refused", "")
    return LastLook(actor=looked.actor, at_us=looked.at_us, is_waiting=False, refused=refused)


def _newest(action: str, area: StagingArea) -> AuditEntry | None:
    rows = AuditEntry.objects.filter(action=action).order_by("-seq")[:_NEWEST]
    return next((row for row in rows if row.area == area.name), None)


def register_files(area: StagingArea, pattern: str, actor: Actor, *, dry_run: bool = False) -> list[str]:
    """Make rows of the files without one that the last look saw and `pattern` matches; return their paths.

    Each is looked at again: it must still be the file that was seen. No more than 10,000 at once.

    Raises:
        PolicyInvalid: the pattern cannot be understood.
        AreaRefused: the area cannot be opened.
        OperationRefused: nothing matches, or too much.
    """
    matching = patterns((pattern,), subtree=True)
    wanted = (one for one in stored(area.pk, "file") if matching.match(one.path) is not None)
    chosen = list(islice(wanted, MOST + 1))
    if not chosen:
        raise OperationRefused(f"no file that was seen without a row matches {pattern!r}; look again first?")
    if len(chosen) > MOST:
        raise OperationRefused(f"{pattern!r} matches more than {MOST} files: narrow it")
    with opened(area) as handle, Looker(handle) as looker:
        there = list(_as_seen(looker, chosen))
    return [path for part in chunks(there) for path in _register(area, part, actor, dry_run=dry_run)]


def _as_seen(looker: Looker, sightings: Iterable[Sighting]) -> Iterator[tuple[str, int]]:
    """Path and size of those that are still the files that were seen."""
    for one in sightings:
        try:
            found = looker.stat(unescape(one.path))
        except OSError:
            continue
        if (found.inode, found.size, found.mtime_ns) == one.identity and found.kind == "file":
            yield one.path, found.size


def _register(
    area: StagingArea, part: list[tuple[str, int]], actor: Actor, *, dry_run: bool
) -> Iterator[str]:
    with transaction.atomic():
        # Two persons at once: the second finds the rows of the first.
        StagingArea.objects.select_for_update().get(pk=area.pk)
        known = registered(area.pk, [path for path, _ in part])
        new = [(path, size) for path, size in part if path not in known]
        if not dry_run:
            _insert(area, new, actor, database_now())
    yield from (path for path, _ in new)


def _insert(area: StagingArea, new: list[tuple[str, int]], actor: Actor, now: datetime) -> None:
    StagedFile.objects.bulk_create(
        StagedFile(area=area, path=path, size=size, uploader=actor.name[:180]) for path, size in new
    )
    DatabaseAuditSink().write(
        [
            record(actor, "file_registered", now=now, area=area.name, path=path, size=size)
            for path, size in new
        ]
    )


def _write(area: StagingArea, action: str, actor: Actor, evidence: dict[str, Any] | None = None) -> None:
    entry = record(actor, action, now=database_now(), area=area.name, evidence=evidence or {})
    DatabaseAuditSink().write([entry])
