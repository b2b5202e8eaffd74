"""The site's settings with the pauses of the pipeline made short, so that its waits end within a test."""

from datetime import timedelta

from xnai_site.settings import *  # noqa: F403
from xnai_site.settings import CELERY_BEAT_SCHEDULE, CLEANUP

_EVERY_SECOND = ("cleanup: tick", "cleanup: pipeline")
CELERY_BEAT_SCHEDULE = {
    **CELERY_BEAT_SCHEDULE,
    **{name: {**CELERY_BEAT_SCHEDULE[name], "schedule": 1.0} for name in _EVERY_SECOND},
}
CELERY_BEAT_MAX_LOOP_INTERVAL = 1
CLEANUP = {**CLEANUP, "PIPELINE_PAUSE": timedelta(seconds=1)}
