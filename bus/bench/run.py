"""Running figures one after the other, and saying what they gave and on what machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.db import connection
from rich.console import Console

from bus.bench import report
from bus.bench.figures import FIGURES, Options
from bus.protocol.errors import BadRequest


def run(names: Sequence[str], *, seconds: float, node_modules: Path, file: Path | None, stream: Any) -> None:
    """Run the figures of these names, or all, and print each when it is there.

    Raises:
        BadRequest: there is no such figure, or no time for it.
    """
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise BadRequest(f"there is no figure {unknown[0]!r}; there are {', '.join(FIGURES)}")
    if seconds <= 0:
        raise BadRequest("a measurement takes more than 0 seconds")
    options = Options(seconds=seconds, node_modules=node_modules.resolve())
    console = Console(file=stream, width=None if stream.isatty() else 120)
    found = []
    for name in names or FIGURES:
        found.append(FIGURES[name](options))
        report.show(found[-1], console)
    if file is not None:
        report.write(found, file, machine())


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT sqlite_version()" if connection.vendor == "sqlite" else "SHOW server_version")
        (version,) = cursor.fetchone()
    return {
        "cores": str(os.cpu_count()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "database": f"{connection.vendor} {version}",
    }
