"""A Celery task that takes a step when the test says so; loaded with `--include tests.e2e.browser_jobs`."""

from __future__ import annotations

import time
from typing import Any

from django.conf import settings
from redis import Redis

from bus.progress import BusTask
from xnai_site.celery import app


@app.task(bind=True, base=BusTask, name="tests.steps")
def steps(self: Any, total: int) -> int:
    """Take `total` steps, each after a word on the list `gate:<id>`; without one for 90 s it ends badly."""
    with Redis.from_url(settings.REDIS_URL, socket_timeout=120) as gate:
        for done in range(1, total + 1):
            if gate.blpop([f"gate:{self.request.id}"], timeout=90) is None:
                raise TimeoutError("nobody let the task go on")
            # What comes within 100 ms of the step before is not told; a test waits for each of them.
            while not self.progress(done, total, unit="steps", message=f"step {done}"):
                time.sleep(0.02)
    return total
