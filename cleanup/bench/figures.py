"""The figures: what is measured, against whom, and what our side is to reach.

Every contestant gets a tree of its own where it changes one, made the same way a moment before. Programs of
the C library find their files in the cache, as ours do: each tree is walked once before it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from cleanup.bench import rivals, trees
from cleanup.bench.report import Figure, Row
from cleanup.bench.rivals import BenchFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run."""

    #: Where trees and databases are made.
    folder: Path
    #: Files of the large figures: scan, orphans.
    many: int = 1_000_000
    #: Files of the figures that move or remove them.
    some: int = 100_000
    #: How often a figure that changes nothing is measured; the best counts.
    rounds: int = 3
    #: How many pairs of result and metadata, and how many milliseconds they may take.
    pairs: Mapping[int, int] = field(default_factory=lambda: {100: 2, 1_000: 25, 10_000: 200})
    #: Databases by name, each with what the environment of a child needs for an empty one.
    databases: Mapping[str, Callable[[], Any]] = field(default_factory=dict)


@contextmanager
def _tree(options: Options, files: int, *, old_every: int = 1) -> Iterator[Path]:
    root = options.folder / "tree"
    trees.make(root, files, old_every=old_every)
    try:
        yield root
    finally:
        rmtree(root)


def _ours(what: str, said: Mapping[str, Any], verdict: str = "") -> Row:
    measured = {name: said[name] for name in ("seconds", "cpu", "count", "memory")}
    return Row(what=what, verdict=verdict, **measured)


def _rival(what: str, command: list[str], count: int, *, rounds: int = 1) -> Row:
    """Run a rival, the best of some rounds; one that is not installed, or fails, says so."""
    if rivals.installed(command[0]) is None:
        return Row(what=what, absent="not installed")
    try:
        ran = [rivals.run(command, codes=(0, 1)) for _ in range(rounds)]
    except BenchFailed as failed:
        return Row(what=what, absent=str(failed))
    seconds, cpu = min(ran)
    return Row(what=what, seconds=seconds, cpu=cpu, count=count)


def _best(options: Options, job: str, **given: Any) -> dict[str, Any]:
    return min((rivals.child(job, **given) for _ in range(options.rounds)), key=lambda one: one["seconds"])


def met(**claims: bool) -> str:
    """Say which claims hold and which do not."""
    broken = [name.replace("_", " ") for name, holds in claims.items() if not holds]
    return f"not met: {', '.join(broken)}" if broken else "met"


def scan(options: Options) -> Figure:
    """Find every file and judge it by its age; one in ten is old and is planned."""
    figure = Figure(name="scan", title=f"Scan and judge {options.many:,} files, one in ten old", base="find")
    with _tree(options, options.many, old_every=10) as root:
        command = rivals.find(root)
        rivals.run(command)
        figure.rows.append(_rival("find", command, options.many, rounds=options.rounds))
        said = _best(options, "scan", root=str(root))
        if (found := figure.row("find")) is not None:
            verdict = met(twice_find=said["seconds"] <= 2 * found.seconds, at_most_60_MB=said["memory"] <= 60)
            figure.rows.append(_ours("cleanup, one process", said, verdict))
        # Nothing is as old as that, so it looks and removes nothing.
        idle = rivals.tmpfiles(root, options.folder, age="10y")
        figure.rows.append(_rival("systemd-tmpfiles", idle, options.many, rounds=options.rounds))
    return figure


def linear(options: Options) -> Figure:
    """The same scan with a tenth of the files: ten times the files, nine to eleven times the time."""
    few = options.many // 10
    figure = Figure(name="linear", title="Ten times the files", base=f"scan of {few:,}")
    for files in (few, options.many):
        with _tree(options, files, old_every=10) as root:
            said = _best(options, "scan", root=str(root))
        verdict = ""
        if (base := figure.row(figure.base)) is not None:
            times = said["seconds"] / base.seconds
            verdict = f"{times:.1f} times: " + met(_9_to_11_times=9 <= times <= 11)
        figure.rows.append(_ours(f"scan of {files:,}", said, verdict))
    return figure


#: What a run is to reach, in files a second from the plan to the trash.
_PACE = {"SQLite": 30_000, "PostgreSQL": 22_000}


def trash(options: Options) -> Figure:
    """A whole run: plan, trash with rows and a chained audit, residue; then the purge of all of it."""
    figure = Figure(name="trash", title=f"A run over {options.some:,} files, all old", base="rename alone")
    with _tree(options, options.some) as root:
        figure.rows.append(_ours("rename alone", rivals.child("rename", root=str(root))))
    for name, database in options.databases.items():
        with _tree(options, options.some) as root, database() as environ:
            try:
                said = rivals.child("run", environ=environ, root=str(root))
            except BenchFailed as failed:
                figure.rows.append(Row(what=name, absent=str(failed)[:80]))
                continue
        figure.rows += run_rows(name, said)
    return figure


def run_rows(name: str, said: Mapping[str, Any]) -> Iterator[Row]:
    """What a child says of a run, as rows."""
    count = said["count"]
    yield _step(f"{name}, plan", said["plan"], count)
    pace = count / said["move"][0]
    verdict = met(**{f"at_least_{_PACE[name]:,}/s": pace >= _PACE[name]})
    yield replace(_step(f"{name}, plan to trash", said["move"], count), verdict=verdict)
    yield _step(f"{name}, residue", said["residue"], count)
    verdict = met(**{"1,000,000_in_45_s": said["seconds"] / count <= 45e-6})
    yield _ours(f"{name}, whole run", said, verdict)
    yield replace(_step(f"{name}, purge", said["purge"], said["purged"]), memory=said["purge_memory"])


def _step(what: str, took: Sequence[float], count: int) -> Row:
    return Row(what=what, seconds=took[0], cpu=took[1], count=count)


def purge(options: Options) -> Figure:
    """Remove files that nobody needs any more: ours from the trash, the others from a tree."""
    figure = Figure(
        name="purge", title=f"Removing {options.some:,} files, without a database", base="find -delete"
    )
    commands = {
        "find -delete": lambda root: rivals.find(root, delete=True),
        "systemd-tmpfiles": lambda root: rivals.tmpfiles(root, options.folder, age="2d"),
        "tmpreaper": rivals.tmpreaper,
    }
    for what, command in commands.items():
        with _tree(options, options.some) as root:
            figure.rows.append(_rival(what, command(root), options.some))
    ids = str(options.folder / "ids")
    with _tree(options, options.some) as root:
        filled = rivals.child("fill", root=str(root), ids=ids)
        said = rivals.child("empty", root=str(root), uuid=filled["uuid"], ids=ids)
    figure.rows.append(_ours("cleanup", said, _faster(figure, said)))
    return figure


def _faster(figure: Figure, said: Mapping[str, Any]) -> str:
    """Whether it is faster than everybody who was measured."""
    return met(
        **{f"faster_than_{row.what}": said["seconds"] < row.seconds
           for row in figure.rows if not row.absent}
    )  # fmt: skip


def expiry(options: Options) -> Figure:
    """Results and metadata that have expired: find, read, decide and remove both."""
    figure = Figure(
        name="expires_at",
        title="Expired pairs of result and metadata",
        base=f"plain pathlib, {max(options.pairs):,}",
    )
    for pairs, limit in options.pairs.items():
        for what, job in (("plain pathlib", "expire plainly"), ("cleanup", "expire")):
            said = _expired(options, job, pairs)
            fast = (
                met(**{f"at_most_{limit}_ms": said["seconds"] * 1000 <= limit}) if what == "cleanup" else ""
            )
            figure.rows.append(_ours(f"{what}, {pairs:,}", said, fast))
    return figure


def _expired(options: Options, job: str, pairs: int) -> dict[str, Any]:
    ran = []
    for _ in range(options.rounds):
        root = options.folder / "results"
        trees.make_pairs(root, pairs)
        ran.append(rivals.child(job, root=str(root)))
        rmtree(root)
    return min(ran, key=lambda one: one["seconds"])


def orphans(options: Options) -> Figure:
    """Files without a row and rows without a file, one in a hundred each."""
    name = next(iter(options.databases))
    title = f"{options.many:,} files against as many rows, on {name}"
    figure = Figure(name="orphans", title=title, base="a query a directory")
    with _tree(options, options.many) as root, options.databases[name]() as environ:
        said = rivals.child("orphans", environ=environ, root=str(root), files=options.many)
    figure.rows += orphan_rows(said)
    return figure


def orphan_rows(said: Mapping[str, Any]) -> Iterator[Row]:
    """What a child says of orphans, as rows."""
    count = said["count"]
    yield _ours("a query a directory", said["directories"])
    yield Row(what="a query a file (from a sample)", seconds=said["each"] * count, count=count)
    verdict = met(at_most_2_s=said["seconds"] <= 2e-6 * count, at_most_60_MB=said["memory"] <= 60)
    yield _ours("cleanup", said, verdict)


FIGURES: dict[str, Callable[[Options], Figure]] = {
    "scan": scan,
    "linear": linear,
    "trash": trash,
    "purge": purge,
    "expires_at": expiry,
    "orphans": orphans,
}
