"""How the commands speak: one JSON object for programs, sentences and a progress bar for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cleanup.operations import Progress
from cleanup.operations.execution import OnProgress

#: Exit codes.
DONE, SOME_SKIPPED, REFUSED = 0, 1, 2


class Writable(Protocol):
    """Where an answer goes: a stream, or Django's wrapper of one."""

    def write(self, text: str, /) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a verb has to say."""

    #: For `--json`.
    data: Mapping[str, Any]
    #: For people, a line each.
    lines: Sequence[str] = field(default_factory=list)
    code: int = DONE


def say(answer: Answer, *, as_json: bool, out: Writable) -> None:
    """Print an answer."""
    if as_json:
        out.write(json.dumps(answer.data) + "\n")
        return
    for line in answer.lines:
        out.write(line + "\n")


def size(count: int) -> str:
    """Bytes for people: `1.4 GB`."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def table(rows: Sequence[Sequence[object]], *, header: Sequence[str]) -> list[str]:
    """Lines of aligned columns."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[OnProgress | None]:
    """A bar on standard error for the length of a run, if a person is watching."""
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: Progress) -> None:
            bar.update(
                task, description=progress.state, completed=progress.done, total=progress.total or None
            )

        yield show
