"""How far clients are behind, for the rows that a page shows: a few queries for all of them together.

The lag of a connection is what its topics hold beyond the cursors that it keeps there. Who keeps no cursor
(people, who only look on) has no lag that anybody could know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from django.urls import reverse

from bus.models import ActiveConnection, Cursor, Topic

#: Topics of one connection that are looked up: what one may be subscribed to by default.
MOST_TOPICS = 128


def add_lags(rows: Iterable[Any]) -> None:
    """Set `lag` and `lagging` (the topic that is the most of it) of connections; None without a cursor."""
    rows = list(rows)
    names = {topic for row in rows for topic in row.topics[:MOST_TOPICS]}
    held = _held({str(row) for row in rows}, names)
    for row in rows:
        lags = {name: held[str(row), name] for name in row.topics if (str(row), name) in held}
        row.lag = sum(lags.values()) if lags else None
        row.lagging = max(lags, key=lambda name: lags[name]) if lags else ""


def of_connection(row: ActiveConnection) -> list[dict[str, Any]]:
    """Return what a connection reads, each topic with its end and the cursor that it keeps there."""
    names = row.topics[:MOST_TOPICS]
    topics = {topic.name: topic for topic in Topic.objects.filter(name__in=names)}
    cursors = {
        cursor.topic.name: cursor
        for cursor in Cursor.objects.filter(consumer=str(row), topic__name__in=names).select_related("topic")
    }
    return [_read(name, topics.get(name), cursors.get(name)) for name in row.topics]


def _read(name: str, topic: Topic | None, cursor: Cursor | None) -> dict[str, Any]:
    return {
        "name": name,
        "url": "" if topic is None else reverse("admin:bus_topic_change", args=[topic.pk]),
        "last": None if topic is None else topic.last_offset,
        "cursor": None if cursor is None else cursor.offset,
        "lag": None if cursor is None or topic is None else topic.last_offset - cursor.offset,
        "acked_at": None if cursor is None else cursor.acked_at,
    }


def _held(consumers: Collection[str], topics: Collection[str]) -> dict[tuple[str, str], int]:
    found = Cursor.objects.filter(consumer__in=consumers, topic__name__in=topics)
    places = found.values_list("consumer", "topic__name", "offset", "topic__last_offset")
    return {(consumer, topic): last - offset for consumer, topic, offset, last in places}
