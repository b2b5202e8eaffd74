"""What stands in the way of cleaning an area, in words, and what to do about it.

The same opening as a run's, so a page never says that all is well where a run would be refused. It reads a
directory and a marker, however many files there are.
"""

from __future__ import annotations

from dataclasses import dataclass

from cleanup.engine.errors import AreaRefused
from cleanup.models import StagingArea
from cleanup.operations.areas import opened

#: What to do, by the code of the refusal.
_REMEDIES = {
    "marker_missing": "Mount its disk. If somebody removed the file .staging-area, put it back from a "
    "backup, or disable the area, remove it and add it again.",
    "marker_invalid": "Put its file .staging-area back from a backup.",
    "other_area": "Another area's directory lies at this path: put the right one there, or Move the area.",
    "other_device": "Mount the disk that was registered. If the directory was moved to another on purpose, "
    "use Move with its path.",
    "missing": "Mount its disk, or bring the directory back. If it was moved, use Move with its new path.",
    "unreadable": "Let the user of the worker read and write the directory.",
    "symlink": "An area is a directory itself: use Move with the path that the link points to.",
    "not_a_directory": "Something else has taken its name: put the directory back.",
    "mount_below": "Unmount what is mounted below it, or make that an area of its own elsewhere.",
    "forbidden": "CLEANUP['FORBIDDEN_PATHS'] names it: take it off that list, or remove the area.",
}
_ANY = "Nothing in it is touched until that is mended."


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why no run can start in an area."""

    code: str
    #: One sentence each, for people.
    what: str
    remedy: str


def trouble_of(area: StagingArea) -> Trouble | None:
    """Why a run of the area would be refused now; None if it would not."""
    try:
        opened(area).close()
    except AreaRefused as refused:
        return Trouble(code=refused.reason, what=str(refused), remedy=_REMEDIES.get(refused.reason, _ANY))
    except OSError as error:
        return Trouble(code="unreadable", what=str(error), remedy=_REMEDIES["unreadable"])
    return None
