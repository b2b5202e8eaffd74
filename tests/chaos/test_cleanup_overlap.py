"""Two beats, two workers, the same messages over and over; one worker freezes with the lock, one keeps dying.

Whoever wakes up after another has taken the run over commits nothing; each file is trashed once, and the
audit says so once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from celery import Celery

from tests.harness import Program, Site
from tests.servers import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

FILES = 400

SETUP = """
from datetime import UTC, datetime
from pathlib import Path
from tests.retention import Staging
from cleanup.models import RetentionPolicy
Staging(Path({folder!r}), "many").policy("many", age="1d")
RetentionPolicy.objects.update(next_due_at=datetime.now(UTC))
"""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(web=0, DJANGO_SETTINGS_MODULE="tests.chaos.brisk_settings", TEST_RUN_LEASE="3")
    site.start()
    yield site
    for worker in others:
        worker.kill()
    others.clear()
    site.stop()


#: What a test has started beside the site's own programs.
others: list[Program] = []


def another(site: Site, name: str, model: Program, *options: str, **environment: str) -> Program:
    """One more of a kind; the site knows nothing of it."""
    log = site.folder / f"{name}.log"
    program = Program(name, [*model.command, *options], {**model.environment, **environment}, log)
    others.append(program)
    program.start()
    return program


def frozen(worker: Program) -> bool:
    """Whether a process of the worker's pool stands still."""
    assert worker.is_alive, worker.tail()
    children = psutil.Process(worker.pid).children(recursive=True)
    return any(is_stopped(child) for child in children)


def is_stopped(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # it has just ended
        return bool(process.status() == psutil.STATUS_STOPPED)
    return False


def only(site: Site, query: str) -> object:
    ((found,),) = site.sql(query)
    return found


def in_trash(root: Path) -> int:
    return sum(path.parent.name == "data" for path in (root / ".trash").rglob("*"))


def test_frozen_dying_and_doubled_workers_trash_each_file_once(site: Site) -> None:
    root = site.folder / "many"
    site.python(SETUP.format(folder=str(site.folder)))
    for number in range(FILES):
        place = root / f"{number % 8}" / f"{number}"
        place.parent.mkdir(exist_ok=True)
        place.write_text("content")
        os.utime(place, (time.time() - 500_000,) * 2)

    site.worker.environment = {**site.worker.environment, "FAULT": "trash.after_rename:30:stop"}
    site.start_worker()
    site.start_beat()
    another(site, "beat 2", site.beat, "--schedule", str(site.folder / "schedule2"))
    wait_until(lambda: frozen(site.worker), timeout=180, what="a worker that is frozen in the middle")
    run = str(only(site, "SELECT id FROM cleanup_cleanuprun"))
    assert only(site, "SELECT fencing_token FROM cleanup_cleanuprun") == 1

    # Its own process dies at every 150th file, and Celery starts the next one.
    another(site, "worker 2", site.worker, "-n", "second@%h", FAULT="trash.after_rename:150:kill")
    wait_until(
        lambda: int(str(only(site, "SELECT fencing_token FROM cleanup_cleanuprun"))) > 1, timeout=180,
        what="another worker that takes the run over",
    )  # fmt: skip
    assert in_trash(root) == 30, "somebody has moved files beside the one who holds the lock"
    with Celery(broker=site.valkey.url, set_as_current=False) as app:
        for _ in range(20):
            app.send_task("cleanup.tasks.continue_run", args=[run], queue="celery")
    site.worker.thaw()

    wait_until(
        lambda: only(site, "SELECT state FROM cleanup_cleanuprun") not in ("planning", "approved", "running"),
        timeout=240, interval=0.2, what="the end of the run",
    )  # fmt: skip
    # One more tick may be at work: nothing that it could do is left.
    site.beat.kill()
    ((state, trashed, skipped, errors, residue),) = site.sql(
        "SELECT state, trashed, skipped, errors, residue FROM cleanup_cleanuprun"
    )
    assert (state, trashed, skipped, errors, residue) == ("done", FILES, 0, 0, 0)
    assert (in_trash(root), len(list(root.glob("[0-7]/*")))) == (FILES, 0)
    assert site.sql("SELECT state, count(*) FROM cleanup_cleanupitem GROUP BY state") == [("trashed", FILES)]
    said = dict(
        site.sql(
            "SELECT action, count(*) FROM cleanup_auditentry "
            "WHERE action IN ('run_started', 'planned', 'run_done', 'trashed') GROUP BY action"
        )
    )
    assert said == {"run_started": 1, "planned": 1, "run_done": 1, "trashed": FILES}
    assert only(site, "SELECT count(DISTINCT path) FROM cleanup_auditentry WHERE action = 'trashed'") == FILES
    assert only(site, "SELECT count(*) FROM cleanup_planbatch WHERE settled_at IS NULL") == 0
    wait_until(lambda: site.worker.said("has passed to another worker"), what="the word of the frozen one")
