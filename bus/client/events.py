"""What a client gets: events, and places of those that it has published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of a topic."""

    topic: str
    #: Its place in the topic, from 1; 0 where the topic is not logged.
    offset: int
    #: The life of the topic in which the offset counts; empty where the topic is not logged.
    epoch: str = ""
    #: Such as `task.progress`; empty for a payload that is no event object.
    event_type: str
    #: What it says: `data` of the event object, or the whole payload if it is none.
    data: Any
    #: Strings beside the event: `id`, `key`, `end`.
    tags: Mapping[str, str]
    run_id: str | None
    session_id: str | None
    #: When it was published, as ISO 8601, or empty.
    timestamp: str
    #: Something before it was missed for good: the server no longer has it.
    after_gap: bool

    @property
    def is_final(self) -> bool:
        """Whether the topic ends with it."""
        return bool(self.tags.get("end"))

    @classmethod
    def of(
        cls,
        topic: str,
        offset: int,
        payload: Any,
        tags: Mapping[str, str],
        *,
        epoch: str = "",
        after_gap: bool = False,
    ) -> Self:
        """Return the event that a publication carries."""
        body = payload if isinstance(payload, dict) and "event_type" in payload else {}
        return cls(
            topic=topic,
            offset=offset,
            epoch=epoch,
            event_type=str(body.get("event_type", "")),
            data=body.get("data") if body else payload,
            tags=tags,
            run_id=body.get("run_id"),
            session_id=body.get("session_id"),
            timestamp=str(body.get("timestamp", "")),
            after_gap=after_gap,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an event is in the log."""

    topic: str
    epoch: str
    offset: int
    id: str
    #: It had been stored before, under the same key.
    duplicate: bool
