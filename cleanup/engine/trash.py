"""The mover: planned files into the trash, by rename.

    ids = trash_ids(uuid4(), len(items), day=today)     the caller commits them as its intent
    prepared = prepare(area, items, ids=ids, header=…)  a manifest is on disk before anything moves
    moved = move(area, prepared)                        the caller commits the outcomes

No check before a rename can close the window between the two, so the check that counts comes after it:
whatever arrived with another inode, size, time, owner or mode is put back under its name, never over another
file; and so is what came from a directory that was moved away under our hands. All names are relative to open
directories. `move` may be called again after a crash and goes on where
it stopped. The caller holds `AreaHandle.lock` around all of it. Looking, restoring and purging have files of
their own and are at hand here too.
"""

import errno
import os
import stat
from collections.abc import Sequence

import msgspec

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import TrashConflict
from cleanup.engine.faults import crash_point
from cleanup.engine.mover import Moved, Mover, Probe, gone
from cleanup.engine.names import escape
from cleanup.engine.observe import (
    Directories,
    make_durable,
    observe,
    observe_all,
    sentence,
)
from cleanup.engine.plan import Member, PlanItem
from cleanup.engine.purge import Purged, purge, purge_batch
from cleanup.engine.restore import Restored, restore, restore_batch
from cleanup.engine.shelf import (
    DATA,
    DIRECTORY_MODE,
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
    "restore_batch",
    "scan_trash",
    "tidy",
    "trash_ids",
]


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
    modes: dict[bytes, int] = {}
    with Directories(area) as directories:
        directories.on_open = lambda path, fd: modes.update({path: stat.S_IMODE(os.fstat(fd).st_mode)})
        for trash_id, item in zip(ids, batch, strict=True):
            _look(directories, trash_id, item, items, refused)
    prepared = PreparedBatch(batch=name, ids=tuple(ids), items=items, refused=refused)
    if items:
        _shelve(area, _manifest(area, prepared, header, _directory_modes(area, modes)))
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
            refused[trash_id] = gone(trash_id, item.path, member.path, vanished=seen is None)
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


def _directory_modes(area: AreaHandle, seen: dict[bytes, int]) -> dict[str, int]:
    """Return the modes of the directories in `seen`, and of those above them, as a manifest holds them."""
    modes = dict(seen)
    for path in seen:
        while path := path.rpartition(b"/")[0]:
            if path in modes:
                break
            try:
                with opened(area, path) as fd:
                    modes[path] = stat.S_IMODE(os.fstat(fd).st_mode)
            except OSError:
                break  # moved away meanwhile; its files are found to have vanished
    return {escape(path): mode for path, mode in modes.items() if path and mode != DIRECTORY_MODE}


def _manifest(
    area: AreaHandle, prepared: PreparedBatch, header: Header, directories: dict[str, int]
) -> Manifest:
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
        directories=directories,
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


def move(
    area: AreaHandle, prepared: PreparedBatch, *, respect_locks: bool = True, skip_in_use: bool = False
) -> list[Moved]:
    """Move a prepared batch into the trash; everything is on disk when this returns.

    Per item, and never an exception for one file's trouble: ``trashed``; ``changed`` or ``vanished`` since
    the plan; ``locked`` by another process's flock; ``in_use`` if asked for; ``error`` with the system's word
    for it. Only ``trashed`` items are in the trash, but for one case: when a file arrived that was not the
    planned one and its name was taken again meanwhile, it stays in the trash, the outcome is ``error``, and
    `restore` brings it back under another name.

    Args:
        area: open, its lock held.
        prepared: from `prepare`, or from `reopen` after a crash.
        respect_locks: leave files on which somebody holds an flock. Files that we may not open are not
            probed.
        skip_in_use: leave files that somebody has open or mapped, and those of which we may not ask.

    Raises:
        OSError: what was done could not be made durable.
    """
    done = dict(prepared.refused)
    if prepared.items:
        with opened(area, batch_path(prepared.batch, DATA)) as data_fd, Directories(area) as directories:
            probe = Probe(locks=respect_locks, use=skip_in_use)
            mover = Mover(area, directories, data_fd, probe=probe, resumed=prepared.resumed)
            for trash_id, item in prepared.items.items():
                done[trash_id] = mover.move(item)
            directories.leave()
            for trash_id, item in prepared.items.items():
                done[trash_id] = mover.checked(item, done[trash_id])
            crash_point("trash.before_fsync")
            os.fsync(data_fd)
        make_durable(area, mover.touched)
        crash_point("trash.after_fsync")
        if not any(moved.outcome == "trashed" for moved in done.values()):
            tidy(area, prepared.batch)
    return [done[trash_id] for trash_id in prepared.ids]
