"""Runs, previews and orders have a topic each, which ends with them and then goes like that of a task."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bus import retention
from bus.acts import Operator
from bus.log.current import event_log
from bus.operating import end_topic
from bus.protocol.errors import TopicEnded
from bus.publishing import publish
from cleanup import operations
from cleanup.models import CleanupRun, OrderVerb, PolicyPreview, RetentionPolicy, TrashOrder
from cleanup.operations import orders, previews
from cleanup.operations.runs import expire_plans, run_topic
from cleanup.stores.feed import JobFeed
from cleanup.stores.sql import database_now
from tests.retention import ANNA, BEN, DAY, Staging

pytestmark = pytest.mark.django_db

Job = Callable[[Staging], str]


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    staging = Staging(tmp_path)
    staging.fill(4)
    return staging


def told(topic: str) -> list[tuple[str, dict[str, Any]]]:
    page = event_log().read(topic, limit=100)
    return [(event.event_type, json.loads(event.payload)["data"]) for event in page.events]


def has_ended(topic: str) -> bool:
    state = event_log().states([topic]).get(topic)
    return state is not None and state.ended_at is not None


# Every way in which a job can end: what does it, on which topic


def run_done(staging: Staging) -> str:
    return run_topic(staging.run(staging.policy()))


def run_reported(staging: Staging) -> str:
    return run_topic(operations.execute(operations.start_run(staging.policy(), ANNA, dry_run=True).pk))


def waiting(staging: Staging) -> CleanupRun:
    run = staging.run(staging.policy(max_files=1))
    assert told(run_topic(run))[-1][1]["state"] == "awaiting_approval"
    assert not has_ended(run_topic(run)), "it waits for a person"
    return run


def run_rejected(staging: Staging) -> str:
    return run_topic(operations.reject(waiting(staging), reason="too much", actor=BEN))


def run_expired(staging: Staging) -> str:
    run = waiting(staging)
    assert expire_plans(database_now() + 2 * DAY) == 1
    return run_topic(run)


def run_stopped_before_it_began(staging: Staging) -> str:
    return run_topic(operations.stop(operations.start_run(staging.policy(), ANNA), actor=BEN))


def run_refused(staging: Staging) -> str:
    run = operations.start_run(staging.policy(), ANNA)
    (staging.root / ".staging-area").unlink()
    operations.execute(run.pk)
    return run_topic(run)


def looked(policy: RetentionPolicy) -> PolicyPreview:
    made = previews.order_preview(policy, ANNA)
    previews.carry_out_preview(made.pk)
    return made


def preview_done(staging: Staging) -> str:
    return previews.topic_of(looked(staging.policy()))


def preview_refused(staging: Staging) -> str:
    policy = staging.policy()
    (staging.root / ".staging-area").unlink()
    return previews.topic_of(looked(policy))


def preview_cancelled(staging: Staging) -> str:
    return previews.topic_of(previews.cancel_preview(previews.order_preview(staging.policy(), ANNA)))


def preview_forgotten(staging: Staging) -> str:
    made = previews.order_preview(staging.policy(), ANNA)
    previews.forget_previews(database_now() + 2 * DAY)
    assert not PolicyPreview.objects.exists()
    return previews.topic_of(made)


def given(staging: Staging) -> TrashOrder:
    staging.run(staging.policy())
    return orders.order(OrderVerb.RESTORE, {"area": "area"}, actor=BEN)


def order_done(staging: Staging) -> str:
    return orders.topic_of(orders.carry_out_order(given(staging).pk))


def order_stopped(staging: Staging) -> str:
    return orders.topic_of(orders.stop_order(given(staging), actor=BEN))


@pytest.mark.parametrize(
    ("job", "state", "end"),
    [
        (run_done, "done", "completed"),
        (run_reported, "reported", "completed"),
        (run_rejected, "rejected", "cancelled"),
        (run_expired, "expired", "failed"),
        (run_stopped_before_it_began, "stopped", "cancelled"),
        (run_refused, "refused", "failed"),
        (preview_done, "done", "completed"),
        (preview_refused, "refused", "failed"),
        (preview_cancelled, "stopped", "cancelled"),
        (preview_forgotten, "failed", "failed"),
        (order_done, "done", "completed"),
        (order_stopped, "stopped", "cancelled"),
    ],
)
def test_however_a_job_ends_its_topic_ends_with_it(staging: Staging, job: Job, state: str, end: str) -> None:
    topic = job(staging)
    kind = topic.split(":")[1]
    (*before, (last, said), (final, data)) = told(topic)
    assert (last, said["state"]) == (f"{kind}.finished", state)
    assert (final, data) == (f"task.{end}", {**said, "status": end})
    assert {name for name, _ in before} <= {f"{kind}.progress"}
    assert has_ended(topic)
    with pytest.raises(TopicEnded):
        publish(topic, f"{kind}.progress", {})


def test_a_topic_whose_job_is_over_goes_with_its_last_event(staging: Staging) -> None:
    topic = run_done(staging)
    assert retention.trim(topic, max_events=1) > 0
    assert event_log().states([topic]) != {}
    assert retention.trim(topic, max_age=timedelta(0)) == 1
    assert event_log().states([topic]) == {}


def test_a_preview_whose_policy_is_removed_while_it_runs_ends_its_topic(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = staging.policy()
    made = previews.order_preview(policy, ANNA)
    survey = previews.survey

    def removes(*arguments: Any, **options: Any) -> Any:
        RetentionPolicy.objects.filter(pk=policy.pk).delete()
        return survey(*arguments, **options)

    monkeypatch.setattr(previews, "survey", removes)
    previews.carry_out_preview(made.pk)
    assert not PolicyPreview.objects.exists()
    assert told(previews.topic_of(made))[-1][0] == "task.cancelled"


def test_a_topic_that_was_ended_by_hand_hinders_no_job(staging: Staging) -> None:
    run = waiting(staging)
    end_topic(Operator(name="ben"), run_topic(run), reason="wrong one")
    operations.approve(run, files=4, actor=BEN)
    assert operations.execute(run.pk).state == "done"
    assert told(run_topic(run))[-1][1]["by_hand"]


def test_a_bus_that_refuses_hinders_no_job(
    staging: Staging, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.BUS = {**settings.BUS, "MAX_MESSAGE_BYTES": 10}
    run = staging.run(staging.policy())
    assert run.state == "done"
    assert "run.finished was not told" in caplog.text
    assert event_log().states([run_topic(run)]) == {}


class Killed(BaseException):
    """Ends a worker where it stands."""


def test_a_worker_that_dies_over_the_end_has_not_told_it(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = given(staging)
    finish = JobFeed.finish

    def dies(feed: JobFeed, data: dict[str, Any]) -> None:
        finish(feed, data)
        raise Killed

    monkeypatch.setattr(JobFeed, "finish", dies)
    with pytest.raises(Killed):
        orders.carry_out_order(made.pk)
    assert "order.finished" not in dict(told(orders.topic_of(made)))
    assert not has_ended(orders.topic_of(made))
    monkeypatch.setattr(JobFeed, "finish", finish)
    TrashOrder.objects.filter(pk=made.pk).update(lease_until=database_now() - DAY)
    assert orders.carry_out_order(made.pk).state == "done"
    assert [kind for kind, _ in told(orders.topic_of(made))].count("order.finished") == 1
    assert has_ended(orders.topic_of(made))


def test_a_change_of_state_is_told_however_soon_it_comes() -> None:
    feed = JobFeed("run", "hurried")
    for state in ("planning", "planning", "awaiting_approval", "running"):
        feed.tell({"state": state})
    assert [data["state"] for _, data in told("cleanup:run:hurried")] == [
        "planning", "awaiting_approval", "running",
    ]  # fmt: skip
