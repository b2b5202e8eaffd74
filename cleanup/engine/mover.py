"""Moving the members of planned items into the trash, one by one, and putting back what should not have come.

What counts is looked at after the rename, when nobody can exchange the file any more; and, when a directory
is left, whether its path still leads to it. An item is moved whole or not at all. What cannot be put back,
since its name is taken again, stays in the trash and is an error with words.
"""

import fcntl
import os
import signal
from typing import Literal

import msgspec

from cleanup.engine.area import AreaHandle
from cleanup.engine.faults import crash_point
from cleanup.engine.kernel import rename_new
from cleanup.engine.names import escape, unescape
from cleanup.engine.observe import Directories, is_still_there, name_stat, sentence
from cleanup.engine.shelf import ManifestItem, ManifestMember

Outcome = Literal["trashed", "changed", "vanished", "locked", "in_use", "error"]

_LOCK_PROBE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | getattr(os, "O_NOATIME", 0)


class Moved(msgspec.Struct, frozen=True):
    """What became of one item."""

    trash_id: str
    outcome: Outcome
    detail: str = ""


def gone(trash_id: str, item: bytes, member: bytes, *, vanished: bool) -> Moved:
    """Say that a member is not there, or not the same; a bundle that lost its second member has changed."""
    if vanished and member == item:
        return Moved(trash_id, "vanished")
    return Moved(trash_id, "changed", f"{escape(member)} {'vanished' if vanished else 'is another file'}")


class _Blocked(Exception):
    """An item cannot be moved, or not be kept in the trash; carries the outcome."""

    def __init__(self, outcome: Outcome, detail: str = "") -> None:
        super().__init__(outcome, detail)
        self.outcome: Outcome = outcome
        self.detail = detail


class Probe:
    """Asks whether somebody else needs a file."""

    def __init__(self, *, locks: bool, use: bool) -> None:
        self.locks, self.use = locks, use

    def ask(self, dir_fd: int, name: bytes) -> Outcome | None:
        """Return what keeps the file from being moved, or None."""
        if not (self.locks or self.use):
            return None
        try:
            fd = _open_probe(dir_fd, name)
        except OSError:
            # Not ours to open: then not ours to lock, and the lock of others cannot be seen.
            return "in_use" if self.use else None
        try:
            if self.locks and _is_locked(fd):
                return "locked"
            return "in_use" if self.use and _is_in_use(fd) else None
        finally:
            os.close(fd)


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_in_use(fd: int) -> bool:
    """Whether anybody else has the file open or mapped: the kernel then grants no write lease.

    Whoever opens it in the microsecond for which we hold the lease waits for us to give it back; the signal
    that tells us so is made one that is ignored, since the usual one would end this process.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return True
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True  # in use; or not ours to ask, or no leases on this file system: who asks wants to be sure
    return False


class Mover:
    """Moves the items of one batch, one after the other."""

    def __init__(
        self, area: AreaHandle, directories: Directories, data_fd: int, *, probe: Probe, resumed: bool
    ) -> None:
        self.area, self.directories, self.data_fd = area, directories, data_fd
        self.probe, self.resumed = probe, resumed
        self.touched: set[bytes] = set()
        directories.on_leave = self._left
        #: What came from the directory that is open now.
        self.here: list[ManifestMember] = []
        #: Put back, because their directory was moved away: the names of their data.
        self.strayed: set[str] = set()

    def move(self, item: ManifestItem) -> Moved:
        """Move all members, or none."""
        arrived: list[ManifestMember] = []
        try:
            waiting = self._waiting(item, arrived)
            for member in waiting:
                self._check(item, member)
            for member in waiting:
                self._rename(member, arrived)
        except _Blocked as blocked:
            return self._undo(item, arrived, blocked.outcome, blocked.detail)
        except FileNotFoundError:
            return self._undo(item, arrived, "vanished" if not arrived else "changed", "")
        except OSError as error:
            return self._undo(item, arrived, "error", sentence(error))
        return Moved(item.id, "trashed")

    def checked(self, item: ManifestItem, moved: Moved) -> Moved:
        """Return what became of an item after all directories were left; a bundle strays as a whole."""
        if moved.outcome != "trashed" or not any(member.data in self.strayed for member in item.members):
            return moved
        rest = [member for member in item.members if member.data not in self.strayed]
        return self._undo(item, rest, "changed", "its directory was moved away meanwhile")

    def _left(self, directory: bytes, fd: int) -> None:
        """Before a directory is closed: if its path leads elsewhere by now, put back what came from it."""
        came, self.here = self.here, []
        if not came or is_still_there(self.area, directory, fd):
            return
        for member in reversed(came):
            try:
                rename_new(self.data_fd, member.data.encode(), fd, unescape(member.path).rpartition(b"/")[2])
            except OSError:
                continue  # put back before, or its name is taken there: then it stays in the trash
            self.strayed.add(member.data)
        os.fsync(fd)

    def _waiting(self, item: ManifestItem, arrived: list[ManifestMember]) -> list[ManifestMember]:
        """Return the members that are still to be moved; the others, after a crash, have arrived."""
        if not self.resumed:
            return list(item.members)
        found = {member.data: name_stat(self.data_fd, member.data.encode()) for member in item.members}
        arrived.extend(member for member in item.members if found[member.data] is not None)
        for member in arrived:
            self._accept(member)
        return [member for member in item.members if found[member.data] is None]

    def _check(self, item: ManifestItem, member: ManifestMember) -> None:
        """Leave alone what is plainly not the planned file, without moving it to and fro."""
        path = unescape(member.path)
        found = self.directories.stat(path)
        if found is None or not (member.is_same(found) and found.st_dev == member.device):
            lacking = gone(item.id, unescape(item.members[0].path), path, vanished=found is None)
            raise _Blocked(lacking.outcome, lacking.detail)
        blocked = self.probe.ask(*self.directories.parent(path))
        if blocked is not None:
            raise _Blocked(blocked, escape(path))

    def _rename(self, member: ManifestMember, arrived: list[ManifestMember]) -> None:
        path = unescape(member.path)
        dir_fd, name = self.directories.parent(path)
        crash_point("trash.before_rename")
        rename_new(dir_fd, name, self.data_fd, member.data.encode())
        arrived.append(member)
        self.here.append(member)
        self.touched.add(path.rpartition(b"/")[0])
        crash_point("trash.after_rename")
        self._accept(member)

    def _accept(self, member: ManifestMember) -> None:
        """Look at what arrived: only now can nobody exchange it any more."""
        if not member.is_same(os.stat(member.data, dir_fd=self.data_fd, follow_symlinks=False)):
            raise _Blocked("changed", f"{member.path} was replaced or written to while it was moved")

    def _undo(
        self, item: ManifestItem, arrived: list[ManifestMember], outcome: Outcome, detail: str
    ) -> Moved:
        """Put back whatever arrived, the last first, and report `outcome`."""
        stuck = []
        for member in reversed(arrived):
            path = unescape(member.path)
            try:
                dir_fd, name = self.directories.parent(path)
                crash_point("trash.before_put_back")
                rename_new(self.data_fd, member.data.encode(), dir_fd, name)
                self.touched.add(path.rpartition(b"/")[0])
                crash_point("trash.after_put_back")
            except OSError as error:
                stuck.append(f"{member.path} stays in the trash: {sentence(error)}")
        if stuck:
            return Moved(item.id, "error", "; ".join([detail or outcome, *stuck]))
        return Moved(item.id, outcome, detail)


def _open_probe(dir_fd: int, name: bytes) -> int:
    try:
        return os.open(name, _LOCK_PROBE, dir_fd=dir_fd)
    except PermissionError:
        # O_NOATIME is for the owner alone.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
