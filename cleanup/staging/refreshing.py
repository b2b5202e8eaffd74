"""One refresh of one source: ask for news, and have what is new staged as its next version.

    queued -> active (a lease) -> idle, with what came of it: new, unchanged or failed

Who has the lease renews it while bytes come. The staged file and the source's own row are one transaction in
which the lease must still be held, so a refresh that another worker took over stages nothing, and versions
count 1, 2, 3 without a gap. A worker that dies leaves a lease that ends; the next tick takes it from there.
How far it is stands on `task:<id>`, with a new id for each refresh.
"""

from __future__ import annotations

import logging
import mimetypes
import os
import socket
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.db import transaction
from django.db.models import F, Q

from bus.progress import Progress
from cleanup.conf import conf
from cleanup.engine.errors import EngineError
from cleanup.models import Source, SourceState, StagedFile
from cleanup.staging import content, folders
from cleanup.staging.addresses import networks
from cleanup.staging.fetching import Fetched, FetchLimits, fetch
from cleanup.staging.room import needing_room
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.leases import LeaseLost
from cleanup.stores.sql import database_now

logger = logging.getLogger(__name__)

#: After the first failure; doubled with each that follows at once, up to `MAX_PAUSE`.
FIRST_PAUSE = timedelta(minutes=15)
MAX_PAUSE = timedelta(hours=24)

#: Renewals in the length of a lease: three may come late before it is over.
_RENEWALS = 4

#: Nobody is at it.
_FREE: dict[str, Any] = {"state": SourceState.IDLE, "lease_by": "", "lease_until": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """What came of a refresh."""

    #: `new`, `unchanged`, `failed`; or `lost`: another worker has it, or somebody changed the source.
    outcome: str
    #: Of the newest content.
    version: int = 0
    size: int = 0
    #: In a sentence.
    message: str = ""
    #: Key of the staged file that is new.
    staged_file: int | None = None
    task_id: str = ""


def refresh(key: int, *, actor: Actor | None = None) -> Refreshed | None:
    """Ask a source that waits for it; None if none does, or somebody else is at it.

    What goes wrong on the way is an outcome, and the source is asked again after a pause that grows.
    """
    turn = _take(key, actor or Actor.system("sources"))
    return None if turn is None else turn.carry_out()


def _take(key: int, actor: Actor) -> _Turn | None:
    """Take the lease of a source that waits to be asked, or whose worker has died."""
    source = Source.objects.filter(pk=key, enabled=True).first()
    if source is None:
        return None
    now, lease = database_now(), f"{uuid4().hex}@{socket.gethostname()[:40]}:{os.getpid()}"
    waits = Q(state=SourceState.QUEUED) | Q(state=SourceState.ACTIVE, lease_until__lt=now)
    taken = Source.objects.filter(waits, pk=key, enabled=True, task_id=source.task_id).update(
        state=SourceState.ACTIVE,
        lease_by=lease,
        lease_until=now + conf().run_lease,
        # The topic of a worker that died is ended, or will be, by those who look after topics.
        task_id=source.task_id if source.state == SourceState.QUEUED else str(uuid4()),
    )
    if not taken:
        return None
    return _Turn(Source.objects.select_related("area").get(pk=key), lease, actor)


class _Turn:
    """One refresh, by whoever has the lease."""

    def __init__(self, source: Source, lease: str, actor: Actor) -> None:
        self.source, self.lease, self.actor = source, lease, actor
        self.progress = Progress(source.task_id, unit="bytes")
        self._renew_at = time.monotonic() + self._interval()

    def carry_out(self) -> Refreshed:
        """Do it, tell of it on its topic, and end the topic."""
        self.progress.start()
        try:
            done = self._attempt()
        except BaseException as error:
            self.progress.finish("failed", type(error).__name__)
            raise
        ends = {"failed": "failed", "lost": "cancelled"}
        self.progress.finish(ends.get(done.outcome, "completed"), done.message)
        return done

    def _attempt(self) -> Refreshed:
        try:
            return self._ask_or_fail()
        except LeaseLost as lost:
            logger.info("%s", lost)
            return Refreshed(outcome="lost", message=str(lost), task_id=self.source.task_id)

    def _ask_or_fail(self) -> Refreshed:
        try:
            return self._ask()
        except LeaseLost:
            raise
        except (EngineError, OSError) as error:
            return self._fail(error)

    def _ask(self) -> Refreshed:
        self.progress.update(0, step="asking", message=self.source.url)
        part = Path(f"source-{self.source.pk}-{self.lease.partition('@')[0]}.part")
        area = self.source.area
        with needing_room(), content.opened_for_staging(area) as handle, folders.parts_of(handle) as parts:
            self._clear(parts)
            try:
                fetched = self._fetch(part, parts)
                if fetched.status == "unchanged" or fetched.sha256 == self.source.sha256:
                    return self._note_unchanged(fetched)
                return self._stage(part, fetched)
            finally:
                folders.drop(parts, os.fsencode(part))

    def _clear(self, parts: int) -> None:
        """Remove what earlier workers of this source left when they died."""
        for name in os.listdir(parts):
            if name.startswith(f"source-{self.source.pk}-"):
                folders.drop(parts, os.fsencode(name))

    def _fetch(self, part: Path, parts: int) -> Fetched:
        limits = FetchLimits(
            max_bytes=conf().upload_max_size,
            total=conf().source_timeout,
            idle=conf().source_idle_timeout,
            networks=networks(conf().source_networks),
        )
        return fetch(
            self.source.url, part=part, dir_fd=parts, limits=limits, etag=self.source.etag,
            last_modified=self.source.last_modified, watch=self._watch,
        )  # fmt: skip

    def _watch(self, received: int, expected: int | None) -> None:
        """Keep the lease, and tell how far it is.

        Raises:
            LeaseLost: it is somebody else's now, or nobody's.
        """
        if time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + self._interval()
            if not self._held().update(lease_until=database_now() + conf().run_lease):
                raise self._lost()
        if received:
            self.progress.update(received, expected, step="receiving")

    def _stage(self, part: Path, fetched: Fetched) -> Refreshed:
        self.progress.update(fetched.size, fetched.size, step="staging")
        version = self.source.version + 1
        incoming = content.Incoming(
            name=_name(self.source, fetched), content_type=fetched.content_type,
            uploader=f"source:{self.source.name}", task_id=self.source.task_id, source=self.source,
            version=version,
        )  # fmt: skip

        def also(row: StagedFile) -> None:
            self._conclude_new(row, fetched)

        row = content.stage(self.source.area, part, incoming, self.actor, digest=fetched.sha256, also=also)
        message = f"version {version} has {fetched.size:,} bytes"
        return Refreshed(
            outcome="new", version=version, size=fetched.size, message=message, staged_file=row.pk,
            task_id=self.source.task_id,
        )  # fmt: skip

    def _conclude_new(self, row: StagedFile, fetched: Fetched) -> None:
        """Within the transaction that makes the row."""
        now = database_now()
        former = StagedFile.objects.filter(source=self.source, version__lt=row.version)
        former.filter(superseded_at__isnull=True).update(superseded_at=now)
        self._conclude(
            "new", now, {"sha256": fetched.sha256, "row": row.pk, "version": row.version},
            path=row.path, size=row.size, version=row.version, sha256=fetched.sha256, last_changed_at=now,
            **_well(self.source, fetched, now),
        )  # fmt: skip

    def _note_unchanged(self, fetched: Fetched) -> Refreshed:
        now = database_now()
        with transaction.atomic():
            self._conclude(
                "unchanged", now, {"version": self.source.version}, **_well(self.source, fetched, now)
            )
        return Refreshed(
            outcome="unchanged",
            version=self.source.version,
            message="nothing new",
            task_id=self.source.task_id,
        )

    def _fail(self, error: EngineError | OSError) -> Refreshed:
        now, words = database_now(), _words(error)
        pause = pause_after(self.source.failures + 1, getattr(error, "retry_after", None))
        code = error.code if isinstance(error, EngineError) else "storage_error"
        with transaction.atomic():
            self._conclude(
                "failed", now, {"error": code}, reason=words, failures=F("failures") + 1, last_error=words,
                next_check_at=now + pause,
            )  # fmt: skip
        return Refreshed(
            outcome="failed", version=self.source.version, message=words, task_id=self.source.task_id
        )

    def _conclude(
        self,
        outcome: str,
        now: datetime,
        evidence: dict[str, Any],
        *,
        path: str | None = None,
        size: int | None = None,
        reason: str | None = None,
        **changes: Any,
    ) -> None:
        """Write what came of it and give the lease back, within the caller's transaction.

        Raises:
            LeaseLost: nothing was written.
        """
        if not self._held().update(last_checked_at=now, **_FREE, **changes):
            raise self._lost()
        told = {"source": self.source.name, "outcome": outcome, "task": self.source.task_id, **evidence}
        entry = record(
            self.actor, "source_refreshed", now=now, item=self.source.pk, area=self.source.area.name,
            path=path, size=size, reason=reason, evidence=told,
        )  # fmt: skip
        DatabaseAuditSink().write([entry])

    def _held(self) -> Any:
        return Source.objects.filter(pk=self.source.pk, state=SourceState.ACTIVE, lease_by=self.lease)

    def _lost(self) -> LeaseLost:
        return LeaseLost(f"the refresh of {self.source.name} has passed to another worker, or was called off")

    def _interval(self) -> float:
        return conf().run_lease.total_seconds() / _RENEWALS


def pause_after(failures: int, wanted: timedelta | None = None) -> timedelta:
    """How long a source is left alone after so many failures in a row.

    Args:
        failures: 1 or more.
        wanted: what the server asked for, if it did.
    """
    growing: timedelta = FIRST_PAUSE * 2.0 ** min(failures - 1, 10)
    return min(MAX_PAUSE, max(growing, wanted or growing))


def next_check(source: Source, now: datetime) -> datetime:
    """When a source is due again that was asked at `now`.

    An interval after it was due, not after it was asked: else it would slip by a tick each time.
    """
    due = source.next_check_at
    on_time = due is not None and due <= now < due + source.interval
    return (due if on_time and due is not None else now) + source.interval


def _well(source: Source, fetched: Fetched, now: datetime) -> dict[str, Any]:
    """What every refresh that went well leaves behind."""
    return {
        "etag": fetched.etag,
        "last_modified": fetched.last_modified,
        "next_check_at": next_check(source, now),
        "failures": 0,
        "last_error": "",
    }


def _name(source: Source, fetched: Fetched) -> str:
    """What the file is called: as its address says, or, if that shows no type, by the type it came with."""
    name = fetched.name or source.name
    if "." in name.strip("."):
        return name
    kind = fetched.content_type.partition(";")[0].strip().lower()
    return name + (mimetypes.guess_extension(kind) or "")


def _words(error: EngineError | OSError) -> str:
    """What a person is told; of the system's errors only what it is, for their text names paths."""
    text = str(error) if isinstance(error, EngineError) else error.strerror or type(error).__name__
    return text[:300]
