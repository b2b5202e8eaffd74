"""A long job tells how far it is, and ends exactly once."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery

from bus.log.current import event_log
from bus.progress import BusTask, Cancelled, Progress
from bus.protocol.errors import TopicEnded
from bus.publishing import publish

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("bus_process")]


class Clock:
    """Steady seconds that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def events(task_id: str) -> list[tuple[str, dict[str, Any]]]:
    page = event_log().read(f"task:{task_id}", limit=1_000)
    return [(event.event_type, json.loads(event.payload)["data"]) for event in page.events]


def test_a_job_starts_moves_and_completes() -> None:
    clock = Clock()
    with Progress("t1", unit="files", clock=clock) as progress:
        assert progress.update(1, 4, step="reading")
        clock.now += 1
        assert progress.update(2, message="half")
    kinds, data = zip(*events("t1"), strict=True)
    assert kinds == ("task.started", "task.progress", "task.progress", "task.completed")
    wanted = {
        "status": "running",
        "step": "reading",
        "done": 2,
        "total": 4,
        "unit": "files",
        "message": "half",
    }
    assert data[2] == wanted
    assert data[3]["status"] == "completed"
    assert data[3]["done"] == 2


def test_at_most_ten_events_a_second_are_told() -> None:
    clock = Clock()
    progress = Progress("t2", clock=clock)
    told = 0
    for step in range(1_000):
        clock.now = step / 1_000
        told += progress.update(step)
    assert told == 10


def test_a_new_step_is_told_even_right_after_another() -> None:
    clock, waits = Clock(), list[float]()
    progress = Progress("steps", clock=clock, sleep=waits.append)
    assert progress.update(1, step="read")
    clock.now += 0.04
    assert not progress.update(2, step="read")
    assert progress.update(3, step="write")
    assert waits == [0.0, pytest.approx(0.06)]
    assert [data["step"] for _, data in events("steps")] == ["read", "write"]


def test_progress_can_be_replaced_by_newer_progress_but_an_end_cannot() -> None:
    with Progress("t3") as progress:
        progress.update(1)
    tags = [json.loads(event.tags) for event in event_log().read("task:t3", limit=9).events]
    assert [tag.get("key") for tag in tags] == [None, "progress", None]
    assert tags[2]["end"] == "completed"


@pytest.mark.parametrize(
    ("error", "kind", "passes"),
    [(ValueError("no luck"), "task.failed", True), (Cancelled("stop"), "task.cancelled", False)],
)
def test_an_error_ends_it_with_its_words(error: Exception, kind: str, passes: bool) -> None:
    caught: Exception | None = None
    try:
        with Progress("t4"):
            raise error
    except ValueError as raised:
        caught = raised
    assert (caught is error) is passes
    assert events("t4")[-1][0] == kind
    assert str(error) in events("t4")[-1][1]["message"]


def test_a_second_run_under_the_same_id_begins_anew() -> None:
    for _ in range(2):
        with Progress("t5", interval=timedelta(0)) as progress:
            progress.update(1)
    assert [kind for kind, _ in events("t5")] == ["task.started", "task.progress", "task.completed"]


def test_telling_never_harms_the_job(caplog: pytest.LogCaptureFixture) -> None:
    with Progress("not a topic!") as progress:
        assert not progress.update(1)
    with Progress("t6") as progress:
        Progress("t6").finish()
        assert not progress.update(2)
    with pytest.raises(TopicEnded):
        publish("task:t6", "output")
    assert "was not told" in caplog.text


async def test_a_coroutine_tells_the_same() -> None:
    from bus.log.threads import in_thread

    async with Progress("t7") as progress:
        assert await progress.aupdate(1, 2)
        assert not await progress.aupdate(2)
    assert [kind for kind, _ in await in_thread(events, "t7")] == [
        "task.started",
        "task.progress",
        "task.completed",
    ]


@pytest.fixture
def app() -> Celery:
    """A Celery that runs tasks at once, through the same tracer as a worker."""
    app = Celery("tests", set_as_current=False)
    app.conf.update(task_always_eager=True, task_store_eager_result=False)
    return app


def test_a_celery_task_tells_by_itself(app: Celery) -> None:
    @app.task(bind=True, base=BusTask, name="works")
    def works(self: Any) -> int:
        self.progress(3, 3, unit="steps")
        return 3

    works.apply(task_id="c1")
    assert [kind for kind, _ in events("c1")] == ["task.started", "task.progress", "task.completed"]
    assert events("c1")[-1][1]["done"] == 3


def test_a_celery_task_that_is_tried_again_says_so_and_starts_once(app: Celery) -> None:
    @app.task(bind=True, base=BusTask, name="tries", max_retries=2)
    def tries(self: Any) -> None:
        if self.request.retries < 2:
            raise self.retry(exc=ValueError("not yet"), countdown=0)

    tries.apply(task_id="c2")
    assert [kind for kind, _ in events("c2")] == [
        "task.started",
        "task.retry",
        "task.retry",
        "task.completed",
    ]


def test_a_celery_task_that_fails_says_why(app: Celery) -> None:
    @app.task(bind=True, base=BusTask, name="fails")
    def fails(self: Any) -> None:
        raise ValueError("no luck")

    fails.apply(task_id="c3")
    assert events("c3")[-1][0] == "task.failed"
    assert events("c3")[-1][1]["message"] == "ValueError: no luck"
