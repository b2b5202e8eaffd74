"""Cleaning by lines of tmpfiles.d, as systemd does it: at once and for good, without a trash.

For directories that are temporary by agreement, and for machines without Celery and without a database. What
stands in a line of its own is left to that line; what is below goes when every stamp that the line names is
older than its age. Directories are opened one below the other, never through a link, and listed, locked and
emptied through their descriptors; mounts, sticky files, live sockets, devices and whatever somebody holds a
lock on stay. The stamps of a directory are put back after files were taken out of it.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import cached_property

import msgspec

from cleanup.engine.globs import expansions, has_magic, is_match
from cleanup.engine.kernel import Look, look
from cleanup.engine.tmpfiles import AGING_TYPES, DIRECTORY_STAMPS, FILE_STAMPS, Line, age_in_force

__all__ = ["Event", "Sweep"]

#: Directories below one line; deeper ones are reported and stay.
MAX_DEPTH = 256
_US = timedelta(microseconds=1)
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
#: What fsck and quotas keep at the top of a file system, by its kind.
_OF_THE_MOUNT = {
    stat.S_IFDIR: frozenset({b"lost+found"}),
    stat.S_IFREG: frozenset({b".journal", b"aquota.user", b"aquota.group"}),
}


class Event(msgspec.Struct, frozen=True):
    """What became of one path, or why it stays."""

    action: str  #: ``removed`` (in a dry run: would be), ``kept`` or ``failed``
    path: bytes
    why: str = ""


class Sweep:
    """One cleaning of everything that some lines name.

    Args:
        lines: as `tmpfiles.read` returned them, of all files together.
        now_ns: the time against which ages are measured, nanoseconds since 1970.
        dry_run: say what would go, and touch nothing.
        on_event: told of everything that is removed, fails, or stays for another reason than its age.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        *,
        now_ns: int,
        dry_run: bool = False,
        on_event: Callable[[Event], None],
    ) -> None:
        self.now_ns = now_ns
        self.dry_run = dry_run
        self.on_event = on_event
        self._lines = list(lines)
        self._paths = {line.path for line in lines if not line.is_glob}
        self._globs = [line.path for line in lines if line.is_glob]

    def clean(self) -> None:
        """Remove what is older than the age of its line, the deepest lines first."""
        for line in self._in_order(line for line in self._lines if line.type in AGING_TYPES):
            age = self._age_of(line)
            if age is not None and age <= self.now_ns:
                for path in self._instances(line):
                    self._clean_below(path, line, self.now_ns - age)

    def remove(self) -> None:
        """Remove what lines of the types r, R and D name, whatever its age.

        As newer versions of systemd do (252 does not yet), it spares what has a line of its own, sticky files
        and what somebody holds a lock on.
        """
        for line in self._in_order(line for line in self._lines if line.type in "rRD"):
            for path in self._instances(line):
                if line.type == "r":
                    self._remove_one(path)
                else:
                    self._empty(path, line, itself=line.type == "R")

    def _in_order(self, lines: Iterable[Line]) -> list[Line]:
        """Return lines with those of a subtree before that of the tree, single paths before patterns."""
        return sorted(lines, key=lambda line: (-line.path.count(b"/"), line.is_glob))

    def _age_of(self, line: Line) -> int | None:
        """Return the age of a line in nanoseconds; None: it cleans nothing."""
        age = age_in_force(line, self._lines)
        return None if age is None or age.after is None else age.after // _US * 1_000

    def _instances(self, line: Line) -> list[bytes]:
        # An `x` with an age cleans below its path if that is no pattern: systemd 252 does it so, 257 would
        # clean below everything that fits. In doubt the files stay.
        if not line.is_glob or line.type == "x":
            return [line.path]
        return sorted(set(_expand(line.path)))

    # By age

    def _clean_below(self, path: bytes, line: Line, cutoff_ns: int) -> None:
        directory = self._open_top(path)
        if directory is None:
            return
        try:
            keep = line.age is not None and line.age.keep_first_level
            _Tree(self, line, cutoff_ns).clean(directory, path, keep=keep)
        finally:
            os.close(directory)

    def _open_top(self, path: bytes) -> int | None:
        try:
            return _open_untouched(path, os.O_DIRECTORY)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                self.on_event(Event("failed", path, _sentence(error)))
            return None

    # Whatever the age

    def _remove_one(self, path: bytes) -> None:
        """Remove a file, or a directory that is empty."""
        directory, name = os.path.split(path)
        self.take(lambda: _remove_at(directory, name), path)

    def _empty(self, path: bytes, line: Line, *, itself: bool) -> None:
        directory = self._open_top(path)
        if directory is None:
            if itself and os.path.lexists(path):
                self._remove_one(path)
            return
        try:
            _Tree(self, line, None).clean(directory, path, keep=False)
        finally:
            os.close(directory)
        if itself:
            self.take(lambda: os.rmdir(path), path)

    def take(self, step: Callable[[], None], path: bytes) -> bool:
        """Do the step that removes `path`, and tell of it. False: it is still there."""
        try:
            if not self.dry_run:
                step()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                self.on_event(Event("failed", path, _sentence(error)))
            return False
        self.on_event(Event("removed", path))
        return True

    def is_taken(self, path: bytes) -> bool:
        """Whether another line is about this very path."""
        return path in self._paths or any(is_match(pattern, path) for pattern in self._globs)

    @cached_property
    def live_sockets(self) -> frozenset[bytes] | None:
        """Paths of the sockets on which somebody listens; None: nobody can tell."""
        try:
            with open("/proc/net/unix", "rb") as table:
                rows = [row.split(maxsplit=7) for row in table.read().splitlines()[1:]]
        except OSError:
            return None
        return frozenset(row[7] for row in rows if len(row) == 8 and row[7].startswith(b"/"))


class _Level:
    """A directory that is open, on the way down."""

    __slots__ = ("at_mount", "before", "fd", "found", "keep", "name", "names", "path", "removed")

    def __init__(self, fd: int, path: bytes, name: bytes, found: Look, *, keep: bool, at_mount: bool) -> None:
        self.fd = fd
        self.path = path
        self.name = name
        self.found = found
        #: What stands right in it stays.
        self.keep = keep
        #: A file system is mounted here.
        self.at_mount = at_mount
        self.before = os.fstat(fd)
        self.names = iter(_names(fd))
        #: Whether a file was taken out of it.
        self.removed = False


class _Tree:
    """One directory of a line and all below it.

    Args:
        cutoff_ns: what is older may go; None: everything may.
    """

    def __init__(self, sweep: Sweep, line: Line, cutoff_ns: int | None) -> None:
        self.sweep = sweep
        self.cutoff_ns = cutoff_ns
        self.file_stamps = line.age.file_stamps if line.age else FILE_STAMPS
        self.directory_stamps = line.age.directory_stamps if line.age else DIRECTORY_STAMPS

    def clean(self, fd: int, path: bytes, *, keep: bool) -> None:
        """Clean the open directory `fd`; with `keep` what stands right in it stays."""
        found = look(fd, b"")
        stack = [_Level(fd, path, b"", found, keep=keep, at_mount=found.is_mount)]
        try:
            while stack:
                level = stack[-1]
                name = next(level.names, None)
                if name is not None:
                    stack.extend(self._one(level, name, deep=len(stack) > MAX_DEPTH))
                    continue
                self._put_back_stamps(stack.pop())
                if stack:
                    os.close(level.fd)
                    self._remove_directory(stack[-1], level.name, level.path, level.found)
        finally:
            for level in stack[1:]:
                os.close(level.fd)

    def _put_back_stamps(self, level: _Level) -> None:
        if level.removed and self.cutoff_ns is not None and not self.sweep.dry_run:
            os.utime(level.fd, ns=(level.before.st_atime_ns, level.before.st_mtime_ns))

    def _one(self, level: _Level, name: bytes, *, deep: bool) -> Sequence[_Level]:
        """Look at one name; return the directory to go into, if it is one."""
        path = level.path.rstrip(b"/") + b"/" + name
        try:
            found = look(level.fd, name)
        except FileNotFoundError:
            return ()
        except OSError as error:
            self._say("failed", path, _sentence(error))
            return ()
        if why := self._bar(level, name, path, found):
            self._say("kept", path, why)
        elif stat.S_ISDIR(found.mode):
            return self._directory(level, name, path, found, deep=deep)
        elif not level.keep and self._is_old(found, self.file_stamps):
            level.removed |= self._file(level.fd, name, path)
        return ()

    def _bar(self, level: _Level, name: bytes, path: bytes, found: Look) -> str:
        """Return why something stays at any age; nothing if it may go."""
        if found.is_mount:
            return "another file system is mounted here"
        if self.sweep.is_taken(path):
            return "it has a line of its own"
        of_the_mount = _OF_THE_MOUNT.get(stat.S_IFMT(found.mode), ())
        if level.at_mount and found.uid == 0 and name in of_the_mount:
            return "it belongs to the file system"
        if stat.S_ISDIR(found.mode):
            return ""
        if found.mode & stat.S_ISVTX:
            return "its sticky bit is set"
        if stat.S_ISCHR(found.mode) or stat.S_ISBLK(found.mode):
            return "it is a device"
        return "it is a live socket" if stat.S_ISSOCK(found.mode) and self._is_live(path) else ""

    def _is_live(self, path: bytes) -> bool:
        live = self.sweep.live_sockets
        return live is None or path in live

    def _is_old(self, found: Look, stamps: frozenset[str]) -> bool:
        if self.cutoff_ns is None:
            return True
        known = [found.stamps.get(letter) for letter in stamps]
        return all(stamp is None or stamp < self.cutoff_ns for stamp in known)

    def _file(self, fd: int, name: bytes, path: bytes) -> bool:
        """Remove a file unless somebody holds a lock on it."""
        lock: int | None = None
        try:
            if not self.sweep.dry_run:
                lock = _try_open(name, fd)
            if lock is not None and not _locked(lock):
                self._say("kept", path, "somebody holds a lock on it")
                return False
            return self.sweep.take(lambda: os.unlink(name, dir_fd=fd), path)
        finally:
            if lock is not None:
                os.close(lock)

    def _directory(
        self, level: _Level, name: bytes, path: bytes, found: Look, *, deep: bool
    ) -> Sequence[_Level]:
        """Open a directory to clean what is below; what cannot be had stays."""
        if deep:
            self._say("failed", path, f"more than {MAX_DEPTH} directories deep")
            self._remove_directory(level, name, path, found)
            return ()
        try:
            below = _open_untouched(name, os.O_DIRECTORY, dir_fd=level.fd)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._say("failed", path, _sentence(error))
            return ()
        if not self.sweep.dry_run and not _locked(below):
            self._say("kept", path, "somebody holds a lock on it")
            os.close(below)
            return ()
        return (_Level(below, path, name, found, keep=False, at_mount=False),)

    def _remove_directory(self, level: _Level, name: bytes, path: bytes, found: Look) -> None:
        """Remove a directory that is old; one that is not empty stays."""
        if not level.keep and self._is_old(found, self.directory_stamps):
            self.sweep.take(lambda: os.rmdir(name, dir_fd=level.fd), path)

    def _say(self, action: str, path: bytes, why: str) -> None:
        self.sweep.on_event(Event(action, path, why))


def _names(fd: int) -> list[bytes]:
    with os.scandir(fd) as entries:
        return [os.fsencode(entry.name) for entry in entries]


def _open_untouched(path: bytes, flags: int, dir_fd: int | None = None) -> int:
    """Open without a link as the last name and, where we may, without leaving an access time."""
    try:
        return os.open(path, _OPEN | flags | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError:
        return os.open(path, _OPEN | flags, dir_fd=dir_fd)


def _try_open(name: bytes, dir_fd: int) -> int | None:
    """Open a file to lock it; None where it cannot be: what nobody can open nobody has locked for us."""
    try:
        return _open_untouched(name, os.O_NOCTTY, dir_fd)
    except OSError:
        return None


def _locked(fd: int) -> bool:
    """Take the lock, if nobody else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


def _remove_at(directory: bytes, name: bytes) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            os.unlink(name, dir_fd=fd)
        except (IsADirectoryError, PermissionError):
            os.rmdir(name, dir_fd=fd)
    finally:
        os.close(fd)


def _expand(pattern: bytes) -> Iterator[bytes]:
    """Yield the paths that fit a pattern: braces first, then name by name."""
    for plain in expansions(pattern):
        yield from _match(b"/", [part for part in plain.split(b"/") if part])


def _match(directory: bytes, parts: Sequence[bytes]) -> Iterator[bytes]:
    if not parts:
        yield directory
        return
    part, rest = parts[0], parts[1:]
    if not has_magic(part):
        path = os.path.join(directory, part)
        if os.path.lexists(path):
            yield from _match(path, rest)
        return
    try:
        fd = _open_untouched(directory, os.O_DIRECTORY)
    except OSError:
        return
    try:
        names = sorted(_names(fd))
    finally:
        os.close(fd)
    for name in names:
        if is_match(part, name):
            yield from _match(os.path.join(directory, name), rest)


def _sentence(error: OSError) -> str:
    return error.strerror or str(error)
