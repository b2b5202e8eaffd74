"""When a disk will be full, if it goes on filling as it did: the Theil-Sen estimator over usage samples.

The slope is the median of the slopes between all pairs of samples (Theil 1950, Sen 1968), so a purge or an
upload that moves a few samples by gigabytes does not bend it. Where usage does not clearly rise, or too
little is known, there is no forecast: none is better than a wrong one. Pure: time and figures are arguments.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import combinations
from statistics import median

import msgspec

#: Below these a trend is a guess.
FEWEST = 10
SHORTEST = timedelta(minutes=15)

#: Samples that are compared in pairs, evenly drawn from those given: 2,016 slopes, about a millisecond.
MOST = 64

#: Pairs in which usage rose, in percent; what only goes up and down rises in half of them.
RISING = 67

#: What is further away than this is not coming.
HORIZON = timedelta(days=365)


class Sample(msgspec.Struct, frozen=True):
    """How full a disk was at a moment."""

    at: datetime
    used: int
    total: int


def seconds_until_full(samples: Sequence[Sample], *, now: datetime) -> float | None:
    """Return the seconds from `now` until the disk is full, or None where nobody can tell.

    Args:
        samples: oldest first, each with a zone.
        now: not before the last of them.
    """
    if len(samples) < FEWEST or samples[-1].at - samples[0].at < SHORTEST:
        return None
    drawn = _drawn(samples)
    start = drawn[0].at
    points = [((sample.at - start).total_seconds(), sample.used) for sample in drawn]
    pairs = [(later[0] - earlier[0], later[1] - earlier[1]) for earlier, later in combinations(points, 2)]
    slopes = [rise / run for run, rise in pairs if run > 0]
    rising = sum(slope > 0 for slope in slopes)
    if not slopes or 100 * rising < RISING * len(slopes):
        return None
    slope = median(slopes)
    level = median(used - slope * at for at, used in points)
    when = (samples[-1].total - level) / slope - (now - start).total_seconds()
    return None if when > HORIZON.total_seconds() else max(when, 0.0)


def _drawn(samples: Sequence[Sample]) -> list[Sample]:
    """At most `MOST` samples, evenly spread, the first and the last among them."""
    if len(samples) <= MOST:
        return list(samples)
    return [samples[number * (len(samples) - 1) // (MOST - 1)] for number in range(MOST)]
