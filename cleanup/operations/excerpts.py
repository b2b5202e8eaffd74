"""Some of the audit, as lines: what a filter finds, each entry as it was hashed, page by page.

Every line can be checked by itself (`docs/verify_audit.py`), and stretches without a gap by their links and
the roots of the checkpoints in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db.models import QuerySet

from cleanup.engine.audit import canonical
from cleanup.models import AuditEntry
from cleanup.stores.audit import sealed

#: Entries read at a time: memory stays the same however many there are.
PAGE = 2_000


def page_of_lines(rows: QuerySet[AuditEntry], *, after: int) -> tuple[bytes, int | None]:
    """The next entries of `rows` beyond number `after` as JSON lines, and the last number; None: no more."""
    found = list(sealed(rows.filter(seq__gt=after).order_by("seq")[:PAGE]))
    lines = b"".join(canonical(entry.fields()) + b"\n" for entry in found)
    return lines, found[-1].seq if len(found) == PAGE else None


def lines(rows: QuerySet[AuditEntry]) -> Iterator[bytes]:
    """All of them, in order."""
    last: int | None = 0
    while last is not None:
        part, last = page_of_lines(rows, after=last)
        if part:
            yield part


def entries_of(wanted: dict[str, Any]) -> QuerySet[AuditEntry]:
    """Rows whose columns equal what is given; `since` and `until` are microseconds, the first inclusive."""
    rows = AuditEntry.objects.order_by("-seq")
    if (since := wanted.get("since")) is not None:
        rows = rows.filter(at_us__gte=since)
    if (until := wanted.get("until")) is not None:
        rows = rows.filter(at_us__lt=until)
    columns = ("action", "actor", "area", "path", "run", "item")
    return rows.filter(**{name: wanted[name] for name in columns if wanted.get(name)})
