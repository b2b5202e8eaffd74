"""Tasks of the site itself: the job that the demonstration queues.

It is an ordinary job of a pipeline: it works for a few seconds, tells its topic how far it is, and leaves a
compressed result with its metadata, which says when it may go.
"""

from __future__ import annotations

import time
from datetime import timedelta

from celery import shared_task

from bus.progress import BusTask
from cleanup.staging.results import ResultStore

STEP_SECONDS = 0.4
#: How long a result of the demonstration is worth keeping.
WORTH = timedelta(minutes=3)


@shared_task(bind=True, base=BusTask, name="xnai_site.tasks.distil_for_show", ignore_result=True)
def distil_for_show(self: BusTask, folder: str, name: str, documents: int) -> None:
    """Distil so many imaginary documents, and leave one real result in `folder`."""
    for number in range(1, documents + 1):
        time.sleep(STEP_SECONDS)
        self.progress(number, documents, unit="documents", step="distil", message=f"document {number}")
    ResultStore(folder).store(name, {"documents": documents, "points": documents * 12}, ttl=WORTH)
