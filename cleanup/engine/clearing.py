"""What lies in an area's trash, and purging what is due of it, for the engine alone.

Only batches that the engine has moved alone are purged: what a site has moved is in that site's rows, which
say when it goes and who still wants it. Holds keep what they match.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import msgspec

from cleanup.engine.area import AreaHandle
from cleanup.engine.holds import Hold, Holds
from cleanup.engine.journal import Journal, Step
from cleanup.engine.purge import Purged, purge_batch
from cleanup.engine.shelf import Manifest, ManifestItem, files_in, scan_trash

#: Begins the run of every batch that the engine moved alone.
OWN = "engine:"

#: Told of each batch whose manifest cannot be read, and why.
OnBad = Callable[[str, str], None]

Wanted = Callable[[Manifest, ManifestItem], bool]


def is_own(manifest: Manifest) -> bool:
    """Whether the engine has moved this batch alone."""
    return manifest.run.startswith(OWN)


def in_trash(area: AreaHandle, *, on_bad: OnBad) -> Iterator[tuple[Manifest, list[ManifestItem]]]:
    """Yield every batch with those of its items of which something is still there."""
    for manifest in scan_trash(area, on_bad=on_bad):
        there = files_in(area, manifest.batch)
        items = [item for item in manifest.items if any(m.data in there for m in item.members)]
        if items:
            yield manifest, items


class Cleared(msgspec.Struct, kw_only=True):
    """What a purge did."""

    files: int = 0
    bytes: int = 0
    held: int = 0  #: files that a hold keeps
    foreign: int = 0  #: files whose grace period is over, and which a site has moved
    errors: list[str] = []


def purge_area(
    area: AreaHandle,
    journal: Journal,
    *,
    now: datetime,
    holds: Sequence[Hold] = (),
    wanted: Wanted | None = None,
    dry_run: bool = False,
) -> Cleared:
    """Purge what is due in an open area, or what is `wanted`. The caller holds the area's lock.

    Raises:
        OSError: what was done could not be made durable.
    """
    held, done = Holds(holds, now=now), Cleared()
    choose = wanted or (lambda manifest, item: manifest.purge_after <= now)
    for manifest, items in list(in_trash(area, on_bad=lambda batch, why: done.errors.append(why))):
        chosen = [item for item in items if choose(manifest, item)]
        free = [item for item in chosen if not _is_held(held, item)]
        if not is_own(manifest):
            done.foreign += sum(len(item.members) for item in chosen)
            continue
        done.held += sum(len(item.members) for item in chosen if item not in free)
        if dry_run:
            done.files += sum(len(item.members) for item in free)
            done.bytes += sum(item.bytes for item in free)
        elif free:
            _purge(area, journal, manifest, free, done)
    return done


def _is_held(held: Holds, item: ManifestItem) -> bool:
    return any(held.match(member.path) is not None for member in item.members)


def _purge(
    area: AreaHandle, journal: Journal, manifest: Manifest, items: Sequence[ManifestItem], done: Cleared
) -> None:
    wanted = [(item.id, item.members[0].path, item.bytes) for item in items]
    journal.begin("purge", manifest.batch, wanted, area=area.uuid, policy=manifest.policy)
    purged = purge_batch(area, [item.id for item in items])
    steps = [_step(item, one) for item, one in zip(items, purged, strict=True)]
    journal.settle("purge", manifest.batch, steps, area=area.uuid, policy=manifest.policy)
    for item, one in zip(items, purged, strict=True):
        if one.outcome == "purged":
            done.files += len(item.members)
            done.bytes += one.bytes
        else:
            done.errors.append(f"{item.members[0].path}: {one.detail or one.outcome}")


def _step(item: ManifestItem, purged: Purged) -> Step:
    return Step(
        action=purged.outcome,
        item=item.id,
        path=item.members[0].path,
        size=purged.bytes,
        detail=purged.detail,
    )
