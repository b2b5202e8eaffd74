"""`manage.py test`: everything that CI runs, in order, with a summary at the end.

Without arguments: format, lint, types, import contracts, missing migrations, then the tests on SQLite and on
PostgreSQL. (Tests in JavaScript are started by Python tests, which give them a server.) Arguments go to one
run of pytest. `--deep` makes the tests run their long figures (they see `TEST_DEEP=1`). What was skipped is
said again, with its reason, in the last lines.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

PACKAGES = ("manage.py", "xnai_site", "bus", "cleanup")
#: A file at a time to each process; more of them than cores, for most tests wait for servers they started.
AT_ONCE = ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]
#: The last line of pytest.
COUNTS = re.compile(r"\b(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that must succeed."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Why it cannot run here; empty if it can.
    skip: str = ""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a step."""

    step: Step
    code: int
    seconds: float
    #: Words of the runner with their numbers: passed, failed, skipped.
    counts: dict[str, int]
    #: Lines that say what was skipped, and why.
    skipped: list[str]


class Command(BaseCommand):
    """Run the checks and the tests."""

    help = "Run everything that CI runs; arguments go to one run of pytest. --deep runs the long figures."

    def run_from_argv(self, argv: list[str]) -> None:
        """Take the arguments as they are: pytest has its own parser."""
        arguments = argv[2:]
        if arguments in (["-h"], ["--help"]):
            self.print_help(argv[0], argv[1])
            return
        try:
            sys.exit(self.run_all(arguments))
        except CommandError as error:
            self.stderr.write(str(error))
            sys.exit(2)

    def run_all(self, arguments: list[str]) -> int:
        """Run the steps. Returns 0 if all have succeeded."""
        require_pytest()
        deep = {"TEST_DEEP": "1"} if "--deep" in arguments else {}
        rest = [argument for argument in arguments if argument != "--deep"]
        steps = [pytest_step("pytest", rest, deep)] if rest else all_steps(deep)
        outcomes = [self._run(step) for step in steps]
        self._summarise(outcomes)
        return int(any(outcome.code for outcome in outcomes))

    def _run(self, step: Step) -> Outcome:
        self.stdout.write(self.style.MIGRATE_HEADING(f"== {step.name}"))
        if step.skip:
            self.stdout.write(f"skipped: {step.skip}\n")
            return Outcome(step=step, code=0, seconds=0, counts={}, skipped=[f"{step.name}: {step.skip}"])
        self.stdout.flush()
        started = time.monotonic()
        outcome = Outcome(step=step, code=0, seconds=0, counts={}, skipped=[])
        for line in self._lines(step, outcome):
            self.stdout.write(line, ending="")
            self.stdout.flush()
            read_line(line, outcome)
        outcome.seconds = time.monotonic() - started
        verdict = "ok" if outcome.code == 0 else f"FAILED (exit code {outcome.code})"
        self.stdout.write(f"-- {step.name}: {verdict} in {outcome.seconds:.1f} s\n")
        return outcome

    def _lines(self, step: Step, outcome: Outcome) -> Iterator[str]:
        """Run the command and yield what it says, as it says it. Ctrl-C reaches it too; it is waited for."""
        with subprocess.Popen(
            step.command,
            cwd=settings.BASE_DIR,
            # The tests start hundreds of processes: without bytecode each would compile the project anew.
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "PYTHONDONTWRITEBYTECODE": "",
                **step.environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None  # noqa: S101  (it is a pipe)
            yield from process.stdout
        outcome.code = process.returncode

    def _summarise(self, outcomes: list[Outcome]) -> None:
        self.stdout.write(self.style.MIGRATE_HEADING("== Summary"))
        for outcome in outcomes:
            state = "skipped" if outcome.step.skip else "FAILED" if outcome.code else "ok"
            style = self.style.ERROR if state == "FAILED" else self.style.SUCCESS
            counts = in_words(outcome.counts)
            self.stdout.write(
                f"{style(f'{state:<8}')}{outcome.step.name:<22}{outcome.seconds:7.1f} s  {counts}"
            )
        for line in dict.fromkeys(line for outcome in outcomes for line in outcome.skipped):
            self.stdout.write(f"skipped: {line}")
        total: dict[str, int] = {"passed": 0, "failed": 0}
        for outcome in outcomes:
            for word, number in outcome.counts.items():
                total[word] = total.get(word, 0) + number
        failed = [outcome.step.name for outcome in outcomes if outcome.code]
        verdict = f"FAILED: {', '.join(failed)}" if failed else "all steps succeeded"
        self.stdout.write(f"{verdict}, in {sum(outcome.seconds for outcome in outcomes):.1f} s")
        # The last line is for programs: numbers and words only.
        self.stdout.write(in_words(total, always=("passed", "failed")))


def require_pytest() -> None:
    """In an environment that is not `.venv` nobody has installed what the tests need."""
    if importlib.util.find_spec("pytest") is None:
        raise CommandError("The tests need more packages: pip install -r tests/requirements.txt")


def all_steps(deep: Mapping[str, str]) -> list[Step]:
    """Everything, the quick first."""
    python = [sys.executable, "-m"]
    return [
        Step(name="ruff format", command=[*python, "ruff", "format", "--check", "."]),
        Step(name="ruff check", command=[*python, "ruff", "check", "."]),
        Step(name="mypy", command=[*python, "mypy", *PACKAGES]),
        Step(name="import contracts", command=[str(beside_python("lint-imports"))]),
        Step(
            name="migrations",
            command=[sys.executable, "manage.py", "makemigrations", "--check", "--dry-run"],
            # It compares models with files; a database of the installation need not be there.
            environment={"XNAI_NO_VENV": "1", "DATABASE_URL": "sqlite://:memory:"},
        ),
        pytest_step("pytest (SQLite)", AT_ONCE, {**deep, "TEST_DATABASE": "sqlite"}),
        pytest_step("pytest (PostgreSQL)", AT_ONCE, {**deep, "TEST_DATABASE": "postgresql"}),
    ]


def pytest_step(name: str, arguments: list[str], environment: Mapping[str, str]) -> Step:
    colour = ["--color=yes"] if sys.stdout.isatty() else []
    return Step(
        name=name, command=[sys.executable, "-m", "pytest", *colour, *arguments], environment=environment
    )


def beside_python(program: str) -> Path:
    """A program of the environment we run in."""
    return Path(sys.executable).parent / program


def read_line(line: str, outcome: Outcome) -> None:
    """Take counts and reasons from one line of a runner."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line).strip()
    if plain.startswith("SKIPPED ["):
        outcome.skipped.append(plain.removeprefix("SKIPPED "))
    elif re.match(r"^=* ?\d+ \w+.* in [\d.]+s", plain):
        for number, word in COUNTS.findall(plain):
            outcome.counts[word] = int(number)


def in_words(counts: Mapping[str, int], *, always: Collection[str] = ("passed",)) -> str:
    """Such as `12 passed, 1 skipped`; zeros only of the words in `always`."""
    return ", ".join(f"{number} {word}" for word, number in counts.items() if number or word in always)
