"""A complete file into an area: one file for the same bytes, a row of the registry for each who staged them.

    check    name, type, size and hash, of the part that somebody else has written and synced
    place    under a name made of the hash; bytes that are there already are not stored again
    enter    one transaction: the content, the row of the registry, the audit entry, what the caller adds

From `place` to `enter` the area is locked, as it is while a run moves files, so no row can come to life for a
file that is on its way to the trash. Who dies in between leaves a file without a row; the next who stages the
same bytes takes it over. A file that gets one more row looks as young as that row: its age counts from then.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from django.db import transaction
from django.db.models import Exists, OuterRef

from cleanup.conf import conf
from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import AreaBusy
from cleanup.engine.kernel import open_beneath
from cleanup.engine.names import unescape
from cleanup.models import Source, StagedContent, StagedFile, StagingArea
from cleanup.operations import NotFound, OperationRefused
from cleanup.operations.areas import locked, opened
from cleanup.operations.rows import retire_rows
from cleanup.staging import folders, limits
from cleanup.staging.errors import Refused
from cleanup.staging.placing import PATIENCE, Checked, Placing
from cleanup.staging.room import needing_room
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.sql import database_now

#: How parts are called that were staged from memory.
BYTES_PREFIX = "bytes-"

_CHUNK = 1 << 20
_WRITE_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

#: Called with the new row in the transaction that makes it.
Also = Callable[[StagedFile], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """What is known about a file that is to be staged."""

    #: As whoever sent it calls it; never a path.
    name: str
    #: What the sender calls its type; the type that counts is that of its name and its bytes.
    content_type: str = ""
    #: What it must be, hexadecimal; empty = not known.
    sha256: str = ""
    uploader: str = ""
    task_id: str = ""
    source: Source | None = None
    version: int | None = None
    #: Key of the staged file that it was made of.
    origin: int | None = None


def part_folder(area: StagingArea) -> Path:
    """Return the folder where files are written before they are staged; it is made if there is none.

    Write into it by names of your own that are no one else's, without following links, and sync what you
    have written before you stage it.

    Raises:
        OperationRefused: the area takes no files, or something else has the folder's name.
        StorageFull: there is no room to make it.
    """
    with needing_room(), opened_for_staging(area) as handle, folders.parts_of(handle):
        return Path(area.path) / os.fsdecode(folders.PARTS)


def stage(
    area: StagingArea,
    part: Path,
    incoming: Incoming,
    actor: Actor,
    *,
    digest: str = "",
    also: Also | None = None,
) -> StagedFile:
    """Make a complete file part of the area, and return its row.

    Not within a transaction: whoever waits for the area while holding rows keeps a run from finishing.

    Args:
        area: that takes it.
        part: complete and synced, in `part_folder(area)`. It is gone afterwards, also if it was refused; it
            is still there if there was no room, or the area was busy or refuses. If the database was lost
            just when all was written, it may have its final name: then `restage` goes on.
        incoming: what is known about it.
        actor: who does it, for the audit.
        digest: its SHA-256, if the caller has computed it from the bytes that it wrote.
        also: called with the new row in its transaction; what it raises undoes all of it.

    Raises:
        Refused: its name, type, size or hash; `code` says which.
        StorageFull: there is no room.
        NotFound: the area is gone, or there is no such part.
        OperationRefused: the area takes no files, or something else is where the file belongs.
        AreaRefused: the directory is not the one that was registered.
        AreaBusy: a run has moved files for a very long time.
    """
    with needing_room(), opened_for_staging(area) as handle, folders.parts_of(handle) as parts:
        return _stage(Placing(handle, area, parts, os.fsencode(part.name)), incoming, actor, digest, also)


def restage(area: StagingArea, incoming: Incoming, actor: Actor, *, also: Also | None = None) -> StagedFile:
    """Make the row for a file that is at its place, and whose part is gone: a crash came between the two.

    Args:
        area: that has it.
        incoming: what is known about it, its SHA-256 as well.
        actor: who does it, for the audit.
        also: as for `stage`.

    Raises:
        NotFound: it is not there.
        StagingError: as `stage`; and `OperationRefused`, `AreaRefused`, `AreaBusy` as there.
    """
    with needing_room(), opened_for_staging(area) as handle, locked(handle, patience=PATIENCE):
        placing = Placing(handle, area, -1, b"")
        placing.finish_moves()
        kind = limits.type_of(incoming.name, allowed=conf().upload_types)
        checked = Checked(digest=incoming.sha256, size=-1, kind=kind)
        path = placing.path_of(checked, content := placing.content_of(checked))
        checked = replace(checked, size=placing.size_of(path))
        folder, _, name = path.rpartition(b"/")
        with folders.folder_of(handle, folder) as target:
            if not placing.adopt(target, name, checked, content):
                raise NotFound("the file is gone")
        return _enter(area, incoming, actor, checked, path, also)


def stage_bytes(
    area: StagingArea, data: bytes, incoming: Incoming, actor: Actor, *, also: Also | None = None
) -> StagedFile:
    """Stage what is in memory; as `stage`."""
    return stage_stream(area, BytesIO(data), incoming, actor, also=also)


def stage_stream(
    area: StagingArea, file: BinaryIO, incoming: Incoming, actor: Actor, *, also: Also | None = None
) -> StagedFile:
    """Stage what can be read from an open file, in bounded memory and never more than may be; as `stage`."""
    part = f"{BYTES_PREFIX}{uuid4()}".encode()
    with needing_room(), opened_for_staging(area) as handle, folders.parts_of(handle) as parts:
        try:
            digest = _copy(file, parts, part)
            return _stage(Placing(handle, area, parts, part), incoming, actor, digest, also)
        finally:
            folders.drop(parts, part)


def open_staged(row: StagedFile) -> BinaryIO:
    """Open the file of a row for reading, never through a link.

    Raises:
        FileNotFoundError: it is gone: in the trash, or never was.
        AreaRefused: the directory is not the one that was registered.
    """
    folder, _, name = unescape(row.path).rpartition(b"/")
    with opened(row.area) as handle:
        try:
            dir_fd = open_beneath(handle.fd, folder)
        except OSError as error:
            raise FileNotFoundError(f"{row.path} is gone") from error
        try:
            return os.fdopen(folders.open_plain(dir_fd, name), "rb")
        except OperationRefused as error:
            raise FileNotFoundError(f"{row.path} is gone") from error
        finally:
            os.close(dir_fd)


def release(row: StagedFile, actor: Actor, *, reason: str = "let go") -> bool:
    """Let a row go: it is soft-deleted. Its file stays while others refer to it, and as long as rules say.

    False if it was not alive.
    """
    return bool(retire_rows(StagedFile._meta.label, [str(row.pk)], actor=actor, reason=reason).rows)


def forget_contents(limit: int = 1_000) -> int:
    """Remove contents to which no row refers any more, not even a soft-deleted one; return how many.

    Their files are not touched: one that is still there is an orphan.
    """
    rows = StagedFile.all_objects.filter(content=OuterRef("pk"))
    removed = 0
    for key in (
        StagedContent.objects.filter(~Exists(rows)).order_by("pk").values_list("pk", flat=True)[:limit]
    ):
        with transaction.atomic():
            # Locked: whoever enters one more row for it waits, and then makes the content anew.
            found = StagedContent.objects.select_for_update().filter(pk=key).first()
            if found is not None and not StagedFile.all_objects.filter(content=found).exists():
                found.delete()
                removed += 1
    return removed


@contextmanager
def opened_for_staging(area: StagingArea) -> Iterator[AreaHandle]:
    """Yield the area, open, if it takes files.

    Raises:
        NotFound: its row is gone.
        OperationRefused: it is disabled.
        AreaRefused: the directory is not the one that was registered.
    """
    found = StagingArea.objects.filter(pk=area.pk).first()
    if found is None:
        raise NotFound(f"there is no area {area.name!r}")
    if not found.enabled:
        raise OperationRefused(f"the area {area.name!r} is disabled and takes no files")
    with opened(found) as handle:
        yield handle


def _copy(file: BinaryIO, dir_fd: int, name: bytes) -> str:
    """Write a part, synced; return its SHA-256.

    Raises:
        TooLarge: it has more bytes than are taken.
    """
    state, count = hashlib.sha256(), 0
    with os.fdopen(os.open(name, _WRITE_NEW, 0o600, dir_fd=dir_fd), "wb") as part:
        while chunk := file.read(_CHUNK):
            count += len(chunk)
            limits.check_size(count, conf().upload_max_size)
            part.write(chunk)
            state.update(chunk)
        part.flush()
        os.fsync(part.fileno())
    return state.hexdigest()


def _stage(placing: Placing, incoming: Incoming, actor: Actor, digest: str, also: Also | None) -> StagedFile:
    try:
        limits.check_task_id(incoming.task_id)
        checked = placing.check(incoming.name, incoming.sha256, digest)
    except Refused:
        folders.drop(placing.parts, placing.part)
        raise
    with placing.placed(checked) as path:
        return _enter(placing.area, incoming, actor, checked, path, also)


def _enter(
    area: StagingArea, incoming: Incoming, actor: Actor, checked: Checked, path: bytes, also: Also | None
) -> StagedFile:
    with transaction.atomic():
        content = _content(area, checked, path)
        row: StagedFile = StagedFile.objects.create(
            area=area, path=content.path, name=incoming.name, sha256=checked.digest, size=checked.size,
            content_type=checked.kind.content_type, task_id=incoming.task_id, content=content,
            uploader=incoming.uploader[:180], source=incoming.source, version=incoming.version,
            origin=incoming.origin,
        )  # fmt: skip
        if also is not None:
            also(row)
        evidence = {"sha256": checked.digest, "name": incoming.name, "row": row.pk}
        entry = record(
            actor, "staged", now=database_now(), item=row.pk, area=area.name, path=content.path,
            size=checked.size, evidence=evidence,
        )  # fmt: skip
        DatabaseAuditSink().write([entry])
    return row


def _content(area: StagingArea, checked: Checked, path: bytes) -> StagedContent:
    """The row of the content, locked.

    Raises:
        AreaBusy: somebody who does not see our lock has stored it elsewhere in this very moment.
    """
    while True:
        made, _ = StagedContent.objects.get_or_create(
            area=area, sha256=checked.digest, defaults={"size": checked.size, "path": path.decode()}
        )
        found = StagedContent.objects.select_for_update().filter(pk=made.pk).first()
        if found is not None:
            break
    if found.path != path.decode():
        raise AreaBusy(f"the same bytes are being stored in {area.name} by somebody else")
    return found
