"""`manage.py cleanup`: the JSON that scripts rely on, and the exit codes."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from cleanup import operations
from cleanup.management.commands.cleanup import VERBS
from cleanup.models import CleanupRun, Hold, RetentionPolicy, StagingArea
from tests.retention import ANNA, Staging, write

pytestmark = pytest.mark.django_db


class Shell:
    """Runs a command with `--json` and gives its exit code and object."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: str) -> tuple[int, Any]:
        self.capsys.readouterr()
        code = 0
        try:
            call_command("cleanup", *words, "--json")
        except SystemExit as ended:
            code = int(str(ended.code))
        return code, json.loads(self.capsys.readouterr().out)

    def text(self, *words: str) -> str:
        """What a person reads."""
        self.capsys.readouterr()
        with suppress(SystemExit):
            call_command("cleanup", *words)
        return self.capsys.readouterr().out


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def test_from_an_empty_folder_to_an_empty_trash(shell: Shell, tmp_path: Path) -> None:
    root = tmp_path / "inbox"
    for number in range(3):
        write(root / f"old{number}", "x" * number)
    write(root / "bad\udcff\nname", "odd")
    write(root / "excluded.keep")
    code, area = shell("areas", "add", "inbox", str(root))
    assert (code, area["area"], area["path"]) == (0, "inbox", str(root))
    code, made = shell(
        *("policies", "add", "old", "--area", "inbox", "--rule", "age", "--age", "2d", "--age-by", "m"),
        *("--grace", "0s", "--mode", "enforce", "--exclude", "*.keep", "--max-percent", "100"),
    )
    assert (code, made) == (0, {"policy": "old", "area": "inbox", "mode": "enforce", "version": 1})

    code, plan = shell("plan", "old")
    assert code == 0
    assert set(plan) == {"plan", "files", "bytes", "items", "kept"}
    assert len(plan["plan"]) == 64
    assert (plan["files"], plan["bytes"], plan["kept"]) == (4, 6, {"excluded": 1})
    assert plan["items"][0] == {"path": r"bad\xff\x0aname", "size": 3, "reason": "older_than_age"}

    code, run = shell("run", "old")
    assert code == 0
    assert {name: run[name] for name in ("state", "trashed", "skipped", "errors", "residue")} == {
        "state": "done", "trashed": 4, "skipped": 0, "errors": 0, "residue": 0,
    }  # fmt: skip
    assert shell("restore", "--area", "inbox", "--path", "old1") == (0, {"restored": 1, "conflicts": []})
    assert shell("purge", "--due") == (0, {"purged": 3, "bytes": 5})
    assert shell("purge", "--due") == (0, {"purged": 0, "bytes": 0})
    code, verdict = shell("audit", "verify")
    assert (code, verdict["sound"]) == (0, True)


def test_above_a_brake_it_takes_an_approval_and_a_resume(shell: Shell, staging: Staging) -> None:
    staging.fill(6)
    staging.policy("big", max_files=5)
    code, run = shell("run", "big")
    assert (code, run["state"], run["files"]) == (2, "awaiting_approval", 6)
    assert run["brakes"] == [{"brake": "max_files", "limit": 5, "value": 6}]
    assert shell("run", "--resume", run["run"])[0] == 2
    assert shell("run", "big") == (
        2,
        {
            "error": "run_active",
            "message": f"area 'area' has an active run: run {run['run']}, awaiting approval",
        },
    )
    assert shell("approve", run["run"], "--files", "5")[0] == 2
    assert shell("approve", run["run"], "--files", "6", "--dry-run")[1]["state"] == "approved"
    assert operations.find_run(run["run"]).state == "awaiting_approval"
    code, approved = shell("approve", run["run"], "--files", "6")
    assert (code, approved["state"]) == (0, "approved")
    code, done = shell("run", "--resume", run["run"])
    assert (code, done["state"], done["trashed"]) == (0, "done", 6)
    assert shell("run", "--resume", run["run"])[1]["state"] == "done"


def test_a_first_approval_of_a_protected_area_still_waits(shell: Shell, tmp_path: Path) -> None:
    staging = Staging(tmp_path, "vault", protected=True)
    staging.fill(2)
    run = staging.run(staging.policy(max_files=1))
    code, approved = shell("approve", str(run.pk), "--files", "2")
    assert (code, approved["state"]) == (2, "awaiting_approval")


def test_a_skipped_file_is_exit_code_1(shell: Shell, staging: Staging) -> None:
    staging.fill(3)
    run = staging.run(staging.policy(max_files=1))
    (staging.root / "d0" / "f0").write_text("changed")
    operations.approve(run, files=3, actor=ANNA)
    code, done = shell("run", "--resume", str(run.pk))
    assert (code, done["state"], done["trashed"], done["skipped"]) == (1, "done", 2, 1)


def test_a_policy_that_reports_says_how_to_let_it_act(shell: Shell, staging: Staging) -> None:
    staging.fill(2)
    staging.policy("quiet", mode="report")
    code, run = shell("run", "quiet")
    assert (code, run["state"], run["files"], run["trashed"]) == (0, "reported", 2, 0)
    assert "cleanup policies mode quiet enforce" in shell.text("run", "quiet")
    assert len(staging.files()) == 2
    assert shell("policies", "mode", "quiet", "enforce")[1]["mode"] == "enforce"
    assert shell("run", "quiet", "--dry-run")[1]["state"] == "reported"
    assert len(staging.files()) == 2
    assert shell("run", "quiet")[1]["trashed"] == 2


def test_a_queued_run_is_left_to_the_worker(shell: Shell, staging: Staging) -> None:
    staging.fill(2)
    staging.policy("later")
    code, run = shell("run", "later", "--queue")
    assert (code, run["state"]) == (0, "queued")
    assert len(staging.files()) == 2
    code, stopped = shell("stop", run["run"])
    assert (code, stopped["state"]) == (0, "stopped")


def test_a_rejected_run_is_over(shell: Shell, staging: Staging) -> None:
    staging.fill(2)
    run = staging.run(staging.policy(max_files=1))
    code, rejected = shell("reject", str(run.pk), "--reason", "too many")
    assert (code, rejected["state"], rejected["message"]) == (0, "rejected", "too many")


def test_a_conflict_is_named_and_exit_code_1(shell: Shell, staging: Staging) -> None:
    write(staging.root / "name", "old")
    staging.run(staging.policy())
    (staging.root / "name").write_text("new")
    (item,) = staging.items()
    code, report = shell("restore", "--area", "area")
    assert code == 1
    assert report == {
        "restored": 0,
        "conflicts": [{"item": str(item), "path": "name", "detail": "name exists"}],
    }
    assert shell("restore", "--item", str(item), "--to", "name.old") == (0, {"restored": 1, "conflicts": []})
    assert (staging.root / "name.old").read_text() == "old"


def test_holds_and_purges_by_hand(shell: Shell, staging: Staging) -> None:
    staging.fill(5)
    staging.run(staging.policy())
    code, held = shell("hold", "area", "d0", "--reason", "court", "--until", "7d")
    assert code == 0
    assert Hold.objects.get(pk=held["hold"]).until is not None
    assert shell("purge", "--area", "area", "--now")[0] == 2
    code, report = shell("purge", "--area", "area", "--now", "--reason", "disk full")
    assert (code, report) == (1, {"purged": 4, "bytes": 28, "kept": {"held": 1}})
    assert shell("release", str(held["hold"]))[0] == 0
    assert shell("purge", "--area", "area", "--now", "--reason", "x")[1]["purged"] == 1


@pytest.mark.parametrize(
    "words",
    [
        ("areas", "add", "x", "{tmp}/x"),
        ("policies", "add", "x", "--area", "area", "--age", "1d"),
        ("policies", "mode", "policy", "off"),
        ("run", "policy"),
        ("restore", "--area", "area"),
        ("purge", "--due"),
        ("purge", "--area", "area", "--now", "--reason", "x"),
        ("hold", "area", "*", "--reason", "x"),
        ("tick",),
    ],
)
def test_a_dry_run_changes_nothing(
    shell: Shell, staging: Staging, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "x").mkdir()
    staging.fill(3)
    policy = staging.policy(grace_period=timedelta(0))
    staging.run(policy)
    write(staging.root / "another")

    def everything() -> object:
        return (
            staging.files(), staging.states(), staging.in_trash(), Hold.objects.count(),
            list(StagingArea.objects.values_list("name")),
            list(RetentionPolicy.objects.values_list("name", "mode")),
            sorted((tmp_path / "x").iterdir()),
        )  # fmt: skip

    before = everything()
    assert shell(*(word.format(tmp=tmp_path) for word in words), "--dry-run")[0] == 0
    assert everything() == before


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("plan", "nobody"), "not_found"),
        (("run", "nobody"), "not_found"),
        (("run",), "refused"),
        (("stop", "nonsense"), "not_found"),
        (("restore", "--area", "nobody"), "not_found"),
        (("restore", "--item", "nonsense"), "not_found"),
        (("purge", "--now", "--reason", "x"), "refused"),
        (("release", "99"), "not_found"),
        (("areas", "add", "x", "/etc"), "area_refused"),
        (("areas", "add", "not a slug", "{tmp}"), "refused"),
        (("policies", "add", "x", "--area", "nobody", "--age", "1d"), "not_found"),
    ],
)
def test_what_cannot_be_is_refused_with_a_word(
    shell: Shell, tmp_path: Path, words: tuple[str, ...], error: str
) -> None:
    words = tuple(word.format(tmp=tmp_path) for word in words)
    code, data = shell(*words)
    assert (code, data["error"]) == (2, error)
    with pytest.raises(CommandError) as refused:
        call_command("cleanup", *words)
    assert refused.value.returncode == 2


def test_every_list_and_report_speaks_to_people_and_programs(shell: Shell, staging: Staging) -> None:
    staging.fill(2)
    staging.run(staging.policy())
    for words in (
        ("areas", "list"),
        ("policies", "list"),
        ("report",),
        ("audit", "list"),
        ("audit", "verify"),
    ):
        assert shell(*words)[0] == 0
        assert shell.text(*words).strip()
    assert shell("report")[1]["totals"][0]["files_trashed"] == 2
    assert shell("audit", "list", "--action", "trashed", "--limit", "1")[1]["entries"][0]["area"] == "area"
    assert {"areas add", "run", "audit verify", "tick"} <= set(VERBS)


def test_tick_does_all_that_is_due_without_a_worker(shell: Shell, staging: Staging) -> None:
    staging.fill(4)
    policy = staging.policy(grace_period=timedelta(0))
    RetentionPolicy.objects.filter(pk=policy.pk).update(next_due_at="2020-01-01T00:00:00Z")
    code, done = shell("tick")
    assert (code, len(done["started"]), done["purged"]) == (0, 1, 4)
    assert CleanupRun.objects.get().state == "done"
    assert shell("tick")[1]["started"] == []
