"""The Celery application of the site: worker and beat.

A message is only a wake-up; the truth of a job is in its rows. So tasks are short, acknowledged late, taken one at a
time, and their results ignored (the broker redelivers late and more than once).
"""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "xnai_site.settings")

app = Celery("xnai_site")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
