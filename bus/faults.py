"""Crash points: named places in the code at which a test can end the process.

`FAULT=log.after_insert:3:kill` in the environment of a process kills it (SIGKILL) when that place is
reached for the third time; several are separated by commas. `hang` instead of `kill` stops the process
there (SIGSTOP). Unset, which is the rule, a point costs one look into an empty dictionary.
"""

from __future__ import annotations

import os
import signal
from threading import Lock

_ACTIONS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}


def parse(text: str) -> dict[str, tuple[int, signal.Signals]]:
    """Return the points named in `text`, each with the visit that counts and the signal.

    Raises:
        ValueError: the text is not `name:count:action[,...]`.
    """
    points = {}
    for part in filter(None, text.split(",")):
        try:
            name, count, action = part.split(":")
            points[name] = (int(count), _ACTIONS[action])
        except (ValueError, KeyError):
            raise ValueError(f"FAULT={part!r} is not name:count:kill or name:count:hang") from None
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
