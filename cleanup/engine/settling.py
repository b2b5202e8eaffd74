"""After a crash of the engine alone: what has become of a batch that was begun and not settled?

The trash tells. What is whole in it stays there, since it was planned; what arrived in part, or as another
file than was planned, goes back to its place; what never arrived is left where it is and judged anew by the
next run. A purge that was begun is finished only for what it had begun to remove.
"""

from collections.abc import Iterator

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import ManifestInvalid
from cleanup.engine.journal import OpenBatch, Step
from cleanup.engine.names import unescape
from cleanup.engine.observe import observe
from cleanup.engine.purge import purge
from cleanup.engine.restore import restore
from cleanup.engine.shelf import Manifest, ManifestItem, read_if_there, tidy
from cleanup.engine.states import InTrash, Source

_AFTER = "found after a crash"


def settle_open(area: AreaHandle, batch: OpenBatch) -> list[Step]:
    """Finish a batch and return what became of its items. The caller holds the area's lock.

    Raises:
        OSError: what was done could not be made durable.
    """
    try:
        manifest = read_if_there(area, batch.batch)
    except ManifestInvalid:
        manifest = None  # torn: then nothing was moved yet
    steps = list(_steps(area, batch, manifest))
    tidy(area, batch.batch)
    return steps


def _steps(area: AreaHandle, batch: OpenBatch, manifest: Manifest | None) -> Iterator[Step]:
    for trash_id, path, size in batch.items:
        item = manifest.item(trash_id) if manifest else None
        trash, source = _look(area, item)
        if batch.verb == "trash":
            step = _trashing(area, trash_id, path, size, trash, source)
        elif batch.verb == "purge":
            step = _purging(area, trash_id, path, size, trash)
        else:
            step = _restoring(area, trash_id, path, size, trash, source, item)
        if step is not None:
            yield step


def _look(area: AreaHandle, item: ManifestItem | None) -> tuple[InTrash, Source]:
    if item is None:
        return InTrash.NO, Source.GONE
    seen = observe(area, item.plan_item(), item.id)
    return seen.trash, seen.source


def _trashing(
    area: AreaHandle, trash_id: str, path: str, size: int, trash: InTrash, source: Source
) -> Step | None:
    if trash is InTrash.NO:
        return None
    if trash is InTrash.WHOLE and source is not Source.SAME:
        return Step(action="trashed", item=trash_id, path=path, size=size, detail=_AFTER)
    back = restore(area, trash_id)
    action = "put_back" if back.outcome == "restored" else "error"
    return Step(action=action, item=trash_id, path=back.path, detail=back.detail or _AFTER)


def _purging(area: AreaHandle, trash_id: str, path: str, size: int, trash: InTrash) -> Step | None:
    if trash is InTrash.WHOLE:
        return None
    if trash is InTrash.NO:
        return Step(action="purged", item=trash_id, path=path, size=size, detail=_AFTER)
    done = purge(area, trash_id)
    action = "error" if done.outcome == "error" else "purged"
    return Step(action=action, item=trash_id, path=path, size=size, detail=done.detail or _AFTER)


def _restoring(
    area: AreaHandle,
    trash_id: str,
    path: str,
    size: int,
    trash: InTrash,
    source: Source,
    item: ManifestItem | None,
) -> Step | None:
    if trash is InTrash.NO:
        return Step(action="restored", item=trash_id, path=path, size=size, detail=_AFTER)
    if trash is InTrash.WHOLE and source is not Source.SAME:
        return None
    elsewhere = item is not None and path != item.members[0].path
    back = restore(area, trash_id, to=unescape(path) if elsewhere else None)
    action = "restored" if back.outcome == "restored" else "error"
    return Step(action=action, item=trash_id, path=back.path, size=size, detail=back.detail or _AFTER)
