"""The audit chain in the database.

A writer locks the one `AuditHead` row, takes the next numbers from it, inserts the entries and moves the
head, all in the transaction of the change that they tell of: there is no change without its entry, and no
entry without its change. Locking the *last* entry instead would let two writers follow the same one. What was
written is published on `cleanup:audit` after the commit; the chain is the truth, that feed a courtesy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import msgspec
from django.db import connection, transaction
from django.db.models import QuerySet

from cleanup import models
from cleanup.engine.audit import GENESIS, AuditEntry, AuditRecord, canonical, seal
from cleanup.engine.errors import AuditInvalid
from cleanup.stores.feed import announce
from cleanup.stores.sql import column_of, field_of, insert_rows

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)

_FIELDS = tuple(AuditEntry.__struct_fields__)

#: Text that is longer is cut before it is sealed, so that what is hashed is what the column holds.
_WIDTHS = {
    name: field_of(models.AuditEntry, name).max_length
    for name in ("actor", "actor_kind", "action", "run", "item", "area", "policy_version", "reason")
}

#: Columns that hold an empty text where an entry has None.
_BLANK = ("run", "item", "area", "path", "policy_version", "reason")

_TABLE = models.AuditEntry._meta.db_table
_COLUMNS = ", ".join(column_of(models.AuditEntry, name) for name in _FIELDS)
_SEQ = _FIELDS.index("seq")

#: Entries read at a time: a chain of millions is verified in constant memory.
_PAGE = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who does something: it stands in every audit entry."""

    name: str
    #: `user` (a person in admin), `command` (a person at a shell) or `system` (beat and workers).
    kind: str = "user"

    @classmethod
    def system(cls, name: str = "cleanup") -> Self:
        """The system itself, by schedule."""
        return cls(name=name, kind="system")


def micros(moment: datetime) -> int:
    """`moment` in microseconds since 1970 UTC."""
    return (moment - _EPOCH) // _US


def record(
    actor: Actor,
    action: str,
    *,
    now: datetime,
    run: object = None,
    item: object = None,
    area: str | None = None,
    path: str | None = None,
    size: int | None = None,
    policy_version: str | None = None,
    reason: str | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> AuditRecord:
    """Describe what happened, cut to what the columns hold."""
    return AuditRecord(
        at_us=micros(now),
        actor=actor.name[: _WIDTHS["actor"]],
        actor_kind=actor.kind[: _WIDTHS["actor_kind"]],
        action=action[: _WIDTHS["action"]],
        run=None if run is None else str(run),
        item=None if item is None else str(item),
        area=_cut("area", area),
        path=path or None,
        size=size,
        policy_version=_cut("policy_version", policy_version),
        reason=_cut("reason", reason),
        evidence=dict(evidence or {}),
    )


def _cut(field: str, text: str | None) -> str | None:
    return text[: _WIDTHS[field]] if text else None


class DatabaseAuditSink:
    """An audit sink in the default database.

    Inside an open transaction the entries are part of it, and other writers wait for its end: write them
    last, and commit soon.
    """

    def write(self, records: Sequence[AuditRecord]) -> list[AuditEntry]:
        """Append `records` in order and return them sealed.

        Raises:
            AuditInvalid: a record cannot be sealed, or the chain has entries and no head.
        """
        if not records:
            return []
        with transaction.atomic():
            seq, prev_hash = _lock_head()
            sealed = seal([_storable(entry) for entry in records], prev_seq=seq, prev_hash=prev_hash)
            insert_rows(models.AuditEntry, _FIELDS, [_row(entry) for entry in sealed])
            models.AuditHead.objects.filter(pk=1).update(seq=sealed[-1].seq, hash=sealed[-1].hash)
            announce(sealed)
        return sealed


def _lock_head() -> tuple[int, str]:
    """Lock the head until the end of the transaction. SQLite's IMMEDIATE transaction holds it already."""
    head = models.AuditHead.objects.select_for_update().filter(pk=1).first()
    if head is None:
        return _first_head()
    return head.seq, head.hash


def _first_head() -> tuple[int, str]:
    """Make the head of a chain that has no entry; of several writers, the others wait for the first."""
    models.AuditHead.objects.bulk_create([models.AuditHead(pk=1, seq=0, hash=GENESIS)], ignore_conflicts=True)
    head = models.AuditHead.objects.select_for_update().get(pk=1)
    if head.seq == 0 and models.AuditEntry.objects.exists():
        raise AuditInvalid("the audit has entries but no head: it was tampered with, and is not continued")
    return head.seq, head.hash


def _storable(entry: AuditRecord) -> AuditRecord:
    """Write an empty text as None: the columns cannot tell the two apart, so the hash must not."""
    if "" not in (entry.run, entry.item, entry.area, entry.path, entry.policy_version, entry.reason):
        return entry
    return msgspec.structs.replace(entry, **{name: getattr(entry, name) or None for name in _BLANK})


def _row(entry: AuditEntry) -> tuple[Any, ...]:
    """In the order of `_FIELDS`."""
    return (
        entry.at_us, entry.actor, entry.actor_kind, entry.action, entry.run or "", entry.item or "",
        entry.area or "", entry.path or "", entry.size, entry.policy_version or "", entry.reason or "",
        canonical(entry.evidence).decode() if entry.evidence else "{}", entry.seq, entry.prev_hash,
        entry.hash,
    )  # fmt: skip


def _entry(row: Sequence[Any]) -> AuditEntry:
    (at_us, actor, actor_kind, action, run, item, area, path, size, version, reason, evidence, seq, prev_hash,
     own) = row  # fmt: skip
    return AuditEntry(
        at_us=at_us, actor=actor, actor_kind=actor_kind, action=action, run=run or None, item=item or None,
        area=area or None, path=path or None, size=size, policy_version=version or None,
        reason=reason or None, evidence={} if evidence == "{}" else _evidence(evidence), seq=seq,
        prev_hash=prev_hash, hash=own,
    )  # fmt: skip


def _evidence(text: str) -> dict[str, Any]:
    """Read evidence; text that is not the canonical spelling becomes something that has another hash."""
    try:
        value = json.loads(text)
        if isinstance(value, dict) and canonical(value).decode() == text:
            return value
    except (ValueError, RecursionError, AuditInvalid):
        pass
    return {"not canonical": ascii(text)}


def sealed(rows: QuerySet[models.AuditEntry]) -> Iterator[AuditEntry]:
    """The entries of some rows, as they were hashed."""
    return map(_entry, rows.values_list(*_FIELDS))


def entries(*, after: int | None = None, up_to: int | None = None) -> Iterator[AuditEntry]:
    """Yield entries in order, page by page; each page is a statement of its own."""
    while True:
        rows = _page(after, up_to)
        yield from map(_entry, rows)
        if len(rows) < _PAGE:
            return
        after = rows[-1][_SEQ]


def _page(after: int | None, up_to: int | None) -> list[tuple[Any, ...]]:
    conditions = [("seq > %s", after), ("seq <= %s", up_to)]
    chosen = [(text, value) for text, value in conditions if value is not None]
    where = "WHERE " + " AND ".join(text for text, _ in chosen) if chosen else ""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {_COLUMNS} FROM {_TABLE} {where} ORDER BY seq LIMIT {_PAGE}",  # noqa: S608
            [value for _, value in chosen],
        )
        return list(cursor.fetchall())
