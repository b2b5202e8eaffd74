"""`cleanup explain`: which policy matches a path, by which values, what would stop it, and where it went."""

from __future__ import annotations

import io
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from cleanup import operations
from cleanup.models import CleanupItem, RetentionPolicy, StagedFile
from cleanup.operations import OperationRefused
from cleanup.operations.explaining import explain
from cleanup.operations.explanations import Condition, Explanation, PolicyExplained
from tests.retention import ANNA, DAY, Staging, files_below, later, write

pytestmark = pytest.mark.django_db


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def only(found: Explanation) -> PolicyExplained:
    (policy,) = found.policies
    return policy


def value(policy: PolicyExplained, name: str) -> Condition:
    return next(one for one in policy.conditions if one.name == name)


def command(*words: str) -> tuple[Any, str]:
    """The answer of the command as JSON, and as lines."""
    spoken, printed = io.StringIO(), io.StringIO()
    call_command("cleanup", "explain", *words, "--json", stdout=spoken)
    call_command("cleanup", "explain", *words, stdout=printed)
    return json.loads(spoken.getvalue()), printed.getvalue()


def test_an_old_file_is_explained_by_every_value_that_counts(staging: Staging) -> None:
    staging.policy(include=["*.txt"], exclude=["keep"])
    file = write(staging.root / "d/a.txt")
    found = explain(str(file))
    policy = only(found)
    assert (found.area, found.below, found.kind, found.size) == ("area", "d/a.txt", "file", 7)
    assert (policy.goes, policy.reason, policy.obstacles) == (True, "older_than_age", [])
    assert value(policy, "include") == Condition(name="include", value="*.txt", holds=True)
    assert value(policy, "exclude").holds is True
    assert value(policy, "links").holds is True
    assert value(policy, "stamp m").holds is True
    assert value(policy, "cut_off").holds is None


@pytest.mark.sqlite_only
def test_a_young_file_is_told_when_it_may_go(staging: Staging) -> None:
    staging.policy()
    file = write(staging.root / "a", age=DAY)
    policy = only(explain(str(file)))
    assert (policy.goes, policy.reason) == (False, "younger_than_age")
    assert policy.eligible_from is not None
    assert abs(policy.eligible_from - later(1)) < timedelta(hours=1)
    assert policy.next_run_at is not None


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"include": ["*.log"]}, "not_included"),
        ({"exclude": ["d/"]}, "excluded"),
        ({"rule": "keep_newest", "keep": 1, "age": ""}, "among_newest"),
        ({"rule": "watermark", "age": ""}, "not_needed"),
    ],
)
def test_a_file_that_stays_has_its_reason(staging: Staging, fields: dict[str, Any], reason: str) -> None:
    staging.area.high_watermark = 100
    staging.area.save()
    staging.policy(**fields)
    file = write(staging.root / "d/a.txt")
    policy = only(explain(str(file)))
    assert (policy.goes, policy.reason) == (False, reason)


def test_every_policy_of_the_area_is_explained_and_what_would_stop_it(staging: Staging) -> None:
    staging.policy("acts")
    staging.policy("reports", mode="report")
    file = write(staging.root / "a")
    held = operations.hold(staging.area, "a", None, "evidence", ANNA)
    staging.area.enabled = False
    staging.area.save()
    found = explain(str(file))
    assert [one.policy for one in found.policies] == ["acts", "reports"]
    assert {one.reason for one in found.policies} == {"held"}
    assert [one.hold for one in found.holds] == [held.pk]
    acts, reports = found.policies
    assert acts.obstacles == ["The area area is disabled."]
    assert reports.obstacles[0] == "The policy is in mode report: it does not act."


def test_a_plan_that_waits_above_its_brake_is_named(staging: Staging) -> None:
    policy = staging.policy(max_files=1)
    staging.fill(3)
    staging.run(policy)
    (obstacle,) = only(explain(str(staging.root / "d0/f0"))).obstacles
    assert "awaiting approval" in obstacle
    assert "max_files" in obstacle


@pytest.mark.sqlite_only
def test_a_member_of_a_bundle_is_told_of_the_newest(staging: Staging) -> None:
    staging.policy(unit="bundle")
    write(staging.root / "job/new", age=DAY)
    file = write(staging.root / "job/old")
    for path in (str(file), str(staging.root / "job")):
        policy = only(explain(path))
        assert (policy.goes, policy.reason, policy.detail) == (False, "younger_than_age", "job/new")
        assert value(policy, "bundle").value == "job: 2 files"
        assert value(policy, "newest").holds is False
    os.utime(staging.root / "job/new", (1, 1))
    policy = only(explain(str(file)))
    assert (policy.goes, policy.members) == (True, ["job/new", "job/old"])


@pytest.mark.sqlite_only
def test_a_backup_is_told_its_place_in_its_group(staging: Staging) -> None:
    staging.policy(rule="keep_newest", keep=2, age="")
    for days in (1, 2, 3):
        write(staging.root / f"db/{days}", age=days * DAY)
    policy = only(explain(str(staging.root / "db/3")))
    assert (policy.goes, policy.reason) == (True, "beyond_keep")
    assert value(policy, "group") == Condition(name="group", value="db: number 3 of 3, keep 2", holds=True)
    assert value(only(explain(str(staging.root / "db/2"))), "group").holds is False


@pytest.mark.sqlite_only
def test_a_result_is_explained_by_its_companion(staging: Staging) -> None:
    staging.policy(rule="expires_at", age="")
    result = write(staging.root / "r.result.json.lz4")
    assert only(explain(str(result))).reason == "no_companion"
    metadata = write(staging.root / "r.metadata.json", json.dumps({"expires_at": later(1).isoformat()}))
    policy = only(explain(str(result)))
    assert (policy.reason, value(policy, "expires_at").holds) == ("not_expired", False)
    assert policy.eligible_from is not None
    metadata.write_text(json.dumps({"expires_at": later(-1).isoformat()}))
    assert only(explain(str(result))).members == ["r.result.json.lz4", "r.metadata.json"]
    metadata.write_text("{}")
    policy = only(explain(str(result)))
    assert (policy.reason, value(policy, "companion").holds) == ("bad_companion", False)


def test_an_orphan_is_told_its_first_sighting(staging: Staging) -> None:
    staging.policy(rule="orphan")
    file = write(staging.root / "a")
    assert only(explain(str(file))).reason == "too_many_orphans"
    for name in staging.fill(20):
        StagedFile.objects.create(area=staging.area, path=name)
    policy = only(explain(str(file)))
    assert (policy.goes, policy.reason) == (False, "seen_once")
    assert value(policy, "sighting").holds is False


@pytest.mark.sqlite_only
def test_verifiers_are_asked_even_about_a_file_that_is_too_young(staging: Staging) -> None:
    staging.policy(verifiers=[{"kind": "sidecar", "name": "{stem}.done"}])
    young = write(staging.root / "a.txt", age=DAY)
    old = write(staging.root / "b.txt")
    (policy,) = explain(str(young)).policies
    assert [one.holds for one in policy.conditions if one.name.startswith("verifier")] == [False]
    assert policy.reason == "younger_than_age"
    (policy,) = explain(str(old)).policies
    assert (policy.goes, policy.reason) == (False, "verifier_failed")
    write(staging.root / "b.done")
    (policy,) = explain(str(old)).policies
    assert (policy.goes, policy.reason) == (True, "older_than_age")


def test_a_file_in_the_trash_is_told_how_to_come_back(staging: Staging) -> None:
    policy = staging.policy()
    file = write(staging.root / "a")
    StagedFile.objects.create(area=staging.area, path="a", task_id="t7", uploader="anna")
    staging.run(policy)
    found = explain(str(file))
    (went,) = found.trash
    item = CleanupItem.objects.get()
    assert (found.kind, only(found).reason) == ("absent", "vanished")
    assert (went.state, went.reason, went.item) == ("trashed", "older_than_age", str(item.pk))
    assert went.restorable_until == item.purge_after
    assert found.registry is not None
    assert found.registry["task_id"] == "t7"
    call_command(*went.command.split()[1:], stdout=io.StringIO())
    assert files_below(staging.root) == {"a"}
    assert [one.state for one in explain(str(file)).trash] == ["restored"]


def test_a_companion_in_the_trash_is_found_with_its_result(staging: Staging) -> None:
    policy = staging.policy(rule="expires_at", age="")
    write(staging.root / "ü.result.json.lz4")
    write(staging.root / "ü.metadata.json", json.dumps({"expires_at": later(-1).isoformat()}))
    staging.run(policy)
    (went,) = explain(str(staging.root / "ü.metadata.json")).trash
    assert went.state == "trashed"


def test_names_of_any_bytes_are_explained_raw_and_escaped(staging: Staging) -> None:
    staging.policy()
    raw = os.fsencode(staging.root) + b"/x\n\xff"
    Path(os.fsdecode(raw)).write_text("x")
    os.utime(raw, (1, 1))
    for text in (os.fsdecode(raw), f"{staging.root}/x\\x0a\\xff"):
        found = explain(text)
        assert (found.below, found.kind, only(found).goes) == ("x\\x0a\\xff", "file", True)
    assert explain("x\\x0a\\xff", area=staging.area).kind == "file"


@pytest.mark.sqlite_only
def test_what_is_no_file_stays_and_is_told_why(staging: Staging, tmp_path: Path) -> None:
    staging.policy()
    (staging.root / "folder").mkdir()
    (staging.root / "link").symlink_to("/etc/passwd")
    assert only(explain(str(staging.root / "link"))).reason == "symlink"
    assert only(explain(str(staging.root / "folder"))).reason == "not_a_file"
    assert only(explain(str(staging.root / "nothing/at/all"))).reason == "vanished"
    outside = explain(str(tmp_path / "elsewhere"))
    assert (outside.area, outside.policies) == (None, [])
    assert explain(str(staging.root)).policies == []
    for path in ("relative", f"{staging.root}/../../x"):
        if path == "relative":
            with pytest.raises(OperationRefused):
                explain(path)
        else:
            assert explain(path).area is None
    with pytest.raises(OperationRefused):
        explain("../x", area=staging.area)


@pytest.mark.sqlite_only
def test_an_area_that_is_not_there_is_a_note_and_the_trash_is_still_told(staging: Staging) -> None:
    policy = staging.policy()
    write(staging.root / "a")
    staging.run(policy)
    staging.root.rename(staging.root.with_name("moved"))
    found = explain(str(staging.root / "a"))
    assert found.policies == []
    assert "cannot be cleaned" in found.notes[0]
    assert len(found.trash) == 1


@pytest.mark.sqlite_only
def test_a_policy_that_could_not_be_obeyed_is_explained_as_that(staging: Staging) -> None:
    policy = staging.policy()
    RetentionPolicy.objects.filter(pk=policy.pk).update(age="soon")
    file = write(staging.root / "a")
    assert only(explain(str(file))).reason == "policy_invalid"


def test_the_command_prints_it_for_people_and_as_json(staging: Staging) -> None:
    policy = staging.policy(unit="bundle")
    write(staging.root / "job/a")
    write(staging.root / "job/b")
    operations.hold(staging.area, "nothing", later(1), "why", ANNA)
    data, text = command("job/a", "--area", "area")
    assert data["policies"][0]["goes"] is True
    assert "WOULD GO: older_than_age" in text
    assert "together: job/a, job/b" in text
    staging.run(policy)
    data, text = command(str(staging.root / "job/b"))
    assert data["trash"][0]["state"] == "trashed"
    assert data["trash"][0]["command"] in text
    operations.hold(staging.area, "job", None, "evidence", ANNA)
    assert "HELD until it is released" in command(str(staging.root / "job/b"))[1]
