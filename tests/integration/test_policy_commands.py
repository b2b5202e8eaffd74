"""`manage.py cleanup plan|policies|previews`: what the buttons of policies and previews do, in a shell."""

from __future__ import annotations

import csv
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from cleanup import operations
from cleanup.models import PolicyPreview, RetentionPolicy
from cleanup.operations.previews import order_preview
from tests.integration.test_cleanup_commands import Shell
from tests.retention import ANNA, Staging, write

pytestmark = [pytest.mark.django_db, pytest.mark.sqlite_only]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    staging = Staging(tmp_path)
    staging.fill(4)
    write(staging.root / "young", age=timedelta(hours=1))
    return staging


def stored() -> RetentionPolicy:
    return operations.find_policy("policy")


def test_a_plan_of_a_draft_says_the_difference_and_saves_nothing(shell: Shell, staging: Staging) -> None:
    staging.policy()
    code, said = shell(
        "plan", "policy", "--set", "age=1min", "--set", "exclude=d0/**", "--set", "exclude=d1/**"
    )
    assert (code, said["files"], said["saved"]) == (0, 3, {"files": 4, "bytes": 28})
    assert (stored().age, stored().exclude) == ("2d", [])
    words = shell.text("plan", "policy", "--set", "exclude=d0/**")
    assert "-1 files, -7 bytes against the saved version." in words


def test_a_plan_as_csv_has_every_file(shell: Shell, staging: Staging, tmp_path: Path) -> None:
    staging.policy()
    code, said = shell("plan", "policy", "--csv", str(tmp_path / "plan.csv"))
    assert (code, said["files"], said["listed"], said["kept"]) == (0, 4, 5, {"younger_than_age": 1})
    with (tmp_path / "plan.csv").open(newline="") as table:
        rows = {row["path"]: row for row in csv.DictReader(table)}
    assert rows["young"]["verdict"] == "kept"
    assert rows["d0/f0"]["bytes"] == "7"
    code, said = shell("plan", "policy", "--csv", str(tmp_path / "no" / "folder.csv"))
    assert (code, said["error"]) == (2, "refused")


def test_fields_are_set_by_name_and_make_a_version(shell: Shell, staging: Staging) -> None:
    staging.policy()
    given = ["age=3d", "include=*.txt", "include=*.bin", "floor=1d", "skip_in_use=yes", "max_files=7"]
    code, said = shell("policies", "set", "policy", *given)
    policy = stored()
    assert (code, said["version"]) == (0, 2)
    assert (policy.age, policy.include, policy.floor) == ("3d", ["*.txt", "*.bin"], timedelta(days=1))
    assert (policy.skip_in_use, policy.max_files) == (True, 7)
    shell("policies", "set", "policy", "include=", "floor=", "--dry-run")
    assert stored().include == ["*.txt", "*.bin"]
    shell("policies", "set", "policy", "include=", "floor=")
    assert (stored().include, stored().floor) == ([], None)


@pytest.mark.parametrize(
    "assignment",
    ["age", "colour=red", "area_id=1", "max_files=many", "floor=soon", "skip_in_use=perhaps", "age=soon",
     "row_filter={", "verifiers={", "area=nowhere", "name=two words"],
)  # fmt: skip
def test_what_no_field_can_have_is_refused(shell: Shell, staging: Staging, assignment: str) -> None:
    staging.policy()
    code, _ = shell("policies", "set", "policy", assignment)
    assert code == 2
    assert stored().versions.count() == 1


def test_history_tells_who_changed_what_and_revert_puts_it_back(shell: Shell, staging: Staging) -> None:
    staging.policy()
    shell("policies", "set", "policy", "age=3d", "mode=report")
    _, said = shell("policies", "history", "policy")
    assert [one["version"] for one in said["versions"]] == [1, 2]
    assert said["versions"][0]["by"] == "anna"
    assert said["versions"][1]["changes"] == {
        "age": {"old": "2d", "new": "3d"}, "mode": {"old": "enforce", "new": "report"},
    }  # fmt: skip
    assert "age: 2d -> 3d" in shell.text("policies", "history", "policy")
    shell("policies", "revert", "policy", "--version", "1", "--dry-run")
    assert stored().age == "3d"
    code, said = shell("policies", "revert", "policy", "--version", "1")
    assert (code, said["version"], stored().age, stored().mode) == (0, 3, "2d", "report")
    assert shell("policies", "revert", "policy", "--version", "9")[0] == 2


def test_previews_are_listed_and_cancelled(shell: Shell, staging: Staging) -> None:
    made = order_preview(staging.policy(), ANNA)
    _, said = shell("previews", "list")
    assert said["previews"][0] | {"at": ""} == {
        "preview": str(made.pk), "policy": "policy", "state": "queued", "by": "anna", "at": "", "saved": True,
    }  # fmt: skip
    assert shell("previews", "cancel", str(made.pk), "--dry-run")[1]["state"] == "stopped"
    assert PolicyPreview.objects.get().state == "queued"
    assert shell("previews", "cancel", str(made.pk)) == (0, {"preview": str(made.pk), "state": "stopped"})
    assert shell("previews", "cancel", str(made.pk))[0] == 2
    with pytest.raises(CommandError, match="not the id"):
        call_command("cleanup", "previews", "cancel", "nonsense")
