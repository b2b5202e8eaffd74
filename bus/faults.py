"""Crash points: named places in the code at which a test can end the process.

`FAULT=log.after_insert:3:kill` in the environment of a process kills it (SIGKILL) when that place is
reached for the third time; several are separated by commas. `hang` instead of `kill` stops the process
there (SIGSTOP). The name of the point goes to standard error first, so that a log tells where it ended.
Unset, which is the rule, a point costs one look into an empty dictionary.
"""

from __future__ import annotations

import os
import signal
from threading import Lock

#: Every point of the bus, in the order of an event's and a connection's life.
POINTS = frozenset(
    {
        # An event is stored, and those who wait are told.
        "writer.taken",
        "writer.committed",
        "writer.answered",
        "publish.before_append",
        "publish.in_transaction",
        "publish.before_tell",
        "publish.after_tell",
        "log.before_insert",
        "log.after_insert",
        "log.before_commit",
        "log.after_commit",
        # It travels, and is passed on.
        "hint.before_send",
        "hint.after_send",
        "hint.heard",
        "hub.before_pass_on",
        "hub.after_pass_on",
        "hub.before_fill",
        "hub.tick",
        # A client comes, recovers, acknowledges and goes.
        "leases.before_enter",
        "leases.entered",
        "connect.entered",
        "connect.answered",
        "presence.entered",
        "hub.before_locate",
        "replay.before_read",
        "replay.after_read",
        "hub.before_release",
        "hub.before_page",
        "acks.stored",
        "acks.committed",
        "leases.beaten",
        "leases.before_leave",
        "leases.left",
        "presence.ended",
        # What is old goes, and what is dead.
        "log.after_trim",
        "log.after_remove",
        "leases.reaped",
        # A server ends.
        "shutdown.began",
        "shutdown.closed",
        "shutdown.flushed",
    }
)

#: What the names of the bus begin with: others read the same variable.
_OURS = frozenset(name.partition(".")[0] for name in POINTS)

_ACTIONS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}


def parse(text: str) -> dict[str, tuple[int, signal.Signals]]:
    """Return the points of the bus named in `text`, each with the visit that counts and the signal.

    Names that are not of the bus are left alone: others read the same variable.

    Raises:
        ValueError: one begins as ours do and is no point, or is not `name:count:action`.
    """
    points = {}
    for part in text.split(","):
        name, _, rest = part.partition(":")
        if name.partition(".")[0] not in _OURS:
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
            os.write(2, f"fault {name}\n".encode())
            os.kill(os.getpid(), action)
