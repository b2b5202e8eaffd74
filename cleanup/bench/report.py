"""What a benchmark says: figures with rows, as tables for people and as JSON for comparing runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contestant in one figure."""

    what: str
    seconds: float = 0.0
    #: Of processor time; None where it was not measured alone.
    cpu: float | None = None
    #: Files, pairs or rows worked on.
    count: int = 0
    #: Most memory above what the process had at its start (MB); None where it is not known.
    memory: float | None = None
    #: Why there is no figure: not installed, or what went wrong.
    absent: str = ""
    #: Whether it reaches what it is to reach; empty if nothing is asked of it.
    verdict: str = ""


@dataclass(slots=True, kw_only=True)
class Figure:
    """A table."""

    name: str
    title: str
    #: The row that the others are compared with.
    base: str
    rows: list[Row] = field(default_factory=list)

    def row(self, what: str) -> Row | None:
        """Return the row of this name, if it was measured."""
        return next((row for row in self.rows if row.what == what and not row.absent), None)

    def ratio(self, row: Row) -> float | None:
        """Return how much faster a file goes than in the base row: 2 is twice as fast."""
        base = self.row(self.base)
        if base is None or row.absent or not row.seconds:
            return None
        return (base.seconds / base.count) / (row.seconds / row.count)

    def table(self) -> Table:
        """Return the figure as a table."""
        table = Table(title=self.title, title_justify="left")
        table.add_column("")
        for column in ("files", "seconds", "files/s", "us a file", "CPU us", "memory MB", "ratio"):
            table.add_column(column, justify="right")
        table.add_column("budget")
        for row in self.rows:
            if row.absent:
                table.add_row(row.what, row.absent)
            else:
                table.add_row(row.what, *_cells(row, self.ratio(row)), row.verdict)
        return table

    def as_json(self) -> dict[str, Any]:
        """Return the figure for a file."""
        rows = [{**_fields(row), "ratio": self.ratio(row)} for row in self.rows]
        return {"name": self.name, "title": self.title, "base": self.base, "rows": rows}


def _fields(row: Row) -> dict[str, Any]:
    names = ("what", "seconds", "cpu", "count", "memory", "absent", "verdict")
    return {name: getattr(row, name) for name in names}


def _cells(row: Row, ratio: float | None) -> list[str]:
    return [
        f"{row.count:,}",
        f"{row.seconds:.4f}" if row.seconds < 1 else f"{row.seconds:.2f}",
        f"{row.count / row.seconds:,.0f}",
        f"{row.seconds / row.count * 1e6:.2f}",
        "" if row.cpu is None else f"{row.cpu / row.count * 1e6:.2f}",
        "" if row.memory is None else f"{row.memory:.0f}",
        "" if ratio is None else f"{ratio:.2f}",
    ]


def write(figures: list[Figure], file: Path, machine: dict[str, str]) -> None:
    """Write all figures of a run to a JSON file."""
    said = {"machine": machine, "figures": [figure.as_json() for figure in figures]}
    file.write_bytes(msgspec.json.format(msgspec.json.encode(said), indent=1))


def show(figure: Figure, console: Console) -> None:
    """Print a figure."""
    console.print(figure.table())
    console.print()
