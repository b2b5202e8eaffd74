"""Sending over the channel layer from code that has no event loop: workers, commands, scripts.

One background thread with a loop of its own keeps the connection open between messages. Nobody waits for it,
except the end of the process, and that for the time-out at most; after a failure the breaker lets a moment
pass before the layer is tried again. What is not sent is no loss: the hubs find it in the log.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from datetime import timedelta
from threading import Lock, Thread

from channels.layers import get_channel_layer

from bus.metrics import HINTS

logger = logging.getLogger(__name__)

#: Type of every message of ours on the layer.
MESSAGE_TYPE = "bus.message"
#: Messages that may wait; more are dropped.
OUTBOX = 1_000


class Breaker:
    """Remembers that something failed, so that it is not tried again at once.

    Args:
        pause: seconds without another try after a failure.
        clock: steady seconds.
    """

    def __init__(self, *, pause: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause = pause
        self._clock = clock
        self._open_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether to leave it alone for now."""
        return self._clock() < self._open_until

    def failed(self) -> None:
        """Begin a pause."""
        self._open_until = self._clock() + self._pause

    def worked(self) -> None:
        """End the pause."""
        self._open_until = 0.0


async def group_send(group: str, body: str, within: timedelta) -> None:
    """Send one message to a group of the default layer. Raises what the layer raises, and `TimeoutError`."""
    layer = get_channel_layer()
    if layer is not None:
        message = {"type": MESSAGE_TYPE, "body": body}
        async with asyncio.timeout(within.total_seconds()):
            await layer.group_send(group, message)


class Courier:
    """The thread. It starts with the first message, once in each process."""

    def __init__(self, timeout: Callable[[], timedelta]) -> None:
        self._timeout = timeout
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None
        self._owed: set[Future[None]] = set()
        self._breaker = Breaker()
        # A forked worker inherits these fields, but not the thread.
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def send(self, group: str, body: str) -> None:
        """Hand in a message; it goes out in the order of handing in, or not at all."""
        if self._breaker.is_open or len(self._owed) >= OUTBOX:
            HINTS.labels("skipped").inc()
            return
        sending = asyncio.run_coroutine_threadsafe(group_send(group, body, self._timeout()), self._running())
        self._owed.add(sending)
        sending.add_done_callback(self._sent)

    def close(self) -> None:
        """Wait until what was handed in is out, for the time-out at most; then end the thread."""
        wait(set(self._owed), self._timeout().total_seconds())
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(5)

    def _sent(self, sending: Future[None]) -> None:
        self._owed.discard(sending)
        error = None if sending.cancelled() else sending.exception()
        if error is None:
            self._breaker.worked()
            HINTS.labels("sent").inc()
        else:
            self._breaker.failed()
            HINTS.labels("failed").inc()
            logger.warning("the channel layer did not take a hint: %s", type(error).__name__)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = Thread(target=_serve, args=(self._loop,), name="bus-courier", daemon=True)
                self._thread.start()
            return self._loop

    def _forget(self) -> None:
        self._lock = Lock()
        self._loop = self._thread = None
        self._owed = set()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()  # the layer hooks into this to close its connections
