"""The Celery application of the site: worker and beat.

A message is only a wake-up; the truth of a job is in its rows. So tasks are short, acknowledged late, taken
one at a time, and their results ignored (the broker redelivers late and more than once).
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import beat_init, worker_ready

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "xnai_site.settings")

app = Celery("xnai_site")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


def tell_supervisor(**_: Any) -> None:
    """Write one byte to the pipe that whoever started this process may have given it."""
    from django.conf import settings

    if settings.READY_FD >= 0:
        os.write(settings.READY_FD, b"1")


worker_ready.connect(tell_supervisor)
beat_init.connect(tell_supervisor)
