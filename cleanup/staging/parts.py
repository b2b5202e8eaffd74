"""The file in which the bytes of one upload gather, and the hash that runs along with them.

Only what the row acknowledges counts: whoever goes on writing first cuts the file to that length. One writer
holds the file by a lock of the operating system, so a request that hangs can never write into what another
has taken over. The hash of what was acknowledged is remembered by the process that computed it, for the next
part; another process reads what it has not seen.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from uuid import UUID

from cleanup.operations import OperationRefused
from cleanup.staging import folders, limits
from cleanup.staging.errors import Locked, PartLost

_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: Hashes remembered: 200 uploads at once, a few times; some hundred bytes each.
_REMEMBERED = 1_000

_CHUNK = 1 << 20


class _Hashes:
    """SHA-256 of acknowledged beginnings of uploads, the last used kept."""

    def __init__(self) -> None:
        self._states: OrderedDict[UUID, tuple[int, hashlib._Hash]] = OrderedDict()
        self._lock = Lock()

    def after(self, upload: UUID, fd: int, offset: int) -> hashlib._Hash:
        """The hash after the first `offset` bytes; what we have not seen ourselves is read.

        Acknowledged bytes never change, so what is known of fewer of them is still true.

        Raises:
            OSError: they cannot be read.
        """
        with self._lock:
            at, known = self._states.get(upload, (0, None))
        if known is None or at > offset:
            at, known = 0, hashlib.sha256()
        state = known.copy()
        while at < offset:
            chunk = os.pread(fd, min(_CHUNK, offset - at), at)
            if not chunk:
                raise OSError(f"a part of {at} bytes should have {offset}")
            state.update(chunk)
            at += len(chunk)
        return state

    def keep(self, upload: UUID, offset: int, state: hashlib._Hash) -> None:
        """Remember what is known after `offset` acknowledged bytes."""
        with self._lock:
            self._states[upload] = (offset, state)
            self._states.move_to_end(upload)
            while len(self._states) > _REMEMBERED:
                self._states.popitem(last=False)

    def forget(self, upload: UUID) -> None:
        """Know nothing of an upload any more."""
        with self._lock:
            self._states.pop(upload, None)


hashes = _Hashes()


def part_name(upload: UUID) -> bytes:
    """The name of an upload's file: made of its id alone."""
    return upload.hex.encode()


def upload_of(name: str) -> UUID | None:
    """The upload whose file is called so; None for files of others."""
    if len(name) != 32:
        return None
    try:
        found = UUID(hex=name)
    except ValueError:
        return None
    return found if found.hex == name else None


@contextmanager
def writing(parts: int, upload: UUID, offset: int) -> Iterator[Part]:
    """Yield the file of an upload, cut to `offset` and held against every other writer.

    Raises:
        Locked: somebody else is writing to it.
        PartLost: it is shorter than that.
        OperationRefused: something else has its name.
        OSError: it cannot be opened, or not be cut.
    """
    fd = _open(parts, part_name(upload), make=offset == 0)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked("somebody else is writing to this upload") from error
        if os.fstat(fd).st_size < offset:
            raise PartLost("bytes of this upload were lost; begin anew")
        os.ftruncate(fd, offset)
        yield Part(fd, upload, offset)
    finally:
        os.close(fd)


def _open(parts: int, name: bytes, *, make: bool) -> int:
    try:
        fd = os.open(name, _OPEN | (os.O_CREAT if make else 0), 0o600, dir_fd=parts)
    except FileNotFoundError as error:
        raise PartLost("bytes of this upload were lost; begin anew") from error
    except OSError as error:
        if error.errno not in folders.NOT_PLAIN:
            raise
        raise OperationRefused("what belongs to this upload is no regular file") from error
    fd = folders.checked_plain(fd, name)
    if os.fstat(fd).st_nlink > 1:
        os.close(fd)
        raise OperationRefused("what belongs to this upload has more than one name")
    if make:
        os.fsync(parts)
    return fd


class Part:
    """The open file of an upload, whose next bytes are being written."""

    def __init__(self, fd: int, upload: UUID, offset: int) -> None:
        self.fd, self.upload = fd, upload
        #: Where this part began, and where it has come to.
        self.start = self.offset = offset
        self._state = hashes.after(upload, fd, offset)

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            OSError: they are not all on the disk.
        """
        view = memoryview(chunk)
        while view:
            done = os.pwrite(self.fd, view, self.offset)
            self.offset += done
            view = view[done:]
        self._state.update(chunk)

    def sync(self) -> None:
        """Have it all on the disk."""
        os.fsync(self.fd)

    def take_back(self) -> None:
        """Forget what this part has written."""
        os.ftruncate(self.fd, self.start)

    def head(self) -> bytes:
        """The beginning of the whole file, as far as it is there."""
        return os.pread(self.fd, limits.HEAD, 0)

    def digest(self) -> str:
        """The SHA-256 of all that is there, in hexadecimal."""
        return self._state.hexdigest()

    def acknowledged(self) -> None:
        """Remember the hash of what is there, for the next part."""
        hashes.keep(self.upload, self.offset, self._state)
