"""A Celery task tells its topic how far it is; a second run under the same id begins anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.clients import StockClient
from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

SDKS = ("javascript", "python")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site(web=1, BUS_TASK_LEASE="3")
    site.start()
    site.start_worker("--include", "tests.e2e.jobs")
    yield site
    site.stop()


def send(site: Site, name: str, task_id: str, *words: object) -> None:
    """Queue a task under an id of our choice."""
    site.python(
        "from xnai_site.celery import app; "
        f"app.send_task('tests.{name}', args={list(words)!r}, task_id={task_id!r})"
    )


def watch(site: Site, sdk: str, topic: str) -> StockClient:
    """A stock client that is subscribed from the beginning of the topic on."""
    client = StockClient(sdk)
    client.connect(site.web[0].socket, site.token(f"watches-{topic}-{sdk}"))
    client.do("subscribe", topic=topic, positioned=True, recoverable=True)
    return client


def types(client: StockClient, topic: str) -> list[str]:
    return [payload["event_type"] for payload in client.payloads(topic)]


def last(client: StockClient, topic: str) -> dict[str, Any]:
    return client.seen("publication", topic=topic)[-1]


def wait_end(client: StockClient, topic: str, runs: int = 1) -> None:
    """Wait for the events that carry the tag `end`."""

    def ended() -> int:
        return sum("end" in (entry["tags"] or {}) for entry in client.seen("publication", topic=topic))

    client.wait_until(lambda: ended() >= runs, what=f"{runs} ends of {topic}")


@pytest.mark.parametrize("sdk", SDKS)
def test_progress_arrives_in_order_and_ends_with_the_final_event(site: Site, sdk: str) -> None:
    topic = f"task:count-{sdk}"
    with watch(site, sdk, topic) as client:
        send(site, "count", f"count-{sdk}", 8)
        wait_end(client, topic)
        kinds = types(client, topic)
        assert kinds[0] == "task.started"
        assert kinds[-1] == "task.completed"
        assert set(kinds[1:-1]) <= {"task.progress"}
        done = [p["data"]["done"] for p in client.payloads(topic) if p["event_type"] == "task.progress"]
        assert done == list(range(1, 9))
        assert client.offsets(topic) == list(range(1, len(kinds) + 1))
        assert last(client, topic)["data"]["data"]["status"] == "completed"


def test_a_task_that_fails_says_so_and_ends(site: Site) -> None:
    topic = "task:unlucky"
    with watch(site, "python", topic) as client:
        send(site, "fail", "unlucky")
        wait_end(client, topic)
        assert types(client, topic)[-1] == "task.failed"
        assert "no luck" in str(last(client, topic)["data"]["data"]["message"])


@pytest.mark.parametrize("sdk", SDKS)
def test_a_second_run_under_the_same_id_begins_anew(site: Site, sdk: str) -> None:
    topic = f"task:again-{sdk}"
    with watch(site, sdk, topic) as faithful:
        send(site, "count", f"again-{sdk}", 3)
        wait_end(faithful, topic)
        first = faithful.do("history", topic=topic)
        send(site, "count", f"again-{sdk}", 5)
        wait_end(faithful, topic, runs=2)
        kinds = types(faithful, topic)
        assert kinds.count("task.started") == kinds.count("task.completed") == 2
        second = faithful.do("history", topic=topic, limit=-1)
        assert second["epoch"] != first["epoch"]
        offsets = [entry["offset"] for entry in second["publications"]]
        assert offsets == list(range(1, second["offset"] + 1))
        with watch(site, sdk, topic) as newcomer:
            assert newcomer.wait("subscribed", topic=topic)["epoch"] == second["epoch"]


def test_a_task_whose_worker_was_killed_ends_as_failed(site: Site) -> None:
    topic = "task:killed"
    with watch(site, "javascript", topic) as client:
        send(site, "hang", "killed")
        client.wait_until(lambda: len(types(client, topic)) >= 2, what="the first progress")
        site.worker.kill()
        site.python(  # as beat does, every 10 s
            "import time\nfrom bus.tasks import end_lost_tasks\nwhile not end_lost_tasks(): time.sleep(0.2)"
        )
        wait_end(client, topic)
        assert types(client, topic) == ["task.started", "task.progress", "task.failed"]
        assert last(client, topic)["data"]["data"]["lost"]
        assert client.offsets(topic) == [1, 2, 3]
    assert site.sql("SELECT count(*) FROM bus_runningtask WHERE topic = %s", topic)[0][0] == 0
    site.start_worker()


def test_a_task_that_is_revoked_while_it_runs_ends_as_cancelled(site: Site) -> None:
    topic = "task:unwanted"
    with watch(site, "python", topic) as client:
        send(site, "hang", "unwanted")
        client.wait_until(lambda: len(types(client, topic)) >= 2, what="the first progress")
        site.python(
            "from xnai_site.celery import app; "
            "app.control.revoke('unwanted', terminate=True, signal='SIGKILL')"
        )
        wait_end(client, topic)
        assert types(client, topic) == ["task.started", "task.progress", "task.cancelled"]
        assert last(client, topic)["data"]["data"]["message"] == "revoked"


def test_a_task_whose_process_died_is_done_again_by_the_same_worker(site: Site) -> None:
    topic = "task:twice"
    with watch(site, "python", topic) as client:
        send(site, "die_once", "twice", str(site.folder / "died"))
        wait_end(client, topic)
        kinds = types(client, topic)
        assert kinds[:2] == ["task.started", "task.started"]
        assert kinds[-1] == "task.completed"
        assert client.offsets(topic) == list(range(1, len(kinds) + 1))
