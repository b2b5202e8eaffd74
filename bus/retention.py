"""What the log forgets, by the rules of the topics: too old, too many, ended and empty, never used.

Called by a beat tick and by `manage.py bus trim`. Only oldest events go, in bounded batches; a reader that
stood among them is told so. An ended topic of which nothing is left is removed: its name is free for a new
run. So is one that was only ever opened by readers, once none of them is there any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from bus.access.permissions import rule_of
from bus.conf import conf
from bus.log import EventLog
from bus.log.current import event_log
from bus.protocol.errors import UnknownTopic
from bus.protocol.positions import Position

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
    up_to: Position | None = None,
    by_age: bool = True,
    log: EventLog | None = None,
) -> int:
    """Trim one topic and return how many events went.

    Without figures and a position those of its rule hold, that of the age only if `by_age`; a topic whose
    rule is gone is left alone.
    """
    log = log or event_log()
    if max_age is None and max_events is None and up_to is None:
        try:
            rule = rule_of(topic)
        except UnknownTopic:
            return 0
        max_age, max_events = rule.history_age if by_age else None, rule.history_size
    trimmed = log.trim(topic, max_age=max_age, max_events=max_events, up_to=up_to)
    state = log.states([topic]).get(topic)
    if state is not None and state.ended_at is not None and state.first_offset > state.last_offset:
        log.remove(topic)
    return trimmed


def trim_all(log: EventLog | None = None, *, by_age: bool = True) -> dict[str, int]:
    """Trim every topic by its rule; return how many events went, by topic, where any did.

    Args:
        log: of which log, if not this process's own.
        by_age: False while the clock is in doubt: then only what is too much goes, not what seems too old.
    """
    log = log or event_log()
    if by_age:
        log.forget_unused(conf().unused_topic_age)
    return {topic: went for topic in all_topics(log) if (went := trim(topic, by_age=by_age, log=log))}
