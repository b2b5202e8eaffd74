"""The site's settings with small batches, ticks a second apart, and a lease as long as a test says."""

import os
from datetime import timedelta

from xnai_site.settings import *  # noqa: F403
from xnai_site.settings import CELERY_BEAT_SCHEDULE, CLEANUP

_LEASE = float(os.environ.get("TEST_RUN_LEASE", "60"))
_TICK = {**CELERY_BEAT_SCHEDULE["cleanup: tick"], "schedule": 1.0, "options": {"expires": 5}}
CELERY_BEAT_SCHEDULE = {**CELERY_BEAT_SCHEDULE, "cleanup: tick": _TICK}
CELERY_BEAT_MAX_LOOP_INTERVAL = 1
CLEANUP = {
    **CLEANUP,
    "BATCH_SIZE": 50,
    "SLICE_LENGTH": timedelta(seconds=1),
    "RUN_LEASE": timedelta(seconds=_LEASE),
    # Below the lease, however short it is.
    "VERIFIER_TIMEOUT": timedelta(seconds=_LEASE / 3),
    "VERIFIER_BATCH_TIMEOUT": timedelta(seconds=_LEASE * 2 / 3),
}
