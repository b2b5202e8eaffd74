"""Files of a preview as CSV, for spreadsheets that must not take a file's name for a formula.

Every cell that begins like one is led by an apostrophe; names are escaped as everywhere, so a line break in a
name cannot break a line. Bytes are plain numbers, as in the JSON of the commands, moments ISO 8601 in UTC.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from cleanup.models import RetentionPolicy
from cleanup.operations.wording import reason_in_words
from cleanup.stores.previews import Seen

HEADER = ("verdict", "reason", "why", "path", "bytes", "changed")

#: What is written for each kind.
VERDICTS = {"goes": "would be trashed", "stays": "kept", "doubt": "could not be judged"}

#: How a spreadsheet knows a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

#: Lines that are handed over at a time.
_LINES = 500


def csv_parts(
    files: Iterable[tuple[str, str, Seen]], policy: RetentionPolicy, *, header: bool = True
) -> Iterator[str]:
    """Yield the table in parts: kind, reason and file of each give a line below the header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    if header:
        writer.writerow(HEADER)
    for number, (kind, reason, seen) in enumerate(files, 1):
        writer.writerow([_cell(value) for value in row_of(kind, reason, seen, policy)])
        if number % _LINES == 0:
            yield _taken(out)
    yield _taken(out)


def row_of(kind: str, reason: str, seen: Seen, policy: RetentionPolicy) -> tuple[Any, ...]:
    """The cells of one file."""
    why = "; ".join(filter(None, [reason_in_words(reason, policy), seen.detail]))
    changed = "" if seen.stamp is None else _moment(seen.stamp)
    return VERDICTS.get(kind, kind), reason, why, seen.path, seen.size, changed


def _moment(stamp: int) -> str:
    try:
        return datetime.fromtimestamp(stamp, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return str(stamp)  # a time stamp that no calendar has


def _cell(value: Any) -> str:
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) and not isinstance(value, int) else text


def _taken(out: io.StringIO) -> str:
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text
