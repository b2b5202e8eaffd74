"""`manage.py bus tail`: events as they are in the log, of one topic or of many, and those to come.

It looks into the log again and again, for the log is the truth: no server has to run, and no layer. Events of
several topics are printed in the order of their times, those of one topic in the order of their offsets.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from asgiref.sync import async_to_sync

from bus import retention
from bus.doors import starts
from bus.log import StoredEvent
from bus.log.current import event_log
from bus.management.output import Printer, moment, to_json
from bus.protocol import frames, topics
from bus.protocol.errors import UnrecoverablePosition
from bus.protocol.limits import strict_json
from bus.protocol.positions import Position, is_reachable

#: Pause between two looks into the log with `--follow` (s).
LOOK_EVERY = 0.2
#: With patterns, the list of topics is read anew after so many looks.
NAMES_EVERY = 10
PAGE = 500


class Tail:
    """The readers of some topics.

    Args:
        wanted: names and patterns of topics.
        since: an offset or a time; None for the newest `lines` of each.
        lines: see there.
        event_type: pattern of the types that are printed.
    """

    def __init__(
        self, wanted: Sequence[str], *, since: int | datetime | None, lines: int, event_type: str
    ) -> None:
        self._patterns = [word for word in wanted if "*" in word]
        self._named = [topics.check_topic(word) for word in wanted if "*" not in word]
        self._since = since
        self._lines = lines
        self._type = event_type
        self._at: dict[str, Position] = {}
        self._looks = 0

    def look(self) -> list[StoredEvent]:
        """Return what has come since the last look.

        Raises:
            UnrecoverablePosition: what follows the offset that was asked for is no longer kept.
        """
        is_first, self._looks = self._looks == 0, self._looks + 1
        names = self._names() if self._looks % NAMES_EVERY == 1 or not self._at else list(self._at)
        states = event_log().states(names)
        found: list[StoredEvent] = []
        for name in names:
            if name not in self._at:
                self._at[name] = self._start(name, is_first)
            state = states.get(name)
            if state is not None and self._at[name] != Position(epoch=state.epoch, offset=state.last_offset):
                found += self._read(name)
        found.sort(key=lambda event: event.created_at)
        return [event for event in found if fnmatchcase(event.event_type, self._type)]

    def _names(self) -> list[str]:
        matching = (
            name
            for name in (retention.all_topics() if self._patterns else ())
            if any(topics.matches(pattern, name) for pattern in self._patterns)
        )
        return list(dict.fromkeys([*self._named, *matching]))

    def _start(self, topic: str, is_first: bool) -> Position:
        """Return where a topic is read from; one that came to be meanwhile from its beginning."""
        state = event_log().states([topic]).get(topic)
        if state is None:
            return Position(epoch="", offset=0)
        if not is_first:
            return Position(epoch=state.epoch, offset=state.first_offset - 1)
        if isinstance(self._since, datetime):
            at = async_to_sync(starts.located)(topic, self._since)
            return at or Position(epoch="", offset=0)
        newest = max(state.first_offset - 1, state.last_offset - self._lines)
        return Position(epoch=state.epoch, offset=newest if self._since is None else self._since)

    def _read(self, topic: str) -> Iterator[StoredEvent]:
        """Yield what comes after the topic's position and move it; a topic begun anew is read from 1."""
        while True:
            at = self._at[topic]
            page = event_log().read(topic, at, limit=PAGE)
            if page.epoch and not at.is_in(page.epoch):
                self._at[topic] = Position(epoch=page.epoch, offset=0)
                continue
            if page.epoch and not is_reachable(
                at, epoch=page.epoch, first_offset=page.first_offset, last_offset=page.last_offset
            ):
                raise UnrecoverablePosition(f"{topic}: kept are {page.first_offset} to {page.last_offset}")
            yield from page.events
            if not page.events:
                return
            self._at[topic] = Position(epoch=page.epoch, offset=page.events[-1].offset)


def tail(options: dict[str, Any], out: Printer) -> int:
    """Print events."""
    reader = Tail(
        options["topic"], since=options["since"], lines=options["lines"], event_type=options["type"]
    )
    several = len(options["topic"]) > 1 or "*" in options["topic"][0]
    try:
        while True:
            for event in reader.look():
                out.line(_json(event) if out.as_json else _words(event, several=several))
            if not options["follow"]:
                return 0
            sys.stdout.flush()
            time.sleep(LOOK_EVERY)
    except KeyboardInterrupt:
        return 0


def _json(event: StoredEvent) -> str:
    return frames.plain_event(event.topic, event.epoch, event.offset, event.payload).decode()


def _words(event: StoredEvent, *, several: bool) -> str:
    body = strict_json(event.payload)
    data = body.get("data") if isinstance(body, dict) and "event_type" in body else body
    topic = f"{event.topic} " if several else ""
    return f"{moment(event.created_at)} {topic}#{event.offset} {event.event_type or '-'} {to_json(data)}"
