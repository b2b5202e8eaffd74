"""Some of the audit, as lines: what a filter finds, each entry as it was hashed, page by page.

Every line can be checked by itself (`docs/verify_audit.py`), and stretches without a gap by their links and
the roots of the checkpoints in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db.models import QuerySet

from bus.halving import first_since
from cleanup.engine.audit import canonical
from cleanup.models import AuditEntry
from cleanup.stores.audit import sealed

#: So far may the clocks of servers have been apart, or set: entries are looked for by their numbers this much
#: before and after the moments that are asked for.
MARGIN = timedelta(minutes=10)
_MARGIN_US = MARGIN // timedelta(microseconds=1)

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


def entries_of(wanted: dict[str, Any], *, scan: bool = False) -> QuerySet[AuditEntry]:
    """Rows whose columns equal what is given; `since` and `until` are microseconds, the first inclusive.

    There is no index of moments: they rise with the numbers, so the numbers between which to look are found
    by halving, with `MARGIN` on both sides. An entry of a clock that was further off may be missed, unless
    every entry is looked at.

    Args:
        wanted: `since`, `until` and values of columns; what is empty is not asked for.
        scan: look at every entry.
    """
    rows = AuditEntry.objects.order_by("-seq")
    if (since := wanted.get("since")) is not None:
        rows = rows.filter(at_us__gte=since)
        rows = rows if scan else rows.filter(seq__gte=first_since(AuditEntry, "at_us", since - _MARGIN_US))
    if (until := wanted.get("until")) is not None:
        rows = rows.filter(at_us__lt=until)
        rows = rows if scan else rows.filter(seq__lt=first_since(AuditEntry, "at_us", until + _MARGIN_US))
    columns = ("action", "actor", "area", "path", "run", "item")
    return rows.filter(**{name: wanted[name] for name in columns if wanted.get(name)})
