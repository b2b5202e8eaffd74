"""Previews: a worker judges what is saved, a draft or an old version, and a person looks. No file moves."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cleanup import operations
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.expiry import METADATA_SUFFIX
from cleanup.models import AuditEntry, JobState, PolicyPreview, PreviewBatch, RetentionPolicy
from cleanup.operations import OperationRefused, previews, surveys, versions
from cleanup.operations.policies import policy_of
from cleanup.stores import jobs
from cleanup.stores.previews import Wanted, page_of
from cleanup.stores.sql import database_now
from cleanup.tasks import preview as task
from tests.retention import ANNA, BEN, DAY, Staging, write

pytestmark = pytest.mark.django_db


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    staging = Staging(tmp_path)
    staging.fill(4)
    write(staging.root / "young", "12345", age=timedelta(hours=1))
    (staging.root / "link").symlink_to("young")
    return staging


def looked_at(policy: RetentionPolicy, **options: Any) -> PolicyPreview:
    """Order a preview and carry it out, as a worker would."""
    made = previews.order_preview(policy, ANNA, **options)
    task(str(made.pk))
    return previews.find_preview(made.pk)


def files(preview: PolicyPreview, kind: str, **wanted: str) -> list[str]:
    return [one.path for _, one in page_of(preview, Wanted(kind=kind, **wanted)).files]


# What a preview finds


def test_every_file_is_in_one_tab_with_its_reason_and_its_bytes(staging: Staging) -> None:
    (staging.root / "later").write_text("x")
    os.utime(staging.root / "later", (4e9, 4e9))
    preview = looked_at(staging.policy())
    result = preview.result
    assert preview.state == JobState.DONE
    assert result["goes"] == {"files": 4, "bytes": 28}
    assert result["stays"] == {"files": 3, "bytes": 6}
    assert result["scanned"] == 6
    reasons = {(kind, reason): (number, size) for kind, reason, number, size in result["reasons"]}
    assert reasons == {
        ("goes", "older_than_age"): (4, 28), ("stays", "younger_than_age"): (1, 5),
        ("stays", "future_timestamp"): (1, 1), ("stays", "symlink"): (1, 0),
    }  # fmt: skip
    assert set(files(preview, "goes")) == {f"d{number}/f{number}" for number in range(4)}
    assert set(files(preview, "stays")) == {"young", "link", "later"}
    assert files(preview, "stays", reason="symlink") == ["link"]


def test_what_could_not_be_judged_has_a_tab_of_its_own(staging: Staging) -> None:
    (staging.root / "r.result.json.lz4").write_bytes(b"x")
    (staging.root / f"r{METADATA_SUFFIX.decode()}").write_text("{broken")
    preview = looked_at(staging.policy(rule="expires_at", age=""))
    assert files(preview, "doubt") == ["r.result.json.lz4"]
    assert preview.result["doubt"]["files"] == 1


def test_the_histograms_name_where_the_files_are(staging: Staging) -> None:
    write(staging.root / "big", "x" * 5000, age=40 * DAY)
    result = looked_at(staging.policy()).result
    assert result["ages"] == [["1 to 7 days", 4, 28], ["7 to 30 days", 0, 0], ["30 to 90 days", 1, 5000]]
    assert result["sizes"] == [["under 4 kB", 4, 28], ["4 kB to 1 MB", 1, 5000]]


def test_a_preview_touches_no_file_and_finds_what_the_command_finds(staging: Staging) -> None:
    policy, before = staging.policy(max_files=1), staging.files()
    preview = looked_at(policy)
    found = operations.preview(policy)
    assert (preview.result["goes"]["files"], preview.result["brakes"]) == (found.files, found.brakes)
    assert {one.path for one in found.items} == set(files(preview, "goes"))
    assert staging.files() == before
    assert staging.in_trash() == 0


def test_holds_and_verifiers_keep_files_and_are_counted(staging: Staging) -> None:
    operations.hold(staging.area, "d0/**", None, "asked for", ANNA)
    (staging.root / "d1" / "f1.done").write_text("")
    preview = looked_at(staging.policy(verifiers=["sibling:suffix=.done"]))
    said = preview.result["verifiers"]
    assert files(preview, "stays", reason="held") == ["d0/f0"]
    assert sum(said.values()) == 3
    assert said["passed"] == preview.result["goes"]["files"]


def test_rows_of_a_model_can_be_looked_at(staging: Staging) -> None:
    policy = operations.add_policy("rows", None, ANNA, rule="rows", model="cleanup.StagedFile", age="30d")
    preview = looked_at(policy)
    assert preview.state == JobState.DONE
    assert preview.result["goes"]["files"] == 0


# Drafts and versions


def test_a_draft_says_the_difference_and_saves_nothing(staging: Staging) -> None:
    policy = staging.policy(age="10d")
    policy.age = "2d"
    preview = looked_at(policy, is_draft=True)
    assert preview.result["saved"] == {"files": 0, "bytes": 0, "same": False}
    assert preview.result["goes"]["files"] == 4
    assert RetentionPolicy.objects.get().age == "10d"
    assert policy.versions.count() == 1


def test_a_draft_that_finds_the_same_files_says_so(staging: Staging) -> None:
    policy = staging.policy()
    policy.age = "3d"
    assert looked_at(policy, is_draft=True).result["saved"]["same"] is True


def test_a_draft_that_changes_nothing_is_the_saved_version(staging: Staging) -> None:
    assert looked_at(staging.policy(), is_draft=True).draft is None


def test_a_draft_that_could_not_be_saved_is_refused(staging: Staging) -> None:
    policy = staging.policy()
    policy.age = "soon"
    with pytest.raises(PolicyInvalid):
        previews.order_preview(policy, ANNA, is_draft=True)
    other = RetentionPolicy(name=policy.name, area=staging.area, age="1d")
    with pytest.raises(OperationRefused, match="already exists"):
        previews.order_preview(other, ANNA, is_draft=True)
    assert not PolicyPreview.objects.exists()


def test_a_policy_that_does_not_exist_yet_is_looked_at_and_then_saved(staging: Staging) -> None:
    draft = RetentionPolicy(
        name="new", area=staging.area, age="2d", grace_period=timedelta(days=3), include=["d*/**"]
    )
    preview = looked_at(draft, is_draft=True)
    assert preview.result["goes"]["files"] == 4
    assert not RetentionPolicy.objects.exists()
    saved = previews.save_draft(preview, BEN)
    assert (saved.grace_period, saved.include, saved.area) == (timedelta(days=3), ["d*/**"], staging.area)
    assert saved.versions.get().created_by == "ben"
    with pytest.raises(OperationRefused, match="as it is saved"):
        previews.save_draft(previews.find_preview(preview.pk), BEN)


def test_a_draft_is_not_saved_over_what_somebody_has_saved_since(staging: Staging) -> None:
    policy = staging.policy()
    policy.age = "3d"
    preview = looked_at(policy, is_draft=True)
    operations.set_mode(operations.find_policy("policy"), "report", BEN)
    with pytest.raises(OperationRefused, match="changed after"):
        previews.save_draft(preview, ANNA)
    assert operations.find_policy("policy").age == "2d"


def test_an_old_version_is_looked_at_and_put_back_without_its_mode(staging: Staging) -> None:
    policy = staging.policy(exclude=["d0/**"], mode="enforce", grace_period=timedelta(days=3))
    policy.exclude, policy.age, policy.mode, policy.schedule = [], "9d", "report", "1d"
    operations.save_policy(policy, BEN)
    preview = looked_at(policy, of_version=1)
    assert preview.result["goes"]["files"] == 3
    assert preview.result["saved"]["files"] == 0
    made = versions.put_back(operations.find_policy("policy"), 1, BEN)
    again = operations.find_policy("policy")
    assert (made.number, again.age, again.exclude, again.schedule) == (3, "2d", ["d0/**"], "6h")
    assert again.mode == "report"
    assert "version 1 put back" in (
        AuditEntry.objects.filter(action="policy_saved").latest("seq").reason or ""
    )
    with pytest.raises(OperationRefused, match="newest already"):
        versions.put_back(again, 3, BEN)
    with pytest.raises(OperationRefused, match="says what version 1 says"):
        versions.put_back(again, 1, BEN)


def test_an_age_written_in_another_way_is_no_change(staging: Staging) -> None:
    policy = staging.policy(age="9d")
    old = versions.fields_of(policy)
    assert versions.changes_of(old, {**old, "age": "1w2d", "grace_period": "7d"}) == []
    assert [one.field for one in versions.changes_of(old, {**old, "age": "8d"})] == ["age"]


def test_history_names_the_fields_that_a_version_changed(staging: Staging) -> None:
    policy = staging.policy()
    policy.age, policy.max_files, policy.schedule = "3d", 7, "1d"
    version = operations.save_policy(policy, BEN)
    first = policy.versions.get(number=1)
    found = versions.changes_between(
        first.document, version, old_schedule=first.schedule, old_catch_up=first.catch_up
    )
    assert {one.field: (one.old, one.new) for one in found} == {
        "age": ("2d", "3d"), "schedule": ("6h", "1d"), "max_files": ("50,000", "7"),
    }  # fmt: skip
    assert versions.changes_between(None, first) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"rule": "keep_newest", "age": "", "keep": 3, "group_pattern": "^(?P<key>[^/]+)"},
        {"rule": "watermark", "age": "1h", "order_by": "size", "floor": timedelta(hours=5)},
        {"unit": "bundle", "age_by": "cm", "verifiers": ["redis_task"], "skip_in_use": True},
    ],
)
def test_a_version_is_read_back_as_the_fields_it_was_made_of(
    staging: Staging, fields: dict[str, Any]
) -> None:
    policy = staging.policy(**fields)
    read = versions.with_fields(policy, versions.fields_of_version(policy.versions.get()))
    again = operations.save_policy(read, ANNA)
    assert policy_of(again) == policy_of(policy.versions.get(number=1))


# The job


def test_every_person_has_one_preview_of_a_policy_at_a_time(staging: Staging) -> None:
    policy = staging.policy()
    first, other = previews.order_preview(policy, ANNA), previews.order_preview(policy, BEN)
    second = previews.order_preview(policy, ANNA)
    states = {one.pk: one.state for one in PolicyPreview.objects.all()}
    assert states == {first.pk: "stopped", other.pk: "queued", second.pk: "queued"}


def test_a_preview_that_waits_is_cancelled_at_once_and_one_that_is_over_is_not(staging: Staging) -> None:
    waiting = previews.order_preview(staging.policy(), ANNA)
    assert previews.cancel_preview(waiting).state == JobState.STOPPED
    task(str(waiting.pk))
    assert not PreviewBatch.objects.exists()
    with pytest.raises(OperationRefused, match="over"):
        previews.cancel_preview(waiting)


def test_a_preview_under_way_ends_when_it_is_cancelled(staging: Staging, monkeypatch: Any) -> None:
    made, survey = previews.order_preview(staging.policy(), ANNA), surveys.survey

    def cancelled_meanwhile(*args: Any, **options: Any) -> Any:
        previews.cancel_preview(made)
        return survey(*args, **options)

    monkeypatch.setattr(previews, "survey", cancelled_meanwhile)
    monkeypatch.setattr(previews, "_BEAT", 0)
    task(str(made.pk))
    ended = previews.find_preview(made.pk)
    assert (ended.state, ended.message) == (JobState.STOPPED, "stopped on request")


def test_a_preview_whose_worker_died_is_taken_over_and_begins_anew(staging: Staging) -> None:
    made = previews.order_preview(staging.policy(), ANNA)
    taken = jobs.take(PolicyPreview, made.pk, now=database_now())
    assert taken is not None
    previews.PreviewWriter(taken)("goes", "older_than_age", [surveys.Seen("left/over", 1)])
    assert previews.abandoned_previews(database_now()) == [], "its worker lives"
    PolicyPreview.objects.update(lease_owner="elsewhere", lease_until=database_now() - timedelta(seconds=1))
    assert previews.abandoned_previews(database_now()) == [made.pk]
    task(str(made.pk))
    ended = previews.find_preview(made.pk)
    assert ended.state == JobState.DONE
    assert "left/over" not in files(ended, "goes")


def test_a_preview_over_which_workers_die_ends_as_failed(staging: Staging) -> None:
    made = previews.order_preview(staging.policy(), ANNA)
    PolicyPreview.objects.update(attempts=previews.MOST_ATTEMPTS)
    task(str(made.pk))
    assert previews.find_preview(made.pk).state == JobState.FAILED


def test_a_worker_whose_preview_has_passed_on_writes_nothing(staging: Staging) -> None:
    made = previews.order_preview(staging.policy(), ANNA)
    taken = jobs.take(PolicyPreview, made.pk, now=database_now())
    assert taken is not None
    assert jobs.take(PolicyPreview, made.pk, now=database_now()) is None
    PolicyPreview.objects.update(lease_owner="somebody else")
    with pytest.raises(jobs.LeaseLost):
        previews.PreviewWriter(taken)("goes", "older_than_age", [surveys.Seen("a", 1)])
    assert not jobs.end(taken, JobState.DONE, now=database_now())
    assert not PreviewBatch.objects.exists()


def test_an_area_that_is_away_ends_a_preview_with_the_reason(staging: Staging) -> None:
    policy = staging.policy()
    (staging.root / ".staging-area").unlink()
    ended = looked_at(policy)
    assert ended.state == JobState.REFUSED
    assert ".staging-area" in ended.message


def test_previews_are_forgotten_after_a_day_with_their_files(staging: Staging) -> None:
    policy = staging.policy()
    old = looked_at(policy)
    PolicyPreview.objects.update(created_at=database_now() - timedelta(hours=25))
    new = looked_at(policy)
    assert previews.forget_previews(database_now()) == 1
    assert list(PolicyPreview.objects.all()) == [new]
    assert not PreviewBatch.objects.filter(preview=old.pk).exists()


def test_where_there_is_no_worker_a_tick_by_hand_carries_previews_out(staging: Staging) -> None:
    made = previews.order_preview(staging.policy(), ANNA)
    previews.tend_previews(database_now())
    assert previews.find_preview(made.pk).state == JobState.QUEUED, "left to the worker who was woken"
    previews.tend_previews(database_now() + timedelta(minutes=1))
    assert previews.find_preview(made.pk).state == JobState.DONE


def test_progress_is_of_what_the_area_was_last_found_to_hold(staging: Staging) -> None:
    policy = staging.policy()
    assert previews._expected(policy) == 0
    staging.run(policy)
    assert previews._expected(policy) == 5


def test_a_run_of_what_was_looked_at_is_refused_once_the_policy_has_changed(staging: Staging) -> None:
    policy = staging.policy()
    preview = looked_at(policy)
    run = previews.run_previewed(preview, BEN)
    assert (run.state, run.actor) == ("queued", "ben")
    operations.stop(run, actor=ANNA)
    operations.set_mode(policy, "report", ANNA)
    with pytest.raises(OperationRefused, match="changed since"):
        previews.run_previewed(previews.find_preview(preview.pk), BEN)
