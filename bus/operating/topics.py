"""What operators do to topics: publish by hand, forget, send again, end."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction

from bus import publishing, retention, runs
from bus.acts import Operator, note
from bus.log import Appended, Page, TopicState
from bus.log.current import event_log
from bus.protocol.errors import BadRequest, UnknownTopic, UnrecoverablePosition
from bus.protocol.limits import strict_json
from bus.protocol.positions import Position
from bus.protocol.topics import check_topic, is_agent_id

#: Events that are sent again at once: one transaction, and less than an inbox keeps.
MOST_REPLAYED = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Copies in an inbox."""

    inbox: str
    count: int
    #: Offsets of the first and last copy; 0 where there is none.
    first: int
    last: int


def publish(
    operator: Operator,
    topic: str,
    event_type: str,
    data: Any,
    *,
    key: str | None = None,
    run_id: str | None = None,
    reason: str = "",
) -> Appended:
    """Publish one event as the operator, by the rule of the topic. Raises what `publishing.publish` does."""
    with transaction.atomic():
        place = publishing.publish(topic, event_type, data, key, run_id=run_id, by=operator.identity)
        note(
            operator,
            "bus_published",
            topic,
            reason=reason,
            event_type=event_type,
            offset=place.offset,
            duplicate=place.duplicate,
        )
    return place


def trim(
    operator: Operator,
    topic: str,
    *,
    up_to: int | None = None,
    max_age: timedelta | None = None,
    max_events: int | None = None,
    reason: str = "",
) -> int:
    """Forget a topic's events up to an offset, or those that are older or too many; return how many went.

    A reader that stands among them is told that it cannot go on from there.

    Raises:
        UnknownTopic: there is none.
        BadRequest: nothing is said, or an offset beside something else, or the offset is beyond the end.
    """
    state = _state(topic)
    if (up_to is None) == (max_age is None and max_events is None):
        raise BadRequest("say up to which offset, or else which age or number")
    if up_to is not None and not 0 < up_to <= state.last_offset:
        raise BadRequest(f"the offset must lie between 1 and {state.last_offset}")
    place = None if up_to is None else Position(epoch=state.epoch, offset=up_to)
    age = None if max_age is None else int(max_age.total_seconds())
    # Before: forgetting goes by batches, each a transaction of its own, and may be interrupted between them.
    note(
        operator, "bus_trimmed", topic, reason=reason, first=state.first_offset, up_to=up_to,
        older_than_s=age, kept=max_events,
    )  # fmt: skip
    return retention.trim(topic, max_age=max_age, max_events=max_events, up_to=place)


def trim_by_rules(operator: Operator, topic: str | None = None, *, reason: str = "") -> dict[str, int]:
    """Forget now what the rules of the topics let go, of one topic or of all; return how many went, by topic.

    Of all topics only those from which something went are named.

    Raises:
        UnknownTopic: there is no such topic.
    """
    if topic is not None:
        _state(topic)
    note(operator, "bus_trimmed", topic or "*", reason=reason, by_rules=True)
    return retention.trim_all() if topic is None else {topic: retention.trim(topic)}


def replay(operator: Operator, topic: str, first: int, last: int, agent_id: str, *, reason: str) -> Replayed:
    """Put copies of a range of events into an agent's inbox, in their order: all of them, or none.

    The bus never makes a reader hear an offset twice; so what is sent again are new events of the inbox with
    the same content, and tags that say which event each repeats. The agent gets them wherever it is, and
    later if it is away.

    Raises:
        UnknownTopic: there is no such topic.
        UnrecoverablePosition: some of the range is no longer kept.
        BadRequest: no reason, no agent, or a range that cannot be.
        BusError: as `bus.publishing.publish`.
    """
    if not reason.strip():
        raise BadRequest("say why: the agent gets these events a second time")
    if not is_agent_id(agent_id):
        raise BadRequest(f"not an agent id: {agent_id[:40]!r}")
    page = _range(topic, first, last)
    inbox, nonce = f"agent:{agent_id}", secrets.token_hex(4)
    with transaction.atomic():
        places = [
            publishing.publish_verbatim(
                inbox,
                strict_json(event.payload),
                f"replay:{nonce}:{event.offset}",
                by=operator.identity,
                tags={"replay_of": f"{topic}#{event.offset}", "replay_epoch": page.epoch},
            )
            for event in page.events
        ]
        note(
            operator,
            "bus_replayed",
            topic,
            reason=reason,
            to=inbox,
            first=first,
            last=last,
            events=len(places),
        )
    return Replayed(inbox=inbox, count=len(places), first=places[0].offset, last=places[-1].offset)


def _range(topic: str, first: int, last: int) -> Page:
    state = _state(topic)
    if not 0 < first <= last <= state.last_offset:
        raise BadRequest(f"a range lies between 1 and {state.last_offset}, the first not behind the last")
    if last - first >= MOST_REPLAYED:
        raise BadRequest(f"at most {MOST_REPLAYED:,} events are sent again at once")
    since = Position(epoch=state.epoch, offset=first - 1)
    page = event_log().read(topic, since, limit=last - first + 1)
    if not page.events or page.events[0].offset != first or page.epoch != state.epoch:
        raise UnrecoverablePosition(f"{topic}: kept are {page.first_offset:,} to {page.last_offset:,}")
    return page


def end_topic(operator: Operator, topic: str, status: str = "failed", *, reason: str = "") -> Appended:
    """Publish the final event of a topic and end it, and with it the job that it is about.

    A worker that still holds the job is refused its next word and gives up.

    Raises:
        UnknownTopic: there is none.
        TopicEnded: it has ended.
        BusError: as `bus.publishing.end`.
    """
    _state(topic)
    words = f"ended by {operator.name}: {reason}" if reason else f"ended by {operator.name}"
    said = {"status": status, "message": words, "by_hand": True}
    with transaction.atomic():
        place = publishing.end(topic, status, said, run_id=topic.removeprefix("task:"), by=operator.identity)
        runs.forget(topic)
        note(operator, "bus_ended", topic, reason=reason, status=status, offset=place.offset)
    return place


def _state(topic: str) -> TopicState:
    state = event_log().states([check_topic(topic)]).get(topic)
    if state is None:
        raise UnknownTopic(f"there is no topic {topic}")
    return state
