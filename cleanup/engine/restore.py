"""Bringing a file back from the trash, and never over another file.

The file returns by rename, so its bytes never move; owner, mode and times are set right before that, while
nobody else can reach it. Directories that are gone are made again. A taken name is a conflict, found before
anything is moved, and again by the rename itself. Whoever calls twice, or after a crash, gets the rest done.
"""

import errno
import os
import stat
from typing import Literal

import msgspec

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import AreaRefused
from cleanup.engine.expiry import companion_name
from cleanup.engine.faults import crash_point
from cleanup.engine.kernel import open_beneath, rename_new
from cleanup.engine.names import escape, is_below, is_internal, unescape
from cleanup.engine.observe import name_stat, sentence
from cleanup.engine.shelf import (
    DATA,
    ManifestItem,
    ManifestMember,
    batch_of,
    batch_path,
    locate,
    opened,
    tidy,
)

#: For directories that have to be made again; what theirs was is not known any more.
_DIRECTORY_MODE = 0o755


class Restored(msgspec.Struct, frozen=True):
    """What became of a restore."""

    outcome: Literal["restored", "conflict", "lost", "error"]
    path: str  #: below the area, escaped; where the first member is, or should be
    detail: str = ""


class _Conflict(Exception):
    """A name on the way is taken; carries which."""


class _Step(msgspec.Struct, frozen=True):
    """One member and where it goes."""

    member: ManifestMember
    target: bytes


def restore(area: AreaHandle, trash_id: str, *, to: bytes | None = None) -> Restored:
    """Bring an item back under its old name, or under `to`; durable when this returns.

    Of a result with its metadata the metadata comes first, so that nobody finds a result without it. If only
    a part is still in the trash, the part is brought back and the detail says so.

    Args:
        area: open, its lock held.
        trash_id: of the item.
        to: another path below the area, for the first member; a result's metadata follows it.

    Raises:
        AreaRefused: `to` does not stay below the area, or names the engine's own files, or suits no result.
        ManifestInvalid: not a trash id, or its manifest cannot be read.
        OSError: what was done could not be made durable.
    """
    item = locate(area, trash_id)
    if item is None:
        return Restored("lost", "" if to is None else escape(to), "the trash does not know it")
    steps = _steps(item, to)
    batch = batch_of(trash_id)
    try:
        data_fd = area.open(batch_path(batch, DATA))
    except FileNotFoundError:
        return Restored("lost", escape(steps[0].target), "no longer in the trash")
    try:
        restored = _Restorer(area, data_fd).restore(steps)
    finally:
        os.close(data_fd)
    tidy(area, batch)
    return restored


def _steps(item: ManifestItem, to: bytes | None) -> list[_Step]:
    targets = [unescape(member.path) for member in item.members]
    if to is not None:
        targets = _renamed(to, len(targets))
    for target in targets:
        if not is_below(target) or is_internal(target):
            raise AreaRefused("outside", f"{escape(target)} is no place below the area to restore to")
    return [_Step(member, target) for member, target in zip(item.members, targets, strict=True)]


def _renamed(to: bytes, count: int) -> list[bytes]:
    if count == 1:
        return [to]
    companion = companion_name(to)
    if companion is None or count != 2:
        raise AreaRefused("outside", "a result goes back under a name that ends in .result.json.lz4")
    return [to, companion]


class _Restorer:
    """Restores the members of one item."""

    def __init__(self, area: AreaHandle, data_fd: int) -> None:
        self.area, self.data_fd = area, data_fd
        self.taken: list[_Step] = []

    def restore(self, steps: list[_Step]) -> Restored:
        """Take every step, the last member first, or undo those taken."""
        path = escape(steps[0].target)
        try:
            waiting = [step for step in steps if self._is_waiting(step)]
            for step in waiting:
                self._refuse_taken(step)
            for step in reversed(waiting):
                self._take(step)
        except _Conflict as conflict:
            return Restored("conflict", path, self._undo(str(conflict)))
        except FileExistsError:
            return Restored("conflict", path, self._undo("the name was taken meanwhile"))
        except OSError as error:
            return Restored("error", path, self._undo(sentence(error)))
        missing = [step for step in steps if step not in waiting and not self._is_back(step)]
        self._sync()
        return _report(path, len(steps), len(missing))

    def _is_waiting(self, step: _Step) -> bool:
        return name_stat(self.data_fd, step.member.data.encode()) is not None

    def _is_back(self, step: _Step) -> bool:
        found = self._at_target(step)
        return found is not None and step.member.is_content(found)

    def _at_target(self, step: _Step) -> os.stat_result | None:
        directory, _, name = step.target.rpartition(b"/")
        try:
            with opened(self.area, directory) as fd:
                return name_stat(fd, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise _Conflict(f"{escape(directory)} is not a directory of this area any more") from error
            raise

    def _refuse_taken(self, step: _Step) -> None:
        found = self._at_target(step)
        if found is None:
            return
        inside = name_stat(self.data_fd, step.member.data.encode())
        if inside is None or inside.st_ino != found.st_ino:
            raise _Conflict(f"{escape(step.target)} exists")

    def _take(self, step: _Step) -> None:
        data = step.member.data.encode()
        directory, _, name = step.target.rpartition(b"/")
        fd = _open_parents(self.area, directory)
        try:
            inside, outside = os.stat(data, dir_fd=self.data_fd, follow_symlinks=False), name_stat(fd, name)
            _settle(self.data_fd, data, step.member, inside)
            crash_point("restore.before_rename")
            if outside is not None and outside.st_ino == inside.st_ino:
                # A crash between link and unlink left it under both names; only the trash's is to go.
                os.unlink(data, dir_fd=self.data_fd)
            else:
                rename_new(self.data_fd, data, fd, name)
            self.taken.append(step)
            crash_point("restore.after_rename")
            os.fsync(fd)
        finally:
            os.close(fd)

    def _undo(self, detail: str) -> str:
        """Take members back into the trash; return `detail`, and what went wrong besides."""
        for step in reversed(self.taken):
            directory, _, name = step.target.rpartition(b"/")
            try:
                with opened(self.area, directory) as fd:
                    rename_new(fd, name, self.data_fd, step.member.data.encode())
                    os.fsync(fd)
            except OSError as error:
                detail += f"; {escape(step.target)} is back already, and stays: {sentence(error)}"
        if self.taken:
            self._sync()
        return detail

    def _sync(self) -> None:
        crash_point("restore.before_fsync")
        os.fsync(self.data_fd)
        crash_point("restore.after_fsync")


def _report(path: str, steps: int, missing: int) -> Restored:
    if missing == steps:
        return Restored("lost", path, "no longer in the trash")
    detail = f"{missing} of {steps} members were no longer in the trash" if missing else ""
    return Restored("restored", path, detail)


def _open_parents(area: AreaHandle, directory: bytes) -> int:
    """Open `directory`, making what is missing of it, step by step from the area."""
    try:
        return area.open(directory)
    except FileNotFoundError:
        fd = area.open(b"")
    for name in directory.split(b"/"):
        try:
            following = _step_into(fd, name)
        finally:
            os.close(fd)
        fd = following
    return fd


def _step_into(fd: int, name: bytes) -> int:
    try:
        return open_beneath(fd, name)
    except FileNotFoundError:
        crash_point("restore.before_mkdir")
        try:
            os.mkdir(name, _DIRECTORY_MODE, dir_fd=fd)
        except FileExistsError:
            return open_beneath(fd, name)
        os.fsync(fd)
        return open_beneath(fd, name)


def _settle(dir_fd: int, name: bytes, member: ManifestMember, found: os.stat_result) -> None:
    """Bring back owner, mode and times if somebody changed them inside the trash."""
    if not member.is_content(found) or member.is_same(found):
        return
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if (found.st_uid, found.st_gid) != (member.uid, member.gid):
            os.fchown(fd, member.uid, member.gid)
        if stat.S_IMODE(found.st_mode) != member.mode:
            os.fchmod(fd, member.mode)
        os.utime(fd, ns=(member.atime_ns, member.mtime_ns))
    finally:
        os.close(fd)
