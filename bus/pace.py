"""Where in a topic a moment lies, and so how fast events come: answered by the index of the offsets.

Times grow with the offsets of a topic, so the first event of a moment is found by halving. It is done for
many topics at once: a page of a list costs as many small queries as one topic does, however long they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.db import connection

from bus.log.dialect import dialect_of
from bus.models import Topic

_TIMES = 'SELECT topic_id, created_at FROM bus_event WHERE (topic_id, "offset") IN (VALUES {marks})'


def offsets_at(topics: Sequence[Topic], moment: datetime) -> dict[int, int]:
    """Return by topic id the last offset that was stored before `moment`; of what is kept, if anything was.

    What lies before the oldest event that is kept counts as stored before any moment.
    """
    bounds = {row.pk: (row.first_offset, row.last_offset + 1) for row in topics}
    for row in topics:
        if row.updated_at < moment:
            bounds[row.pk] = (row.last_offset + 1, row.last_offset + 1)
    while places := {pk: (low + high) // 2 for pk, (low, high) in bounds.items() if low < high}:
        times = _times(places)
        for pk, middle in places.items():
            low, high = bounds[pk]
            # An event that was trimmed meanwhile was before whatever is kept.
            is_before = pk not in times or times[pk] < moment
            bounds[pk] = (middle + 1, high) if is_before else (low, middle)
    return {pk: low - 1 for pk, (low, _) in bounds.items()}


def published_since(topics: Sequence[Topic], moment: datetime) -> dict[int, int]:
    """Return by topic id how many events came since `moment`, as far as they are kept."""
    before = offsets_at(topics, moment)
    return {row.pk: row.last_offset - before[row.pk] for row in topics}


def _times(places: dict[int, int]) -> dict[int, datetime]:
    marks = ", ".join(["(%s, %s)"] * len(places))
    from_column = dialect_of(connection).from_column
    with connection.cursor() as cursor:
        cursor.execute(_TIMES.format(marks=marks), [value for pair in places.items() for value in pair])
        return {topic_id: from_column(at) for topic_id, at in cursor.fetchall()}
