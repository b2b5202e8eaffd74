"""A job whose worker is gone ends as failed; one that was only out of sight does not."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.signals import task_revoked
from django.utils import timezone

from bus import runs
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.models import RunningTask
from bus.progress import BusTask, Progress
from bus.publishing import end
from bus.tasks import end_lost_tasks
from tests.servers import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("bus_process")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    runs.keeper.stop()


def events(task_id: str) -> list[tuple[str, dict[str, Any]]]:
    page = event_log().read(f"task:{task_id}", limit=1_000)
    return [(event.event_type, json.loads(event.payload)["data"]) for event in page.events]


def kinds(task_id: str) -> list[str]:
    return [kind for kind, _ in events(task_id)]


def age(seconds: float) -> None:
    """Let time go by for the leases, as if nobody had renewed them."""
    for row in RunningTask.objects.all():
        row.lease_until -= timedelta(seconds=seconds)
        row.doubted_at = row.doubted_at and row.doubted_at - timedelta(seconds=seconds)
        row.save()


def test_a_job_holds_a_lease_while_it_runs_and_none_afterwards() -> None:
    with Progress("r1"):
        row = RunningTask.objects.get()
        assert row.topic == "task:r1"
        assert timedelta(0) < row.lease_until - timezone.now() <= timedelta(seconds=45)
        assert end_lost_tasks() == 0
    assert not RunningTask.objects.exists()
    assert kinds("r1") == ["task.started", "task.completed"]


def test_a_job_that_nobody_renews_is_doubted_first_and_then_ended_as_failed() -> None:
    Progress("r2").start()
    runs.keeper.stop()
    age(60)
    assert end_lost_tasks() == 0
    assert kinds("r2") == ["task.started"]
    age(30)
    assert end_lost_tasks() == 1
    (kind, data) = events("r2")[-1]
    assert kind == "task.failed"
    assert (data["status"], data["lost"]) == ("failed", True)
    assert "process" in data["message"]
    assert end_lost_tasks() == 0
    assert not RunningTask.objects.exists()


def test_a_renewal_after_the_doubt_saves_the_job() -> None:
    progress = Progress("r3")
    progress.start()
    runs.keeper.stop()
    age(60)
    assert end_lost_tasks() == 0
    assert runs.renew([RunningTask.objects.get().run]) == set()
    age(30)
    assert end_lost_tasks() == 0
    progress.finish()
    assert kinds("r3") == ["task.started", "task.completed"]


def test_leases_are_renewed_whatever_the_job_is_busy_with(settings: Any) -> None:
    settings.BUS = {**settings.BUS, "TASK_LEASE": timedelta(seconds=0.4)}
    with Progress("r4"):
        first = RunningTask.objects.get().lease_until
        wait_until(lambda: RunningTask.objects.get().lease_until > first, what="a renewal")


def test_a_run_that_was_given_up_says_nothing_more(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.BUS = {**settings.BUS, "TASK_LEASE": timedelta(seconds=0.4)}
    frozen, other = Progress("r5", interval=timedelta(0)), Progress("r5", interval=timedelta(0))
    frozen.start()
    other.start()  # delivered again to another worker, while the first one stood still
    run = frozen._run
    wait_until(lambda: runs.keeper.has_lost(run), what="the thread to see it")
    assert not frozen.update(1)
    frozen.finish("failed")
    assert "another run's" in caplog.text
    assert other.update(2)
    other.finish()
    assert kinds("r5") == ["task.started", "task.started", "task.progress", "task.completed"]


def test_a_job_that_has_ended_already_is_not_ended_again() -> None:
    Progress("r6").start()
    end("task:r6", "cancelled")
    age(60)
    end_lost_tasks()
    age(30)
    assert end_lost_tasks() == 0
    assert kinds("r6")[-1] == "task.cancelled"
    assert not RunningTask.objects.exists()


def test_a_lease_of_a_topic_that_is_gone_brings_nothing_back() -> None:
    Progress("r7").start()
    event_log().remove("task:r7")
    age(60)
    end_lost_tasks()
    age(30)
    assert end_lost_tasks() == 0
    assert event_log().states(["task:r7"]) == {}


async def test_a_coroutine_holds_a_lease_too() -> None:
    async with Progress("r8"):
        assert await in_thread(RunningTask.objects.count) == 1
    assert await in_thread(RunningTask.objects.count) == 0
    assert await in_thread(kinds, "r8") == ["task.started", "task.completed"]


def test_an_inner_progress_of_the_same_task_goes_on_with_the_outer_one() -> None:
    with Progress("r9", interval=timedelta(0)) as outer:
        assert outer.update(1, 3)
        with Progress("r9") as inner:
            assert inner.update(2)
        with pytest.raises(ValueError, match="no luck"), Progress("r9"):
            raise ValueError("no luck")
        with Progress("r9-part"):
            pass
        outer.update(3)
    assert kinds("r9") == ["task.started", *["task.progress"] * 3, "task.completed"]
    assert events("r9")[2][1]["total"] == 3
    assert kinds("r9-part") == ["task.started", "task.completed"]


@pytest.fixture
def app() -> Celery:
    """A Celery that runs tasks at once, through the same tracer as a worker."""
    app = Celery("tests", set_as_current=False)
    app.conf.update(task_always_eager=True, task_store_eager_result=False)
    return app


def test_a_task_that_waits_for_its_next_try_is_not_taken_for_lost() -> None:
    progress, at = Progress("c9"), timezone.now() + timedelta(minutes=10)
    progress.start()
    progress.retry("not yet", at)
    assert RunningTask.objects.get().lease_until == at + runs.RETRY_GRACE
    age(15 * 60)
    assert end_lost_tasks() == 0
    again = Progress("c9")
    again.resume()
    assert RunningTask.objects.get().lease_until < at
    again.finish()
    assert kinds("c9") == ["task.started", "task.retry", "task.completed"]
    assert not RunningTask.objects.exists()


def test_a_celery_task_that_is_tried_again_holds_its_lease_in_each_try(app: Celery) -> None:
    held = []

    @app.task(bind=True, base=BusTask, name="waits", max_retries=3)
    def waits(self: Any) -> None:
        held.append(RunningTask.objects.filter(lease_until__lt=timezone.now() + timedelta(minutes=1)).count())
        if not self.request.retries:
            raise self.retry(exc=ValueError("not yet"), countdown=600)

    waits.apply(task_id="c12")
    # Eagerly the next try runs inside of the former one, which only then says that there will be one.
    assert held == [1, 1]
    assert kinds("c12")[0] == "task.started"


def test_a_progress_inside_of_a_celery_task_of_the_same_id_joins_it(app: Celery) -> None:
    @app.task(bind=True, base=BusTask, name="nests")
    def nests(self: Any) -> None:
        with Progress(self.request.id) as progress:
            progress.update(1, 1)

    nests.apply(task_id="c10")
    assert kinds("c10") == ["task.started", "task.progress", "task.completed"]


@pytest.mark.parametrize(("expired", "words"), [(False, "revoked"), (True, "expired")])
def test_a_task_that_was_taken_back_ends_as_cancelled(app: Celery, expired: bool, words: str) -> None:
    @app.task(bind=True, base=BusTask, name="taken")
    def taken(self: Any) -> None:
        """Never runs."""

    Progress("c11").start()  # in a worker that was killed for it

    class Request:
        id = "c11"

    task_revoked.send(sender=taken, request=Request(), terminated=not expired, expired=expired)
    assert kinds("c11") == ["task.started", "task.cancelled"]
    assert events("c11")[-1][1]["message"] == words
    assert not RunningTask.objects.exists()


def test_the_moment_of_a_retry_is_read_from_what_celery_raised() -> None:
    from bus.progress import _moment_of

    class Info:
        exception: Any

    info = Info()
    info.exception = type("Retry", (), {"when": datetime(2030, 1, 1, tzinfo=UTC)})()
    assert _moment_of(info) == datetime(2030, 1, 1, tzinfo=UTC)
    info.exception = type("Retry", (), {"when": None})()
    assert _moment_of(info) is None


def test_telling_survives_a_database_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    from django.db import connection

    caplog.set_level(logging.WARNING, "bus.progress")
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE bus_runningtask RENAME TO bus_runningtask_away")
    try:
        with Progress("r10") as progress:
            progress.update(1)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE bus_runningtask_away RENAME TO bus_runningtask")
    assert "was not told" in caplog.text
    assert kinds("r10")[-1] == "task.completed"
