"""Asks for what a file became: the same path with another suffix, or in another area, or both.

An extracted file may go when its distilled one is there: a regular file, not empty, and not older. No such
file, an empty or an older one is FAIL. A link or anything else in its place, or an area that cannot be
opened, is UNKNOWN.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from cleanup.conf import conf
from cleanup.engine.area import AreaHandle, open_area
from cleanup.engine.errors import AreaRefused
from cleanup.engine.names import unescape
from cleanup.engine.verify import Deadline, Finding, Subject
from cleanup.models import StagingArea
from cleanup.verifiers.beside import beside, stat_below
from cleanup.verifiers.kinds import Kind, Option, Options, Surroundings
from cleanup.verifiers.questions import answer_all, says, unknown
from cleanup.verifiers.templates import placeholders_of, stem_of


class Sibling:
    """A `Verifier` over files of the same name."""

    def __init__(self, name: str, options: Options, surroundings: Surroundings) -> None:
        """Keep the options and the area."""
        self.name, self.here = name, surroundings.area
        self.suffix, self.area = options["suffix"], options["area"]

    def verify(self, items: Sequence[Subject], deadline: Deadline) -> list[Finding]:
        """Answer about each of `items`."""
        return answer_all(items, lambda subject: subject, lambda subjects: self._look(subjects, deadline))

    def _look(self, subjects: Sequence[Subject], deadline: Deadline) -> Iterator[Finding]:
        with ExitStack() as stack:
            area = stack.enter_context(_opened(self.area)) if self.area else self.here
            if area is None:
                raise AreaRefused("not_open", "the area is not open")
            for subject in subjects:
                deadline.left()
                yield self._compare(area, subject)

    def _compare(self, area: AreaHandle, subject: Subject) -> Finding:
        path = self._path(subject)
        if subject.mtime_ns is None:
            return unknown("it is not known when the file was changed")
        if path == subject.path and area is self.here:
            return unknown(f"{path} is the file itself")
        try:
            found = stat_below(area, unescape(path))
        except FileNotFoundError:
            return says(False, f"{path} is absent")
        except (OSError, ValueError) as error:
            return unknown(f"{path}: {getattr(error, 'strerror', None) or error}")
        return _judge(found, subject.mtime_ns, path)

    def _path(self, subject: Subject) -> str:
        if not self.suffix:
            return subject.path
        return beside(subject.path, stem_of(subject.path) + self.suffix)


def _judge(found: os.stat_result, mtime_ns: int, path: str) -> Finding:
    if not stat.S_ISREG(found.st_mode):
        return unknown(f"{path} is not a regular file")
    if not found.st_size:
        return says(False, f"{path} is empty")
    if found.st_mtime_ns < mtime_ns:
        return says(False, f"{path} is older")
    return says(True, f"{path} is there")


def _opened(name: str) -> AreaHandle:
    area = StagingArea.objects.filter(name=name).first()
    if area is None:
        raise AreaRefused("unknown", f"there is no area {name!r}")
    device = int(area.device) if area.device else None
    return open_area(area.path, uuid=area.uuid, device=device, forbidden=conf().forbidden_paths)


def _check(options: Options) -> str | None:
    if not options["suffix"] and not options["area"]:
        return "it needs another suffix, another area or both"
    if "/" in options["suffix"]:
        return "a suffix has no slash"
    if options["area"] and not StagingArea.objects.filter(name=options["area"]).exists():
        return f"there is no area {options['area']!r}"
    return None


KIND = Kind(
    summary="the same path with another suffix or in another area is a file: not empty, not older",
    options={
        "suffix": Option(meaning="in place of the last suffix, such as .distilled.json"),
        "area": Option(meaning="name of the registered area to look in; empty = the same"),
    },
    check=_check,
    make=Sibling,
    placeholders=placeholders_of(),
)
