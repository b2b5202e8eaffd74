"""The walk: every regular file below an open area, as a candidate.

Directories are opened one at a time from the area's own descriptor, by a call that follows no link and
crosses no mount, and listed through their descriptor; so no exchange of directories and links makes the walk
leave the area, a tree of any depth needs two descriptors, and there is no recursion. Links, sockets, devices,
FIFOs, mount points, other areas and the engine's own files are never candidates; each is reported with its
reason. What cannot be read is reported too: it is an outcome, not an exception. For a policy over bundles all
of these are yielded instead, each barred, since they keep the bundle in which they stand.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from cleanup.engine.area import MARKER, AreaHandle, Registration, open_area, register_area
from cleanup.engine.candidates import NOTHING
from cleanup.engine.expiry import MAX_COMPANION_BYTES, companion_name, read_expiry
from cleanup.engine.kernel import DIRECTORY, birth_ns
from cleanup.engine.names import is_internal
from cleanup.engine.policy import Candidate, Companion, Kind, Policy, Stat
from cleanup.engine.reasons import Reason
from cleanup.engine.terms import DIRECTORY_LETTERS

__all__ = ["AreaHandle", "Registration", "Skips", "open_area", "register_area", "stat_of", "walk"]

OnSkip = Callable[[bytes, Reason, str], None]

#: What the kernel answers where a link or a mount stands in the way.
_OPEN_SKIPS = {
    errno.ELOOP: Reason.SYMLINK,
    errno.ENOTDIR: Reason.VANISHED,  # it was a directory when it was listed
    errno.ENOENT: Reason.VANISHED,
    errno.EXDEV: Reason.MOUNT_POINT,
}

_COMPANION_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NOT_A_FILE = "not a regular file"


class Filter(Protocol):
    """Takes from a directory what need not be looked at; `cleanup.engine.sieve.Sieve` counts it besides."""

    def rest(self, entries: "Iterable[os.DirEntry[str]]", device: int) -> "Iterator[os.DirEntry[str]]":
        """Yield the entries of a directory on `device` that are left, every directory among them."""


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


def walk(
    area: AreaHandle, *, policy: Policy | None = None, on_skip: OnSkip, sieve: Filter | None = None
) -> Iterator[Candidate]:
    """Yield every regular file below `area`, in the order of the file system.

    What is below one directory comes together, after what stands right in it.

    Args:
        area: open; nothing is changed in it.
        policy: what the candidates are for. It decides what is looked up besides: companions for the rule
            ``expires_at``, birth times and the stamps of directories if `age_by` asks for them. No policy:
            none of these.
        on_skip: called with the path, the reason and a detail for whatever is not a candidate, unless the
            policy is over bundles.
        sieve: takes away files that plainly stay, which are then no candidates.
    """
    pending = [b""]
    finder = _Finder(area, policy, on_skip, sieve)
    while pending:
        directory = pending.pop()
        try:
            fd = finder.open(directory)
        except OSError as error:
            barred = finder.refused(directory, error)
            if barred is not None:
                yield barred
            continue
        try:
            yield from finder.list(fd, directory, pending)
        finally:
            os.close(fd)


def find(area: AreaHandle, path: bytes, *, policy: Policy, on_skip: OnSkip) -> Candidate | None:
    """Return what `walk` would yield for `path`; None if nothing, and `on_skip` is told why if that is known.

    Args:
        area: open.
        path: plain, below the area.
        policy: as for `walk`.
        on_skip: told of `path`, or of the directory on the way that is not walked.
    """

    def about(skipped: bytes, reason: Reason, detail: str) -> None:
        if skipped == path:
            on_skip(skipped, reason, detail)

    parts, finder = path.split(b"/"), _Finder(area, policy, about)
    for depth in range(len(parts)):
        directory = b"/".join(parts[:depth])
        try:
            fd = finder.open(directory)
        except OSError as error:
            on_skip(directory, _OPEN_SKIPS.get(error.errno or 0, Reason.UNREADABLE), _sentence(error))
            return None
        try:
            if directory and _exists(fd, MARKER):
                on_skip(directory, Reason.NESTED_AREA, "")
                return None
            if depth == len(parts) - 1:
                return next((one for one in finder.list(fd, directory, []) if one.path == path), None)
        finally:
            os.close(fd)
    return None


class _Finder:
    """Turns the entries of one directory after another into candidates."""

    def __init__(
        self, area: AreaHandle, policy: Policy | None, on_skip: OnSkip, sieve: Filter | None = None
    ) -> None:
        self.area, self.device, self.sieve = area, area.device, sieve
        self.on_skip = on_skip
        age_by = frozenset[str]() if policy is None else policy.age_by
        self.companions = policy is not None and policy.rule == "expires_at"
        self.births = "b" in age_by
        self.bundles = policy is not None and policy.unit == "bundle"
        self.stamps = age_by & DIRECTORY_LETTERS if self.bundles else frozenset[str]()

    def open(self, directory: bytes) -> int:
        """Open `directory`, without renewing its access time if that is what a policy goes by."""
        if "A" in self.stamps:
            try:
                return self.area.open(directory, DIRECTORY | getattr(os, "O_NOATIME", 0))
            except PermissionError:
                pass  # for the owner alone; if the directory cannot be read either, the next call says so
        return self.area.open(directory)

    def refused(self, path: bytes, error: OSError) -> Candidate | None:
        """Report what the system would not let us look at."""
        return self.skipped(path, _OPEN_SKIPS.get(error.errno or 0, Reason.UNREADABLE), _sentence(error))

    def skipped(self, path: bytes, reason: Reason, detail: str = "") -> Candidate | None:
        """Report what is no candidate; among bundles, return it as one that is barred."""
        if self.bundles and path:
            return Candidate(path, NOTHING, None, reason, detail)
        self.on_skip(path, reason, detail)
        return None

    def list(self, fd: int, directory: bytes, pending: list[bytes]) -> Iterator[Candidate]:
        """Yield the candidates of the open `directory`, and push its subdirectories on `pending`."""
        if directory and _exists(fd, MARKER):
            barred = self.skipped(directory, Reason.NESTED_AREA)
            if barred is not None:
                yield barred
            return
        if self.stamps and directory:
            birth = birth_ns(fd, b".") if "B" in self.stamps else None
            yield Candidate(directory, stat_of(os.fstat(fd), birth))
        prefix = directory + b"/" if directory else b""
        try:
            with os.scandir(fd) as entries:
                for entry in entries if self.sieve is None else self.sieve.rest(entries, self.device):
                    # scandir gives text for a descriptor; these are the very bytes of the name.
                    name = os.fsencode(entry.name)
                    if is_internal(name):
                        if self.bundles and directory:
                            yield Candidate(prefix + name, NOTHING, None, Reason.INTERNAL)
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append(prefix + name)
                    else:
                        candidate = self._candidate(fd, prefix, name, entry)
                        if candidate is not None:
                            yield candidate
        except OSError as error:
            barred = self.skipped(directory, Reason.UNREADABLE, _sentence(error))
            if barred is not None:
                yield barred

    def _candidate(self, fd: int, prefix: bytes, name: bytes, entry: "os.DirEntry[str]") -> Candidate | None:
        """Return what `entry` is as a candidate, or report why it is none."""
        path = prefix + name
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError as error:
            return self.refused(path, error)
        if not stat.S_ISREG(found.st_mode):
            return self.skipped(path, Reason.SYMLINK if stat.S_ISLNK(found.st_mode) else Reason.SPECIAL)
        if found.st_dev != self.device:
            return self.skipped(path, Reason.MOUNT_POINT)
        birth = birth_ns(fd, name) if self.births else None
        companion = self._companion(fd, prefix, name) if self.companions else None
        return Candidate(path, stat_of(found, birth), companion)

    def _companion(self, fd: int, prefix: bytes, name: bytes) -> Companion | None:
        companion = companion_name(name)
        if companion is None:
            return None
        path = prefix + companion
        try:
            opened = os.open(companion, _COMPANION_FLAGS, dir_fd=fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            return _unopened(fd, companion, path, error)
        try:
            return _read_companion(opened, path)
        except OSError as error:
            return Companion(path, NOTHING, None, _sentence(error))
        finally:
            os.close(opened)


def _read_companion(fd: int, path: bytes) -> Companion:
    """Look first and read then: what is written in between has another time than the identity we return."""
    found = stat_of(os.fstat(fd))
    if found.kind != "file":
        return Companion(path, found, None, _NOT_A_FILE)
    data = os.read(fd, MAX_COMPANION_BYTES + 1)
    if len(data) != min(found.size, MAX_COMPANION_BYTES + 1):
        return Companion(path, found, None, "changed while it was read")
    expiry = read_expiry(data)
    return Companion(path, found, expiry.expires_at, expiry.error)


def _unopened(dir_fd: int, name: bytes, path: bytes, why: OSError) -> Companion | None:
    """Say what stands there that could not be opened: a link, a socket, a file of somebody else."""
    try:
        found = stat_of(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
    except FileNotFoundError:
        return None
    except OSError as error:
        return Companion(path, NOTHING, None, _sentence(error))
    return Companion(path, found, None, _sentence(why) if found.kind == "file" else _NOT_A_FILE)


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
