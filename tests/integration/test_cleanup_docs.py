"""docs/cleanup.md: every state, reason, rule, verifier, brake, setting, refusal and verb, and no other."""

from __future__ import annotations

import ast
import re
import shlex
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path

import pytest

from cleanup.conf import CleanupSettings
from cleanup.engine.cli import parser as engine_parser
from cleanup.engine.configuration import load
from cleanup.engine.reasons import Reason
from cleanup.engine.states import ItemState
from cleanup.management.arguments import declare
from cleanup.management.commands.cleanup import VERBS
from cleanup.models import RetentionPolicy, Rule, RunState
from cleanup.verifiers import KINDS

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "cleanup.md").read_text()

#: What every verb has, or has if it acts, is explained once for all.
COMMON = {"--help", "--json"}

#: Verbs that only look, so that a dry run of them would be the same.
LOOKING = {
    *("areas list", "policies list", "policies verifiers", "plan", "report", "explain", "bench"),
    *("audit verify", "audit list", "audit prove"),
    *("policies history", "previews list"),
    *("verifiers list", "verifiers test", "measure"),
    *("orders list", "manifest"),
    *("results list", "results show", "pipeline list"),
    "sources list",
    *("uploads list", "files get"),
}

#: What operators rely on; of `areas` and `policies` there are several.
PROMISED = {
    *("plan", "approve", "reject", "run", "stop", "restore", "purge", "hold", "release", "orphans", "report"),
    *("explain", "areas", "policies", "audit verify", "audit export", "import-tmpfiles", "export-systemd"),
    *("tick", "daemon"),
}

pytestmark = pytest.mark.sqlite_only


def section(title: str) -> str:
    return re.split(rf"^## {re.escape(title)}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]


def rows(title: str, table: int = 0) -> dict[str, list[str]]:
    """A table of a section: the first column to the others."""
    tables = re.findall(r"(?:^\|.*\n)+", section(title) + "\n", re.MULTILINE)
    lines = [line for line in tables[table].splitlines() if line.startswith("| `")]
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines]
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in cells}


def verbs(parser: ArgumentParser, name: str = "") -> Iterator[tuple[str, ArgumentParser]]:
    """Every verb that a parser knows, with what reads its words."""
    groups = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    if not groups:
        yield name, parser
    for group in groups:
        for word, below in group.choices.items():
            yield from verbs(below, f"{name} {word}".strip())


def options(parser: ArgumentParser) -> set[str]:
    return {word for action in parser._actions for word in action.option_strings if word.startswith("--")}


def site_parser() -> ArgumentParser:
    made = ArgumentParser()
    declare(made)
    return made


def test_every_state_of_a_file_is_documented_and_no_other() -> None:
    assert list(rows("States of a file")) == [state.value for state in ItemState]


def test_every_state_of_a_run_is_documented_and_no_other() -> None:
    assert list(rows("States of a run")) == RunState.values


def test_every_reason_is_documented_with_its_meaning_and_no_other() -> None:
    documented = {word: cells[1].rstrip(".").lower() for word, cells in rows("Reasons").items()}
    assert documented == {reason.value: reason.meaning.lower() for reason in Reason}


def test_every_rule_is_documented_and_no_other() -> None:
    assert set(rows("Rules")) == set(Rule.values)


def test_every_verifier_is_documented_with_its_options_and_no_other() -> None:
    documented = rows("Verifiers")
    assert set(documented) == set(KINDS)
    for name, kind in KINDS.items():
        assert set(re.findall(r"`(\w+)`: ", documented[name][1])) == set(kind.options), name


def test_every_brake_is_documented_with_its_default_and_no_other() -> None:
    fields = {field.name: field for field in RetentionPolicy._meta.fields if field.name.startswith("max_")}
    documented = {name: cells[1].replace(",", "") for name, cells in rows("Brakes").items()}
    assert documented == {name: str(field.default) for name, field in fields.items()}


def test_every_setting_is_documented_and_no_other() -> None:
    assert set(rows("Settings")) == {name.upper() for name in CleanupSettings.__dataclass_fields__}


def nodes() -> Iterator[ast.AST]:
    """Every piece of the code of cleanup."""
    for file in (PROJECT / "cleanup").rglob("*.py"):
        yield from ast.walk(ast.parse(file.read_text()))


def code_of(statement: ast.stmt) -> str | None:
    """The word that a class of errors gives itself in this statement."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(statement.value, ast.Constant):
        return None
    target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
    is_code = isinstance(target, ast.Name) and target.id == "code"
    return statement.value.value if is_code and isinstance(statement.value.value, str) else None


def test_every_word_of_a_refusal_is_documented_and_no_other() -> None:
    found = {code_of(one) for node in nodes() if isinstance(node, ast.ClassDef) for one in node.body}
    assert set(rows("Refusals")) == found - {None, "engine_error"}


def test_every_reason_to_refuse_an_area_is_documented_and_no_other() -> None:
    calls = (node for node in nodes() if isinstance(node, ast.Call))
    words = {
        call.args[0].value
        for call in calls
        if getattr(call.func, "id", "") == "AreaRefused" and isinstance(call.args[0], ast.Constant)
    }
    assert set(rows("Refusals", 1)) == words


@pytest.mark.parametrize("title", ["Commands", "The engine alone"])
def test_every_verb_and_option_is_documented_and_no_other(title: str) -> None:
    documented = rows(title, 1 if title == "Commands" else 0)
    known = dict(verbs(site_parser() if title == "Commands" else engine_parser()))
    assert list(documented) == list(known)
    for verb, parser in known.items():
        named = set(re.findall(r"`(--[a-z-]+)", documented[verb][1]))
        assert named == options(parser) - COMMON, verb


def test_every_promised_verb_is_there_speaks_json_and_has_a_dry_run_if_it_acts() -> None:
    known = {verb: options(parser) for verb, parser in verbs(site_parser())}
    assert set(known) == set(VERBS)
    assert set(known) | {verb.split()[0] for verb in known} >= PROMISED
    assert {verb for verb, words in known.items() if "--json" not in words} == set()
    assert {verb for verb, words in known.items() if "--dry-run" not in words} == LOOKING


def test_the_commands_of_the_how_tos_are_understood() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    site = [line for line in lines if line.startswith("python3 manage.py cleanup ")]
    alone = [line for line in lines if line.startswith("python -m cleanup.engine ")]
    assert len(site) + len(alone) + 2 == len(lines)  # two are of systemctl
    for line in site:
        site_parser().parse_args(shlex.split(line)[3:])
    for line in alone:
        engine_parser().parse_args(shlex.split(line)[3:])


def test_the_configuration_that_is_shown_is_read(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "cleanup.toml").write_text(shown)
    assert list(load(tmp_path / "cleanup.toml").policies) == ["old"]


def test_what_the_page_points_to_exists() -> None:
    for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", PAGE):
        assert (PROJECT / "docs" / target).exists(), target
    titles = {title.lower().replace(" ", "-") for title in re.findall(r"^##+ (.*)$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= titles
