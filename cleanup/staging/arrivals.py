"""What starts the pipeline: a new row of the registry, in an area of the setting `PIPELINE_AUTO`.

The job is made in the transaction of the row, so none is lost, and a worker is woken once both are committed.
What the pipeline makes itself starts nothing. Imported by every process, so it imports little.
"""

from __future__ import annotations

from typing import Any

from cleanup.conf import conf
from cleanup.models import StagedFile


def on_staged(sender: Any, instance: StagedFile, created: bool, **_: Any) -> None:
    """Queue a file that has just been staged, if its area is one of those."""
    if not created or instance.origin is not None or not conf().pipeline_auto:
        return
    if instance.area.name in conf().pipeline_auto:
        from cleanup.staging.pipeline import queue
        from cleanup.stores import Actor

        queue(instance, Actor.system("pipeline"))
