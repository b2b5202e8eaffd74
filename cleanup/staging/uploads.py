"""The verbs of uploads: create, write a part, find, give up; and what the clock asks for: expire, recover.

    create      a row; no byte has come
    write_part  bytes to the disk, synced, and only then the row says so: what is acknowledged is never lost
    finish      the last byte is there: it becomes a file of the area as the upload ends, in one transaction

A part that was cut is kept as far as it came, unless it carries a checksum. Any process takes the next part,
from the row and the disk alone. Whoever asks for an upload of somebody else hears that there is none. What a
full disk or a full database interrupts is `StorageFull`: nothing was acknowledged, and the same call later
goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from django.db import transaction

from cleanup.conf import conf
from cleanup.engine.errors import AreaBusy
from cleanup.models import StagingArea, Upload, UploadState
from cleanup.operations import NotFound, OperationRefused, find_area
from cleanup.staging import folders, limits, news
from cleanup.staging.content import opened_for_staging
from cleanup.staging.counting import counted
from cleanup.staging.errors import BadValue, Gone, NotAllowed, PartLost, WrongDigest, WrongOffset, WrongType
from cleanup.staging.finishing import OPEN_STATES, actor_of, end, finish, reread
from cleanup.staging.holding import Hold, held
from cleanup.staging.parts import writing
from cleanup.staging.quotas import check_quota
from cleanup.staging.receiving import ALGORITHMS, Checksum, Receiver, check_checksum
from cleanup.staging.room import needing_room
from cleanup.staging.tending import expire, recover
from cleanup.stores import Actor
from cleanup.stores.sql import database_now

__all__ = [
    "ALGORITHMS", "Uploader", "any_of", "create", "expire", "find", "give_up", "recover", "terminate",
    "write_part",
]  # fmt: skip

logger = logging.getLogger(__name__)

#: Bytes of Upload-Metadata, which is kept to be given back.
_METADATA = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploader:
    """Who asks, as whoever established it says."""

    #: Such as `key:agent-7` or `user:anna`: an upload belongs to a name.
    name: str
    may_upload: bool
    kind: Literal["key", "token", "user"]


@counted
def create(
    *,
    area: str,
    name: str,
    size: int,
    uploader: Uploader,
    content_type: str = "",
    sha256: str = "",
    metadata: str = "",
    task_id: str = "",
) -> Upload:
    """Begin an upload; one of 0 bytes is over at once.

    Args:
        area: that is to have the file.
        name: of the file.
        size: in bytes.
        uploader: whose it will be.
        content_type: what the sender calls its type.
        sha256: what the whole must be, in hexadecimal; empty = not known.
        metadata: to be given back as it is.
        task_id: what it is for.

    Raises:
        NotAllowed: this uploader may not.
        Refused: the name, the type, the size or another value; `code` says which.
        QuotaExceeded: this uploader has sent enough for now.
        StorageFull: there is no room.
        NotFound: there is no such area.
        OperationRefused: the area takes no files.
        AreaRefused: its directory is not the one that was registered.
    """
    if not uploader.may_upload:
        raise NotAllowed("you may not upload files")
    limits.type_of(limits.safe_name(name), allowed=conf().upload_types)
    limits.check_size(size, conf().upload_max_size)
    _check_texts(content_type, metadata, uploader.name)
    upload = Upload(
        name=name, size=size, content_type=content_type, sha256=limits.check_digest(sha256),
        metadata=metadata, uploader=uploader.name, task_id=limits.check_task_id(task_id),
    )  # fmt: skip
    with needing_room():
        _enter(upload, find_area(area))
        news.started(upload)
        return upload if size else _finish_empty(upload)


def _check_texts(content_type: str, metadata: str, uploader: str) -> None:
    for text, what, most in (
        (content_type, "the content type", 100), (metadata, "the metadata", _METADATA),
    ):  # fmt: skip
        if len(text) > most or not text.isascii() or not text.isprintable():
            raise BadValue(f"{what} has at most {most} printable ASCII characters")
    if not 0 < len(uploader) <= 180:
        raise BadValue("the name of an uploader has 1 to 180 characters")


def _enter(upload: Upload, area: StagingArea) -> None:
    """Make the row, if the area takes files and the uploader may have one more."""
    with opened_for_staging(area) as handle, folders.parts_of(handle):
        pass
    with transaction.atomic():
        now = database_now()
        check_quota(upload.uploader, upload.size, now=now)
        upload.area, upload.expires_at = area, now + conf().upload_lifetime
        upload.save(force_insert=True)


def _finish_empty(upload: Upload) -> Upload:
    """An upload without a byte is whole before any part comes."""
    return _write(upload, [], None)


def find(upload_id: UUID | str, uploader: Uploader) -> Upload:
    """The upload, if it is this uploader's and something has become of it or still can.

    Raises:
        NotFound: there is none, or it is somebody else's.
        Gone: it was refused, given up, or has expired.
    """
    upload = _owned(upload_id, uploader)
    late = upload.state == UploadState.OPEN and upload.expires_at <= database_now()
    if late or upload.state not in (*OPEN_STATES, UploadState.DONE):
        raise Gone(f"this upload is over: {upload.detail or upload.get_state_display()}")
    return upload


def _owned(upload_id: UUID | str, uploader: Uploader) -> Upload:
    upload = any_of(upload_id)
    if upload.uploader != uploader.name:
        raise NotFound("there is no such upload")
    return upload


def any_of(upload_id: UUID | str) -> Upload:
    """The upload, whoever has begun it and whatever became of it.

    Raises:
        NotFound: there is none.
    """
    try:
        key = upload_id if isinstance(upload_id, UUID) else UUID(upload_id)
    except ValueError as error:
        raise NotFound("there is no such upload") from error
    upload = Upload.objects.select_related("area").filter(pk=key).first()
    if upload is None:
        raise NotFound("there is no such upload")
    return upload


@counted
def write_part(
    upload_id: UUID | str,
    uploader: Uploader,
    offset: int,
    chunks: Iterable[bytes],
    *,
    checksum: Checksum | None = None,
) -> Upload:
    """Write the next part of an upload, and finish it if that was the last.

    The returned row's `offset` says what is stored. If reading `chunks` fails, what came until then is stored
    and acknowledged, unless there is a checksum, and the failure goes on to the caller.

    Args:
        upload_id: which.
        uploader: who writes.
        offset: where the part begins: where the stored bytes end.
        chunks: the bytes, of any lengths; read as they are written.
        checksum: algorithm and digest that the part must have.

    Raises:
        NotFound: there is no such upload, or it is somebody else's.
        NotAllowed: this uploader may not upload any more.
        Gone: it is over.
        WrongOffset: the stored bytes end elsewhere.
        Locked: somebody else is writing to it.
        BadValue: the checksum is none.
        ChecksumMismatch: the part is not what was sent; nothing of it is stored.
        TooLarge: the part is larger than parts may be, or goes beyond the end; nothing of it is stored.
        WrongType: the file is not what its name says; the upload has failed.
        WrongDigest: the whole is not what was announced; the upload has failed.
        PartLost: acknowledged bytes are gone from the disk; the upload has failed.
        StorageFull: there is no room; nothing of the part is acknowledged.
        OperationRefused: the area takes no files, or a link is where the part should be.
    """
    if not uploader.may_upload:
        raise NotAllowed("you may not upload files")
    check_checksum(checksum)
    upload = find(upload_id, uploader)
    if offset != upload.offset:
        raise WrongOffset(upload.offset)
    if upload.state == UploadState.DONE:
        raise Gone("this upload is done")
    with needing_room():
        return _write(upload, chunks, checksum)


def _write(upload: Upload, chunks: Iterable[bytes], checksum: Checksum | None) -> Upload:
    with held(upload) as hold:
        if upload.state == UploadState.OPEN:
            _receive(hold, chunks, checksum)
        if upload.state == UploadState.FINISHING:
            return _finish(upload)
        news.progress(upload)
        return reread(upload)


def _receive(hold: Hold, chunks: Iterable[bytes], checksum: Checksum | None) -> None:
    """Bring one part to the disk and into the row; a file that is not taken ends its upload."""
    upload = hold.upload
    try:
        with (
            opened_for_staging(upload.area) as handle,
            folders.parts_of(handle) as parts,
            writing(parts, upload.pk, upload.offset) as part,
        ):
            receiver = Receiver(part, hold, checksum)
            try:
                for chunk in chunks:
                    receiver.take(chunk)
                receiver.finish()
            except BaseException:
                receiver.give_up()
                raise
    except (WrongType, WrongDigest, PartLost) as error:
        end(upload, UploadState.FAILED, actor_of(upload.uploader), detail=str(error))
        raise


def _finish(upload: Upload) -> Upload:
    try:
        return finish(upload)
    except AreaBusy as busy:
        # All of it is stored: recovery finishes it in a moment.
        logger.info("upload %s waits for its area: %s", upload.pk, busy)
        return reread(upload)


@counted
def terminate(upload_id: UUID | str, uploader: Uploader) -> None:
    """Give an upload up, whoever writes to it at this moment; its bytes are removed.

    Raises:
        NotFound: there is no such upload, or it is somebody else's.
        Gone: it is over, or is becoming a file.
    """
    upload = _owned(upload_id, uploader)
    if not _terminate(upload, actor_of(uploader.name)):
        raise Gone("this upload is over")


def give_up(upload_id: UUID | str, actor: Actor) -> Upload:
    """Give anybody's upload up.

    Raises:
        NotFound: there is no such upload.
        OperationRefused: it is over, or is becoming a file.
    """
    upload = any_of(upload_id)
    if not _terminate(upload, actor):
        raise OperationRefused(f"the upload is {upload.get_state_display()}: it cannot be given up")
    return reread(upload)


def _terminate(upload: Upload, actor: Actor) -> bool:
    if upload.state != UploadState.OPEN:
        return False
    return end(upload, UploadState.TERMINATED, actor)
