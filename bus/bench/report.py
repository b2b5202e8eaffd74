"""What a benchmark says: figures with rows, as tables for people and as JSON for comparing runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Budget:
    """What a value of ours is to reach."""

    column: str
    limit: float
    #: The limit is the most that it may be, else the least.
    at_most: bool = False

    def verdict(self, values: dict[str, float]) -> str:
        """Say whether it is met, and if not what was wanted."""
        value = values[self.column]
        if value <= self.limit if self.at_most else value >= self.limit:
            return "met"
        return f"not met: {'at most' if self.at_most else 'at least'} {_number(self.limit)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contestant in one figure."""

    what: str
    #: By column.
    values: dict[str, float]
    #: Why there are no values: not installed, or what went wrong.
    absent: str = ""
    budgets: tuple[Budget, ...] = ()

    @property
    def verdict(self) -> str:
        """Whether it is within its budgets; empty if it has none."""
        if not self.values or len(self.budgets) < 2:
            return "".join(budget.verdict(self.values) for budget in self.budgets if self.values)
        return "; ".join(f"{budget.column} {budget.verdict(self.values)}" for budget in self.budgets)


@dataclass(slots=True, kw_only=True)
class Figure:
    """A table."""

    name: str
    title: str
    #: Column whose values are compared, and whether more of it is better.
    compared: str
    more_is_better: bool = False
    #: What row the ratios are to; the first by default.
    base: str = ""
    rows: list[Row] = field(default_factory=list)

    def add(self, what: str, values: dict[str, float], *budgets: Budget) -> None:
        """Add a row with its values by column, and what they are to reach."""
        self.rows.append(Row(what=what, values=values, budgets=budgets))

    def absent(self, what: str, why: str) -> None:
        """Add a row without values."""
        self.rows.append(Row(what=what, values={}, absent=why))

    def ratio(self, row: Row) -> float | None:
        """Return how the row stands to the base: 2 is twice as good."""
        bases = [one for one in self.rows if one.values and one.what == (self.base or one.what)]
        if not bases or not row.values:
            return None
        base, mine = bases[0].values[self.compared], row.values[self.compared]
        better, worse = (mine, base) if self.more_is_better else (base, mine)
        return better / worse if worse else None

    def table(self) -> Table:
        """Return the figure as a table."""
        columns = list(dict.fromkeys(column for row in self.rows for column in row.values))
        table = Table(title=self.title, title_justify="left")
        table.add_column("")
        for column in [*columns, "ratio"]:
            table.add_column(column, justify="right")
        table.add_column("budget")
        for row in self.rows:
            cells = [_number(row.values.get(column)) for column in columns]
            if row.absent:
                cells = [row.absent, *[""] * (len(columns) - 1)] if columns else []
            table.add_row(row.what, *cells, _ratio(self.ratio(row)), row.verdict)
        return table

    def as_json(self) -> dict[str, Any]:
        """Return the figure for a file."""
        rows = [{**asdict(row), "ratio": self.ratio(row), "verdict": row.verdict} for row in self.rows]
        return {"name": self.name, "title": self.title, "compared": self.compared, "rows": rows}


def write(figures: list[Figure], file: Path, machine: dict[str, str]) -> None:
    """Write all figures of a run to a JSON file."""
    said = {"machine": machine, "figures": [figure.as_json() for figure in figures]}
    file.write_bytes(msgspec.json.format(msgspec.json.encode(said), indent=1))


def show(figure: Figure, console: Console) -> None:
    """Print a figure."""
    console.print(figure.table())
    console.print()


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
