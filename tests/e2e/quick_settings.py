"""The site's settings with the waits of the bus made short, so that their ends can be seen in a test."""

from datetime import timedelta

from xnai_site.settings import *  # noqa: F403
from xnai_site.settings import BUS

BUS = {
    **BUS,
    "PING_INTERVAL": timedelta(seconds=2),
    "PONG_TIMEOUT": timedelta(seconds=8),
    # Long enough for an SDK on a busy machine to refresh a token, and to come back to a room.
    "EXPIRY_GRACE": timedelta(seconds=3),
    "TOKEN_LEEWAY": timedelta(milliseconds=1),
    "PRESENCE_GRACE": timedelta(seconds=6),
    "TASK_LINGER": timedelta(seconds=2),
    "REPLAY_PAGE": 100,
}
