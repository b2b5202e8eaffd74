"""What the last scan of an area saw: its orphans, sorted and compressed, each with its first sighting.

Every scan replaces the whole of it in one transaction. An area that was scanned and has no orphans has an
empty batch of each kind; one that was never scanned has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from django.db import transaction
from django.db.models import Sum

from cleanup.engine.orphans import Memory, Sighting, decode_sightings, encode_sightings
from cleanup.models import OrphanBatch, StagingArea

Kind = Literal["file", "row"]

KINDS: tuple[Kind, ...] = ("file", "row")

#: Sightings in one batch: what is in memory at a time.
_BATCH = 5_000


def stored(area_id: int, kind: Kind) -> Iterator[Sighting]:
    """Yield what the last scan saw, sorted by path and identity."""
    batches = OrphanBatch.objects.filter(area_id=area_id, kind=kind).order_by("number")
    for number in list(batches.values_list("number", flat=True)):
        body = batches.filter(number=number).values_list("body", flat=True).first()
        if body is not None:
            yield from decode_sightings(bytes(body))


def page(
    area_id: int, kind: Kind, *, batch: int = 0, start: int = 0, size: int = 100
) -> tuple[list[Sighting], tuple[int, int] | None]:
    """Return a page of what the last scan saw, and the batch and place at which the next one begins.

    One batch is unpacked, or two where they meet, however many there are.
    """
    batches = OrphanBatch.objects.filter(area_id=area_id, kind=kind, number__gte=batch).order_by("number")
    found = list[Sighting]()
    for number, body in batches.values_list("number", "body")[:2]:
        seen = decode_sightings(bytes(body))
        first = start if number == batch else 0
        part = seen[first : first + size - len(found)]
        found += part
        if first + len(part) < len(seen):
            return found, (number, first + len(part))
    last = batch + 2
    more = OrphanBatch.objects.filter(area_id=area_id, kind=kind, number=last).exists()
    return found, ((last, 0) if more else None)


def scanned(area_id: int, kind: Kind) -> OrphanBatch | None:
    """The first batch of the last scan, without its body; None if the area was never scanned."""
    return OrphanBatch.objects.filter(area_id=area_id, kind=kind, number=0).defer("body").first()


def count(area_id: int, kind: Kind) -> int:
    """How many orphans the last scan of an area saw."""
    batches = OrphanBatch.objects.filter(area_id=area_id, kind=kind)
    return int(batches.aggregate(items=Sum("items"))["items"] or 0)


def counts() -> list[tuple[str, str, int]]:
    """The orphans of each scanned area: its name, the kind, how many."""
    rows = OrphanBatch.objects.order_by("area__name", "kind").values_list("area__name", "kind")
    return list(rows.annotate(Sum("items")))


@dataclass(slots=True)
class Pile:
    """Orphans of one kind that a scan is finding: dated by the scan before, and packed as they come."""

    area_id: int
    kind: Kind
    count: int = 0
    total: int = 0
    bodies: list[tuple[int, bytes]] = field(default_factory=list)
    _memory: Memory | None = None
    _loose: list[Sighting] = field(default_factory=list)

    def add(self, seen: Sequence[Sighting]) -> None:
        """Take sightings, sorted, and after those that were added before."""
        if self._memory is None:
            self._memory = Memory(stored(self.area_id, self.kind))
        self._loose += self._memory.dated(seen)
        self.count += len(seen)
        if len(self._loose) >= _BATCH:
            self._pack()

    def _pack(self) -> None:
        self.bodies.append((len(self._loose), encode_sightings(self._loose)))
        self._loose = []

    def close(self, *, total: int) -> None:
        """Pack what is left, of `total` files or rows in all; an empty pile is one empty batch."""
        self.total = total
        if self._loose or not self.bodies:
            self._pack()

    def __iter__(self) -> Iterator[Sighting]:
        """Yield all of it, in order."""
        for _, body in self.bodies:
            yield from decode_sightings(body)
        yield from self._loose


def replace(area_id: int, piles: Sequence[Pile], *, now: datetime) -> None:
    """Keep what a scan at `now` saw in place of what the one before saw."""
    rows = [
        OrphanBatch(
            area_id=area_id,
            kind=pile.kind,
            number=number,
            items=items,
            total=pile.total,
            body=body,
            seen_at=now,
        )
        for pile in piles
        for number, (items, body) in enumerate(pile.bodies)
    ]
    with transaction.atomic():
        # Two scans at once: the second waits here, and then removes what the first has written.
        StagingArea.objects.select_for_update().filter(pk=area_id).first()
        OrphanBatch.objects.filter(area_id=area_id).delete()
        OrphanBatch.objects.bulk_create(rows, batch_size=20)
