"""docs/settings.md lists every variable and every key, and none that does not exist."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from bus.conf import BusSettings, TopicOptions
from cleanup.conf import CleanupSettings

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "settings.md").read_text()

pytestmark = pytest.mark.sqlite_only


def environment_variables() -> set[str]:
    """The names that settings.py asks the environment for."""
    tree = ast.parse((PROJECT / "xnai_site" / "settings.py").read_text())
    return {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "env"
        and isinstance(node.args[0], ast.Constant)
    }


def documented(section: str) -> set[str]:
    """The first column of the tables of one section."""
    body = re.split(rf"^## {re.escape(section)}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", body, flags=re.MULTILINE))


def test_every_environment_variable_is_documented_and_no_other():
    assert documented("Environment") == environment_variables()


@pytest.mark.parametrize(
    ("section", "options"), [("BUS", BusSettings), ("BUS topics", TopicOptions), ("CLEANUP", CleanupSettings)]
)
def test_every_key_is_documented_and_no_other(section: str, options: type):
    names = {entry.name for entry in fields(options)}
    wanted = names if section == "BUS topics" else {name.upper() for name in names}
    assert documented(section) == wanted


def test_the_environment_is_read_in_the_settings_alone():
    """bootstrap.py runs before the settings exist; `up` passes the environment on to its children."""
    allowed = {"settings.py", "bootstrap.py", "up.py", "test.py", "supervisor.py", "celery.py", "asgi.py"}
    folders = [PROJECT / "xnai_site", PROJECT / "bus", PROJECT / "cleanup"]
    files = [path for folder in folders for path in folder.rglob("*.py") if path.name not in allowed]
    reading = [
        str(path) for path in files if re.search(r"os\.(environ(?!\.setdefault)|getenv)", path.read_text())
    ]
    # Crash points are armed before Django is there, and the engine works without it.
    assert [path for path in reading if not path.endswith("faults.py") and "/engine/" not in path] == []
