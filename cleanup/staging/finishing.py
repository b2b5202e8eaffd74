"""How an upload ends: as a file of the area, refused, given up or expired. Once, whoever is at it.

Each end is one transaction: the row by compare-and-set, the end of its topic, the audit entry; for a file
also its content and its row of the registry. What lies in the folder of parts goes afterwards, and if that is
interrupted by the next recovery.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from django.db import transaction

from cleanup.engine.errors import EngineError
from cleanup.models import StagedFile, Upload, UploadState
from cleanup.operations import NotFound
from cleanup.operations.areas import opened
from cleanup.staging import folders, news
from cleanup.staging.content import Also, Incoming, restage, stage
from cleanup.staging.errors import Gone, PartLost, Refused
from cleanup.staging.parts import part_name
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.sql import database_now

logger = logging.getLogger(__name__)

#: States in which something can still become of an upload.
OPEN_STATES = (UploadState.OPEN, UploadState.FINISHING)

#: What the audit calls an end. A file is entered there by itself.
_ACTIONS = {
    UploadState.FAILED: "upload_refused",
    UploadState.TERMINATED: "upload_terminated",
    UploadState.EXPIRED: "upload_expired",
}


def actor_of(uploader: str) -> Actor:
    """The uploader as it stands in the audit: `key:agent-7` is a key, `user:anna` a person."""
    return Actor(name=uploader, kind=uploader.partition(":")[0])


def reread(upload: Upload) -> Upload:
    """The row as it is now."""
    return Upload.objects.select_related("area").get(pk=upload.pk)


def finish(upload: Upload) -> Upload:
    """Make a whole upload a file of its area. The caller holds it.

    Called again after any interruption it goes on where that was.

    Raises:
        Refused: the file is not taken; the upload has failed.
        PartLost: its bytes are gone; the upload has failed.
        StagingError: StorageFull, and it may be called again.
        EngineError: the area is busy, takes no files or is not there; it may be called again.
    """
    try:
        _stage(upload)
    except (Refused, PartLost) as error:
        end(upload, UploadState.FAILED, actor_of(upload.uploader), detail=str(error))
        raise
    except Gone:
        drop_part(upload)  # somebody else was faster
    return reread(upload)


def _stage(upload: Upload) -> StagedFile:
    incoming = Incoming(
        name=upload.name, content_type=upload.content_type, sha256=upload.sha256, uploader=upload.uploader,
        task_id=upload.task_id,
    )  # fmt: skip
    part = Path(upload.area.path) / os.fsdecode(folders.PARTS) / os.fsdecode(part_name(upload.pk))
    actor, also = actor_of(upload.uploader), partial(_done, upload)
    for _ in range(2):
        try:
            return stage(upload.area, part, incoming, actor, digest=upload.sha256, also=also)
        except NotFound:
            found = _placed(upload, incoming, actor, also)
        if found is not None:
            return found
    raise PartLost("bytes of this upload were lost; begin anew")


def _placed(upload: Upload, incoming: Incoming, actor: Actor, also: Also) -> StagedFile | None:
    """Enter the file if it has its final name already; None if it has not."""
    try:
        return restage(upload.area, incoming, actor, also=also)
    except NotFound:
        return None


def _done(upload: Upload, row: StagedFile) -> None:
    """End the upload in the transaction that makes the file's row.

    Raises:
        Gone: it has ended meanwhile.
    """
    finishing = Upload.objects.filter(pk=upload.pk, state=UploadState.FINISHING)
    if not finishing.update(state=UploadState.DONE, staged_file=row.pk, changed_at=database_now()):
        raise Gone("this upload is over")
    news.ended(reread(upload))


def end(upload: Upload, state: UploadState, actor: Actor, *, detail: str = "", **same: Any) -> bool:
    """End an upload without a file. False if its state, or one of `same`, is another by now."""
    with transaction.atomic():
        now = database_now()
        rows = Upload.objects.filter(pk=upload.pk, state=upload.state, **same)
        if not rows.update(state=state, detail=detail[:500], changed_at=now):
            return False
        news.ended(reread(upload))
        entry = record(
            actor, _ACTIONS[state], now=now, item=upload.pk, area=upload.area.name, path=None,
            size=upload.size, reason=detail, evidence={"name": upload.name, "received": upload.offset},
        )  # fmt: skip
        DatabaseAuditSink().write([entry])
    drop_part(upload)
    return True


def drop_part(upload: Upload) -> None:
    """Remove what came of an upload that is over; what cannot be reached now is left to recovery."""
    try:
        with opened(upload.area) as handle, folders.parts_if_any(handle) as parts:
            if parts is not None:
                folders.drop(parts, part_name(upload.pk))
    except (EngineError, OSError) as error:
        logger.warning("the part of upload %s stays for now: %s", upload.pk, error)
