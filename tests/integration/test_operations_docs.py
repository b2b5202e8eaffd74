"""docs/operations.md: every button beside its command and its role, and none that is not there any more."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class
from django.urls import reverse

from bus.console import ConsoleAdmin
from xnai_site.console import UNFOLD
from xnai_site.roles import ROLES, changes

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "operations.md").read_text()
#: What stands in a command for a number or for JSON; all other words in capitals are text.
FILLED = {"N": "3", "JSON": "{}", "VERIFIER": "redis_task", "HOLD": "3"}

pytestmark = pytest.mark.sqlite_only


def table(number: int) -> list[tuple[str, str, str, str]]:
    """The table of changes (0), or that of forms and downloads (1)."""
    section = PAGE.split("## Buttons and commands")[1].split("\n## ")[0]
    lines = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[number].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]  # type: ignore[misc]


def commands() -> list[str]:
    """Every command that the page names, in the tables and in the text."""
    named = [row[2].strip("`") for number in (0, 1) for row in table(number)]
    spoken = re.findall(r"`((?:manage\.py )?(?:bus|cleanup|schedule|doctor)(?: [^`]+)?)`", PAGE)
    return sorted({command.removeprefix("manage.py ") for command in [*named, *spoken]} - {"bus", "cleanup"})


def screen(page: ConsoleAdmin) -> str:
    """What the menu calls a page, or its tab, or what stands above its list."""
    address = reverse(f"admin:{page.opts.app_label}_{page.opts.model_name}_changelist")
    for group in (*UNFOLD["SIDEBAR"]["navigation"], *UNFOLD["TABS"]):
        for item in group["items"]:
            if str(item["link"]) == address:
                return str(item["title"])
    name = str(page.opts.verbose_name_plural)
    return name[:1].upper() + name[1:]


def test_every_change_is_documented_with_its_role_and_no_other() -> None:
    offered = {(screen(page), change.label): change.role for page, change in changes()}
    documented = {(row[0], row[1]): row[3] for row in table(0)}
    assert documented == offered


def test_no_button_is_documented_twice() -> None:
    names = [row[:2] for number in (0, 1) for row in table(number)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("command", commands())
def test_every_command_can_be_given(command: str) -> None:
    name, *words = shlex.split(command)
    app = get_commands()[name]
    made = load_command_class(app, name) if isinstance(app, str) else app
    made.create_parser("manage.py", name).parse_args([FILLED.get(word, word) for word in words])


def test_every_form_that_is_documented_is_in_the_pages() -> None:
    sources = [*PROJECT.glob("templates/**/*.html"), *PROJECT.glob("*/static/**/dashboard*/**/*.js")]
    sources += [file for app in ("bus", "cleanup") for file in (PROJECT / app / "admin").glob("*.py")]
    pages = "\n".join(file.read_text() for file in sources)
    for _, button, _, role in table(1):
        assert role in ROLES
        made_by_django = button == "Save" or button.startswith(("Add ", "Change "))
        assert made_by_django or button in pages, button


def test_every_screen_of_the_menu_is_explained_and_no_other() -> None:
    rows = PAGE.split("## Screens")[1].split("\n## ")[0]
    explained = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", rows, re.MULTILINE)[1:]
    menu = [item["title"] for group in UNFOLD["SIDEBAR"]["navigation"] for item in group["items"]]
    assert sorted(explained) == sorted(menu)


def test_the_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", PAGE):
        assert (PROJECT / "docs" / target).exists(), target
