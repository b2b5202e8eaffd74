"""The gate before the handshake: so many connects a second, no more, however many clients come back at once.

A reconnect storm is let in at a rate that leaves the process time to serve those who are in. Whoever is too
early gets HTTP 503 with `Retry-After` before the socket is accepted, which costs a fraction of a connection;
SDKs come again by themselves. A server that ends lets nobody in any more.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from bus.conf import BusSettings, conf
from bus.metrics import REFUSED
from bus.protocol.limits import TokenBucket

#: Addresses that are remembered; the one that has been silent longest is forgotten first.
MAX_ADDRESSES = 10_000


class Gate:
    """The token buckets of one process.

    Args:
        options: the rates.
        clock: steady seconds.
    """

    def __init__(self, options: BusSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.options = options
        self._clock = clock
        self._all = TokenBucket(rate=options.connect_rate, burst=options.connect_burst, now=clock())
        self._addresses: OrderedDict[str, TokenBucket] = OrderedDict()
        #: A server that ends.
        self.is_closed = False

    def wait(self, address: str) -> float:
        """Return 0.0 and let one in, or the seconds after which to come again."""
        now = self._clock()
        if self.is_closed:
            return _refused("shutdown", 1.0)
        if wait := self._wait_of(address, now):
            return _refused("address rate", wait)
        if wait := self._all.take(now):
            return _refused("rate", wait)
        return 0.0

    def _wait_of(self, address: str, now: float) -> float:
        rate = self.options.address_connect_rate
        if rate is None or not address:
            return 0.0
        bucket = self._addresses.pop(address, None)
        if bucket is None:
            bucket = TokenBucket(rate=rate, burst=self.options.address_connect_burst, now=now)
            if len(self._addresses) >= MAX_ADDRESSES:
                self._addresses.popitem(last=False)
        self._addresses[address] = bucket
        return bucket.take(now)


def _refused(why: str, wait: float) -> float:
    REFUSED.labels(why).inc()
    return wait


_gate: Gate | None = None


def gate() -> Gate:
    """Return the gate of this process; changed settings give a new one."""
    global _gate
    options = conf()
    if _gate is None or _gate.options is not options:
        _gate = Gate(options)
    return _gate


async def refuse(scope: Any, send: Callable[[dict[str, Any]], Awaitable[None]], wait: float) -> None:
    """Answer a handshake with 503, or, where the server offers no way to, by closing it (403)."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close"})
        return
    headers = [(b"retry-after", b"%d" % max(1, math.ceil(wait))), (b"content-type", b"text/plain")]
    await send({"type": "websocket.http.response.start", "status": 503, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b"too many connects\n"})
