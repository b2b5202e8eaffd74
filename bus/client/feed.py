"""The events of one topic on their way from the SDK to `async for`.

What arrives before it is read waits here, up to a bound. Beyond it the SDK waits for a slow reader, and the
server with the SDK, which in the end closes the connection as slow; the resume brings the rest. Where nobody
reads at all, as broadcasts that do not interest, the oldest make room, and a reader who comes later sees the
gap.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from bus.client.errors import BusClientError
from bus.client.events import Event
from bus.client.stats import ClientStats

#: Events that may wait for their reader.
DEPTH = 10_000


class Feed:
    """Events of one topic, in order, until its end or the connection's."""

    def __init__(self, topic: str, stats: ClientStats) -> None:
        self.topic = topic
        self._stats = stats
        self._events: asyncio.Queue[Event | BusClientError | None] = asyncio.Queue(DEPTH)
        self._epoch = ""
        self._after_gap = False
        self._is_ended = False
        self._has_reader = False
        #: Events that nobody read have made room for others.
        self._has_lost = False

    async def put(self, publication: Any) -> None:
        """Take a publication of the SDK."""
        event = Event.of(
            self.topic,
            publication.offset,
            publication.data,
            publication.tags or {},
            epoch=self._epoch,
            after_gap=self._after_gap,
        )
        self._after_gap = False
        self._stats.events += 1
        if self._events.full() and not self._has_reader:
            self._events.get_nowait()
            self._has_lost = True
        await self._events.put(event)

    def resumed(self, subscribed: Any) -> None:
        """Note how a subscription was taken up, from what the SDK says of it."""
        if subscribed.stream_position is not None:
            self._epoch = subscribed.stream_position.epoch
        if subscribed.was_recovering and not subscribed.recovered:
            self.note_gap()

    def note_gap(self) -> None:
        """What comes next follows on something that can no longer be had."""
        if not self._after_gap:
            self._after_gap = True
            self._stats.gaps += 1

    async def end(self, error: BusClientError | None = None) -> None:
        """Nothing more comes; with an error its reader is told."""
        if not self._is_ended:
            self._is_ended = True
            await self._events.put(error)

    async def read(self) -> AsyncGenerator[Event, None]:
        """Yield the events. Ends after the final event of a topic; raises what has ended the connection."""
        self._has_reader = True
        try:
            while (item := await self._events.get()) is not None:
                if isinstance(item, BusClientError):
                    raise item
                yield replace(item, after_gap=True) if self._has_lost else item
                self._has_lost = False
                if item.is_final:
                    return
        finally:
            self._has_reader = False
            if self._events.full():  # the SDK may stand here with the next one
                self._events.get_nowait()
                self._has_lost = True
