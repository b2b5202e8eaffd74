"""tmpfiles.d in and out: lines become policies, policies become lines and units."""

from __future__ import annotations

import shutil
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cleanup import operations
from cleanup.engine.ages import parse_age
from cleanup.engine.tmpfiles import read
from cleanup.engine.translation import translate
from cleanup.models import RetentionPolicy, StagingArea
from cleanup.operations.calendar import on_calendar
from tests.integration.test_cleanup_commands import Shell
from tests.retention import ANNA, Staging, later

pytestmark = pytest.mark.django_db

ANALYZE = shutil.which("systemd-analyze")


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def conf(folder: Path, *lines: str, name: str = "lines.conf") -> str:
    """A file of lines in which @ stands for the folder; its directories are made."""
    path = folder / name
    path.write_text("".join(line.replace("@", str(folder)) + "\n" for line in lines))
    return str(path)


def folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)


def reasons(answer: Any, *, honoured: bool = False) -> dict[int, str]:
    return {note["line"]: note["why"] for note in answer["notes"] if note["honoured"] is honoured}


def test_the_lines_of_the_three_staging_folders_become_the_three_policies(
    shell: Shell, tmp_path: Path
) -> None:
    folders(tmp_path, "rejected", "extracted", "distilled")
    file = conf(
        tmp_path,
        "# Type  Path            Mode UID  GID  Age  Argument",
        "d       @/rejected  0755 root root 2d   -",
        "d       @/extracted 0755 root root 7d   -",
        "d       @/distilled 0755 root root 30d  -",
        name="xnai-staging.conf",
    )
    code, answer = shell("import-tmpfiles", file)
    assert (code, answer["notes"]) == (0, [])
    found = {row.name: (row.scope, row.tree().path, parse_age(row.age), row.mode)
             for row in RetentionPolicy.objects.select_related("area")}  # fmt: skip
    assert found == {
        name: (name, str(tmp_path / name), timedelta(days=days), "report")
        for name, days in (("rejected", 2), ("extracted", 7), ("distilled", 30))
    }
    assert {row.age_by for row in RetentionPolicy.objects.all()} == {"abcm"}
    assert shell("plan", "rejected")[0] == 0


def test_the_same_lines_again_change_nothing_and_others_only_on_request(shell: Shell, tmp_path: Path) -> None:
    folders(tmp_path, "in")
    file = conf(tmp_path, "d @/in - - - 2d")
    dry = shell("import-tmpfiles", file, "--dry-run")
    assert (dry[0], dry[1]["policies"][0]["outcome"]) == (0, "added")
    assert not RetentionPolicy.objects.exists()
    assert not (tmp_path / "in" / ".staging-area").exists()
    assert shell("import-tmpfiles", file)[1]["policies"][0]["outcome"] == "added"
    assert shell("import-tmpfiles", file)[1]["policies"][0]["outcome"] == "unchanged"
    operations.set_mode(operations.find_policy("in"), "enforce", ANNA)
    conf(tmp_path, "d @/in - - - ~m:3d")
    code, answer = shell("import-tmpfiles", file)
    assert (code, answer["policies"][0]["outcome"]) == (1, "differs")
    assert "--update" in reasons(answer)[1]
    assert operations.find_policy("in").age == "2d"
    assert shell("import-tmpfiles", file, "--update")[1]["policies"][0]["outcome"] == "changed"
    row = operations.find_policy("in")
    assert (row.age, row.age_by, row.exclude, row.mode) == ("3d", "m", [r"re:\A[^/]+\Z"], "enforce")
    assert row.versions.count() == 3


def test_one_directory_is_one_area_and_what_has_its_own_line_is_excluded(
    shell: Shell, tmp_path: Path
) -> None:
    folders(tmp_path, "a/b", "a/one/tmp")
    file = conf(
        tmp_path,
        "d @/a - - - 10d",
        "d @/a/b - - - m:2d",
        "x @/a/keep",
        "x @/a/*.lock",
        "X @/a/alone",
        "e @/a/*/tmp - - - 1d",
        "f @/a/flag - - - -",
    )
    code, answer = shell("import-tmpfiles", file)
    assert code == 1  # `X` means other time stamps below b's line than below a's
    areas = {row.name: row.path for row in StagingArea.objects.all()}
    assert areas == {"a": str(tmp_path / "a"), "b": str(tmp_path / "a/b")}
    rows = {row.name: row for row in RetentionPolicy.objects.select_related("area")}
    assert set(rows) == {"a", "a-2", "b"}
    assert set(rows["a"].exclude) >= {"/b", "/keep", "/flag"}
    assert rows["b"].exclude == ["/tmp"]
    kept = {"keep/x", "b/x", "flag", "x.lock", "x.lock/deep", "alone", "one/tmp/x"}
    gone = {"other", ".x.lock", "one/x", "alone/x", "keeper", "one/x.lock"}
    assert kept_by(rows["a"], kept | gone) == kept
    assert kept_by(rows["a-2"], {"one/tmp/x", "one/x", ".hidden/tmp/x"}) == {"one/x", ".hidden/tmp/x"}
    assert shell("import-tmpfiles", file)[1]["policies"] == [
        {**one, "outcome": "unchanged", "area_is_new": False} for one in answer["policies"]
    ]


def kept_by(row: RetentionPolicy, paths: set[str]) -> set[str]:
    """The paths that include and exclude of a policy keep."""
    from cleanup.engine.names import Patterns

    exclude, include = Patterns(row.exclude, subtree=True), Patterns(row.include)
    return {
        path for path in paths
        if exclude.match(path) is not None or (row.include and include.match(path) is None)
    }  # fmt: skip


def test_what_cannot_be_honoured_is_named_and_the_rest_is_done(shell: Shell, tmp_path: Path) -> None:
    folders(tmp_path, "in", "D")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    file = conf(
        tmp_path,
        "r @/in/old",
        "R! @/in/older",
        "d /usr/share - - - 2d",
        "d @/missing - - - 2d",
        "d @/link - - - 2d",
        "k @/in",
        "d @/in - - - 5parsecs",
        "D @/D - - - 1d",
        "x @/in/x - - - 3d",
        "d @/in - - - 2d",
        "d @/none",
        "L @/in/l - - - - /etc",
    )
    code, answer = shell("import-tmpfiles", file)
    assert code == 1
    assert {one["policy"] for one in answer["policies"]} == {"in", "D"}
    parts = {
        1: "whatever the age", 2: "while the system starts", 3: "system directory", 4: "does not exist",
        5: "symbolic link", 6: "unknown type", 7: "unknown unit", 8: "only the cleaner", 9: "own age",
    }  # fmt: skip
    found = reasons(answer)
    assert set(found) == set(parts)
    assert [number for number, part in parts.items() if part not in found[number]] == []
    assert set(reasons(answer, honoured=True)) == {11, 12}


def test_only_lines_below_a_prefix_count_and_a_file_that_is_not_there_is_refused(
    shell: Shell, tmp_path: Path
) -> None:
    folders(tmp_path, "a", "ab")
    file = conf(tmp_path, "d @/a - - - 1d", "d @/ab - - - 1d")
    code, answer = shell("import-tmpfiles", file, "--prefix", str(tmp_path / "a"))
    assert (code, [one["policy"] for one in answer["policies"]]) == (0, ["a"])
    code, answer = shell("import-tmpfiles", str(tmp_path / "none.conf"))
    assert (code, answer["error"]) == (2, "refused")


def test_areas_of_one_name_are_told_apart(shell: Shell, tmp_path: Path) -> None:
    folders(tmp_path, "x/tmp", "y/tmp", "z w/tmp")
    file = conf(tmp_path, "d @/x/tmp - - - 1d", "d @/y/tmp - - - 1d", 'd "@/z w/tmp" - - - 1d')
    for _ in range(2):
        names = {one["policy"]: one["path"] for one in shell("import-tmpfiles", file)[1]["policies"]}
        assert names == {
            "tmp": str(tmp_path / "x/tmp"),
            "y-tmp": str(tmp_path / "y/tmp"),
            "z-w-tmp": str(tmp_path / "z w/tmp"),
        }


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "file", sorted(Path("/usr/lib/tmpfiles.d").glob("*.conf")), ids=lambda file: file.name
)
def test_every_line_of_this_machine_becomes_a_policy_or_is_named(file: Path) -> None:
    text = file.read_bytes()
    config = read(text)
    drafts, notes = translate(config.lines)
    told = {draft.line.number for draft in drafts} | {note.number for note in notes}
    told |= {trouble.number for trouble in config.troubles}
    lines = enumerate(text.splitlines(), 1)
    assert told == {number for number, line in lines if line.strip() and not line.strip().startswith(b"#")}


# And back


def test_what_was_exported_reads_back_as_the_same_policies(shell: Shell, tmp_path: Path) -> None:
    one, two = Staging(tmp_path, "one"), Staging(tmp_path, "two")
    one.policy("one", age="2d", exclude=["/keep", "/b [[]x]/c", r"re:\A[^/]+\Z"])
    two.policy("two", age="1h30m", age_by="abcm")
    two.policy("report", mode="report")
    two.policy("verified", verifiers=["redis_task"])
    two.policy("anywhere", exclude=["*.keep"])
    two.policy("second", age="9d")
    code, answer = shell("export-systemd", str(tmp_path / "units"))
    assert (code, answer["policies"]) == (0, ["one", "second"])
    assert set(answer["left_out"]) == {"anywhere", "report", "two", "verified"}
    text = (tmp_path / "units" / "xnai-staging.conf").read_text()
    assert all(f"# Policy {name} is no line here" in text for name in answer["left_out"])
    config = read(text.encode())
    assert not config.troubles
    drafts, _ = translate(config.lines)
    assert [(Path(draft.directory.decode()).name, draft.age, draft.age_by) for draft in drafts] == [
        ("one", timedelta(days=2), {"m"}),
        ("two", timedelta(days=9), {"m"}),
    ]
    excludes = [set(draft.exclude) for draft in drafts]
    assert excludes == [{"/keep", "/b [[]x]/c", r"re:\A[^/]+\Z"}, set()]


def test_a_hold_or_a_protected_area_is_never_left_to_systemd(shell: Shell, tmp_path: Path) -> None:
    held, vault = Staging(tmp_path, "held"), Staging(tmp_path, "vault", protected=True)
    held.policy("held")
    vault.policy("vault")
    operations.hold(held.area, "x", later(1), "court", ANNA)
    _, answer = shell("export-systemd", str(tmp_path / "units"), "--dry-run")
    assert answer["left_out"] == {
        "held": "a hold is in force in its area", "vault": "its area is protected",
    }  # fmt: skip
    assert not (tmp_path / "units").exists()


def test_the_engine_s_own_files_and_nested_areas_have_exceptions(shell: Shell, tmp_path: Path) -> None:
    outer = Staging(tmp_path, "outer")
    outer.policy("outer")
    (outer.root / "inner").mkdir()
    operations.add_area("inner", outer.root / "inner", ANNA)
    shell("export-systemd", str(tmp_path / "units"))
    lines = (tmp_path / "units" / "xnai-staging.conf").read_text().splitlines()
    wanted = {f"x {outer.root}/{name} - - - - -" for name in (".trash", ".staging-*", "inner")}
    assert wanted <= set(lines)


def test_an_export_replaces_its_own_files_and_no_others(shell: Shell, tmp_path: Path) -> None:
    units = tmp_path / "units"
    assert shell("export-systemd", str(units))[0] == 0
    assert shell("export-systemd", str(units))[0] == 0
    (units / "xnai-staging.conf").write_text("d /srv/mine\n")
    code, answer = shell("export-systemd", str(units))
    assert (code, answer["error"]) == (2, "refused")
    assert (units / "xnai-staging.conf").read_text() == "d /srv/mine\n"


def test_the_units_are_what_systemd_wants(shell: Shell, tmp_path: Path) -> None:
    area = Staging(tmp_path, "plain")
    area.policy("nightly", schedule="30 2 * * 1-5")
    units = tmp_path / "units"
    shell("export-systemd", str(units))
    service = (units / "xnai-staging-cleanup.service").read_text()
    timer = (units / "xnai-staging-cleanup.timer").read_text()
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "IOSchedulingClass=idle", "Type=oneshot"):
        assert f"\n{line}\n" in service
    assert "cleanup tick\n" in service
    assert f"-{tmp_path}/plain" in service
    assert "\nPersistent=true\n" in timer
    assert "Mon,Tue,Wed,Thu,Fri *-*-* 2:30:00" in timer
    if ANALYZE is None:
        pytest.skip("there is no systemd-analyze; the texts alone were compared")
    for name in ("xnai-staging-cleanup.service", "xnai-staging-cleanup.timer"):
        done = subprocess.run(
            [ANALYZE, "verify", "--man=no", str(units / name)], capture_output=True, text=True, check=False
        )
        assert "xnai-staging" not in done.stderr, done.stderr


@pytest.mark.sqlite_only
def test_the_daemon_shows_what_has_expired_and_removes_it_once(shell: Shell, tmp_path: Path) -> None:
    result, metadata = tmp_path / "a.result.json.lz4", tmp_path / "a.metadata.json"
    result.write_text("x")
    metadata.write_text('{"expires_at": "2020-01-01T00:00:00Z"}')
    code, answer = shell("daemon", str(tmp_path), "--dry-run")
    assert (code, answer["expired_count"], result.exists()) == (0, 1, True)
    code, answer = shell("daemon", str(tmp_path), "--once")
    assert (code, answer["deleted_count"], result.exists(), metadata.exists()) == (0, 1, False, False)
    assert shell("daemon", str(tmp_path), "--once", "--interval", "0s")[0] == 2
    assert shell("daemon", "/usr", "--dry-run") == (
        2,
        {"error": "area_refused", "message": "/usr is a system directory"},
    )


@pytest.mark.sqlite_only
@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize(
    ("cron", "times"),
    [
        ("30 2 * * *", ["*-*-* 2:30:00 UTC"]),
        ("*/15 9-17 * * MON-FRI", ["Mon,Tue,Wed,Thu,Fri *-*-* 9..17:0..59/15:00 UTC"]),
        ("0 0 1,15 * 5", ["*-*-1,15 0:0:00 UTC", "Fri *-*-* 0:0:00 UTC"]),
        ("0 3 L * *", ["*:0/5"]),
        ("5/10 * * JAN-MAR 0,7", ["Sun *-1..3-* *:5..59/10:00 UTC"]),
    ],
)
def test_cron_text_becomes_times_that_systemd_reads(cron: str, times: list[str]) -> None:
    found = on_calendar(timedelta(days=1), [cron], zone="UTC")
    assert found == ["hourly", *times]
    for time in found:
        subprocess.run([str(ANALYZE), "calendar", time], check=True, capture_output=True)


@pytest.mark.sqlite_only
def test_short_intervals_wake_the_timer_often_enough() -> None:
    assert on_calendar(timedelta(minutes=2), [], zone="UTC") == ["*:*"]
    assert on_calendar(timedelta(minutes=30), [], zone="UTC") == ["*:0/5"]
