"""When policies run: catch-up, edits, clocks set back, ticks at once, and what an idle tick costs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from cleanup import operations, tasks
from cleanup.models import AuditEntry, CleanupRun, RetentionPolicy, StagedFile
from cleanup.operations import schedule
from tests.retention import ANNA, DAY, Staging, in_threads

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def make_due(policy: RetentionPolicy, at: datetime) -> None:
    RetentionPolicy.objects.filter(pk=policy.pk).update(next_due_at=at)


def due_of(policy: RetentionPolicy) -> datetime:
    found = RetentionPolicy.objects.get(pk=policy.pk).next_due_at
    assert found is not None
    return found


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("catch_up", "late", "runs"), [("once", 20 * HOUR, 1), ("skip", 20 * HOUR, 0), ("skip", MINUTE, 1)]
)
def test_what_was_missed_is_caught_up_with_once_or_not_at_all(
    staging: Staging, catch_up: str, late: timedelta, runs: int
) -> None:
    policy, at = staging.policy(schedule="6h", catch_up=catch_up), now()
    make_due(policy, at - late)
    assert len(schedule.due_policies(at)) == runs
    assert len(schedule.tick(at).started) == runs
    assert schedule.tick(at).started == []
    assert at < due_of(policy) <= at + 6 * HOUR


@pytest.mark.django_db
def test_cron_text_is_read_in_the_zone_of_the_site(staging: Staging, settings: Any) -> None:
    settings.TIME_ZONE = "America/New_York"
    policy = staging.policy(schedule="30 2 * * *")
    make_due(policy, datetime(2026, 1, 10, 7, 30, tzinfo=UTC))
    assert len(schedule.claim_due(datetime(2026, 1, 10, 7, 31, tzinfo=UTC))) == 1
    assert due_of(policy) == datetime(2026, 1, 11, 7, 30, tzinfo=UTC)


@pytest.mark.django_db(transaction=True)
def test_of_several_ticks_at_once_one_starts_the_run(staging: Staging) -> None:
    policy, at = staging.policy(), now()
    make_due(policy, at - HOUR)
    started: list[Any] = []
    in_threads(4, lambda _: started.extend(schedule.claim_due(at)))
    assert len(started) == CleanupRun.objects.count() == 1
    assert due_of(policy) > at
    assert AuditEntry.objects.filter(action="run_started").count() == 1


@pytest.mark.django_db(transaction=True)
def test_an_edit_and_a_tick_at_once_neither_lose_nor_double_a_run(staging: Staging) -> None:
    policy, at = staging.policy(schedule="6h"), now()
    for number in range(6):
        make_due(policy, at - HOUR)
        before = CleanupRun.objects.count()
        mine = RetentionPolicy.objects.get(pk=policy.pk)
        mine.schedule = f"{7 + number}h"

        def act(which: int, mine: RetentionPolicy = mine) -> None:
            operations.save_policy(mine, ANNA) if which else schedule.claim_due(at)

        in_threads(2, act)
        schedule.claim_due(at)
        assert CleanupRun.objects.count() == before + 1
        assert due_of(policy) > at
        CleanupRun.objects.update(state="done")


@pytest.mark.django_db
def test_a_policy_that_is_due_stays_due_when_its_schedule_is_edited(staging: Staging) -> None:
    policy, at = staging.policy(schedule="6h"), now()
    make_due(policy, at - HOUR)
    policy.schedule = "30 2 * * *"
    operations.save_policy(policy, ANNA)
    assert due_of(policy) == at - HOUR
    assert len(schedule.claim_due(now())) == 1
    following = due_of(policy)
    assert (following.hour, following.minute) == (2, 30)
    assert following > now()


@pytest.mark.django_db
def test_another_schedule_counts_from_the_edit_and_another_age_moves_nothing(staging: Staging) -> None:
    policy = staging.policy(schedule="6h")
    was = due_of(policy)
    policy.age = "9d"
    operations.save_policy(policy, ANNA)
    assert due_of(policy) == was
    policy.schedule = "1h"
    operations.save_policy(policy, ANNA)
    assert now() < due_of(policy) <= now() + HOUR


@pytest.mark.django_db
def test_a_form_that_was_opened_before_a_run_does_not_bring_its_due_time_back(staging: Staging) -> None:
    policy = staging.policy(schedule="6h")
    make_due(policy, now() - MINUTE)
    opened = RetentionPolicy.objects.get(pk=policy.pk)
    assert len(schedule.claim_due(now())) == 1
    CleanupRun.objects.update(state="done")
    opened.age = "9d"
    operations.save_policy(opened, ANNA)
    assert due_of(policy) > now()
    assert schedule.claim_due(now()) == []


@pytest.mark.django_db
def test_a_policy_that_was_off_is_owed_nothing(staging: Staging) -> None:
    policy = staging.policy(mode="off", schedule="6h")
    make_due(policy, now() - 3 * DAY)
    policy.refresh_from_db()
    operations.set_mode(policy, "enforce", ANNA)
    assert schedule.claim_due(now()) == []
    assert now() + 5 * HOUR < due_of(policy)


@pytest.mark.django_db
@pytest.mark.parametrize("text", ["6h", "30 2 * * *"])
def test_a_clock_that_was_a_year_ahead_does_not_stop_a_policy_for_a_year(staging: Staging, text: str) -> None:
    policy, at = staging.policy(schedule=text), now()
    make_due(policy, at - MINUTE)
    assert len(schedule.claim_due(at + 365 * DAY)) == 1
    CleanupRun.objects.update(state="done")
    assert schedule.claim_due(at) == []
    assert at < due_of(policy) <= at + DAY


@pytest.mark.django_db
def test_a_clock_set_back_by_an_hour_does_not_serve_a_due_time_twice(staging: Staging) -> None:
    policy = staging.policy(schedule="0 12 * * *")
    noon = datetime(2026, 5, 4, 12, tzinfo=UTC)
    make_due(policy, noon)
    assert len(schedule.claim_due(noon)) == 1
    CleanupRun.objects.update(state="done")
    for at in (noon - HOUR, noon, noon + HOUR):
        assert schedule.claim_due(at) == []
    assert due_of(policy) == noon + DAY


@pytest.mark.django_db
def test_a_schedule_that_nobody_can_read_stops_no_other_policy(
    staging: Staging, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = staging.policy("bad"), staging.policy("good")
    RetentionPolicy.objects.filter(pk=bad.pk).update(schedule="whenever")
    for policy in (bad, good):
        make_due(policy, now() - MINUTE)
    assert len(schedule.claim_due(now())) == 1
    assert "policy bad never runs" in caplog.text


@pytest.mark.django_db
def test_a_policy_without_a_due_time_gets_one(staging: Staging) -> None:
    policy = staging.policy()
    RetentionPolicy.objects.filter(pk=policy.pk).update(next_due_at=None)
    assert schedule.claim_due(now()) == []
    assert due_of(policy) > now()


@pytest.mark.django_db
def test_two_policies_of_one_area_that_are_due_together_run_one_after_the_other(staging: Staging) -> None:
    first, second = staging.policy("a", schedule="0 2 * * *"), staging.policy("b", schedule="0 2 * * *")
    at = datetime(2026, 5, 4, 2, 0, 5, tzinfo=UTC)
    for policy in (first, second):
        make_due(policy, at)
    (run,) = schedule.claim_due(at)
    assert schedule.claim_due(at + 30 * timedelta(seconds=1)) == []
    CleanupRun.objects.filter(pk=run).update(state="done")
    assert len(schedule.claim_due(at + 2 * MINUTE)) == 1
    assert due_of(first) == due_of(second) == datetime(2026, 5, 5, 2, tzinfo=UTC)


@pytest.mark.django_db
def test_a_run_goes_by_the_policy_as_it_is_and_not_as_it_was_read(staging: Staging) -> None:
    staging.fill(2)
    read = staging.policy(mode="enforce")
    operations.set_mode(operations.find_policy("policy"), "report", ANNA)
    run = operations.start_run(read, ANNA)
    assert run.dry_run
    assert (operations.execute(run.pk).state, len(staging.files())) == ("reported", 2)
    operations.set_mode(operations.find_policy("policy"), "off", ANNA)
    with pytest.raises(operations.OperationRefused, match="is off"):
        operations.start_run(read, ANNA)


@pytest.mark.django_db
def test_a_policy_over_rows_is_started_without_an_area(staging: Staging) -> None:
    StagedFile.objects.create(area=staging.area, path="a")
    policy = operations.add_policy(
        "rows", None, ANNA, rule="rows", model="cleanup.StagedFile", age="1d", mode="enforce"
    )
    make_due(policy, now() - MINUTE)
    (started,) = schedule.claim_due(now())
    run = CleanupRun.objects.get(pk=started)
    assert (run.area, run.rows_of) == (None, "cleanup.StagedFile")
    with pytest.raises(operations.RunActive, match="has an active run"):
        operations.start_run(policy, ANNA)


@pytest.mark.django_db
def test_an_idle_tick_asks_the_database_a_dozen_times_however_much_there_is(
    tmp_path: Path, django_assert_max_num_queries: Any
) -> None:
    for number in range(4):
        staging = Staging(tmp_path, f"area{number}")
        staging.policy(f"six{number}")
        staging.policy(f"cron{number}", schedule="30 2 * * *")
    tasks.tick()
    with django_assert_max_num_queries(12):
        tasks.tick()


@pytest.mark.django_db
def test_the_command_takes_a_schedule_and_says_what_is_wrong_with_one(staging: Staging) -> None:
    words = ("cleanup", "policies", "add", "nightly", "--area", "area", "--age", "2d", "--json")
    with pytest.raises(SystemExit) as refused:
        call_command(*words, "--schedule", "61 2 * * *", stdout=(out := StringIO()))
    assert refused.value.code == 2
    assert "minute is not understood" in json.loads(out.getvalue())["message"]
    call_command(*words, "--schedule", "30 2 * * *", "--catch-up", "skip", stdout=StringIO())
    policy = operations.find_policy("nightly")
    assert (policy.schedule, policy.catch_up, policy.mode) == ("30 2 * * *", "skip", "report")


@pytest.mark.django_db
def test_turning_a_policy_from_report_to_enforce_is_audited(staging: Staging) -> None:
    policy = staging.policy(mode="report")
    operations.set_mode(policy, "enforce", ANNA)
    saved = AuditEntry.objects.filter(action="policy_saved").order_by("seq")
    assert [entry.reason for entry in saved] == ["mode none -> report", "mode report -> enforce"]
    assert saved.latest("seq").actor == "anna"
