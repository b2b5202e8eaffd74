"""Bringing files back from the trash, and never over another file.

A file returns by rename, so its bytes never move; owner, mode and times are set right before that, while
nobody else can reach it. Directories that are gone are made again, with the mode that the manifest remembers
(less our umask) or 0755; they belong to whoever restores. A taken name is a conflict, found before anything
is moved, and again by the rename itself. Whoever calls twice, or after a crash, gets the rest done.
"""

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Literal

import msgspec

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import AreaRefused, ManifestInvalid
from cleanup.engine.expiry import companion_name
from cleanup.engine.faults import crash_point
from cleanup.engine.kernel import open_beneath, rename_new
from cleanup.engine.names import escape, is_below, is_internal, unescape
from cleanup.engine.observe import Directories, is_still_there, make_durable, name_stat, sentence
from cleanup.engine.shelf import (
    DATA,
    DIRECTORY_MODE,
    Manifest,
    ManifestItem,
    ManifestMember,
    batch_of,
    batch_path,
    opened,
    read_if_there,
    tidy,
)


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

    @property
    def directory(self) -> bytes:
        return self.target.rpartition(b"/")[0]

    @property
    def data(self) -> bytes:
        return self.member.data.encode()


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
    batch = batch_of(trash_id)
    manifest = read_if_there(area, batch)
    item = None if manifest is None else manifest.item(trash_id)
    if manifest is None or item is None:
        return Restored("lost", "" if to is None else escape(to), "the trash does not know it")
    return _bring_back(area, batch, [_steps(item, to)], manifest)[0]


def restore_batch(area: AreaHandle, trash_ids: Sequence[str]) -> list[Restored]:
    """Bring items back under their old names, those of one batch together; durable when this returns.

    As `restore` for each, but that what would be refused there is the outcome ``error`` of that item here.

    Args:
        area: open, its lock held.
        trash_ids: in any order; fastest when the items of a batch stand together.

    Raises:
        OSError: what was done could not be made durable.
    """
    done: dict[str, Restored] = {}
    for prefix, group in groupby(trash_ids, key=lambda trash_id: trash_id.rpartition("/")[0]):
        ids = list(group)
        try:
            for trash_id in ids:
                batch_of(trash_id)
            done |= _restore_batch(area, prefix, ids)
        except ManifestInvalid as error:
            done |= dict.fromkeys(ids, Restored("error", "", str(error)))
    return [done[trash_id] for trash_id in trash_ids]


def _restore_batch(area: AreaHandle, batch: str, ids: Sequence[str]) -> dict[str, Restored]:
    manifest = read_if_there(area, batch)
    done = {trash_id: Restored("lost", "", "the trash does not know it") for trash_id in ids}
    if manifest is None:
        return done
    items = {item.id: item for item in manifest.items}
    going: dict[str, list[_Step]] = {}
    for trash_id in ids:
        if trash_id in items:
            try:
                going[trash_id] = _steps(items[trash_id], None)
            except AreaRefused as refused:
                done[trash_id] = Restored("error", "", str(refused))
    back = _bring_back(area, batch, list(going.values()), manifest) if going else []
    return done | dict(zip(going, back, strict=True))


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


def _bring_back(
    area: AreaHandle, batch: str, items: Sequence[Sequence[_Step]], manifest: Manifest
) -> list[Restored]:
    """Restore items of one batch, each whole or not at all, and make it durable."""
    try:
        data_fd = area.open(batch_path(batch, DATA))
    except FileNotFoundError:
        return [Restored("lost", escape(steps[0].target), "no longer in the trash") for steps in items]
    try:
        with Directories(area) as directories:
            restorer = _Restorer(area, data_fd, directories, manifest.directories)
            done = [restorer.restore(steps) for steps in items]
        done = [restorer.checked(steps, restored) for steps, restored in zip(items, done, strict=True)]
        restorer.sync()
    finally:
        os.close(data_fd)
    tidy(area, batch)
    return done


class _Restorer:
    """Restores items of one batch, one after the other."""

    def __init__(
        self, area: AreaHandle, data_fd: int, directories: Directories, modes: Mapping[str, int]
    ) -> None:
        self.area, self.data_fd, self.directories, self.modes = area, data_fd, directories, modes
        directories.on_leave = self._left
        #: What came into the directory that is open now.
        self.here: list[_Step] = []
        self.touched: set[bytes] = set()
        #: Taken back into the trash, because their directory was moved away: the ids of their data.
        self.strayed: set[str] = set()

    def restore(self, steps: Sequence[_Step]) -> Restored:
        """Take every step, the last member first, or undo those taken."""
        path, taken = escape(steps[0].target), list[_Step]()
        try:
            waiting = [step for step in steps if self._is_waiting(step)]
            for step in waiting:
                self._refuse_taken(step)
            for step in reversed(waiting):
                self._take(step)
                taken.append(step)
            missing = [step for step in steps if step not in waiting and not self._is_back(step)]
        except _Conflict as conflict:
            return Restored("conflict", path, self._undo(self._back(steps), str(conflict)))
        except FileExistsError:
            return Restored("conflict", path, self._undo(self._back(steps), "the name was taken meanwhile"))
        except OSError as error:
            return Restored("error", path, self._undo(taken, sentence(error)))
        return _report(path, len(steps), len(missing))

    def checked(self, steps: Sequence[_Step], restored: Restored) -> Restored:
        """Return what became of an item after all directories were left; a pair strays as a pair."""
        if not any(step.member.data in self.strayed for step in steps):
            return restored
        rest = [step for step in steps if step.member.data not in self.strayed]
        detail = self._undo(rest, "its directory was moved away meanwhile")
        return Restored("conflict", restored.path, detail)

    def _back(self, steps: Sequence[_Step]) -> list[_Step]:
        """The members that are back, be it since an attempt that a crash has ended."""
        back = []
        for step in steps:
            with suppress(_Conflict, OSError):
                if not self._is_waiting(step) and self._is_back(step):
                    back.append(step)
        return back

    def _is_waiting(self, step: _Step) -> bool:
        return name_stat(self.data_fd, step.data) is not None

    def _is_back(self, step: _Step) -> bool:
        found = self._at_target(step)
        if found is None or not step.member.is_content(found):
            return False
        self.touched.add(step.directory)  # a crash may have come before it was durable
        return True

    def _at_target(self, step: _Step) -> os.stat_result | None:
        try:
            fd, name = self.directories.parent(step.target)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                place = escape(step.directory)
                raise _Conflict(f"{place} is not a directory of this area any more") from error
            raise
        return name_stat(fd, name)

    def _refuse_taken(self, step: _Step) -> None:
        found = self._at_target(step)
        if found is None:
            return
        inside = name_stat(self.data_fd, step.data)
        if inside is None or inside.st_ino != found.st_ino:
            raise _Conflict(f"{escape(step.target)} exists")

    def _take(self, step: _Step) -> None:
        fd, name = self._parent(step)
        inside = os.stat(step.data, dir_fd=self.data_fd, follow_symlinks=False)
        _settle(self.data_fd, step.data, step.member, inside)
        outside = name_stat(fd, name)
        crash_point("restore.before_rename")
        if outside is not None and outside.st_ino == inside.st_ino:
            # A crash between link and unlink left it under both names; only the trash's is to go.
            os.unlink(step.data, dir_fd=self.data_fd)
        else:
            rename_new(self.data_fd, step.data, fd, name)
        self.here.append(step)
        self.touched.add(step.directory)
        crash_point("restore.after_rename")

    def _parent(self, step: _Step) -> tuple[int, bytes]:
        try:
            return self.directories.parent(step.target)
        except FileNotFoundError:
            _make_parents(self.area, step.directory, self.modes)
            return self.directories.parent(step.target)

    def _left(self, directory: bytes, fd: int) -> None:
        """Before a directory is closed: if its path leads elsewhere by now, take back what came into it."""
        came, self.here = self.here, []
        if not came or is_still_there(self.area, directory, fd):
            return
        for step in reversed(came):
            try:
                self._take_back(fd, step)
            except OSError:
                # It went with its directory, whole; where that is now nobody can say from here.
                continue
            self.strayed.add(step.member.data)

    def _take_back(self, fd: int, step: _Step) -> None:
        """Move a member from the open directory into the trash again, if it is still the one that came.

        Raises:
            OSError: it is not there, or cannot be moved.
        """
        name = step.target.rpartition(b"/")[2]
        if not step.member.is_content(os.stat(name, dir_fd=fd, follow_symlinks=False)):
            raise FileExistsError(errno.EEXIST, "another file has taken its place")
        rename_new(fd, name, self.data_fd, step.data)
        self.touched.add(step.directory)

    def _undo(self, taken: Sequence[_Step], detail: str) -> str:
        """Take members back into the trash; return `detail`, and what went wrong besides."""
        for step in reversed(taken):
            if self._is_waiting(step):
                continue
            try:
                with opened(self.area, step.directory) as fd:
                    self._take_back(fd, step)
            except OSError as error:
                detail += f"; {escape(step.target)} is back already, and stays: {sentence(error)}"
        return detail

    def sync(self) -> None:
        """Make everything durable."""
        crash_point("restore.before_fsync")
        make_durable(self.area, self.touched)
        os.fsync(self.data_fd)
        crash_point("restore.after_fsync")


def _report(path: str, steps: int, missing: int) -> Restored:
    if missing == steps:
        return Restored("lost", path, "no longer in the trash")
    detail = f"{missing} of {steps} members were no longer in the trash" if missing else ""
    return Restored("restored", path, detail)


def _make_parents(area: AreaHandle, directory: bytes, modes: Mapping[str, int]) -> None:
    """Make what is missing of `directory`, step by step from the area."""
    fd, path = area.open(b""), b""
    try:
        for name in directory.split(b"/"):
            path = path + b"/" + name if path else name
            following = _step_into(fd, name, modes.get(escape(path), DIRECTORY_MODE))
            os.close(fd)
            fd = following
    finally:
        os.close(fd)


def _step_into(fd: int, name: bytes, mode: int) -> int:
    try:
        return open_beneath(fd, name)
    except FileNotFoundError:
        crash_point("restore.before_mkdir")
    with suppress(FileExistsError):
        os.mkdir(name, mode | stat.S_IRWXU, dir_fd=fd)
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
