"""Crash points: named places in the code at which a test can end the process.

`FAULT=log.after_insert:3:kill` in the environment of a process kills it (SIGKILL) when that place is
reached for the third time; several are separated by commas. `hang` instead of `kill` stops the process
there (SIGSTOP). Unset, which is the rule, a point costs one look into an empty dictionary.
"""

from __future__ import annotations

import os
import signal
from threading import Lock

#: Every point of the bus.
POINTS = frozenset(
    {"log.before_insert", "log.after_insert", "log.before_commit", "log.after_commit", "log.after_trim"}
)

_ACTIONS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}


def parse(text: str) -> dict[str, tuple[int, signal.Signals]]:
    """Return the points of the bus named in `text`, each with the visit that counts and the signal.

    Names that are not of the bus are left alone: others read the same variable.

    Raises:
        ValueError: one begins with `log.` and is no point, or is not `name:count:action`.
    """
    points = {}
    for part in text.split(","):
        name, _, rest = part.partition(":")
        if not name.startswith("log."):
            continue
        count, _, action = rest.partition(":")
        if name not in POINTS or not count.isdigit() or action not in _ACTIONS:
            raise ValueError(f"FAULT={part!r} is not name:count:kill or name:count:hang")
        points[name] = (int(count), _ACTIONS[action])
    return points


_armed = parse(os.environ.get("FAULT", ""))
_visits: dict[str, int] = {}
_lock = Lock()


def fault(name: str) -> None:
    """Mark a place. Does nothing unless this very visit was asked for."""
    if name not in _armed:
        return
    with _lock:
        _visits[name] = _visits.get(name, 0) + 1
        count, action = _armed[name]
        if _visits[name] == count:
            os.kill(os.getpid(), action)
