"""What operators do to cursors: move one, forget one, let an agent go on without what waits for it."""

from __future__ import annotations

from django.db import transaction

from bus import acks
from bus.acts import Operator, note
from bus.cursors import CursorState
from bus.log.current import event_log
from bus.protocol.errors import UnknownTopic


def skip_inbox(operator: Operator, agent_id: str, *, reason: str) -> CursorState:
    """Acknowledge, for an agent, all that waits in its inbox; return its cursor.

    The events stay in the log: setting the cursor back makes them wait again. An agent that is connected has
    been sent them already.

    Raises:
        UnknownTopic: nothing was ever sent to it.
    """
    topic = f"agent:{agent_id}"
    with transaction.atomic():
        before = acks.cursor_of(agent_id, topic)
        state = event_log().states([topic]).get(topic)
        if before is None or state is None:
            raise UnknownTopic(f"nothing was ever sent to {agent_id}")
        moved = acks.ack(agent_id, topic, state.last_offset, epoch=state.epoch)
        facts = {"consumer": agent_id, "from": before.offset, "to": moved.offset}
        note(operator, "bus_inbox_skipped", topic, reason=reason, **facts)
    return moved


def set_cursor(operator: Operator, consumer: str, topic: str, offset: int, *, reason: str) -> CursorState:
    """Set a cursor to an offset, forward or back; the consumer goes on reading behind it.

    Counts from the next time that the consumer connects or subscribes.

    Raises:
        UnknownTopic: there is no such topic.
        BadRequest: the offset is beyond the end, or no consumer is named so.
    """
    with transaction.atomic():
        before = acks.cursor_of(consumer, topic)
        moved = acks.place(consumer, topic, offset)
        facts = {"consumer": consumer, "from": before.offset if before else 0, "to": moved.offset}
        note(operator, "bus_cursor_set", topic, reason=reason, **facts)
    return moved


def forget_cursor(operator: Operator, consumer: str, topic: str, *, reason: str) -> None:
    """Forget a cursor, as if the consumer had never read the topic.

    Raises:
        UnknownTopic: there is no such cursor.
    """
    with transaction.atomic():
        before = acks.forget(consumer, topic)
        if before is None:
            raise UnknownTopic(f"{consumer} has no cursor in {topic}")
        note(operator, "bus_cursor_forgotten", topic, reason=reason, consumer=consumer, offset=before)
