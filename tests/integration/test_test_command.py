"""`manage.py test`: what it reads from the runners, and that a failure is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xnai_site.management.commands import test as command

PROJECT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.sqlite_only


@pytest.fixture
def outcome() -> command.Outcome:
    step = command.Step(name="pytest", command=[])
    return command.Outcome(step=step, code=0, seconds=0, counts={}, skipped=[])


def test_counts_are_read_from_the_last_line_of_pytest(outcome: command.Outcome):
    command.read_line("== \x1b[31m1 failed\x1b[0m, 12 passed, 3 skipped in 4.02s (0:00:04) ==\n", outcome)
    assert outcome.counts == {"failed": 1, "passed": 12, "skipped": 3}
    assert command.in_words(outcome.counts) == "1 failed, 12 passed, 3 skipped"


def test_output_of_a_test_is_not_taken_for_a_count(outcome: command.Outcome):
    command.read_line("the agent has 12 passed messages\n", outcome)
    assert outcome.counts == {}


def test_the_reason_of_a_skip_is_kept(outcome: command.Outcome):
    command.read_line("SKIPPED [2] tests/e2e/test_x.py:9: there is no Chromium\n", outcome)
    assert outcome.skipped == ["[2] tests/e2e/test_x.py:9: there is no Chromium"]


def test_everything_runs_on_both_databases():
    steps = {step.name: step for step in command.all_steps({"TEST_DEEP": "1"})}
    assert steps["pytest (SQLite)"].environment == {"TEST_DEEP": "1", "TEST_DATABASE": "sqlite"}
    assert steps["pytest (PostgreSQL)"].environment == {"TEST_DEEP": "1", "TEST_DATABASE": "postgresql"}
    assert {"ruff format", "ruff check", "mypy", "import contracts", "migrations"} <= set(steps)


@pytest.mark.parametrize(
    ("body", "code", "words"), [("assert 1", 0, "1 passed"), ("assert 0", 1, "1 failed")]
)
def test_arguments_go_to_pytest_and_its_verdict_is_ours(tmp_path: Path, body: str, code: int, words: str):
    probe = tmp_path / "test_probe.py"
    probe.write_text(f"def test_probe():\n    {body}\n")
    done = subprocess.run(
        [sys.executable, "manage.py", "test", "-c", "pyproject.toml", "--rootdir", ".", str(probe)],
        cwd=PROJECT,
        env={**os.environ, "XNAI_NO_VENV": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout
    assert words in done.stdout.splitlines()[-1]


def test_ci_runs_the_same_command():
    script = PROJECT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert 'exec python3 manage.py test "$@"' in script.read_text()
