"""What beat starts, by hand: run a periodic task now, switch it on or off.

The console's buttons and `manage.py schedule` both come here, so that they do the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from django_celery_beat.models import PeriodicTask, PeriodicTasks

from xnai_site.celery import app


def send(tasks: Iterable[PeriodicTask]) -> list[str]:
    """Give tasks to the workers beside their schedule; return their names.

    Raises `kombu.exceptions.OperationalError` if the broker is away, `ValueError` for words of a task that
    are not JSON.
    """
    names = []
    for row in tasks:
        words, named = json.loads(row.args), json.loads(row.kwargs)
        app.send_task(row.task, args=words, kwargs=named, queue=row.queue, retry=False)
        names.append(row.name)
    return names


def switch(tasks: Iterable[PeriodicTask], *, on: bool) -> list[str]:
    """Let beat start tasks, or no longer; return their names."""
    names = [row.name for row in tasks]
    PeriodicTask.objects.filter(name__in=names).update(enabled=on)
    PeriodicTasks.update_changed()  # `update` sends no signal, and beat would not look
    return names
