"""A glimpse of what a filter finds in the trash: for a page that asks, which may not wait for a full count.

So many of the newest files in the trash are looked at, of the filter's area and days. Where there are no
more, the glimpse is the whole truth; else it says so, and whoever orders something has them all counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, QuerySet, Sum

from cleanup.models import CleanupItem
from cleanup.operations.trash_filters import count, matching

#: Files that are looked at: some 50 ms.
LOOK_AT = 20_000
#: Files that are named.
NAMED = 10

#: What an index narrows before anything is looked at.
_ON_THE_WAY = ("area", "trashed_from", "trashed_before")


@dataclass(frozen=True, slots=True, kw_only=True)
class Glimpse:
    """Files and bytes that were found, and the names of some."""

    files: int
    bytes: int
    named: Sequence[str]
    #: Whether these are all that the filter finds.
    is_whole: bool


def glimpse(found_by: Mapping[str, Any]) -> Glimpse:
    """Look at the newest files for what a filter finds; one without `path`, which has to be asked of each.

    Raises:
        OperationRefused: it names what there is not.
    """
    newest = _newest(matching({name: found_by[name] for name in _ON_THE_WAY if name in found_by}))
    edge = newest.values_list("trashed_at", flat=True)[LOOK_AT - 1 : LOOK_AT].first()
    rows = matching(found_by)
    if edge is not None:
        # One lower bound, since of two SQLite may take the wrong one for its index.
        others = {name: value for name, value in found_by.items() if name != "trashed_from"}
        rows = matching(others).filter(trashed_at__gte=edge)
    found = rows.order_by().aggregate(files=Count("pk"), bytes=Sum("size"))
    return Glimpse(
        files=found["files"] or 0, bytes=found["bytes"] or 0, named=_named(rows), is_whole=edge is None
    )


def full_count(found_by: Mapping[str, Any]) -> tuple[Glimpse, bool]:
    """Count all that a filter finds, however long it takes; and whether there are even more."""
    files, size, more = count(found_by)
    return Glimpse(files=files, bytes=size, named=_named(matching(found_by)), is_whole=True), more


def _newest(rows: QuerySet[CleanupItem]) -> QuerySet[CleanupItem]:
    """By time alone: with the key, SQLite would leave an area's own index for one that needs no sorting."""
    return rows.order_by("-trashed_at")


def _named(rows: QuerySet[CleanupItem]) -> list[str]:
    return list(_newest(rows).values_list("path", flat=True)[:NAMED])
