"""The site's settings with the pauses of the pipeline made short, so that its waits end within a test."""

from datetime import timedelta

from xnai_site.settings import *  # noqa: F403
from xnai_site.settings import CELERY_BEAT_SCHEDULE, CLEANUP

_NAME = "cleanup: tick"
CELERY_BEAT_SCHEDULE = {**CELERY_BEAT_SCHEDULE, _NAME: {**CELERY_BEAT_SCHEDULE[_NAME], "schedule": 1.0}}
CELERY_BEAT_MAX_LOOP_INTERVAL = 1
CLEANUP = {**CLEANUP, "PIPELINE_PAUSE": timedelta(seconds=1)}
