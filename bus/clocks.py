"""Time that a jump of the wall clock does not fool.

Clocks are set: by hours after a boot, by years where a battery was empty, and two machines never agree. So
nobody is taken for dead, and nothing is forgotten for good, for what a wall clock says alone. `Watch` tells
by the steady clock of its own process for how long a value of somebody else has not changed. `Calm` tells
whether the wall clock of this process has gone evenly with the steady one for long enough to be believed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping


class Watch:
    """Looks at values that others keep changing while they live.

    Args:
        clock: steady seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[Hashable, float]] = {}

    def look(self, values: Mapping[str, Hashable]) -> dict[str, float]:
        """Return for how many seconds each value has been seen to be what it is; 0 at the first look.

        Names that are not in `values` any more are forgotten. Safe from several threads: at worst a look
        counts as the first.
        """
        now = self._clock()
        former = self._seen
        self._seen = {
            name: former[name] if name in former and former[name][0] == value else (value, now)
            for name, value in values.items()
        }
        return {name: now - since for name, (_, since) in self._seen.items()}


class Calm:
    """Whether the wall clock of this process may be believed.

    Args:
        settle: seconds that it has to go evenly first; a process that has just begun knows nothing yet.
        tolerance: seconds by which it may be corrected between two looks.
        wall: seconds since 1970.
        steady: steady seconds.
    """

    def __init__(
        self,
        *,
        settle: float,
        tolerance: float,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settle = settle
        self._tolerance = tolerance
        self._wall = wall
        self._steady = steady
        #: What the wall clock was ahead of the steady one at the last look, and since when it is even.
        self._ahead = wall() - steady()
        self._since = steady()

    def look(self) -> bool:
        """Compare the two; after a jump the time begins anew."""
        steady = self._steady()
        ahead = self._wall() - steady
        if abs(ahead - self._ahead) > self._tolerance:
            self._since = steady
        self._ahead = ahead
        return steady - self._since >= self._settle
