"""Logs for the simulated site: one that fails now and then, and one with the classic mistake."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from bus.log import Appended, NewEvent, Page, TopicState
from bus.log.memory import MemoryEventLog
from bus.protocol.errors import BusError, LogUnavailable
from bus.protocol.positions import Position


class FlakyLog(MemoryEventLog):
    """The memory's log; before each call `weather` is asked, which may raise.

    Args:
        weather: called before each call that a hub or publisher makes.
    """

    def __init__(self, weather: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.weather = weather

    def append(self, events: Sequence[NewEvent]) -> list[Appended]:
        self.weather()
        return super().append(events)

    def append_each(self, events: Sequence[NewEvent]) -> list[Appended | BusError]:
        self.weather()
        return super().append_each(events)

    def read(self, topic: str, since: Position | None = None, *, limit: int, reverse: bool = False) -> Page:
        self.weather()
        return super().read(topic, since, limit=limit, reverse=reverse)

    def states(self, topics: Collection[str]) -> dict[str, TopicState]:
        self.weather()
        return super().states(topics)

    def open(self, topic: str) -> TopicState:
        self.weather()
        return super().open(topic)


class SequenceLog(MemoryEventLog):
    """The mistake: offsets come from a sequence, when the insert is made, and are seen from the commit on.

    Between the two others may commit later offsets, as with an auto-increment column. `draw` is the insert,
    `commit` makes it visible.
    """

    def __init__(self) -> None:
        super().__init__()
        self._hidden: set[tuple[str, int]] = set()

    def draw(self, events: Sequence[NewEvent]) -> list[Any]:
        """Give offsets that nobody sees yet."""
        results = self.append_each(events)
        self._hidden |= {(r.epoch, r.offset) for r in results if isinstance(r, Appended) and not r.duplicate}
        return list(results)

    def commit(self, places: Sequence[Any]) -> None:
        """Let everybody see them."""
        self._hidden -= {(r.epoch, r.offset) for r in places if isinstance(r, Appended)}

    def read(self, topic: str, since: Position | None = None, *, limit: int, reverse: bool = False) -> Page:
        page = super().read(topic, since, limit=10_000, reverse=reverse)
        seen = [event for event in page.events if (event.epoch, event.offset) not in self._hidden][:limit]
        return replace(page, events=seen, last_offset=self._top(page.epoch, page.last_offset))

    def states(self, topics: Collection[str]) -> dict[str, TopicState]:
        found = super().states(topics)
        return {
            name: replace(state, last_offset=self._top(state.epoch, state.last_offset))
            for name, state in found.items()
        }

    def _top(self, epoch: str, last: int) -> int:
        while (epoch, last) in self._hidden:
            last -= 1
        return last


def raises_at_times(world: Any) -> Callable[[], None]:
    """Return the weather of a log: about one call in thirty fails while the world is flaky."""

    def weather() -> None:
        if world.is_flaky and world.chance.random() < 0.03:
            world.history.failures.append(world.now)
            raise LogUnavailable

    return weather
