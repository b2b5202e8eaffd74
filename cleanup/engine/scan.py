"""The walk: every regular file below an open area, as a candidate.

Directories are opened one at a time from the area's own descriptor, by a call that follows no link and
crosses no mount, and listed through their descriptor; so no exchange of directories and links makes the walk
leave the area, a tree of any depth needs two descriptors, and there is no recursion. Links, sockets, devices,
FIFOs, mount points, other areas and the engine's own files are never candidates; each is reported with its
reason. What cannot be read is reported too: it is an outcome, not an exception.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator

from cleanup.engine.area import MARKER, AreaHandle, Registration, open_area, register_area
from cleanup.engine.expiry import MAX_COMPANION_BYTES, Expiry, companion_name, read_expiry
from cleanup.engine.kernel import birth_ns
from cleanup.engine.names import is_internal
from cleanup.engine.policy import Candidate, Companion, Kind, Policy, Stat
from cleanup.engine.reasons import Reason

__all__ = ["AreaHandle", "Registration", "Skips", "open_area", "register_area", "stat_of", "walk"]

OnSkip = Callable[[bytes, Reason, str], None]

#: What the kernel answers where a link or a mount stands in the way.
_OPEN_SKIPS = {
    errno.ELOOP: Reason.SYMLINK,
    errno.ENOTDIR: Reason.VANISHED,  # it was a directory when it was listed
    errno.ENOENT: Reason.VANISHED,
    errno.EXDEV: Reason.MOUNT_POINT,
}

_COMPANION_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Skips:
    """A listener for `walk` that counts by reason and keeps the first few of each."""

    #: Enough to show an operator what is meant.
    EXAMPLES = 20

    def __init__(self) -> None:
        """Start with nothing skipped."""
        self.counts: Counter[Reason] = Counter()
        self.examples: list[tuple[bytes, Reason, str]] = []

    def __call__(self, path: bytes, reason: Reason, detail: str) -> None:
        """Count one skipped thing."""
        self.counts[reason] += 1
        if self.counts[reason] <= self.EXAMPLES:
            self.examples.append((path, reason, detail))


def walk(area: AreaHandle, *, policy: Policy | None = None, on_skip: OnSkip) -> Iterator[Candidate]:
    """Yield every regular file below `area`, directory by directory, in the order of the file system.

    Args:
        area: open; nothing is changed in it.
        policy: what the candidates are for. It decides what is looked up besides: companions for the rule
            ``expires_at``, birth times if `age_by` asks for them. No policy: neither.
        on_skip: called with the path, the reason and a detail for whatever is not a candidate.
    """
    pending = [b""]
    finder = _Finder(area, policy, on_skip)
    while pending:
        directory = pending.pop()
        try:
            fd = area.open(directory)
        except OSError as error:
            on_skip(directory, _OPEN_SKIPS.get(error.errno or 0, Reason.UNREADABLE), _sentence(error))
            continue
        try:
            yield from finder.list(fd, directory, pending)
        finally:
            os.close(fd)


class _Finder:
    """Turns the entries of one directory after another into candidates."""

    def __init__(self, area: AreaHandle, policy: Policy | None, on_skip: OnSkip) -> None:
        self.device = area.device
        self.on_skip = on_skip
        self.companions = policy is not None and policy.rule == "expires_at"
        self.births = policy is not None and policy.rule == "age" and "b" in policy.age_by

    def list(self, fd: int, directory: bytes, pending: list[bytes]) -> Iterator[Candidate]:
        """Yield the candidates of the open `directory`, and push its subdirectories on `pending`."""
        if directory and _exists(fd, MARKER):
            self.on_skip(directory, Reason.NESTED_AREA, "")
            return
        prefix = directory + b"/" if directory else b""
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    # scandir gives text for a descriptor; these are the very bytes of the name.
                    name = os.fsencode(entry.name)
                    if is_internal(name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(prefix + name)
                    else:
                        candidate = self._candidate(fd, prefix, name, entry)
                        if candidate is not None:
                            yield candidate
        except OSError as error:
            self.on_skip(directory, Reason.UNREADABLE, _sentence(error))

    def _candidate(self, fd: int, prefix: bytes, name: bytes, entry: "os.DirEntry[str]") -> Candidate | None:
        """Return what `entry` is as a candidate, or report why it is none."""
        path = prefix + name
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError as error:
            self.on_skip(path, _OPEN_SKIPS.get(error.errno or 0, Reason.UNREADABLE), _sentence(error))
            return None
        if not stat.S_ISREG(found.st_mode):
            self.on_skip(path, Reason.SYMLINK if stat.S_ISLNK(found.st_mode) else Reason.SPECIAL, "")
            return None
        if found.st_dev != self.device:
            self.on_skip(path, Reason.MOUNT_POINT, "")
            return None
        birth = birth_ns(fd, name) if self.births else None
        companion = self._companion(fd, prefix, name) if self.companions else None
        return Candidate(path, stat_of(found, birth), companion)

    def _companion(self, fd: int, prefix: bytes, name: bytes) -> Companion | None:
        companion = companion_name(name)
        if companion is None:
            return None
        try:
            found = stat_of(os.stat(companion, dir_fd=fd, follow_symlinks=False))
        except FileNotFoundError:
            return None
        except OSError as error:
            return Companion(prefix + companion, _NOTHING, None, _sentence(error))
        if found.kind != "file":
            return Companion(prefix + companion, found, None, "not a regular file")
        # What is read must be what was looked at; a metadata file replaced in between is bad until the next
        # scan.
        expiry = _read_companion(fd, companion, found)
        return Companion(prefix + companion, found, expiry.expires_at, expiry.error)


_NOTHING = Stat("other", 0, 0, 0, 0, 0, 0, 0, None, 0, 0, 0)


def _read_companion(dir_fd: int, name: bytes, expected: Stat) -> Expiry:
    try:
        fd = os.open(name, _COMPANION_FLAGS, dir_fd=dir_fd)
    except OSError as error:
        return Expiry(error=_sentence(error))
    try:
        data = os.read(fd, MAX_COMPANION_BYTES + 1)
        now = stat_of(os.fstat(fd))
    except OSError as error:
        return Expiry(error=_sentence(error))
    finally:
        os.close(fd)
    if (now.device, now.inode, now.size, now.mtime_ns) != (
        expected.device,
        expected.inode,
        expected.size,
        expected.mtime_ns,
    ):
        return Expiry(error="changed while it was read")
    return read_expiry(data)


def _exists(dir_fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # in doubt the directory is an area of its own, and stays
    return True


def _sentence(error: OSError) -> str:
    return error.strerror or str(error)


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "dir"
    return "symlink" if stat.S_ISLNK(mode) else "other"


def stat_of(found: os.stat_result, btime_ns: int | None = None) -> Stat:
    """Return what policies and plans need of a stat result."""
    return Stat(
        _kind(found.st_mode),
        found.st_dev,
        found.st_ino,
        found.st_nlink,
        found.st_size,
        found.st_mtime_ns,
        found.st_atime_ns,
        found.st_ctime_ns,
        btime_ns,
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
    )
