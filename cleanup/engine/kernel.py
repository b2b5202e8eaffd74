"""Calls that Python does not offer: openat2, renameat2, syncfs and statx.

Each is reached through ctypes and has a portable way for kernels and sandboxes that refuse it, with the same
guarantee at a higher price: `open_beneath` never leaves the tree below its directory and never follows a
link, and `rename_new` never overwrites. All paths are bytes relative to an open directory.
"""

import ctypes
import errno
import os
import sys
from functools import lru_cache
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)

_SYS_OPENAT2 = 437  #: the same number on every architecture
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x01, 0x02, 0x04, 0x08
_RESOLVE = _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
_RENAME_NOREPLACE = 1
_AT_SYMLINK_NOFOLLOW, _AT_NO_AUTOMOUNT, _AT_EMPTY_PATH = 0x100, 0x800, 0x1000
_STATX_BASIC_STATS, _STATX_BTIME = 0x7FF, 0x800
_STATX_ATTR_MOUNT_ROOT = 0x2000

#: The kernel takes 4096 bytes of path with the final NUL; longer paths are opened in pieces.
_MAX_PATH = 4000

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _StatxTime(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_int64), ("nsec", ctypes.c_uint32), ("pad", ctypes.c_int32))


class _Statx(ctypes.Structure):
    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("nlink", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("mode", ctypes.c_uint16),
        ("spare", ctypes.c_uint16),
        ("ino", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("attributes_mask", ctypes.c_uint64),
        ("atime", _StatxTime),
        ("btime", _StatxTime),
        ("ctime", _StatxTime),
        ("mtime", _StatxTime),
        ("tail", ctypes.c_uint8 * 128),
    )


class Look(NamedTuple):
    """What statx says of one name, without following a link."""

    mode: int  #: with the kind, as `stat` takes it
    uid: int
    is_mount: bool  #: the root of a mounted file system, a bind mount included
    stamps: dict[str, int | None]  #: a, b, c and m in nanoseconds since 1970; None where not known


def _fail(path: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def _openat2(dir_fd: int, path: bytes, flags: int) -> int:
    how = _OpenHow(flags, 0, _RESOLVE)
    # EAGAIN: something was renamed while the kernel checked that the path stays below. Rare, and soon over.
    for _ in range(100):
        fd: int = _libc.syscall(_SYS_OPENAT2, dir_fd, path, ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return fd
        if ctypes.get_errno() != errno.EAGAIN:
            break
    raise _fail(path)


@lru_cache(maxsize=1)
def has_openat2() -> bool:
    """Whether this kernel, and the sandbox we may be in, let us call openat2."""
    if sys.platform != "linux":
        return False
    try:
        here = os.open(b".", DIRECTORY)
    except OSError:
        here = os.open(b"/", DIRECTORY)
    try:
        os.close(_openat2(here, b".", DIRECTORY))
    except OSError:
        return False
    finally:
        os.close(here)
    return True


def _open_by_steps(dir_fd: int, path: bytes, flags: int) -> int:
    """Open `path` name by name, refusing links and other devices: what openat2 does at once."""
    device = os.fstat(dir_fd).st_dev
    *parents, name = path.split(b"/")
    current = os.dup(dir_fd)
    try:
        for step, step_flags in [*((parent, DIRECTORY) for parent in parents), (name, flags)]:
            if step == b"..":
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
            following = os.open(step, step_flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = following
            if os.fstat(current).st_dev != device:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    except OSError:
        os.close(current)
        raise
    return current


def _pieces(path: bytes) -> list[bytes]:
    """Cut a path at slashes into pieces that the kernel takes."""
    pieces, piece = [], b""
    for name in path.split(b"/"):
        longer = piece + b"/" + name if piece else name
        if len(longer) > _MAX_PATH:
            pieces.append(piece)
            longer = name
        piece = longer
    return [*pieces, piece]


def open_beneath(dir_fd: int, path: bytes, flags: int = DIRECTORY) -> int:
    """Open `path` below `dir_fd` and return the descriptor.

    No component may be a link, ``..`` past the start, or on another mount; an empty path opens the directory
    anew.

    Raises:
        OSError: ELOOP or ENOTDIR for a link, EXDEV for another mount or a way out, else as open(2).
    """
    opener = _openat2 if has_openat2() else _open_by_steps
    *parents, last = _pieces(path or b".")
    current = dir_fd
    try:
        for piece in parents:
            following = opener(current, piece, DIRECTORY)
            if current != dir_fd:
                os.close(current)
            current = following
        return opener(current, last, flags | os.O_CLOEXEC)
    finally:
        if current != dir_fd:
            os.close(current)


@lru_cache(maxsize=1)
def has_renameat2() -> bool:
    """Whether the C library offers renameat2; the file system may still refuse it."""
    return sys.platform == "linux" and hasattr(_libc, "renameat2")


def rename_new(src_dir_fd: int, src: bytes, dst_dir_fd: int, dst: bytes) -> None:
    """Rename `src` to a name that is free; never overwrite.

    Where the file system has no such rename, the file is linked to the new name and then unlinked from the
    old: a crash between leaves it under both, never under none.

    Raises:
        FileExistsError: `dst` is taken.
        OSError: as rename(2).
    """
    if has_renameat2():
        if _libc.renameat2(src_dir_fd, src, dst_dir_fd, dst, _RENAME_NOREPLACE) == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
            raise _fail(src)
    os.link(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=False)
    os.unlink(src, dir_fd=src_dir_fd)


def sync_filesystem(fd: int) -> None:
    """Write everything of the file system that holds `fd` to disk.

    Raises:
        OSError: as syncfs(2).
    """
    if sys.platform != "linux":
        os.sync()
    elif _libc.syncfs(fd) != 0:
        raise _fail(b"")


def look(dir_fd: int, name: bytes) -> Look:
    """Look at `name` in the open directory, or at the directory itself if it is empty.

    Raises:
        OSError: as statx(2).
    """
    statx = getattr(_libc, "statx", None)
    found = _Statx()
    if statx is None:
        return _look_by_stat(dir_fd, name)
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_EMPTY_PATH
    if statx(dir_fd, name, flags, _STATX_BASIC_STATS | _STATX_BTIME, ctypes.byref(found)) != 0:
        raise _fail(name)
    if not found.attributes_mask & _STATX_ATTR_MOUNT_ROOT:
        is_mount = _is_other_device(dir_fd, name)
    else:
        is_mount = bool(found.attributes & _STATX_ATTR_MOUNT_ROOT)
    birth = _ns(found.btime) if found.mask & _STATX_BTIME else None
    stamps = {"a": _ns(found.atime), "b": birth, "c": _ns(found.ctime), "m": _ns(found.mtime)}
    return Look(found.mode, found.uid, is_mount, stamps)


def _look_by_stat(dir_fd: int, name: bytes) -> Look:
    found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False) if name else os.fstat(dir_fd)
    stamps = {"a": found.st_atime_ns, "b": None, "c": found.st_ctime_ns, "m": found.st_mtime_ns}
    return Look(found.st_mode, found.st_uid, _is_other_device(dir_fd, name), stamps)


def _is_other_device(dir_fd: int, name: bytes) -> bool:
    """Whether `name` is on another device than its directory: all that an old kernel tells of mounts."""
    above = os.stat(b"..", dir_fd=dir_fd) if not name else os.fstat(dir_fd)
    itself = os.stat(name, dir_fd=dir_fd, follow_symlinks=False) if name else os.fstat(dir_fd)
    return above.st_dev != itself.st_dev


def birth_ns(dir_fd: int, name: bytes) -> int | None:
    """Return when `name` was made, in nanoseconds since 1970, or None where that is not known."""
    found = _Statx()
    statx = getattr(_libc, "statx", None)
    if statx is None:
        return None
    if statx(dir_fd, name, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, ctypes.byref(found)) != 0:
        return None
    if not found.mask & _STATX_BTIME:
        return None
    return _ns(found.btime)


def _ns(time: _StatxTime) -> int:
    return int(time.sec) * 1_000_000_000 + int(time.nsec)
