"""What a storage has to promise to hold contents, and the file system that does.

Areas lie on file systems: the engine that cleans them renames, locks and looks at inodes. What is staged,
though, is only ever put whole under a name made of its hash, read, and measured; so much any storage of
Django's can do that keeps four promises, here as functions over `STORAGES["staging"]`:

    put     whole or not at all, under exactly this name, and never in place of what is there
    read    the bytes that were put, from any process, as soon as `put` has returned
    size    of them
    exists  true from then on

Nothing here renames, appends, lists or removes: parts of uploads stay on the local disk until they are whole,
and removing is for policies. On S3 `put` is a conditional one (`If-None-Match: *`).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

from django.core.exceptions import SuspiciousFileOperation
from django.core.files import File
from django.core.files.storage import FileSystemStorage, Storage, storages

from cleanup.engine.kernel import DIRECTORY, open_beneath, rename_new
from cleanup.staging.errors import StagingError
from cleanup.staging.room import needing_room

ALIAS = "staging"
_NAME = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}(\.[a-z0-9]{1,20})?")
_PARTS = b".staging-storage"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class StorageBroken(StagingError):
    """The storage does not keep what it has to promise, or holds something else under the name."""

    code = "storage_broken"


def staging_storage() -> Storage:
    """The storage of the setting `STORAGES["staging"]`."""
    found: Storage = storages[ALIAS]
    return found


def put(storage: Storage, name: str, data: BinaryIO, *, size: int) -> bool:
    """Put a content under its name; False if it is there already.

    Args:
        storage: that is to hold it.
        name: `<first two>/<SHA-256><suffix>`.
        data: all of it, from the position on.
        size: its bytes.

    Raises:
        SuspiciousFileOperation: not the name of a content.
        StorageFull: there is no room.
        StorageBroken: it was put elsewhere, or not whole, or other bytes are there.
    """
    _check(name)
    if storage.exists(name):
        return _is_there(storage, name, size)
    try:
        with needing_room():
            saved = storage.save(name, File(data, name=name))
    except FileExistsError:
        return _is_there(storage, name, size)
    if saved != name:
        raise StorageBroken(f"the storage has put {name} under the name {saved}")
    _is_there(storage, name, size)
    return True


def read(storage: Storage, name: str) -> BinaryIO:
    """Open a content for reading.

    Raises:
        FileNotFoundError: there is none.
    """
    _check(name)
    found: Any = storage.open(name, "rb")
    return cast(BinaryIO, found)


def _is_there(storage: Storage, name: str, size: int) -> bool:
    found = storage.size(name)
    if found != size:
        raise StorageBroken(f"{name} has {found} bytes in the storage and should have {size}")
    return False


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise SuspiciousFileOperation(f"{name!r} is not the name of a content")


class ContentFiles(FileSystemStorage):
    """The default: a folder of this host. A file is synced under a hidden name and renamed to a free one."""

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        """Return `name` itself: a content has one name, and whoever comes second finds it taken."""
        _check(name)
        return name

    def _save(self, name: str, content: Any) -> str:
        folder, _, file = name.rpartition("/")
        os.makedirs(self.location, exist_ok=True)
        with _opened(self.location) as root, _folder(root, _PARTS, 0o700) as parts:
            part = secrets.token_hex(8).encode()
            try:
                _write(parts, part, content)
                with _folder(root, folder.encode(), 0o755) as target:
                    rename_new(parts, part, target, file.encode())
                    os.fsync(target)
                os.fsync(root)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=parts)
        return name

    def _open(self, name: str, mode: str = "rb") -> File[bytes]:
        _check(name)
        with _opened(self.location) as root:
            return File(os.fdopen(open_beneath(root, name.encode(), os.O_RDONLY), "rb"), name=name)

    def delete(self, name: str) -> None:
        """Refuse: what is staged goes by policies, through the trash."""
        raise NotImplementedError("contents are removed by policies alone")


def _write(parts: int, part: bytes, content: Any) -> None:
    with os.fdopen(os.open(part, _NEW, 0o640, dir_fd=parts), "wb") as file:
        for chunk in content.chunks():
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[int]:
    fd = os.open(path, DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _folder(root: int, name: bytes, mode: int) -> Iterator[int]:
    with suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=root)
    fd = open_beneath(root, name)
    try:
        yield fd
    finally:
        os.close(fd)
