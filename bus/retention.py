"""What the log forgets, by the rules of the topics: too old, too many, ended and empty.

Called by a beat tick and by `manage.py bus trim`. Only oldest events go, in bounded batches; a reader that
stood among them is told so. An ended topic of which nothing is left is removed: its name is free for a new
run.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from bus.log import EventLog
from bus.log.current import event_log
from bus.permissions import rule_of
from bus.protocol.errors import UnknownTopic

#: Names read at a time.
_PAGE = 500


def all_topics(log: EventLog | None = None) -> Iterator[str]:
    """Yield the names of all topics of the log, in order. Those made meanwhile may be missing."""
    log = log or event_log()
    after = ""
    while names := log.names(after, limit=_PAGE):
        yield from names
        after = names[-1]


def trim(
    topic: str,
    *,
    max_age: timedelta | None = None,
    max_events: int | None = None,
    log: EventLog | None = None,
) -> int:
    """Trim one topic and return how many events went.

    Without figures those of its rule hold; a topic whose rule is gone is left alone.
    """
    log = log or event_log()
    if max_age is None and max_events is None:
        try:
            rule = rule_of(topic)
        except UnknownTopic:
            return 0
        max_age, max_events = rule.history_age, rule.history_size
    trimmed = log.trim(topic, max_age=max_age, max_events=max_events)
    state = log.states([topic]).get(topic)
    if state is not None and state.ended_at is not None and state.first_offset > state.last_offset:
        log.remove(topic)
    return trimmed


def trim_all(log: EventLog | None = None) -> dict[str, int]:
    """Trim every topic by its rule; return how many events went, by topic, where any did."""
    return {topic: trimmed for topic in all_topics(log) if (trimmed := trim(topic, log=log))}
