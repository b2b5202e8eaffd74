"""What every area holds, measured in the background for pages that may neither walk a tree nor sum a trash.

    measure_due     called each minute by a worker: what has changed or is old, for a few seconds
    measure_trash   one area's trash: files, bytes, and on which days they may be purged
    measure_area    one area: a walk, its holds, and what its policies would trash
    holdings        what pages read; a small trash is summed on the spot, so that it is never out of date

Measuring reads alone, waits for no lock, gives way to a run of its area, and takes at most about a twentieth
of the time. Verifiers are not asked: `eligible` is what the rules choose, of which a verifier may keep some.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
from django.db.models import CharField, Count, Sum
from django.db.models.functions import Substr, TruncMinute
from django.utils import timezone

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import EngineError, PolicyInvalid
from cleanup.engine.holds import Holds
from cleanup.engine.names import escape
from cleanup.engine.packing import Counting, Tally
from cleanup.engine.plan import PlanItem
from cleanup.engine.scan import walk
from cleanup.models import AreaUsage, AuditHead, CleanupItem, ItemState, Mode, RetentionPolicy, StagingArea
from cleanup.operations.areas import active_holds, opened
from cleanup.operations.planning import make_plan
from cleanup.operations.policies import engine_policy
from cleanup.operations.runs import working_runs
from cleanup.stores.sql import chunks, database_now, is_postgresql

#: Up to so many files in the trash are summed while a page is made: some 50 ms.
SMALL = 20_000

#: Measuring takes a twentieth of the time at most.
_SHARE = 20

#: An area whose walk takes less than `_QUICK` seconds is measured each minute, any other every ten.
_MINUTE, _SELDOM, _QUICK = timedelta(minutes=1), timedelta(minutes=10), 1.0

#: A walk that takes longer is given up: the area is too big to be measured on the side.
LIMIT = timedelta(seconds=20)

#: Files between two looks at the clock, and seconds between two looks for a run.
_STRIDE, _LOOK = 1_000, 2.0

Purges = dict[str, list[int]]


class _GivesWay(Exception):
    """Measuring stops: somebody works in the area, or it takes too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What an area holds, as far as it is known."""

    area: StagingArea
    trash_files: int = 0
    trash_bytes: int = 0
    #: When the trash was summed; None: at this moment.
    trash_at: datetime | None = None
    #: Day, in the zone of the site -> files and bytes that may be purged from then on.
    purges: dict[date, tuple[int, int]] = field(default_factory=dict)
    #: What a walk has found; None: it was not measured yet.
    measured: AreaUsage | None = None


# Reading ----------------------------------------------------------------------------------------------------


def holdings(areas: Sequence[StagingArea]) -> list[Holding]:
    """What each area holds: the trash of this moment if it is small, else as it was summed last."""
    kept = {row.area_id: row for row in AreaUsage.objects.filter(area__in=areas)}
    sums = _sums() if is_small() else None
    return [_holding(area, kept.get(area.pk), sums) for area in areas]


def is_small() -> bool:
    """Whether all that lies in the trash can be summed while somebody waits; costs the same however much."""
    some = CleanupItem.objects.filter(state=ItemState.TRASHED).order_by().values("pk")[: SMALL + 1]
    return some.count() <= SMALL


def _holding(area: StagingArea, row: AreaUsage | None, sums: dict[int, Purges] | None) -> Holding:
    at = None if sums is not None else (row.trash_at if row else None)
    purges = sums.get(area.pk, {}) if sums is not None else (row.purges if row else {})
    return Holding(
        area=area,
        trash_files=sum(files for files, _ in purges.values()),
        trash_bytes=sum(size for _, size in purges.values()),
        trash_at=at,
        purges={date.fromisoformat(day): (files, size) for day, (files, size) in purges.items()},
        measured=row if row is not None and row.measured_at is not None else None,
    )


# The trash --------------------------------------------------------------------------------------------------


def measure_trash(area: StagingArea, *, now: datetime) -> AreaUsage:
    """Sum up one area's trash, and keep it."""
    began, seq = time.monotonic(), _seq()
    purges = _sums(area).get(area.pk, {})
    row, _ = AreaUsage.objects.update_or_create(
        area=area,
        defaults={
            "trash_at": now, "trash_seq": seq, "trash_seconds": time.monotonic() - began, "purges": purges,
            "trash_files": sum(files for files, _ in purges.values()),
            "trash_bytes": sum(size for _, size in purges.values()),
        },
    )  # fmt: skip
    return row


def _sums(area: StagingArea | None = None) -> dict[int, Purges]:
    """The trash of one area, or of each, by the days on which it may be purged.

    Grouped by the minute in SQL, whose functions of days are slow on SQLite, and by the day here.
    """
    rows: Any = CleanupItem.objects.filter(state=ItemState.TRASHED, purge_after__isnull=False).order_by()
    rows = rows if area is None else rows.filter(area=area)
    minute: Any = TruncMinute("purge_after", tzinfo=UTC)
    if not is_postgresql():
        minute = Substr("purge_after", 1, 16, output_field=CharField())
    found: dict[int, Purges] = {}
    day = _days()
    for row in rows.values("area", minute=minute).annotate(files=Count("pk"), total=Sum("size")):
        sums = found.setdefault(row["area"], {}).setdefault(day(row["minute"]), [0, 0])
        sums[0], sums[1] = sums[0] + row["files"], sums[1] + row["total"]
    return found


def _days() -> Callable[[datetime | str], str]:
    """Return what tells the day of a moment of UTC in the zone of the site.

    It remembers quarters of an hour, by which all zones differ: of ten thousand minutes few are worked out.
    """
    known: dict[datetime, str] = {}

    def day(at: datetime | str) -> str:
        moment = at if isinstance(at, datetime) else datetime.fromisoformat(at).replace(tzinfo=UTC)
        quarter = moment.replace(minute=moment.minute // 15 * 15)
        if quarter not in known:
            known[quarter] = timezone.localdate(quarter).isoformat()
        return known[quarter]

    return day


def _seq() -> int:
    """How far the audit is: whatever changes the trash writes an entry."""
    return AuditHead.objects.values_list("seq", flat=True).first() or 0


# An area ----------------------------------------------------------------------------------------------------


def measure_area(area: StagingArea, *, now: datetime, limit: timedelta = LIMIT) -> AreaUsage:
    """Count what an area holds, and keep it; if that is not possible, keep why and the figures of last time.

    Args:
        area: of which nothing is changed.
        now: by which ages are judged.
        limit: a walk that takes longer is given up.
    """
    row, _ = AreaUsage.objects.get_or_create(area=area)
    began = time.monotonic()
    try:
        with opened(area) as handle:
            figures = _count(area, handle, now, _watch(area, began + limit.total_seconds()))
    except (_GivesWay, EngineError, OSError) as trouble:
        row.message = str(trouble)[:300]
    else:
        row.message, row.measured_at = "", now
        for name, value in figures.items():
            setattr(row, name, value)
    row.tried_at, row.seconds = now, time.monotonic() - began
    row.save(update_fields=["message", "tried_at", "measured_at", "seconds", *_FIGURES])
    return row


_FIGURES = ("live_files", "live_bytes", "held_files", "held_bytes", "eligible_files", "eligible_bytes")

Watch = Callable[[int], None]


def _watch(area: StagingArea, deadline: float) -> Watch:
    """Return what is called now and then, and raises when measuring has to stop."""
    looked = 0.0

    def watch(_: int) -> None:
        nonlocal looked
        now = time.monotonic()
        if now >= deadline:
            raise _GivesWay("too big to be measured on the side: a dry run of a policy says what there is")
        if now - looked >= _LOOK:
            looked = now
            if is_at_work(area):
                raise _GivesWay("not measured while a run is at work here")

    return watch


def is_at_work(area: StagingArea) -> bool:
    """Whether a run has something to do in the area, which measuring would slow down."""
    return any(run.area_id == area.pk for run in working_runs())


def _count(area: StagingArea, handle: AreaHandle, now: datetime, watch: Watch) -> dict[str, int]:
    live, held = [0, 0], [0, 0]
    holds = _holds(area, now)
    for number, candidate in enumerate(walk(handle, on_skip=lambda *_: None)):
        if number % _STRIDE == 0:
            watch(number)
        size = candidate.stat.size
        live[0], live[1] = live[0] + 1, live[1] + size
        if holds is not None and holds.match(escape(candidate.path)) is not None:
            held[0], held[1] = held[0] + 1, held[1] + size
    eligible = _eligible(area, handle, now, watch)
    return dict(zip(_FIGURES, (*live, *held, *eligible), strict=True))


def _holds(area: StagingArea, now: datetime) -> Holds | None:
    """The holds of the area, None if there is none; one that nobody understands keeps everything."""
    found = active_holds(area.pk, now=now)
    if not found:
        return None
    try:
        return Holds(found)
    except PolicyInvalid:
        return Holds([msgspec.structs.replace(found[0], pattern="**")])


def _eligible(area: StagingArea, handle: AreaHandle, now: datetime, watch: Watch) -> tuple[int, int]:
    """Files and bytes that at least one policy chooses, those that only report among them."""
    policies = [*RetentionPolicy.objects.filter(area=area).exclude(mode=Mode.OFF)]
    union = _Union(alone=len(policies) < 2)
    for policy in policies:
        try:
            bare = msgspec.structs.replace(engine_policy(policy), verifiers=())
        except PolicyInvalid:
            continue  # it chooses nothing, and every run says why
        make_plan(bare, handle, area.pk, now=now, policy_id=None, beat=watch, store=union)
    return union.files, union.bytes


class _Union:
    """Takes the items of several plans, and counts what several choose once."""

    def __init__(self, *, alone: bool) -> None:
        """Take whether there is one plan only, of which nothing has to be remembered."""
        self.files = self.bytes = 0
        # Hashes, not names: of a million files some 60 MB.
        self._seen: set[int] | None = None if alone else set()

    def __call__(self, items: Iterable[PlanItem]) -> Tally:
        counting = Counting()
        for batch in chunks(items):
            counting.add(batch)
            for item in batch:
                self._take(item)
        return counting.tally()

    def _take(self, item: PlanItem) -> None:
        for member in item.members:
            key = hash((member.device, member.inode))
            if self._seen is not None:
                if key in self._seen:
                    continue
                self._seen.add(key)
            self.files, self.bytes = self.files + 1, self.bytes + member.size


# By the clock -----------------------------------------------------------------------------------------------


def measure_due(now: datetime | None = None, *, limit: timedelta = LIMIT) -> list[AreaUsage]:
    """Measure what is due, the longest unmeasured first, for about `limit` in all; return what was measured.

    The trash of an area is summed only if the audit has gone on since, and while all of it is small not at
    all. Two at once do the same work twice and no harm.
    """
    now = now or database_now()
    until = time.monotonic() + limit.total_seconds()
    areas = {area.pk: area for area in StagingArea.objects.filter(enabled=True)}
    kept = {row.area_id: row for row in AreaUsage.objects.filter(area__in=areas)}
    done = [] if is_small() else [measure_trash(areas[key], now=now) for key in _trash_due(areas, kept, now)]
    for key in sorted(areas, key=lambda key: _oldest(kept.get(key))):
        left = timedelta(seconds=until - time.monotonic())
        if left <= timedelta(0):
            break
        if _is_due(kept.get(key), now) and not is_at_work(areas[key]):
            done.append(measure_area(areas[key], now=now, limit=left))
    return done


def _oldest(row: AreaUsage | None) -> float:
    return row.tried_at.timestamp() if row is not None and row.tried_at is not None else 0.0


def _trash_due(areas: Iterable[int], kept: dict[int, AreaUsage], now: datetime) -> list[int]:
    seq = _seq()
    return [
        key
        for key in areas
        if (row := kept.get(key)) is None
        or row.trash_at is None
        or (row.trash_seq != seq and _is_over(row.trash_at, row.trash_seconds, _MINUTE, now))
    ]


def _is_due(row: AreaUsage | None, now: datetime) -> bool:
    if row is None or row.tried_at is None:
        return True
    return _is_over(row.tried_at, row.seconds, _MINUTE if row.seconds < _QUICK else _SELDOM, now)


def _is_over(at: datetime, seconds: float, pause: timedelta, now: datetime) -> bool:
    """Whether it was long enough ago; after a clock that was ahead it was, too."""
    # A tick comes up to a few seconds early.
    wait = max(pause - timedelta(seconds=5), timedelta(seconds=_SHARE * seconds))
    return abs(now - at) >= wait
