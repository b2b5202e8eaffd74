"""How the verbs of `manage.py bus` print: JSON, one object a line, or lines and tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec


class Writable(Protocol):
    """Where it goes."""

    def write(self, text: str, /) -> Any:
        """Write a line; the end of the line is added if it is missing."""


class Printer:
    """Prints what a verb has found.

    Args:
        out: standard output.
        as_json: one JSON object a line, and nothing else.
    """

    def __init__(self, out: Writable, *, as_json: bool) -> None:
        #: Where it goes.
        self.stream = out
        self.as_json = as_json

    def line(self, text: str) -> None:
        """Print a line as it is."""
        self.stream.write(text)

    def say(self, text: str, **fields: Any) -> None:
        """Print one thing: the sentence for people, or its fields."""
        self.stream.write(to_json(fields) if self.as_json else text)

    def table(self, rows: Iterable[dict[str, Any]], columns: Sequence[str], *, empty: str) -> None:
        """Print many of a kind: the named columns for people, or all fields of each."""
        if self.as_json:
            for row in rows:
                self.stream.write(to_json(row))
            return
        cells = [[_cell(row[name]) for name in columns] for row in rows]
        if not cells:
            self.stream.write(empty)
            return
        lines = [[name.replace("_", " ").upper() for name in columns], *cells]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            self.stream.write("  ".join(padded).rstrip())


def to_json(value: Any) -> str:
    """Return one line of JSON."""
    return msgspec.json.encode(value).decode()


def moment(at: datetime) -> str:
    """Return a time as people read it: `2026-11-22 09:15:02Z`."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value in (None, "") else str(value)
