"""The rows of staged files: read in the order of their paths, and moved when their file moves.

A row goes with its file: soft-deleted when the file is trashed, alive again when it is restored, removed when
it is purged. Both carry the same moment (`deleted_at` of the row, `trashed_at` of the item), so of several
files that had one name after another each takes its own row along. All of it happens in the transaction of
the item rows, in a few statements for thousands, and costs one look where an area has no rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.db import connection

from cleanup.models import CleanupItem, StagedFile
from cleanup.stores.sql import chunks, column_of

#: Why a row is soft-deleted.
WITH_FILE = "its file is in the trash"
FILE_MISSING = "its file is missing"

#: Paths read by one statement: a few round trips for a million, a megabyte in memory.
_PAGE = 10_000


def living_pages(area_id: int) -> Iterator[list[str]]:
    """Yield the paths of an area's living rows, ascending by their bytes, page by page.

    Each page is a statement of its own, which an index answers alone: no transaction stays open for long.
    """
    quote = connection.ops.quote_name
    table, path = quote(StagedFile._meta.db_table), quote(column_of(StagedFile, "path"))
    where = f"{quote(column_of(StagedFile, 'area'))} = %s AND deleted_at IS NULL AND {path} > %s"
    query = f"SELECT {path} FROM {table} WHERE {where} ORDER BY {path} LIMIT {_PAGE}"  # noqa: S608
    after = ""
    while True:
        with connection.cursor() as cursor:
            cursor.execute(query, [area_id, after])
            page = [row[0] for row in cursor.fetchall()]
        if not page:
            return
        yield page
        # Rows of the same path are met once: the next page begins behind it.
        after = page[-1]


def keys_of(area_id: int, paths: Collection[str]) -> list[tuple[str, int]]:
    """The living rows of `paths`, each with its key, sorted."""
    found = list[tuple[str, int]]()
    for part in chunks(paths):
        rows = StagedFile.objects.filter(area_id=area_id, path__in=part).order_by()
        found += rows.values_list("path", "pk")
    return sorted(found)


def registered(area_id: int, paths: Collection[str]) -> set[str]:
    """Those of `paths` that have a living row."""
    return {path for path, _ in keys_of(area_id, paths)}


# Rows follow their files


def follow_trashed(area_id: int, paths: Iterable[str], *, at: datetime, purge_after: datetime) -> int:
    """Soft-delete the living rows of files that went into the trash at `at`; return how many."""
    living = StagedFile.objects.filter(area_id=area_id)
    if not living.exists():
        return 0
    gone = {"deleted_at": at, "purge_after": purge_after, "delete_reason": WITH_FILE}
    return sum(int(living.filter(path__in=part).update(**gone)) for part in chunks(paths))


def follow_restored(area_id: int, items: Iterable[tuple[CleanupItem, Sequence[str]]]) -> int:
    """Bring the rows of restored files back to life; return how many.

    A row that was soft-deleted because its file was missing comes back with the file, too.

    Args:
        area_id: of all items.
        items: each with the paths that its files have now, in their order.
    """
    if not _deleted(area_id).exists():
        return 0
    moves = [(item.trashed_at, dict(zip(_paths(item), places, strict=False))) for item, places in items]
    restored = 0
    for at, moved in _by_moment(moves).items():
        unmoved = [old for old, new in moved.items() if old == new]
        for part in chunks(unmoved):
            restored += _deleted(area_id).filter(deleted_at=at, path__in=part).restore()
        for old, new in moved.items():
            if old != new:
                _deleted(area_id).filter(deleted_at=at, path=old).update(path=new)
                restored += _deleted(area_id).filter(deleted_at=at, path=new).restore()
    return restored + revive(area_id, [new for _, moved in moves for new in moved.values()])


def _by_moment(moves: Iterable[tuple[datetime | None, dict[str, str]]]) -> dict[datetime, dict[str, str]]:
    """Old and new paths of all files, by when they went into the trash."""
    found: dict[datetime, dict[str, str]] = defaultdict(dict)
    for at, moved in moves:
        if at is not None:
            found[at].update(moved)
    return found


def _paths(item: CleanupItem) -> list[str]:
    return [member["path"] for member in item.members]


def revive(area_id: int, paths: Collection[str]) -> int:
    """Bring back the newest row of each path that was soft-deleted because its file was missing."""
    revived = 0
    for part in chunks(paths):
        rows = _deleted(area_id).filter(delete_reason=FILE_MISSING, path__in=part).order_by("deleted_at")
        newest = dict(rows.values_list("path", "pk"))
        for path in registered(area_id, list(newest)):
            del newest[path]
        revived += _deleted(area_id).filter(pk__in=newest.values()).restore() if newest else 0
    return revived


def follow_purged(area_id: int, items: Iterable[CleanupItem], *, now: datetime) -> int:
    """Remove the rows of files that are gone for good; return how many.

    One that other rows still depend on stays soft-deleted, and is tried again by the clock.
    """
    if not _deleted(area_id).exists():
        return 0
    removed = 0
    moves = ((item.trashed_at, dict.fromkeys(_paths(item), "")) for item in items)
    for at, moved in _by_moment(moves).items():
        for part in chunks(moved):
            removed += _deleted(area_id).filter(deleted_at=at, path__in=part).remove(now).removed
    return removed


def follow_grace(area_id: int, items: Iterable[CleanupItem]) -> None:
    """Let rows stay as long as their files, whose grace was extended."""
    if not _deleted(area_id).exists():
        return
    promised: dict[tuple[datetime, datetime], list[str]] = defaultdict(list)
    for item in items:
        if item.trashed_at is not None and item.purge_after is not None:
            promised[item.trashed_at, item.purge_after] += _paths(item)
    for (at, purge_after), paths in promised.items():
        for part in chunks(paths):
            rows = _deleted(area_id).filter(deleted_at=at, path__in=part, purge_after__lt=purge_after)
            rows.update(purge_after=purge_after)


def _deleted(area_id: int) -> Any:
    """The soft-deleted rows of an area, with the verbs of soft deletion."""
    return StagedFile.all_objects.filter(area_id=area_id, deleted_at__isnull=False)
