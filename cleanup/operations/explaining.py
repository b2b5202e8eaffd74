"""Why a file is still there, when it will go, what would stop it, and where it went: one path, explained.

The answer comes from the code that plans: the same walk, the same rules, the same verifiers, asked now.
Nothing is changed and nothing is written. A rule that compares files with one another is applied to the whole
area, which takes as long as a preview.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from django.db.models import TextField
from django.db.models.functions import Cast

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import AreaRefused, PolicyInvalid
from cleanup.engine.holds import Holds
from cleanup.engine.listing import Looker
from cleanup.engine.names import escape, is_below, unescape
from cleanup.engine.scan import stat_of
from cleanup.models import CleanupItem, Hold, ItemState, RetentionPolicy, StagedFile, StagingArea
from cleanup.models.heads import HEAD, PathHead
from cleanup.operations.areas import engine_hold, opened
from cleanup.operations.explanations import (
    Explanation,
    HoldExplained,
    PolicyExplained,
    TrashExplained,
)
from cleanup.operations.judging import Judging
from cleanup.operations.outcomes import OperationRefused
from cleanup.stores.sql import database_now

#: In these states what the row stands for can be brought back.
_RESTORABLE = (ItemState.TRASHED, ItemState.ERROR)

#: Ways through the trash that are shown, the latest first.
_SHOWN = 20

#: Of so many ways of one path the latest are picked.
_LOOKED_AT = 1_000


def explain(
    path: str, *, area: StagingArea | None = None, now: datetime | None = None, thorough: bool = True
) -> Explanation:
    """Say what is known about a path, and what every policy makes of it.

    Args:
        path: absolute, or below `area`; raw, or escaped as commands and pages show it. It need not exist.
        area: that holds it, for a path below it.
        now: the database's time unless given.
        thorough: also what takes as long as there are files, or asks others: rules that compare files with
            one another, verifiers, and the trash's bundles.

    Raises:
        OperationRefused: a relative path without an area, or one that leads out of it.
    """
    if area is None:
        place = _absolute(path)
        area = _area_of(place)
    else:
        place = os.path.join(os.fsencode(area.path), _raw(path, os.fsencode(area.path)))
    if area is None:
        note = "No area contains it: nothing here will ever touch it."
        return Explanation(path=escape(place), kind=_kind(place), notes=[note])
    below = os.path.relpath(place, os.fsencode(area.path))
    if below == b".":
        return Explanation(
            path=escape(place),
            area=area.name,
            kind=_kind(place),
            notes=["It is the area itself, which stays."],
        )
    if not is_below(below):
        raise OperationRefused(f"{path!r} does not stay below the area {area.name}")
    return _Explaining(area, below, now or database_now(), thorough=thorough).explain()


def _absolute(path: str) -> bytes:
    if not path.startswith("/"):
        raise OperationRefused(f"{path!r} is not absolute: name the area that it is in")
    return os.path.normpath(_raw(path, b"/"))


def _raw(path: str, start: bytes) -> bytes:
    """The bytes of a name that may be escaped: what exists is meant literally."""
    literal = os.fsencode(path)
    if "\\" not in path or os.path.lexists(os.path.join(start, literal)):
        return literal
    try:
        return unescape(path)
    except PolicyInvalid:
        return literal


def _area_of(place: bytes) -> StagingArea | None:
    """The innermost area that holds an absolute path."""
    holding = [
        area
        for area in StagingArea.objects.all()
        if place == os.fsencode(area.path) or place.startswith(os.fsencode(area.path).rstrip(b"/") + b"/")
    ]
    return max(holding, key=lambda area: len(area.path), default=None)


def _kind(place: bytes) -> str:
    try:
        return stat_of(os.lstat(place)).kind
    except OSError:
        return "absent"


class _Explaining:
    """Explains one path of one area."""

    def __init__(self, area: StagingArea, path: bytes, now: datetime, *, thorough: bool) -> None:
        self.area, self.path, self.now, self.thorough = area, path, now, thorough
        self.shown = escape(path)
        self.notes: list[str] = []

    def explain(self) -> Explanation:
        place = os.path.join(os.fsencode(self.area.path), self.path)
        holds = list(self.holds())
        policies = self.policies()
        kind, size = self.standing()
        return Explanation(
            path=escape(place), area=self.area.name, below=self.shown, kind=kind, size=size,
            holds=holds, policies=policies, registry=self.registry(), trash=list(self.trash()),
            notes=self.notes,
        )  # fmt: skip

    def standing(self) -> tuple[str, int]:
        """Kind and size. No link is followed on the way, so nothing is told of what lies outside."""
        try:
            with opened(self.area) as handle, Looker(handle) as looker:
                found = looker.stat(self.path)
        except AreaRefused:
            return "unknown", 0
        except OSError:
            return "absent", 0
        return found.kind, found.size

    def policies(self) -> list[PolicyExplained]:
        rows = RetentionPolicy.objects.filter(area=self.area).select_related("area")
        if not rows:
            self.notes.append("The area has no policy.")
        try:
            with opened(self.area) as handle:
                return [self.policy(row, handle) for row in rows]
        except AreaRefused as refused:
            self.notes.append(f"The area cannot be cleaned: {refused}.")
            return []

    def policy(self, row: RetentionPolicy, handle: AreaHandle) -> PolicyExplained:
        return Judging(row, self.area, handle, self.path, self.now, thorough=self.thorough).explain()

    def holds(self) -> Iterator[HoldExplained]:
        """The holds that keep it now."""
        for row in Hold.objects.filter(area=self.area, released_at__isnull=True):
            if row.until is not None and row.until <= self.now:
                continue
            if _matches(row, self.shown):
                yield HoldExplained(
                    hold=row.pk, pattern=row.shown, until=row.until, reason=row.reason,
                    created_by=row.created_by,
                )  # fmt: skip

    def registry(self) -> dict[str, Any] | None:
        found: Any = StagedFile.all_objects
        rows = found.filter(area=self.area, path=self.shown)
        # Each half has an index of its own.
        row = rows.alive().first() or rows.deleted().order_by("-deleted_at").first()
        if row is None:
            return None
        return {
            "id": str(row.pk), "task_id": row.task_id, "uploader": row.uploader, "sha256": row.sha256,
            "size": row.size, "created_at": row.created_at, "deleted_at": row.deleted_at,
        }  # fmt: skip

    def trash(self) -> Iterator[TrashExplained]:
        """Its ways through the trash, the latest first."""
        rows = CleanupItem.objects.filter(area=self.area)
        head = rows.annotate(head=PathHead("path")).filter(head=self.shown[:HEAD], path=self.shown)
        own = sorted(head[:_LOOKED_AT], key=lambda item: item.changed_at, reverse=True)[:_SHOWN]
        for item in own or (self.as_member(rows) if self.thorough else ()):
            back = item.state in _RESTORABLE and bool(item.trash_id)
            yield TrashExplained(
                item=str(item.pk), state=item.state, reason=item.reason, detail=item.detail,
                trashed_at=item.trashed_at,
                restorable_until=(item.purge_floor or item.purge_after) if back else None,
                command=f"manage.py cleanup restore --item {item.pk}" if back else "",
            )  # fmt: skip

    def as_member(self, rows: Any) -> Iterable[CleanupItem]:
        """Items that hold the path beside another: the metadata of a result, a file of a bundle."""
        found: dict[Any, CleanupItem] = {}
        text = rows.annotate(text=Cast("members", TextField()))
        for ascii_only in (True, False):  # as either database, and either encoder, may have written it
            needle = json.dumps(self.shown, ensure_ascii=ascii_only)
            for item in text.filter(text__contains=needle).order_by("-changed_at")[:_SHOWN]:
                if any(member["path"] == self.shown for member in item.members):
                    found[item.pk] = item
        return sorted(found.values(), key=lambda item: item.changed_at, reverse=True)


def _matches(row: Hold, shown: str) -> bool:
    try:
        return Holds([engine_hold(row)]).match(shown) is not None
    except PolicyInvalid:
        return True  # nobody could have saved it; in doubt it keeps everything
