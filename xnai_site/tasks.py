"""Tasks of the site itself: the job that the demonstration queues.

It is an ordinary job of a pipeline: it works for a few seconds, tells its topic how far it is, and leaves a
compressed result with its metadata, which says when it may go.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lz4.frame
from celery import shared_task

from bus.progress import BusTask

STEP_SECONDS = 0.4
#: How long a result of the demonstration is worth keeping.
WORTH = timedelta(minutes=3)


@shared_task(bind=True, base=BusTask, name="xnai_site.tasks.distil_for_show", ignore_result=True)
def distil_for_show(self: BusTask, folder: str, name: str, documents: int) -> None:
    """Distil so many imaginary documents, and leave one real result in `folder`."""
    for number in range(1, documents + 1):
        time.sleep(STEP_SECONDS)
        self.progress(number, documents, unit="documents", step="distil", message=f"document {number}")
    store_result(
        Path(folder), name, {"documents": documents, "points": documents * 12}, now=datetime.now(UTC)
    )


def store_result(folder: Path, name: str, result: dict[str, int], *, now: datetime) -> None:
    """Write a result and its metadata. The metadata first: a result without it would never expire."""
    metadata = {"task_id": name, "created_at": now.isoformat(), "expires_at": (now + WORTH).isoformat()}
    (folder / f"{name}.metadata.json").write_text(json.dumps(metadata))
    (folder / f"{name}.result.json.lz4").write_bytes(lz4.frame.compress(json.dumps(result).encode()))
