"""The mover: planned files into the trash, by rename.

    ids = trash_ids(uuid4(), len(items), day=today)     the caller commits them as its intent
    prepared = prepare(area, items, ids=ids, header=…)  a manifest is on disk before anything moves
    moved = move(area, prepared)                        the caller commits the outcomes

No check before a rename can close the window between the two, so the check that counts comes after it:
whatever arrived with another inode, size, time, owner or mode is put back under its name, never over another
file. All names are relative to open directories. `move` may be called again after a crash and goes on where
it stopped. The caller holds `AreaHandle.lock` around all of it. Looking, restoring and purging have files of
their own and are at hand here too.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from typing import Literal

import msgspec

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import TrashConflict
from cleanup.engine.faults import crash_point
from cleanup.engine.kernel import rename_new, sync_filesystem
from cleanup.engine.names import escape, unescape
from cleanup.engine.observe import Directories, name_stat, observe, observe_all, sentence
from cleanup.engine.plan import Member, PlanItem
from cleanup.engine.purge import Purged, purge, purge_batch
from cleanup.engine.restore import Restored, restore
from cleanup.engine.shelf import (
    DATA,
    Header,
    Manifest,
    ManifestItem,
    ManifestMember,
    batch_of,
    batch_path,
    data_names,
    drop_ballast,
    header_us,
    locate,
    make_batch,
    opened,
    read_manifest,
    scan_trash,
    tidy,
    trash_ids,
    write_manifest,
)

__all__ = [
    "Header",
    "Manifest",
    "ManifestItem",
    "Moved",
    "PreparedBatch",
    "Purged",
    "Restored",
    "locate",
    "move",
    "observe",
    "observe_all",
    "prepare",
    "purge",
    "purge_batch",
    "reopen",
    "restore",
    "scan_trash",
    "tidy",
    "trash_ids",
]

Outcome = Literal["trashed", "changed", "vanished", "locked", "error"]

#: Above this many source directories one syncfs is cheaper than an fsync for each.
_MANY_DIRECTORIES = 16

_LOCK_PROBE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | getattr(os, "O_NOATIME", 0)


class Moved(msgspec.Struct, frozen=True):
    """What became of one item."""

    trash_id: str
    outcome: Outcome
    detail: str = ""


class PreparedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch whose manifest is on disk."""

    batch: str
    ids: tuple[str, ...]  #: of every item, in the order given
    items: dict[str, ManifestItem]  #: those that are to be moved
    refused: dict[str, Moved]  #: those that were not the planned files any more before it began
    resumed: bool = False  #: some may have been moved already


def prepare(
    area: AreaHandle, batch: Sequence[PlanItem], *, ids: Sequence[str], header: Header
) -> PreparedBatch:
    """Make the directories of a batch and write its manifest, fsynced; nothing is moved yet.

    Args:
        area: open, its lock held.
        batch: items of one plan, 1,000 to 5,000 for speed.
        ids: from `trash_ids`, one for each item. A batch of this name that was prepared before and never
            received a file is made anew.
        header: for the manifest.

    Raises:
        TrashConflict: a batch of this name holds files.
        AreaRefused: the trash is not ours alone.
        OSError: no room (even with the ballast gone), read-only; nothing was changed.
    """
    name = _one_batch(ids, len(batch))
    items: dict[str, ManifestItem] = {}
    refused: dict[str, Moved] = {}
    with Directories(area) as directories:
        for trash_id, item in zip(ids, batch, strict=True):
            _look(directories, trash_id, item, items, refused)
    prepared = PreparedBatch(batch=name, ids=tuple(ids), items=items, refused=refused)
    if items:
        _shelve(area, _manifest(area, prepared, header))
    crash_point("trash.after_prepare")
    return prepared


def _one_batch(ids: Sequence[str], count: int) -> str:
    names = {batch_of(trash_id) for trash_id in ids}
    if len(names) != 1 or len(set(ids)) != count or len(ids) != count:
        raise TrashConflict("a batch needs one id for each item, all of one batch")
    return names.pop()


def _look(
    directories: Directories,
    trash_id: str,
    item: PlanItem,
    items: dict[str, ManifestItem],
    refused: dict[str, Moved],
) -> None:
    """Sort one item: still the planned files, or not."""
    try:
        found = [directories.stat(member.path) for member in item.members]
    except OSError as error:
        refused[trash_id] = Moved(trash_id, "error", sentence(error))
        return
    members = []
    for member, name, seen in zip(item.members, data_names(trash_id, len(found)), found, strict=True):
        if seen is None or not _is_planned(member, seen):
            refused[trash_id] = _gone(trash_id, item.path, member.path, vanished=seen is None)
            return
        members.append(_manifest_member(member, name, seen))
    items[trash_id] = ManifestItem(
        id=trash_id,
        members=tuple(members),
        bytes=item.bytes,
        reason=item.reason,
        detail=item.detail,
        task_id=item.task_id,
    )


def _is_planned(member: Member, found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and (member.device, member.inode, member.size, member.mtime_ns) == (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
    )


def _gone(trash_id: str, item: bytes, member: bytes, *, vanished: bool) -> Moved:
    """Say that a member is not there, or not the same; a bundle that lost its second member has changed."""
    if vanished and member == item:
        return Moved(trash_id, "vanished")
    return Moved(trash_id, "changed", f"{escape(member)} {'vanished' if vanished else 'is another file'}")


def _manifest_member(member: Member, name: bytes, found: os.stat_result) -> ManifestMember:
    return ManifestMember(
        path=escape(member.path),
        data=name.decode("ascii"),
        device=found.st_dev,
        inode=found.st_ino,
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        atime_ns=found.st_atime_ns,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
    )


def _manifest(area: AreaHandle, prepared: PreparedBatch, header: Header) -> Manifest:
    return Manifest(
        version=1,
        area=area.uuid,
        batch=prepared.batch,
        policy=header.policy,
        policy_version=header.policy_version,
        run=header.run,
        trashed_at_us=header_us(header.trashed_at),
        purge_after_us=header_us(header.purge_after),
        items=tuple(prepared.items.values()),
    )


def _shelve(area: AreaHandle, manifest: Manifest) -> None:
    """Make the batch; on a full disk once more without the ballast."""
    try:
        _shelve_once(area, manifest)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if not drop_ballast(area):
            raise
        _shelve_once(area, manifest)


def _shelve_once(area: AreaHandle, manifest: Manifest) -> None:
    if not tidy(area, manifest.batch):
        raise TrashConflict(f"the trash already holds files under {manifest.batch}")
    try:
        make_batch(area, manifest.batch)
        write_manifest(area, manifest)
    except OSError:
        tidy(area, manifest.batch)
        raise


def reopen(area: AreaHandle, batch: str) -> PreparedBatch:
    """Return a batch that was prepared before, for `move` to go on with it.

    Raises:
        ManifestInvalid: its manifest is missing or torn, so that none of its files was ever moved.
    """
    manifest = read_manifest(area, batch)
    items = {item.id: item for item in manifest.items}
    return PreparedBatch(batch=batch, ids=tuple(items), items=items, refused={}, resumed=True)


def move(area: AreaHandle, prepared: PreparedBatch, *, respect_locks: bool = True) -> list[Moved]:
    """Move a prepared batch into the trash; everything is on disk when this returns.

    Per item, and never an exception for one file's trouble: ``trashed``; ``changed`` or ``vanished`` since
    the plan; ``locked`` by another process's flock; ``error`` with the system's word for it. Only ``trashed``
    items are in the trash, but for one case: when a file arrived that was not the planned one and its name
    was taken again meanwhile, it stays in the trash, the outcome is ``error``, and `restore` brings it back
    under another name.

    Args:
        area: open, its lock held.
        prepared: from `prepare`, or from `reopen` after a crash.
        respect_locks: leave files on which somebody holds an flock. Files that we may not open are not
            probed.

    Raises:
        OSError: what was done could not be made durable.
    """
    done = dict(prepared.refused)
    if prepared.items:
        with opened(area, batch_path(prepared.batch, DATA)) as data_fd, Directories(area) as directories:
            mover = _Mover(directories, data_fd, locks=respect_locks, resumed=prepared.resumed)
            for trash_id, item in prepared.items.items():
                done[trash_id] = mover.move(item)
            crash_point("trash.before_fsync")
            os.fsync(data_fd)
        _sync_sources(area, mover.touched)
        crash_point("trash.after_fsync")
        if not any(moved.outcome == "trashed" for moved in done.values()):
            tidy(area, prepared.batch)
    return [done[trash_id] for trash_id in prepared.ids]


def _sync_sources(area: AreaHandle, directories: set[bytes]) -> None:
    if len(directories) > _MANY_DIRECTORIES:
        sync_filesystem(area.fd)
        return
    for directory in directories:
        try:
            with opened(area, directory) as fd:
                os.fsync(fd)
        except OSError as error:
            # Removed or replaced since by its owner, who answers for its durability.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise


class _Blocked(Exception):
    """An item cannot be moved, or not be kept in the trash; carries the outcome."""

    def __init__(self, outcome: Outcome, detail: str = "") -> None:
        super().__init__(outcome, detail)
        self.outcome: Outcome = outcome
        self.detail = detail


class _Mover:
    """Moves the items of one batch, one after the other."""

    def __init__(self, directories: Directories, data_fd: int, *, locks: bool, resumed: bool) -> None:
        self.directories, self.data_fd = directories, data_fd
        self.locks, self.resumed = locks, resumed
        self.touched: set[bytes] = set()

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
            gone = _gone(item.id, unescape(item.members[0].path), path, vanished=found is None)
            raise _Blocked(gone.outcome, gone.detail)
        if self.locks and self._is_locked(path):
            raise _Blocked("locked", escape(path))

    def _is_locked(self, path: bytes) -> bool:
        dir_fd, name = self.directories.parent(path)
        try:
            fd = _open_probe(dir_fd, name)
        except OSError:
            return False  # not ours to open: then not ours to lock, and the lock of others cannot be seen
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _rename(self, member: ManifestMember, arrived: list[ManifestMember]) -> None:
        path = unescape(member.path)
        dir_fd, name = self.directories.parent(path)
        crash_point("trash.before_rename")
        rename_new(dir_fd, name, self.data_fd, member.data.encode())
        arrived.append(member)
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
