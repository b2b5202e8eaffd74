"""What the clock asks of uploads: those that got no byte expire, those whose process died go on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

from cleanup.conf import conf
from cleanup.engine.errors import EngineError
from cleanup.models import StagingArea, Upload, UploadState
from cleanup.operations.areas import opened
from cleanup.staging import folders
from cleanup.staging.content import BYTES_PREFIX
from cleanup.staging.finishing import OPEN_STATES, end, finish
from cleanup.staging.holding import held, is_free
from cleanup.staging.parts import upload_of
from cleanup.staging.room import needing_room
from cleanup.stores import Actor
from cleanup.stores.sql import chunks

logger = logging.getLogger(__name__)

#: Uploads looked at in one go: whoever ticks comes again.
_LIMIT = 500

#: Rows of uploads that are over are kept this long, for lists.
KEPT = timedelta(days=30)

#: Bytes that were staged from memory are there for seconds; older ones were left by a crash.
_LEFT_BEHIND = timedelta(hours=1)


def expire(now: datetime) -> int:
    """End uploads that got no byte in their time; return how many. Rows of old ones are removed."""
    due = Upload.objects.filter(state__in=OPEN_STATES, expires_at__lte=now).select_related("area")
    expired = 0
    for upload in due.order_by("expires_at")[:_LIMIT]:
        if is_free(upload, now):
            detail = f"no byte came within {conf().upload_lifetime}"
            same = {"expires_at": upload.expires_at}
            expired += end(upload, UploadState.EXPIRED, Actor.system(), detail=detail, **same)
    old = Upload.objects.exclude(state__in=OPEN_STATES).filter(created_at__lt=now - KEPT)
    Upload.objects.filter(
        pk__in=list(old.order_by("created_at").values_list("pk", flat=True)[:_LIMIT])
    ).delete()
    return expired


def recover(now: datetime) -> int:
    """Go on with whole uploads that nobody is at, and clear away parts of those that are over.

    Returns how many uploads were finished, refused as they were or cleared away. What cannot be done now is
    logged, and tried again.
    """
    waiting = Upload.objects.filter(state=UploadState.FINISHING).select_related("area")
    found = sum(_go_on(upload) for upload in waiting.order_by("changed_at")[:_LIMIT] if is_free(upload, now))
    return found + sum(_clear(area) for area in StagingArea.objects.filter(enabled=True))


def _go_on(upload: Upload) -> bool:
    try:
        with needing_room(), held(upload):
            finish(upload)
    except (EngineError, OSError) as error:
        logger.warning("upload %s is not finished: %s", upload.pk, error)
        return Upload.objects.filter(pk=upload.pk, state=UploadState.FAILED).exists()
    return True


def _clear(area: StagingArea) -> int:
    """Remove parts in one area that belong to no upload that is open; return how many."""
    try:
        with opened(area) as handle, folders.parts_if_any(handle) as parts:
            names = [] if parts is None else list(_left_over(parts))
            return sum(folders.drop(parts, os.fsencode(name)) for name in names if parts is not None)
    except (EngineError, OSError) as error:
        logger.warning("parts in %s are not cleared away: %s", area.name, error)
        return 0


def _left_over(parts: int) -> Iterator[str]:
    """The names of parts nobody waits for. Those that others made are theirs."""
    named = {upload: name for name in os.listdir(parts) if (upload := upload_of(name)) is not None}
    for some in chunks(named):
        yield from (named[upload] for upload in set(some) - _open(some))
    yield from (name for name in os.listdir(parts) if name.startswith(BYTES_PREFIX) and _is_old(parts, name))


def _open(uploads: list[UUID]) -> set[UUID]:
    rows = Upload.objects.filter(pk__in=uploads, state__in=OPEN_STATES)
    return set(rows.values_list("pk", flat=True))


def _is_old(parts: int, name: str) -> bool:
    try:
        changed = os.stat(name, dir_fd=parts, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return False
    return changed < time.time() - _LEFT_BEHIND.total_seconds()
