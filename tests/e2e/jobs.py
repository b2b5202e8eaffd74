"""Celery tasks for the tests, loaded by the worker with `--include tests.e2e.jobs`."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from bus.progress import BusTask
from xnai_site.celery import app


@app.task(bind=True, base=BusTask, name="tests.count")
def count(self: Any, total: int) -> int:
    """Count to `total`, a little slower than progress is told, and tell the topic of the task each time."""
    for done in range(1, total + 1):
        time.sleep(0.11)
        self.progress(done, total, unit="steps")
    return total


@app.task(bind=True, base=BusTask, name="tests.fail")
def fail(self: Any) -> None:
    """End badly."""
    raise ValueError("no luck")


@app.task(bind=True, base=BusTask, name="tests.hang")
def hang(self: Any) -> None:
    """Say that it works, and go on for ever."""
    self.progress(1, 2, step="hanging")
    threading.Event().wait()


@app.task(bind=True, base=BusTask, name="tests.die_once")
def die_once(self: Any, marker: str) -> None:
    """Be killed the first time, as for want of memory; complete the second."""
    file = Path(marker)
    if not file.exists():
        file.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    self.progress(1, 1)
