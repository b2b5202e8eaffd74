"""Which place each event of one append takes. Pure: rows come in, rows and answers go out.

Called while the topics are locked; it decides about repetitions, ended topics and new beginnings one event
after the other, as if each had come alone, so that a batch is never judged otherwise than its events.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from msgspec import structs

from bus.log import Appended, NewEvent, event_id
from bus.protocol.errors import BusError, TopicEnded


def new_epoch() -> str:
    """Draw an epoch: 64 random bits, so none is ever seen twice."""
    return secrets.token_hex(8)


@dataclass(slots=True, kw_only=True)
class TopicRow:
    """A locked topic, as it was read and as it will be written."""

    id: int
    name: str
    epoch: str
    first_offset: int
    last_offset: int
    ended_at: datetime | None
    end_status: str
    #: Its former events are to be deleted.
    restarted: bool = False
    #: Offset and event, to be inserted.
    rows: list[tuple[int, NewEvent]] = field(default_factory=list)

    def restart(self) -> None:
        """Begin anew under the same name: another epoch, from offset 1."""
        self.epoch = new_epoch()
        self.first_offset, self.last_offset = 1, 0
        self.ended_at, self.end_status = None, ""
        self.restarted = True
        self.rows.clear()


class Batch:
    """The events of one append.

    Args:
        topics: every topic of the batch, by name.
        known: what is already stored under the keys of the batch, by (topic, key).
        now: the time of all events.
    """

    def __init__(
        self, topics: Mapping[str, TopicRow], known: Mapping[tuple[str, str], Appended], now: datetime
    ) -> None:
        self.topics = topics
        self._known = dict(known)
        self._now = now

    def take(self, event: NewEvent) -> Appended | BusError:
        """Give the event its place, or say why it gets none."""
        if event.key is not None and (known := self._known.get((event.topic, event.key))):
            return known
        topic = self.topics[event.topic]
        if topic.ended_at is not None:
            if not event.restarts:
                return TopicEnded()
            topic.restart()
            self._forget(topic.name)
        return self._store(topic, event)

    def _forget(self, topic: str) -> None:
        self._known = {place: known for place, known in self._known.items() if place[0] != topic}

    def _store(self, topic: TopicRow, event: NewEvent) -> Appended:
        topic.last_offset += 1
        topic.rows.append((topic.last_offset, event))
        place = Appended(
            topic=topic.name,
            epoch=topic.epoch,
            offset=topic.last_offset,
            event_id=event_id(event.tags),
            created_at=self._now,
        )
        if event.key is not None:
            self._known[topic.name, event.key] = structs.replace(place, duplicate=True)
        if event.end_status is not None:
            topic.ended_at, topic.end_status = self._now, event.end_status
        return place
