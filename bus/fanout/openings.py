"""How many topics one reader may bring about by reading them.

Who subscribes to a topic that nobody has written to yet makes its row, so that the first event already finds
a known epoch. Rows that stay unused are forgotten (`EventLog.forget_unused`); until then a client that
subscribes to ever new names is slowed down here, for each row costs the log a commit.
"""

from __future__ import annotations

from collections import OrderedDict

from bus.connections.leases import Details
from bus.protocol.errors import TooManyRequests
from bus.protocol.limits import TokenBucket

#: New topics a second, and at once, for all connections that one agent or user has to one process.
RATE = 5.0
BURST = 1_000
#: Readers that are remembered; whoever is forgotten begins anew.
READERS = 10_000


class Openings:
    """A token bucket for each reader. Time is what the caller says it is (seconds of a steady clock)."""

    def __init__(self, *, rate: float = RATE, burst: int = BURST) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, details: Details, now: float) -> None:
        """Count one new topic.

        Raises:
            TooManyRequests: the reader has had its share; it knows for how long to wait.
        """
        name = details.agent_id or details.user_id or details.client_id
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = TokenBucket(rate=self._rate, burst=self._burst, now=now)
            if len(self._buckets) > READERS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        if wait := bucket.take(now):
            raise TooManyRequests("too many topics that nobody has written to", retry_after=wait)
