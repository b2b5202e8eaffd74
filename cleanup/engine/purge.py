"""Removing files from the trash, for good. Nothing outside the trash is ever unlinked.

Only what the manifest names is removed, and only if it is still the file that was moved there: a stray that
could not be put back, or something that somebody laid into the trash, stays and is reported. Data goes first
and the manifest last, so that a crash leaves what can be gone on with. Calling twice does no harm.
"""

import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal

import msgspec

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import ManifestInvalid
from cleanup.engine.faults import crash_point
from cleanup.engine.observe import name_stat, sentence
from cleanup.engine.shelf import (
    DATA,
    ManifestItem,
    batch_of,
    batch_path,
    opened,
    read_manifest,
    tidy,
)


class Purged(msgspec.Struct, frozen=True):
    """What became of one purge."""

    trash_id: str
    outcome: Literal["purged", "lost", "error"]
    bytes: int = 0  #: freed
    detail: str = ""


def purge(area: AreaHandle, trash_id: str) -> Purged:
    """Remove one item for good; durable when this returns. See `purge_batch`."""
    return purge_batch(area, [trash_id])[0]


def purge_batch(area: AreaHandle, trash_ids: Sequence[str]) -> list[Purged]:
    """Remove items for good, the items of one batch together; durable when this returns.

    Per item: ``purged``; ``lost`` if nothing of it was there (after a crash of an earlier purge this means
    that it had been removed); ``error`` if something else lies in its place or the system refused. What an
    error leaves stays in the trash.

    Args:
        area: open, its lock held.
        trash_ids: in any order; fastest when the items of a batch stand together.

    Raises:
        ManifestInvalid: not a trash id.
        OSError: what was done could not be made durable.
    """
    done: dict[str, Purged] = {}
    for batch, ids in groupby(trash_ids, key=batch_of):
        for purged in _purge_batch(area, batch, list(ids)):
            done[purged.trash_id] = purged
    return [done[trash_id] for trash_id in trash_ids]


def _purge_batch(area: AreaHandle, batch: str, ids: Sequence[str]) -> Iterable[Purged]:
    try:
        with opened(area, batch_path(batch, DATA)) as data_fd:
            items = {item.id: item for item in read_manifest(area, batch).items}
            done = [_purge_item(data_fd, trash_id, items.get(trash_id)) for trash_id in ids]
            crash_point("purge.before_fsync")
            os.fsync(data_fd)
            crash_point("purge.after_fsync")
    except FileNotFoundError:
        done = [Purged(trash_id, "lost") for trash_id in ids]
    except ManifestInvalid as error:
        return [Purged(trash_id, "error", 0, str(error)) for trash_id in ids]
    tidy(area, batch)
    return done


def _purge_item(data_fd: int, trash_id: str, item: ManifestItem | None) -> Purged:
    if item is None:
        return Purged(trash_id, "error", 0, "its manifest does not know it")
    freed, present = 0, []
    try:
        for member in item.members:
            found = name_stat(data_fd, member.data)
            if found is not None and not member.is_content(found):
                return Purged(trash_id, "error", 0, f"{member.data} is not the file that was moved here")
            if found is not None:
                present.append(member)
                freed += found.st_size if found.st_nlink == 1 else 0
        for member in present:
            crash_point("purge.before_unlink")
            os.unlink(member.data, dir_fd=data_fd)
            crash_point("purge.after_unlink")
    except OSError as error:
        return Purged(trash_id, "error", 0, sentence(error))
    return Purged(trash_id, "purged", freed) if present else Purged(trash_id, "lost")
