"""The site's settings with beat's ticks a second apart, so that silence is noticed within seconds."""

from datetime import timedelta

from xnai_site.settings import *  # noqa: F403
from xnai_site.settings import CELERY_BEAT_SCHEDULE

_NAME = "bus: reap connections"
CELERY_BEAT_SCHEDULE = {**CELERY_BEAT_SCHEDULE, _NAME: {**CELERY_BEAT_SCHEDULE[_NAME], "schedule": 1.0}}
CELERY_BEAT_MAX_LOOP_INTERVAL = 1
SILENCE = timedelta(seconds=6)
