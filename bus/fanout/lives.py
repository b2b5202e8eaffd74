"""The lives of topics that are read here: which have ended and linger, and which have begun anew.

Who was reading the former life of a topic to its end goes on at the beginning of the next, though its
position is void. An ended topic lets its readers go after `BUS["TASK_LINGER"]`, unless it has begun anew by
then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bus.conf import conf

#: Topics whose former epoch is remembered.
MAX_REBORN = 1_000


class Lives:
    """Of one hub.

    Args:
        let_go: called with topic and epoch of one that has lingered.
    """

    def __init__(self, let_go: Callable[[str, str], None]) -> None:
        self._let_go = let_go
        self._lingering: dict[tuple[str, str], asyncio.TimerHandle] = {}
        #: Topic to the former and the present epoch.
        self._reborn: dict[str, tuple[str, str]] = {}

    def begun_anew(self, topic: str, former: str, present: str) -> None:
        """Remember that a topic has another epoch now."""
        self._reborn.pop(topic, None)
        self._reborn[topic] = (former, present)
        if len(self._reborn) > MAX_REBORN:
            del self._reborn[next(iter(self._reborn))]

    def next_of(self, topic: str, epoch: str) -> str | None:
        """Return the epoch that followed on this one, if it did so here."""
        former, present = self._reborn.get(topic, ("", None))
        return present if former == epoch else None

    def forget(self, topic: str) -> None:
        """The life that had begun is over, too."""
        self._reborn.pop(topic, None)

    def ended(self, topic: str, epoch: str) -> None:
        """Let a topic go in a while; a second call changes nothing."""
        place = (topic, epoch)
        if place not in self._lingering:
            linger = conf().task_linger.total_seconds()
            loop = asyncio.get_running_loop()
            self._lingering[place] = loop.call_later(linger, self._lingered, place)

    def _lingered(self, place: tuple[str, str]) -> None:
        del self._lingering[place]
        self._let_go(*place)

    def close(self) -> None:
        """Stop the timers."""
        for handle in self._lingering.values():
            handle.cancel()
        self._lingering.clear()
