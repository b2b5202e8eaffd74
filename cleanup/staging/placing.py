"""Where a complete part finds its place: what it is, whether its bytes are there already, and its final name.

All of it below the open area and never through a link. What is placed is whole, synced, and under a name made
of its hash; if the rows that belong to it cannot be made, it becomes a part again. From the look at the place
until the rows are made the area is locked, as it is while a run moves files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from django.db import InterfaceError, OperationalError

from cleanup.conf import conf
from cleanup.engine.area import AreaHandle
from cleanup.engine.kernel import rename_new
from cleanup.engine.names import unescape
from cleanup.models import StagedContent, StagedFile, StagingArea
from cleanup.operations import NotFound, OperationRefused
from cleanup.operations.areas import locked
from cleanup.operations.recovery import recover_area
from cleanup.staging import folders, limits
from cleanup.staging.errors import WrongDigest
from cleanup.staging.room import is_full
from cleanup.stores.plans import open_intents

#: Whoever stages waits this long for a run that moves files: longer than a batch takes on a slow disk.
PATIENCE = timedelta(seconds=60)

_CHUNK = 1 << 20
_FILE_MODE = 0o640


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A part that may be stored."""

    digest: str
    size: int
    kind: limits.FileType

    @property
    def folder(self) -> bytes:
        return self.digest[:2].encode()

    @property
    def file(self) -> bytes:
        return f"{self.digest}{self.kind.suffix}".encode()


def references(content: StagedContent) -> int:
    """How many living rows refer to a content."""
    return int(StagedFile.objects.filter(content=content).count())


def digest_of(fd: int) -> str:
    """The SHA-256 of a file, whatever its position is."""
    state, at = hashlib.sha256(), 0
    while chunk := os.pread(fd, _CHUNK, at):
        state.update(chunk)
        at += len(chunk)
    return state.hexdigest()


class Placing:
    """One part on its way into an open area."""

    def __init__(self, handle: AreaHandle, area: StagingArea, parts: int, part: bytes) -> None:
        self.handle, self.area, self.parts, self.part = handle, area, parts, part

    def check(self, name: str, sha256: str, digest: str) -> Checked:
        """Say what the part is.

        Args:
            name: of the file.
            sha256: what it must be; empty = not known.
            digest: what it is; empty = to be computed.

        Raises:
            Refused: it is not taken.
            NotFound: there is no such part.
            OperationRefused: it is no plain file with one name.
        """
        limits.safe_name(name)
        expected = limits.check_digest(sha256)
        with self.reading() as fd:
            size = os.fstat(fd).st_size
            limits.check_size(size, conf().upload_max_size)
            head = os.pread(fd, limits.HEAD, 0)
            kind = limits.check_type(name, head, size=size, allowed=conf().upload_types)
            found = digest or digest_of(fd)
        if expected and found != expected:
            raise WrongDigest(f"the file has the SHA-256 {found}, not {expected}")
        return Checked(digest=found, size=size, kind=kind)

    @contextmanager
    def reading(self) -> Iterator[int]:
        try:
            fd = folders.open_plain(self.parts, self.part)
        except FileNotFoundError as error:
            raise NotFound("there is no such part to stage") from error
        try:
            if os.fstat(fd).st_nlink != 1:
                raise OperationRefused("the part to stage has more than one name")
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def placed(self, checked: Checked) -> Iterator[bytes]:
        """Have the file at its place, and yield its path.

        If the caller fails, all is as it was before; but where nobody can tell whether the database has
        committed, the file stays, and is taken over by whoever comes next.
        """
        with locked(self.handle, patience=PATIENCE):
            self.finish_moves()
            content = self.content_of(checked)
            path = self.path_of(checked, content)
            folder, _, name = path.rpartition(b"/")
            with folders.folder_of(self.handle, folder) as target:
                new = not self.adopt(target, name, checked, content) and self.place(target, name)
                try:
                    yield path
                except BaseException as error:
                    if new and _is_undone(error):
                        self.take_back(target, name)
                    raise
        folders.drop(self.parts, self.part)

    def content_of(self, checked: Checked) -> StagedContent | None:
        """The row of these bytes, if there is one."""
        return StagedContent.objects.filter(area=self.area, sha256=checked.digest).first()

    def path_of(self, checked: Checked, content: StagedContent | None) -> bytes:
        """Where these bytes lie, or will lie."""
        return unescape(content.path) if content else checked.folder + b"/" + checked.file

    def size_of(self, path: bytes) -> int:
        """How large the file at `path` is.

        Raises:
            NotFound: there is no such file.
        """
        try:
            fd = self.handle.open(path, folders.READ)
        except OSError as error:
            raise NotFound("the file is gone") from error
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def finish_moves(self) -> None:
        """Let rows catch up with files that a run had moved when it was interrupted."""
        if open_intents(self.area.pk):
            recover_area(self.handle, self.area)

    def adopt(self, target: int, name: bytes, checked: Checked, content: StagedContent | None) -> bool:
        """If the bytes are there already, make the file young; False if they are not.

        Raises:
            OperationRefused: something else is there.
        """
        try:
            fd = folders.open_plain(target, name)
        except FileNotFoundError:
            return False
        try:
            # Whoever refers to it has seen it whole: the size is enough then.
            known = content is not None and references(content) > 0
            same = os.fstat(fd).st_size == checked.size and (known or digest_of(fd) == checked.digest)
            if not same:
                raise OperationRefused(f"{os.fsdecode(name)} holds other bytes than its name says")
            os.utime(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        return True

    def place(self, target: int, name: bytes) -> bool:
        """Move the part to its final name, durably."""
        with self.reading() as fd:
            os.fchmod(fd, _FILE_MODE)
            os.utime(fd)
            os.fsync(fd)
            rename_new(self.parts, self.part, target, name)
        os.fsync(target)
        os.fsync(self.parts)
        return True

    def take_back(self, target: int, name: bytes) -> None:
        """The rows were not made: what was placed is a part again."""
        with suppress(FileExistsError):
            rename_new(target, name, self.parts, self.part)
        os.fsync(target)


def _is_undone(error: BaseException) -> bool:
    """Whether a transaction that ended by `error` has surely left nothing behind."""
    if isinstance(error, OperationalError | InterfaceError):
        return is_full(error)
    return isinstance(error, Exception)
