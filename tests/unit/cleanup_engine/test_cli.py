"""`python -m cleanup.engine`: the engine on a TOML file, from an empty folder to an empty trash."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from cleanup.engine.area import open_area
from cleanup.engine.cli import main, parser
from cleanup.engine.configuration import ConfigurationInvalid, load
from cleanup.engine.trash import Header, move, prepare, trash_ids
from tests.unit.cleanup_engine.kit import Garden

DAY = 86_400


class Box:
    """A folder with an area `in`, a configuration, and the command on it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys
        self.area = root / "in"
        self.area.mkdir()
        self.file = root / "cleanup.toml"
        self.configure()

    def configure(self, *lines: str, policy: str = 'rule = "age"\nage = "2d"', area: str = "") -> None:
        self.file.write_text(
            f'state = "state"\n\n[areas.in]\npath = "{self.area}"\n{area}\n\n'
            f'[policies.old]\narea = "in"\nmode = "enforce"\nmax_percent = 100\n{policy}\n\n'
            + "\n".join(lines)
        )

    def write(self, name: str, *, days: float = 5, text: str = "content") -> Path:
        path = self.area / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (time.time() - days * DAY,) * 2)
        return path

    def __call__(self, *words: str) -> tuple[int, Any]:
        """Run a command with --json; return its exit code and object."""
        self.capsys.readouterr()
        config = [] if words[0] in ("clean", "daemon") else ["--config", str(self.file)]
        code = main([*words, *config, "--json"])
        return code, json.loads(self.capsys.readouterr().out)

    def text(self, *words: str) -> str:
        self.capsys.readouterr()
        main([*words, "--config", str(self.file)])
        printed = self.capsys.readouterr()
        return printed.out + printed.err

    def files(self) -> set[str]:
        found = (path.relative_to(self.area) for path in self.area.rglob("*") if path.is_file())
        return {str(path) for path in found if not path.parts[0].startswith((".trash", ".staging-area"))}

    def actions(self) -> list[str]:
        lines = (self.root / "state" / "audit.jsonl").read_text().splitlines()
        return [json.loads(line)["action"] for line in lines]


@pytest.fixture
def box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Box:
    made = Box(tmp_path, capsys)
    made("register")
    return made


def test_from_an_empty_folder_to_an_empty_trash(box: Box) -> None:
    for number in range(3):
        box.write(f"old{number}", text="x" * number)
    box.write("new", days=0)
    code, plan = box("plan", "old")
    assert (code, plan["files"], plan["bytes"], plan["kept"]) == (0, 3, 3, {"younger_than_age": 1})
    assert [item["path"] for item in plan["items"]] == ["old0", "old1", "old2"]
    assert len(plan["plan"]) == 64
    code, run = box("run")
    assert (code, run["runs"][0]["state"], run["runs"][0]["trashed"]) == (0, "done", 3)
    assert box.files() == {"new"}
    code, listed = box("list")
    assert (code, [row["path"] for row in listed["items"]]) == (0, ["old0", "old1", "old2"])
    due = datetime.fromisoformat(listed["items"][0]["purge_after"])
    assert abs(due - datetime.now(UTC) - timedelta(days=7)) < timedelta(minutes=5)
    assert box("restore", "in", "--path", "old1")[1]["restored"] == 1
    assert box("purge")[1]["purged"] == 0
    assert box("purge", "in", "--now", "full")[1]["purged"] == 2
    assert box.files() == {"new", "old1"}
    code, verdict = box("verify")
    assert (code, verdict["sound"]) == (0, True)
    assert box.actions() == [
        *("area_added", "trash_intent", "trashed", "trashed", "trashed", "trash_settled", "run_done"),
        *("restore_intent", "restored", "restore_settled"),
        *("purge_now", "purge_intent", "purged", "purged", "purge_settled"),
    ]


def test_a_plan_above_a_brake_takes_the_number_of_its_files(box: Box) -> None:
    box.configure(policy='rule = "age"\nage = "2d"\nmax_files = 2')
    for number in range(3):
        box.write(f"f{number}")
    code, run = box("run", "old")
    assert (code, run["runs"][0]["state"]) == (2, "awaiting_approval")
    assert run["runs"][0]["brakes"] == [{"brake": "max_files", "limit": 2, "value": 3}]
    assert "--approve 3" in run["runs"][0]["message"]
    assert box("run", "old", "--approve", "2")[0] == 2
    assert len(box.files()) == 3
    assert box("run", "old", "--approve", "3")[1]["runs"][0]["trashed"] == 3
    assert "approved" in box.actions()


def test_a_policy_far_above_its_habit_waits(box: Box) -> None:
    for run in range(5):
        box.write(f"few{run}")
        assert box("run")[0] == 0
    for number in range(11):
        box.write(f"many{number}")
    code, run = box("run")
    assert (code, run["runs"][0]["brakes"]) == (
        2,
        [{"brake": "max_median_factor", "limit": 10, "value": 11}],
    )


def test_a_policy_that_reports_touches_nothing_and_one_that_is_off_is_left_out(box: Box) -> None:
    box.write("old")
    more = '[policies.{0}]\narea = "in"\nrule = "age"\nage = "1d"\nmode = "{0}"\n'
    box.configure(more.format("report"), more.format("off"), policy='rule = "age"\nage = "9d"')
    code, run = box("run")
    assert (code, [one["state"] for one in run["runs"]]) == (0, ["done", "reported"])
    assert box("run", "off") == (2, {"error": "refused", "message": "policy 'off' is off"})
    assert box("run", "report", "--dry-run")[1]["runs"][0]["files"] == 1
    assert box.files() == {"old"}


def test_what_is_held_neither_goes_nor_is_purged(box: Box) -> None:
    box.write("keep/a")
    box.write("b")
    hold = '[[holds]]\narea = "in"\npattern = "{}"\nreason = "asked for"\n'
    box.configure(hold.format("keep"))
    assert box("run")[1]["runs"][0]["kept"] == {"held": 1}
    box.configure(hold.format("b"), policy='rule = "age"\nage = "2d"')
    code, purged = box("purge", "in", "--now", "full")
    assert (code, purged["purged"], purged["held"]) == (1, 0, 1)
    box.configure(hold.format("b") + "until = 2020-01-01T00:00:00Z\n")
    assert box("purge", "in", "--now", "full")[1]["purged"] == 1


def test_a_restore_never_overwrites_and_may_take_another_name(box: Box) -> None:
    box.write("a", text="first")
    box("run")
    box.write("a", text="second", days=0)
    code, answer = box("restore", "in")
    assert (code, answer["restored"], answer["conflicts"][0]["outcome"]) == (1, 0, "conflict")
    item = box("list")[1]["items"][0]["item"]
    assert box("restore", "in", "--item", item, "--to", "b", "--dry-run")[1]["items"] == ["a"]
    assert box("restore", "in", "--item", item, "--to", "b")[0] == 0
    assert (box.area / "a").read_text() == "second"
    assert (box.area / "b").read_text() == "first"
    assert box("restore", "in", "--item", item)[0] == 2


@pytest.mark.parametrize(
    ("policy", "gone"),
    [
        ('rule = "keep_newest"\nkeep = 2', {"d/0", "d/1"}),
        ('rule = "expires_at"', {"r.result.json.lz4", "r.metadata.json"}),
        ('rule = "age"\nage = "4d"\nexclude = ["/d"]', {"r.result.json.lz4", "r.metadata.json"}),
        ('rule = "age"\nage = "4d"\nunit = "bundle"', {"r.result.json.lz4", "r.metadata.json"}),
    ],
)
def test_every_rule_about_files_alone_is_obeyed(box: Box, policy: str, gone: set[str]) -> None:
    for number in range(4):
        box.write(f"d/{number}", days=5 - number)
    box.write("r.result.json.lz4", days=9)
    box.write("r.metadata.json", text=json.dumps({"expires_at": "2020-01-01T00:00:00Z"}), days=9)
    before = box.files()
    box.configure(policy=policy)
    assert box("run")[0] == 0
    assert before - box.files() == gone


def disk(used: int) -> Callable[[int], Any]:
    return lambda fd: SimpleNamespace(f_blocks=1000, f_frsize=1, f_bavail=1000 - used)


def test_a_full_disk_lets_the_oldest_go_down_to_the_low_mark(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        box.write(f"f{number}", days=5 - number, text="x" * 50)
    box.configure(
        policy='rule = "watermark"\ngrace_period = "0s"', area="high_watermark = 90\nlow_watermark = 80"
    )
    monkeypatch.setattr(os, "fstatvfs", disk(900))
    assert box("run")[1]["runs"][0]["trashed"] == 0
    monkeypatch.setattr(os, "fstatvfs", disk(901))
    assert box("run")[1]["runs"][0]["trashed"] == 3  # 101 bytes are above the low mark
    assert box.files() == {"f3", "f4"}
    monkeypatch.setattr(os, "fstatvfs", disk(901 - 150))
    assert box("run")[1]["runs"][0]["trashed"] == 0
    assert box("list")[1]["items"] == []


def test_an_area_without_its_marker_or_in_use_is_refused(box: Box) -> None:
    box.write("old")
    uuid = json.loads((box.area / ".staging-area").read_text())["area"]
    with open_area(box.area, uuid=uuid) as area, area.lock():
        code, run = box("run")
        assert (code, run["runs"][0]["error"]) == (2, "area_busy")
    (box.area / ".staging-area").unlink()
    code, answer = box("run")
    assert (code, answer["runs"][0]["error"]) == (2, "area_refused")
    assert "register in" in answer["runs"][0]["message"]
    assert box("register", "--dry-run")[1]["areas"] == {"in": None}
    assert box.files() == {"old"}


def test_the_trash_of_a_site_is_shown_and_restored_and_never_purged(box: Box) -> None:
    box.write("old")
    garden = Garden(box.area, json.loads((box.area / ".staging-area").read_text())["area"])
    past = datetime(2020, 1, 1, tzinfo=UTC)
    header = Header(policy="p", policy_version="1", run=str(uuid4()), trashed_at=past, purge_after=past)
    with garden.open() as area, area.lock():
        items = garden.plan(area).items
        ids = trash_ids(uuid4(), len(items), day=past.date())
        move(area, prepare(area, items, ids=ids, header=header))
    assert box("list")[1]["items"][0]["own"] is False
    code, purged = box("purge")
    assert (code, purged["purged"], purged["of_a_site"]) == (1, 0, 1)
    assert box("restore", "in")[1]["restored"] == 1


def test_an_audit_that_was_changed_is_found(box: Box) -> None:
    assert box("verify")[0] == 0
    for number in range(4):
        box.write(f"f{number}")
    box("run")
    code, verdict = box("verify")
    audit = box.root / "state" / "audit.jsonl"
    lines = audit.read_text().splitlines(keepends=True)
    audit.write_text("".join(lines[:-1]))
    assert box("verify")[0] == 0  # a cut-off tail shows only against a head kept elsewhere
    assert box("verify", "--head", verdict["head"])[0] == 1
    audit.write_text("".join(lines[:3] + lines[4:]))
    code, verdict = box("verify")
    assert (code, verdict["kind"], verdict["first_bad_seq"]) == (1, "gap", 4)
    audit.write_text("".join([*lines[:3], "nonsense\n", *lines[4:]]))
    assert box("verify")[0] == 1
    audit.unlink()
    assert box("verify")[0] == 2


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("", 1, "state: the folder of the audit is missing"),
        ("state = 5", 1, "state: Expected `str`"),
        ("state = \n", None, "is not TOML"),
        ("state = 's'\nstates = 1", 2, "states: there is no such key"),
        ("state = 's'\n[areas.a]\npath = 'x'", 3, "areas.a.path: the path of an area is absolute"),
        ("state = 's'\n[areas.a]\npath = '/x'\nage = '2d'", 4, "areas.a.age: Object contains unknown field"),
        ("state = 's'\n[areas.a]", 2, "missing required field `path`"),
        ("state = 's'\n[areas.a]\npath = '/x'\nhigh_watermark = 50", 4, "high_watermark: marks are percents"),
        ("state = 's'\n[areas.a]\npath = '/x'\nuuid = 'x'", 4, "uuid: not a uuid"),
        ("state = '/x/s'\n[areas.a]\npath = '/x'", 1, "state: lies in area a"),
        ("state = 's'\n[policies.p]\narea = 'a'\nrule = 'age'\nage = '1d'", 3, "there is no area 'a'"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_line(
    tmp_path: Path, text: str, line: int | None, part: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationInvalid) as refused:
        load(file)
    assert part in str(refused.value)
    if line is not None:
        assert str(refused.value).startswith(f"{file}:{line}: ")


@pytest.mark.parametrize(
    ("policy", "part"),
    [
        ("rule = 'orphan'\nage = '1d'", "5: policies.p.rule: orphan needs the site: it compares"),
        ("rule = 'rows'", "5: policies.p.rule: rows needs the site"),
        ("rule = 'age'\nverifiers = ['redis_task']", "6: policies.p.verifiers: verifiers are asked"),
        ("rule = 'age'\nage = '2x'", "6: policies.p.age: age '2x': unknown unit"),
        ("rule = 'age'\nage = '2d'\nmax_files = 'many'", "7: policies.p.max_files: Expected `int`"),
        ("rule = 'age'", "3: policies.p: policy 'p': rule age needs an age"),
        ("rule = 'ages'", "5: policies.p.rule: Invalid enum value 'ages'"),
        ("rule = 'age'\nage = '2d'\nnaive_timezone = 'Mars'", "policies.p: unknown time zone 'Mars'"),
        ("rule = 'age'\nage = '2d'\n[[holds]]\narea = 'a'\npattern = 'x'\nreason = 'r'\n"
         "[[holds]]\narea = 'a'\npattern = ''\nreason = 'r'", "13: holds.pattern: a pattern is empty"),
        ("rule = 'age'\nage = '2d'\n[[holds]]\narea = 'a'\npattern = 'x'\nreason = 'r'\n"
         "until = 2030-01-01T00:00:00", "11: holds.until: a time needs a zone"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_policy_is_named_with_its_line(tmp_path: Path, policy: str, part: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"state = 's'\nareas.a.path = '/x'\n[policies.p]\narea = 'a'\n{policy}\n")
    with pytest.raises(ConfigurationInvalid, match=re.escape(part)):
        load(file)


def test_a_file_that_cannot_be_read_is_refused(box: Box) -> None:
    box.file.unlink()
    assert box("plan", "old")[1]["error"] == "configuration_invalid"
    assert "cannot be read" in box.text("plan", "old")


def test_lines_of_tmpfiles_clean_as_systemd_does(box: Box) -> None:
    box.write("old")
    box.write("kept")
    box.write("new", days=0)
    lines = box.root / "lines.conf"
    lines.write_text(f"e {box.area} - - - m:2d\nx {box.area}/kept\nr! /none\n")
    code, answer = box("clean", str(lines), "--dry-run")
    assert (code, answer["removed"], answer["troubles"]) == (0, 1, [])
    assert box.files() == {"old", "kept", "new"}
    assert box("clean", str(lines), "--prefix", "/srv")[1]["removed"] == 0
    code, answer = box("clean", str(lines))
    assert (code, answer["removed"]) == (0, 1)
    assert box.files() == {"kept", "new"}
    lines.write_text(f"k /x\nR {box.area}/new\n")
    code, answer = box("clean", str(lines), "--remove")
    assert (code, answer["removed"], answer["troubles"][0]["line"]) == (1, 1, 1)
    assert box.files() == {"kept"}


def test_expired_results_are_shown_and_removed_once(box: Box) -> None:
    cache = box.root / "cache"
    cache.mkdir()
    (cache / "a.result.json.lz4").write_text("x")
    (cache / "a.metadata.json").write_text(json.dumps({"expires_at": "2020-01-01T00:00:00Z"}))
    code, answer = box("daemon", str(cache), "--dry-run")
    assert (code, answer["expired_count"]) == (0, 1)
    assert {path.name for path in cache.iterdir()} == {"a.result.json.lz4", "a.metadata.json"}
    code, answer = box("daemon", str(cache), "--once")
    assert (code, answer["deleted_count"]) == (0, 1)
    assert box("daemon", "/usr", "--dry-run")[0] == 2


def test_every_command_speaks_json_and_those_that_act_have_a_dry_run() -> None:
    (commands,) = (action for action in parser()._actions if action.choices)
    found = {name: {word for one in sub._actions for word in one.option_strings}
             for name, sub in commands.choices.items()}  # fmt: skip
    assert set(found) == {"register", "plan", "run", "list", "restore", "purge", "verify", "clean", "daemon"}
    assert all("--json" in words for words in found.values())
    acting = {"register", "run", "restore", "purge", "clean", "daemon"}
    assert {name for name, words in found.items() if "--dry-run" in words} == acting
