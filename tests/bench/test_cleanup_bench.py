"""The benchmark of the engine: it measures what it says, leaves nothing behind, and never fails by time."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from cleanup.bench import rows, trees
from cleanup.bench.figures import FIGURES, Options, met, orphan_rows, run_rows
from cleanup.bench.report import Figure, Row, write
from cleanup.bench.rivals import BenchFailed, child, run
from tests.retention import files_below

pytestmark = pytest.mark.sqlite_only


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(folder=tmp_path, many=2_000, some=300, rounds=1, pairs={20: 10_000})


def left_in(folder: Path) -> set[str]:
    """What a figure has left but the small files that it hands to its children."""
    return {path.name for path in folder.iterdir()} - {"bench.conf", "ids"}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("scan", {"find": 2_000, "cleanup, one process": 2_000}),
        ("linear", {"scan of 200": 200, "scan of 2,000": 2_000}),
        ("purge", {"find -delete": 300, "cleanup": 300}),
        ("expires_at", {"plain pathlib, 20": 20, "cleanup, 20": 20}),
    ],
)
def test_a_figure_counts_every_file_and_leaves_none(
    options: Options, name: str, counts: dict[str, int]
) -> None:
    figure = FIGURES[name](options)
    measured = {row.what: row.count for row in figure.rows if not row.absent}
    assert counts.items() <= measured.items()
    assert all(row.seconds > 0 for row in figure.rows if not row.absent)
    assert figure.ratio(figure.rows[0]) == 1
    assert left_in(options.folder) == set()


@pytest.mark.django_db(transaction=True)
def test_a_run_is_measured_step_by_step(tmp_path: Path) -> None:
    trees.make(tmp_path / "tree", 60, old_every=2)
    said = rows.run_and_purge(str(tmp_path / "tree"))
    assert (said["count"], said["purged"]) == (30, 30)
    steps = [said[name][0] for name in ("plan", "move", "residue")]
    assert min(steps) >= 0
    assert sum(steps) <= said["seconds"]
    assert len(files_below(tmp_path / "tree")) == 30
    figure = Figure(name="f", title="F", base="SQLite, plan", rows=list(run_rows("SQLite", said)))
    assert [row.count for row in figure.rows] == [30] * 5
    assert figure.table().row_count == 5


@pytest.mark.django_db(transaction=True)
def test_orphans_are_looked_for_in_a_tree_with_as_many_rows(tmp_path: Path) -> None:
    trees.make(tmp_path / "tree", 200)
    said = rows.orphans(str(tmp_path / "tree"), 200)
    assert said["count"] == 200
    # Of the files 0 and 100 the rows have another name.
    assert (said["without_row"], said["without_file"]) == (2, 2)
    assert [row.count for row in orphan_rows(said)] == [200] * 3
    assert rows._by_directory(str(tmp_path / "tree"), said["area"]) == 4


def test_a_rival_that_fails_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(BenchFailed, match="code 1"):
        run(["false"])
    with pytest.raises(BenchFailed, match="FileNotFoundError"):
        child("empty", root=str(tmp_path), uuid="6f1e1d1e-0000-4000-8000-000000000000", ids="nowhere")


def test_a_figure_compares_what_one_file_takes() -> None:
    figure = Figure(name="f", title="F", base="slow")
    figure.rows += [Row(what="slow", seconds=2, count=10), Row(what="fast", seconds=2, count=40)]
    figure.rows.append(Row(what="gone", absent="not installed"))
    assert [figure.ratio(row) for row in figure.rows] == [1, 4, None]
    assert figure.table().row_count == 3


def test_a_verdict_names_what_is_not_met() -> None:
    assert met(at_most_2_s=True) == "met"
    assert met(at_most_2_s=True, at_most_60_MB=False) == "not met: at most 60 MB"


def test_figures_are_written_with_the_machine(tmp_path: Path) -> None:
    figure = Figure(name="f", title="F", base="a", rows=[Row(what="a", seconds=1, count=2, memory=3)])
    write([figure], tmp_path / "run.json", {"cores": "2"})
    said = json.loads((tmp_path / "run.json").read_text())
    assert said["machine"] == {"cores": "2"}
    assert said["figures"][0]["rows"][0]["ratio"] == 1


def test_the_command_refuses_a_figure_that_it_does_not_know() -> None:
    with pytest.raises(CommandError, match="there is no figure 'speed'"):
        call_command("cleanup", "bench", "speed", stdout=StringIO())


def test_the_file_system_is_the_innermost_mount(tmp_path: Path) -> None:
    assert trees.file_system(Path("/proc/self")).startswith("proc ")
    assert trees.file_system(tmp_path) != "unknown"


def test_every_figure_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    assert [name for name in FIGURES if f"`{name}`" not in text] == []
