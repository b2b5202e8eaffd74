"""Checkpoints of the audit in the database, and the chain as an inspection reads it.

A checkpoint is inserted once; only where its segment is, and that its entries were removed, is written later.
On PostgreSQL triggers see to that. Entries leave through one door: a transaction that names the checkpoint in
`cleanup.audit_prune` may delete the entries of that stretch and no others. Whoever opens the door without the
key is found by `cleanup audit verify`, for the leave to remove a stretch is signed and lies outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from django.db import connection
from django.db.models import Max, Min

from cleanup import models
from cleanup.engine.audit import AuditEntry
from cleanup.engine.checkpoints import Checkpoint
from cleanup.engine.inspection import Kept
from cleanup.stores.audit import entries
from cleanup.stores.sql import is_postgresql

_FIELDS = tuple(Checkpoint.__struct_fields__)
_ENTRY, _HEAD = models.AuditEntry._meta.db_table, models.AuditHead._meta.db_table


class DatabaseSource:
    """The chain of the default database; see `cleanup.engine.inspection.Source`."""

    def head(self) -> tuple[int, str] | None:
        """Return the number and hash of the last entry, as the head says."""
        found = models.AuditHead.objects.filter(pk=1).values_list("seq", "hash").first()
        return None if found is None else (found[0], found[1])

    def entries(self, *, after: int | None, up_to: int | None) -> Iterator[AuditEntry]:
        """Yield entries in order, page by page."""
        return entries(after=after, up_to=up_to)

    def checkpoint(self, number: int) -> Kept | None:
        """Return one checkpoint."""
        row = models.AuditCheckpoint.objects.filter(pk=number).first()
        return None if row is None else kept(row)

    def numbers(self) -> tuple[int, int] | None:
        """Return the least and the greatest number of a checkpoint, None if there is none."""
        found = models.AuditCheckpoint.objects.aggregate(least=Min("number"), greatest=Max("number"))
        return None if found["least"] is None else (found["least"], found["greatest"])

    def beyond_head(self) -> int | None:
        """Return the least number of an entry beyond the head. One statement: the two move together."""
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT MIN(seq) FROM {_ENTRY} WHERE seq > (SELECT seq FROM {_HEAD} WHERE id = 1)"  # noqa: S608
            )
            found: int | None = cursor.fetchone()[0]
        return found


def kept(row: models.AuditCheckpoint) -> Kept:
    """The row as the engine sees it."""
    return Kept(
        checkpoint=Checkpoint(**{name: getattr(row, name) for name in _FIELDS}),
        segment=row.segment,
        segment_sha256=row.segment_sha256,
        pruned=row.pruned_at is not None,
    )


def last_checkpoint() -> Checkpoint | None:
    """The newest checkpoint."""
    row = models.AuditCheckpoint.objects.order_by("-number").first()
    return None if row is None else kept(row).checkpoint


def insert_checkpoint(checkpoint: Checkpoint) -> None:
    """Insert a checkpoint.

    Raises:
        django.db.IntegrityError: its number is taken: somebody else has made one.
    """
    values = {name: getattr(checkpoint, name) for name in _FIELDS}
    models.AuditCheckpoint.objects.bulk_create([models.AuditCheckpoint(**values)])


def links(*, after: int, up_to: int, limit: int) -> list[tuple[int, str, str]]:
    """Number, hash of the one before, and hash of up to `limit` entries in order."""
    found = models.AuditEntry.objects.filter(seq__gt=after, seq__lte=up_to).order_by("seq")
    return list(found.values_list("seq", "prev_hash", "hash")[:limit])


def set_segment(number: int, *, name: str, sha256: str) -> None:
    """Note where the entries of a checkpoint were exported to."""
    models.AuditCheckpoint.objects.filter(pk=number).update(segment=name, segment_sha256=sha256)


def remove_entries(checkpoint: Checkpoint, *, now: datetime) -> int:
    """Remove the entries of an exported stretch; return how many. The caller is in a transaction."""
    stretch = models.AuditEntry.objects.filter(seq__gte=checkpoint.first_seq, seq__lte=checkpoint.last_seq)
    with connection.cursor() as cursor:
        if is_postgresql():
            cursor.execute("SELECT set_config('cleanup.audit_prune', %s, true)", [str(checkpoint.number)])
        removed = stretch._raw_delete(using=connection.alias)
        if is_postgresql():
            cursor.execute("SELECT set_config('cleanup.audit_prune', '', true)")
    models.AuditCheckpoint.objects.filter(pk=checkpoint.number).update(pruned_at=now)
    return int(removed)
