"""Crash points: places where a test may make this process die or its disk fail.

Every step that changes the disk is bracketed by `crash_point`. Nothing happens unless the environment arms
one point before the process starts: ``FAULT=trash.after_rename:3:kill`` sends SIGKILL at the third pass,
``stop`` freezes the process there until it is told to go on, and an errno name raises that OSError
(``FAULT=trash.before_manifest:1:ENOSPC``). ``*`` counts every point, so that ``FAULT=*:17:kill`` kills at the
seventeenth step whichever it is. An armed name that is not of this library is left alone: other libraries
read the same variable.
"""

import errno
import os
import signal

#: Every point of the engine, in the order of a file's life.
POINTS = frozenset(
    {
        "area.before_marker",
        "area.after_marker",
        "audit.before_append",
        "audit.after_append",
        "trash.before_mkdir",
        "trash.before_manifest",
        "trash.after_manifest",
        "trash.after_prepare",
        "trash.before_rename",
        "trash.after_rename",
        "trash.before_put_back",
        "trash.after_put_back",
        "trash.before_fsync",
        "trash.after_fsync",
        "restore.before_mkdir",
        "restore.before_rename",
        "restore.after_rename",
        "restore.before_fsync",
        "restore.after_fsync",
        "purge.before_unlink",
        "purge.after_unlink",
        "purge.before_fsync",
        "purge.after_fsync",
        "purge.before_manifest",
        "purge.after_manifest",
    }
)

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Armed:
    """One armed fault and how many passes it still waits for."""

    def __init__(self, spec: str) -> None:
        name, _, rest = spec.partition(":")
        count, _, action = rest.partition(":")
        if not count.isdigit() or int(count) < 1 or not (action in _SIGNALS or hasattr(errno, action)):
            raise ValueError(f"FAULT is name:n:kill, name:n:stop or name:n:ERRNO, not {spec!r}")
        self.name, self.left, self.action = name, int(count), action

    def passed(self, name: str) -> None:
        if self.name not in (name, "*"):
            return
        self.left -= 1
        if self.left:
            return
        if self.action in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[self.action])
            return
        number: int = getattr(errno, self.action)
        raise OSError(number, f"{os.strerror(number)} (injected at {name})")


def _first_of_ours(text: str) -> Armed | None:
    """Arm the first fault of this library in `text`, which separates those of all libraries by commas."""
    for spec in filter(None, text.split(",")):
        name = spec.partition(":")[0]
        if name == "*" or name in POINTS:
            return Armed(spec)
    return None


_armed = _first_of_ours(os.environ.get("FAULT", ""))


def crash_point(name: str) -> None:
    """Die or fail here if `name` is armed; else cost one comparison."""
    if _armed is not None:
        _armed.passed(name)
