"""How fast each agent, user and key may publish, over all its connections and doors together.

Every publish of a client spends one token of its owner's bucket, whichever way it came. A bucket belongs to
one process: a site of four servers lets four times as much through. Who is refused is told when to come
again; who goes on and on regardless is told so, and its connection closed. What our own code publishes is not
limited.
"""

from __future__ import annotations

import time
from threading import Lock
from typing import Any

from django.core.signals import setting_changed

from bus.access.permissions import Identity
from bus.conf import conf
from bus.protocol.errors import TooManyRequests
from bus.protocol.limits import TokenBucket

#: So many more refusals than successes, and somebody does not listen.
PATIENCE = 200
#: Publishers that a process remembers; beyond it those who have been silent for the longest are forgotten.
REMEMBERED = 10_000


class Meter:
    """A rate, and by how many more were refused than let pass: one who hurries is told, one who floods ends.

    Args:
        rate: per second.
        burst: at once.
        now: seconds of a steady clock, the same as in every later call.
    """

    __slots__ = ("_bucket", "_refused")

    def __init__(self, *, rate: float, burst: int, now: float) -> None:
        self._bucket = TokenBucket(rate=rate, burst=burst, now=now)
        self._refused = 0

    def spend(self, now: float) -> None:
        """Let one pass.

        Raises:
            TooManyRequests: not before `retry_after`; `is_stubborn` if that was said too often already.
        """
        wait = self._bucket.take(now)
        if not wait:
            self._refused = max(0, self._refused - 1)
            return
        self._refused += 1
        raise TooManyRequests(retry_after=wait, is_stubborn=self._refused > PATIENCE)


_meters: dict[str, Meter] = {}
_lock = Lock()


def spend(by: Identity, *, now: float | None = None) -> None:
    """Let one publish of `by` pass.

    Args:
        by: who publishes.
        now: seconds of a steady clock.

    Raises:
        TooManyRequests: not before `retry_after`; `is_stubborn` if that was said too often already.
    """
    if by.kind == "server":
        return
    moment = time.monotonic() if now is None else now
    with _lock:
        _meter_of(by.name, moment).spend(moment)


def _meter_of(name: str, now: float) -> Meter:
    """Return the meter of a publisher, the last in the order of the table from now on."""
    meter = _meters.pop(name, None)
    if meter is None:
        options = conf()
        meter = Meter(rate=options.publish_rate, burst=options.publish_burst, now=now)
        if len(_meters) >= REMEMBERED:
            del _meters[next(iter(_meters))]
    _meters[name] = meter
    return meter


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "BUS":
        with _lock:
            _meters.clear()


setting_changed.connect(_forget)
