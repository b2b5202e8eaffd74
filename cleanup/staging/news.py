"""Tells how far an upload is, on `upload:<id>`: started, progress at most ten times a second, and its end.

The end is part of the transaction in which the upload ends, as it is for jobs, and takes the topic along. A
bus in trouble changes nothing: the row is the truth.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from threading import Lock
from typing import Any
from uuid import UUID

from django.db import transaction

from bus.publishing import end, publish
from cleanup.models import Upload, UploadState
from cleanup.stores.feed import PROGRESS_INTERVAL, harmless, tell

#: How the topic ends, by the last state of the upload.
_ENDS = {UploadState.DONE: "completed", UploadState.FAILED: "failed"}

#: Uploads whose last progress is remembered: more than are written to at once.
_REMEMBERED = 1_000

#: When each upload was told of last, of those that this process writes.
_told: OrderedDict[UUID, float] = OrderedDict()
_lock = Lock()


def topic_of(upload: Upload) -> str:
    """The topic of an upload."""
    return f"upload:{upload.pk}"


def started(upload: Upload) -> None:
    """Tell that an upload has begun."""
    tell(topic_of(upload), "upload.started", _data(upload))


def progress(upload: Upload) -> None:
    """Tell how far it is, unless that was told a moment ago."""
    if _is_due(upload.pk, time.monotonic()):
        tell(topic_of(upload), "upload.progress", _data(upload))


def _is_due(upload: UUID, now: float) -> bool:
    with _lock:
        if now < _told.get(upload, float("-inf")) + PROGRESS_INTERVAL.total_seconds():
            return False
        _told[upload] = now
        _told.move_to_end(upload)
        while len(_told) > _REMEMBERED:
            _told.popitem(last=False)
        return True


def ended(upload: Upload) -> None:
    """Tell how it ended and end the topic, in the caller's transaction and before its audit entry."""
    status = _ENDS.get(UploadState(upload.state), "cancelled")
    kind = "upload.completed" if status == "completed" else "upload.failed"
    topic, data = topic_of(upload), _data(upload)
    with harmless(topic, kind), transaction.atomic():
        publish(topic, kind, data, tags={"key": kind})
        end(topic, status, {**data, "status": status})


def _data(upload: Upload) -> dict[str, Any]:
    return {
        "upload": str(upload.pk), "state": str(upload.state), "done": upload.offset, "total": upload.size,
        "unit": "bytes", "name": upload.name, "area": upload.area.name, "uploader": upload.uploader,
        "detail": upload.detail, "file": upload.staged_file,
    }  # fmt: skip
