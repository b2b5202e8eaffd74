"""docs/bus.md: every verb and option of the command, every rule, and examples that compile."""

from __future__ import annotations

import re
from argparse import ArgumentParser, _SubParsersAction
from pathlib import Path

import pytest

from bus.conf import DEFAULT_TOPICS, BusSettings, TopicOptions
from bus.management.arguments import NAMES, declare

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "bus.md").read_text()

pytestmark = pytest.mark.sqlite_only


def section(title: str) -> str:
    return re.split(rf"^## {re.escape(title)}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]


def rows(title: str) -> dict[str, list[str]]:
    """The tables of a section: the first column to the others."""
    found = (line.strip("|").split("|") for line in section(title).splitlines() if line.startswith("| `"))
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in found}


def options() -> dict[str, set[str]]:
    """Verb to the long options that it takes."""
    parser = ArgumentParser()
    declare(parser)
    (verbs,) = (action for action in parser._actions if isinstance(action, _SubParsersAction))
    return {
        verb: {word for action in sub._actions for word in action.option_strings if word.startswith("--")}
        for verb, sub in verbs.choices.items()
    }


def test_every_verb_and_option_is_documented_and_no_other() -> None:
    documented = rows("By hand")
    assert set(documented) == set(NAMES) == set(options())
    for verb, known in options().items():
        named = set(re.findall(r"--[a-z-]+", documented[verb][0]))
        assert named == known - {"--help", "--json"}, verb
        # `--json` is explained once for all.
        assert "--json" in known or verb == "token"


def test_every_built_in_rule_is_documented_with_its_delivery() -> None:
    wanted = {rule["pattern"]: TopicOptions(**rule).delivery for rule in DEFAULT_TOPICS}
    assert {
        pattern: cells[1].strip("`") for pattern, cells in rows("Topics and their rules").items()
    } == wanted
    for rule in DEFAULT_TOPICS:
        publishers = TopicOptions(**rule).publish
        scopes = {grant[6:] for grant in ([publishers] if isinstance(publishers, str) else publishers)
                  if grant.startswith("scope:")}  # fmt: skip
        assert (
            set(re.findall(r"scope `([\w:]+)`", rows("Topics and their rules")[rule["pattern"]][3])) == scopes
        )


def test_every_delivery_class_is_documented() -> None:
    assert set(rows("Delivery classes")) == {"must", "latest", "ephemeral"}


def test_settings_and_files_that_are_named_exist() -> None:
    known = {name.upper() for name in BusSettings.__dataclass_fields__}
    named = set(re.findall(r"`([A-Z][A-Z_]{5,})`", section("Limits")))
    assert named
    assert named <= known
    for target in re.findall(r"\]\(([\w./-]+)\)", PAGE):
        assert (PROJECT / "docs" / target).exists(), target


def test_the_examples_compile_and_import_what_there_is() -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        compile(example, "docs/bus.md", "exec")
        imports = "\n".join(line for line in example.splitlines() if line.startswith("from "))
        exec(imports, {})  # noqa: S102  (it is our own page)
