"""What the bus did minute by minute: noted by a beat tick, kept for a week, drawn by the console.

A minute in which nobody noted anything (beat or the worker was down) is a gap in a series, never a zero. Two
notes of one minute are one. Events are counted by the ids of the log's rows, so a volatile log has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby, pairwise

from bus.models import ActiveConnection, BusSample, Event

#: How long samples are kept.
KEPT = timedelta(days=7)

MINUTE = timedelta(minutes=1)

#: Two samples further apart than this have a gap between them.
_APART = 3 * MINUTE

#: A moment in seconds since 1970, live connections, events a second; None: not known.
Point = tuple[int, float | None, float | None]


def note(now: datetime) -> None:
    """Note the figures of this minute, unless that was done, and forget what is too old."""
    live = ActiveConnection.objects.filter(server_instance__lease_until__gt=now).order_by()
    sample = BusSample(
        at=now.replace(second=0, microsecond=0),
        connections=live.count(),
        agents=live.exclude(agent_id="").values("agent_id").distinct().count(),
        last_event=Event.objects.order_by("-pk").values_list("pk", flat=True).first(),
    )
    BusSample.objects.bulk_create([sample], ignore_conflicts=True)
    BusSample.objects.filter(at__lt=now - KEPT).delete()


def series(now: datetime, *, back: timedelta, most: int = 300) -> list[Point]:
    """The samples of the time `back`, oldest first, at most about `most` of them: means of some minutes each.

    Gaps are points of which nothing is known.
    """
    rows = list(BusSample.objects.filter(at__gt=now - back, at__lte=now).order_by("at"))
    step = max(1, round(back / MINUTE / most)) * 60
    return [*_thinned(_points(rows), step)]


def _points(rows: Sequence[BusSample]) -> Iterator[Point]:
    if rows:
        yield int(rows[0].at.timestamp()), float(rows[0].connections), None
    for before, row in pairwise(rows):
        at, length = int(row.at.timestamp()), row.at - before.at
        if length > _APART:
            yield int(before.at.timestamp()) + 60, None, None
        yield at, float(row.connections), _rate(before, row)


def _rate(before: BusSample, row: BusSample) -> float | None:
    if before.last_event is None or row.last_event is None or row.last_event < before.last_event:
        return None
    return round((row.last_event - before.last_event) / (row.at - before.at).total_seconds(), 2)


def _thinned(points: Iterable[Point], step: int) -> Iterator[Point]:
    """Means of `step` seconds each; a gap stays one."""
    for (slot, gap), group in groupby(points, lambda point: (point[0] // step, point[1] is None)):
        found = [*group]
        at = slot * step if step > 60 else found[0][0]
        yield at, None if gap else _mean(found, 1), None if gap else _mean(found, 2)


def _mean(points: Sequence[Point], field: int) -> float | None:
    known = [value for point in points if (value := point[field]) is not None]
    return round(sum(known) / len(known), 2) if known else None
