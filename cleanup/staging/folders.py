"""Places inside an area where staging works: the folder of parts, the folders of contents, the files in them.

Everything is opened below the area's descriptor and never through a link; a link, or anything else that is no
plain directory or file, is refused. Names of files come from here alone (an id, or a hash with a known
extension), so what somebody sent is never part of a path.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cleanup.engine.area import AreaHandle
from cleanup.engine.kernel import open_beneath
from cleanup.operations import OperationRefused

#: Where unfinished files lie, in each area; every walker skips names that begin like this.
PARTS = b".staging-uploads"

#: For us alone: what lies there may be anything.
_PARTS_MODE = 0o700
_FOLDER_MODE = 0o755
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: A cleaner may take an empty folder away between two steps; then it is made once more.
_TRIES = 20

#: What opening says when something else than a plain file or directory has the name.
NOT_PLAIN = (errno.ELOOP, errno.ENOTDIR, errno.EXDEV, errno.ENXIO, errno.EISDIR)


@contextmanager
def parts_of(handle: AreaHandle) -> Iterator[int]:
    """Yield the descriptor of the area's folder of parts, which is made if there is none.

    Raises:
        OperationRefused: something else has its name.
        OSError: no room, or not ours to write to.
    """
    fd = _folder(handle, PARTS, _PARTS_MODE)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def parts_if_any(handle: AreaHandle) -> Iterator[int | None]:
    """Yield the descriptor of the area's folder of parts; None if there is no such folder.

    Raises:
        OSError: a link, or something else than a directory.
    """
    try:
        fd = open_beneath(handle.fd, PARTS)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def folder_of(handle: AreaHandle, name: bytes) -> Iterator[int]:
    """Yield the descriptor of the folder `name` directly below the area, which is made if there is none.

    Raises:
        OperationRefused: something else has its name.
    """
    fd = _folder(handle, name, _FOLDER_MODE)
    try:
        yield fd
    finally:
        os.close(fd)


def _folder(handle: AreaHandle, name: bytes, mode: int) -> int:
    for _ in range(_TRIES):
        try:
            return open_beneath(handle.fd, name)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=handle.fd)
                os.fsync(handle.fd)
        except OSError as error:
            if error.errno not in NOT_PLAIN:
                raise
            raise OperationRefused(f"in the area {os.fsdecode(name)} is no plain directory") from error
    raise OperationRefused(f"in the area {os.fsdecode(name)} goes away as soon as it is made")


def open_plain(dir_fd: int, name: bytes) -> int:
    """Open the regular file `name` for reading and return its descriptor.

    Raises:
        FileNotFoundError: there is none.
        OperationRefused: something else has its name.
    """
    try:
        fd = os.open(name, READ, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in NOT_PLAIN:
            raise
        raise OperationRefused(f"{os.fsdecode(name)} is no regular file") from error
    return checked_plain(fd, name)


def checked_plain(fd: int, name: bytes) -> int:
    """Return `fd` if it is a regular file; else close it.

    Raises:
        OperationRefused: it is something else.
    """
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OperationRefused(f"{os.fsdecode(name)} is no regular file")


def drop(dir_fd: int, name: bytes) -> bool:
    """Remove the file `name`; False if there is none."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    return True
