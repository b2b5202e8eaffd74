"""What the trash itself says of an item: its manifest, read from the disk and held against the row.

A manifest is written before its files move and outlives the loss of the database, so it is what a row can be
checked by. Nothing is locked and nothing is changed: while somebody is at work in the trash the two may
differ for a moment. What verifiers answered is in no manifest, but in the audit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import EngineError
from cleanup.engine.observe import observe
from cleanup.engine.shelf import Manifest, ManifestItem, ManifestMember, batch_of, read_if_there
from cleanup.engine.states import InTrash, Source
from cleanup.models import CleanupItem, ItemState
from cleanup.operations.areas import opened
from cleanup.stores.items import version_name

#: States in which the trash should have a manifest of an item.
KEPT = (ItemState.TRASHED, ItemState.PURGE_INTENT, ItemState.RESTORING, ItemState.LOST, ItemState.ERROR)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: As far from 1970 as calendars go back, with room for zones.
_FARTHEST = timedelta(days=1960 * 365)

_DATA = {
    InTrash.WHOLE: "in the trash, as they were when they were moved",
    InTrash.PART: "in the trash in part: some of them are gone",
    InTrash.OTHER: "not what was moved: something else lies in the trash in their place",
    InTrash.NO: "not in the trash any more",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDisk:
    """What was found in the trash of one item."""

    #: Why nothing can be said; then all else is empty.
    trouble: str = ""
    #: What became of the files, in words; and whether that is as it should be.
    files: str = ""
    is_whole: bool = False
    #: Whether other files have their names now.
    is_taken: bool = False
    #: What the manifest says of the batch (`policy_version`, `run`, `trashed_at`, `purge_after`) and of the
    #: item (`path`, `bytes`, `reason`, `detail`, `task_id`).
    says: dict[str, Any] = field(default_factory=dict)
    #: What it says of each file: `path`, `size`, `mtime`, `atime`, `mode`, `uid`, `gid`, `inode`, `data`.
    members: list[dict[str, Any]] = field(default_factory=list)
    #: Where the row says something else, in words.
    differences: list[str] = field(default_factory=list)


def on_disk(row: CleanupItem) -> OnDisk | None:
    """Read the manifest of an item; None if its state is one that has none."""
    if row.state not in KEPT:
        return None
    if not row.trash_id:
        return OnDisk(trouble="the row does not say where in the trash its files are")
    try:
        with opened(row.area) as handle:
            return _read(handle, row)
    except (EngineError, OSError) as error:
        return OnDisk(trouble=str(error))


def _read(handle: AreaHandle, row: CleanupItem) -> OnDisk:
    manifest = read_if_there(handle, batch_of(row.trash_id))
    item = None if manifest is None else manifest.item(row.trash_id)
    if manifest is None or item is None:
        return OnDisk(trouble="the trash has no manifest of it")
    seen = observe(handle, item.plan_item(), row.trash_id)
    return OnDisk(
        files=_DATA[seen.trash],
        is_whole=seen.trash is InTrash.WHOLE,
        is_taken=seen.source is Source.OTHER,
        says=_said(manifest, item),
        members=[_file(member) for member in item.members],
        differences=list(_differences(row, manifest, item)),
    )


def _said(manifest: Manifest, item: ManifestItem) -> dict[str, Any]:
    return {
        "path": item.members[0].path, "bytes": item.bytes, "reason": str(item.reason), "detail": item.detail,
        "task_id": item.task_id or "", "policy_version": manifest.policy_version, "run": manifest.run,
        "trashed_at": manifest.trashed_at, "purge_after": manifest.purge_after,
    }  # fmt: skip


def _file(member: ManifestMember) -> dict[str, Any]:
    return {
        "path": member.path, "size": member.size, "mtime": _moment(member.mtime_ns),
        "atime": _moment(member.atime_ns), "mode": f"{member.mode:04o}", "uid": member.uid, "gid": member.gid,
        "inode": member.inode, "data": member.data,
    }  # fmt: skip


def _moment(stamp_ns: int) -> datetime | None:
    """A time stamp of a file as a moment; None: one that no calendar of every zone has."""
    moment = timedelta(microseconds=stamp_ns // 1000)
    return _EPOCH + moment if abs(moment) < _FARTHEST else None


def _differences(row: CleanupItem, manifest: Manifest, item: ManifestItem) -> Iterator[str]:
    said = _said(manifest, item)
    pairs: dict[str, Any] = {
        "path": row.path, "bytes": row.size, "reason": row.reason, "task_id": row.task_id,
        "trashed_at": row.trashed_at,
    }  # fmt: skip
    if row.run is not None:
        pairs |= {"policy_version": version_name(row), "run": str(row.run_id)}
    for name, ours in pairs.items():
        if ours != said[name]:
            yield f"{name}: the row says {ours or 'nothing'}, the manifest {said[name] or 'nothing'}"
    if row.purge_after is not None and row.purge_after < manifest.purge_after:
        yield f"purge_after: the row says {row.purge_after}, before {manifest.purge_after} of the manifest"
    names = ("path", "inode", "size", "mtime_ns")
    theirs = [[getattr(member, name) for name in names] for member in item.members]
    if [[member[name] for name in names] for member in row.members] != theirs:
        yield "files: by their paths, inodes, sizes and times the two name different files"
