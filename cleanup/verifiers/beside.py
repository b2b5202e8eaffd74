"""Looking at files beside the one in question, inside an open area and never through a link."""

from __future__ import annotations

import os
import stat

from cleanup.engine.area import AreaHandle
from cleanup.engine.names import unescape
from cleanup.engine.verify import Finding, Subject
from cleanup.verifiers.questions import says, unknown
from cleanup.verifiers.templates import Template
from cleanup.verifiers.values import MAX_DOCUMENT

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def read_beside(area: AreaHandle | None, subject: Subject, name: Template) -> bytes | Finding:
    """The content of the file `name` in the directory of `subject`, or why there is none."""
    filled = name.fill(subject)
    if filled is None:
        return unknown(name.lacking(subject))
    if area is None:
        return unknown("the area is not open")
    if "/" in filled or filled in (".", "..") or beside(subject.path, filled) == subject.path:
        return unknown(f"{filled} is no other file of the directory")
    try:
        return _read(area, unescape(beside(subject.path, filled)), filled)
    except FileNotFoundError:
        return says(False, f"{filled} is absent")
    except (OSError, ValueError) as error:
        return unknown(f"{filled}: {getattr(error, 'strerror', None) or error}")


def _read(area: AreaHandle, path: bytes, shown: str) -> bytes | Finding:
    fd = area.open(path, _FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return unknown(f"{shown} is not a regular file")
        data = os.read(fd, MAX_DOCUMENT + 1)
    finally:
        os.close(fd)
    return data if len(data) <= MAX_DOCUMENT else unknown(f"{shown} is too large")


def stat_below(area: AreaHandle, path: bytes) -> os.stat_result:
    """What stands under `path`, not following a link.

    Raises:
        OSError: nothing, or a link or a mount on the way.
    """
    folder, _, name = path.rpartition(b"/")
    fd = area.open(folder)
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    finally:
        os.close(fd)


def beside(path: str, name: str) -> str:
    """The path of `name` in the directory of `path`."""
    folder, slash, _ = path.rpartition("/")
    return f"{folder}{slash}{name}"
