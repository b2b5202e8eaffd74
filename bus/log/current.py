"""The event log of this process: the database, or memory where `BUS["VOLATILE"]` says so."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from django.core.signals import setting_changed

from bus.conf import conf
from bus.log import EventLog
from bus.log.database import DatabaseEventLog
from bus.log.memory import MemoryEventLog


@lru_cache(maxsize=1)
def event_log() -> EventLog:
    """Return the log. Always the same one, until the setting changes."""
    return MemoryEventLog() if conf().volatile else DatabaseEventLog()


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "BUS":
        event_log.cache_clear()


setting_changed.connect(_forget)
