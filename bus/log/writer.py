"""Group commit: one thread that stores many publishers' events in few transactions.

Publishers hand in events and wait for their places; the thread, with a connection of its own, commits
whatever has arrived while the last commit ran. There is no timer: alone an event is committed at once,
under load many share one fsync. A place is given only after the commit. A refused event (an ended topic)
fails by itself; a failed commit fails its events with a retryable error and the thread goes on with a new
connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from itertools import islice
from threading import Condition, Lock, Thread
from typing import Any, NamedTuple, TypeAlias

from django.db import close_old_connections, connections

from bus.faults import fault
from bus.log import Appended, EventLog, NewEvent, StoredEvent
from bus.metrics import LOG_BATCH, LOG_COMMIT
from bus.protocol.errors import BusError, InternalError, LogUnavailable, TooManyRequests

logger = logging.getLogger(__name__)

Result: TypeAlias = Appended | BusError
Loop: TypeAlias = asyncio.AbstractEventLoop


Waiting: TypeAlias = "Future[Any] | asyncio.Future[Any]"
#: What each future is to be given: one result, or those of a group.
Resolved: TypeAlias = "list[tuple[Waiting, Result | list[Result]]]"


class Owed(NamedTuple):
    """Events that were handed in together, and who waits for their places."""

    events: Sequence[NewEvent]
    future: Waiting
    #: The event loop that it is waited for in, if it is one.
    loop: Loop | None
    #: The future gets a list of places and refusals; else the one place, or the refusal raised.
    is_group: bool = False


#: The thread is woken at the end of the loop's turn, so that what the turn publishes is committed together,
#: but with so many events at once: enough for a commit, while the loop goes on.
ENOUGH = 64

#: Told of the events of one commit, in the order of their offsets, none of them a repetition.
Committed: TypeAlias = Callable[[list[StoredEvent]], None]


class LogWriter:
    """The thread, its queue and its limits.

    Args:
        log: where events go. The thread calls `append_each` and nothing else.
        on_committed: called once for each commit, after its publishers were answered; in their event loop if
            they wait in one, else in the writer's thread. Must not block and must not raise.
        batch: most events in one commit.
        queue: most events that may wait; more are refused.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        on_committed: Committed | None = None,
        batch: int = 512,
        queue: int = 10_000,
    ) -> None:
        self._log = log
        self._on_committed = on_committed
        self._batch = batch
        self._queue = queue
        self._owed: deque[Owed] = deque()
        self._count = 0
        self._lock = Lock()
        self._changed = Condition(self._lock)
        #: The loop that will wake the thread at the end of its turn.
        self._waker: Loop | None = None
        self._stopping = False
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start the thread. A second call does nothing."""
        with self._changed:
            if self._thread is not None:
                return
            self._stopping = False
            self._thread = Thread(target=self._run, name="bus-log-writer", daemon=True)
            self._thread.start()

    def stop(self, *, flush: bool = True) -> None:
        """Stop the thread, after all that is owed was committed; without `flush` that is refused instead."""
        with self._changed:
            thread = self._thread
            refused = [] if flush else self._pop_until(self._count)
            self._stopping = True
            self._changed.notify_all()
        self._answer(refused, [LogUnavailable("shutting down") for owed in refused for _ in owed.events], [])
        if thread is not None:
            thread.join()

    @property
    def owed(self) -> int:
        """How many events wait for a commit to begin."""
        return self._count

    def submit(self, event: NewEvent) -> Future[Appended]:
        """Hand in an event from any thread; the future holds its place once it is committed.

        Raises:
            TooManyRequests: too much is owed already.
            LogUnavailable: the writer does not run.
        """
        future: Future[Appended] = Future()
        self._put(Owed((event,), future, None))
        self._wake()
        return future

    def asubmit(self, event: NewEvent) -> asyncio.Future[Appended]:
        """Hand in an event from the running event loop. Raises as `submit` does, at once."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Appended] = loop.create_future()
        self._put_from(loop, Owed((event,), future, loop))
        return future

    def asubmit_many(self, events: Sequence[NewEvent]) -> asyncio.Future[list[Result]]:
        """Hand in events that go into one commit: one future, with a place or a refusal for each.

        For those who have many at once: a future and a wake-up for each cost more than all the rest. Raises
        as `submit` does, at once, and then none of them was taken.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Result]] = loop.create_future()
        self._put_from(loop, Owed(events, future, loop, is_group=True))
        return future

    def _put_from(self, loop: Loop, owed: Owed) -> None:
        before, after = self._put(owed)
        if before < ENOUGH <= after:
            self._wake()
        elif self._waker is not loop:
            self._waker = loop
            loop.call_soon(self._wake)

    def _put(self, owed: Owed) -> tuple[int, int]:
        """Queue events and return how many were owed before and are owed with them."""
        with self._lock:
            if self._stopping or self._thread is None:
                raise LogUnavailable("the log writer is not running")
            before = self._count
            after = before + len(owed.events)
            # A group that is larger than the queue has to go in once, or never could.
            if before and after > self._queue:
                raise TooManyRequests("too many events wait for the log")
            self._owed.append(owed)
            self._count = after
            return before, after

    def _wake(self) -> None:
        self._waker = None
        with self._lock:
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while taken := self._take():
                self._commit(taken)
        finally:
            with self._changed:
                self._thread = None
            connections.close_all()

    def _take(self) -> list[Owed]:
        """Wait for events and return at most a batch of them; nothing once the writer is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._owed or self._stopping)
            return self._pop_until(self._batch)

    def _pop_until(self, most: int) -> list[Owed]:
        """Take the first owed events, at most so many; but those handed in together stay together."""
        taken: list[Owed] = []
        count = 0
        while self._owed and (not taken or count + len(self._owed[0].events) <= most):
            taken.append(self._owed.popleft())
            count += len(taken[-1].events)
        self._count -= count
        return taken

    def _commit(self, taken: list[Owed]) -> None:
        began = time.perf_counter()
        fault("writer.taken")
        events = [event for owed in taken for event in owed.events]
        results = self._append(events)
        fault("writer.committed")
        LOG_COMMIT.observe(time.perf_counter() - began)
        LOG_BATCH.observe(len(events))
        self._answer(taken, results, _stored(events, results))
        fault("writer.answered")

    def _append(self, events: list[NewEvent]) -> list[Result]:
        try:
            return list(self._log.append_each(events))
        except LogUnavailable as error:
            logger.exception("the log did not commit %d events", len(events))
            close_old_connections()
            return [LogUnavailable(error.message) for _ in events]
        except Exception as error:
            logger.exception("the log writer failed on %d events", len(events))
            close_old_connections()
            return [InternalError(f"the log failed: {type(error).__name__}") for _ in events]

    def _answer(self, taken: list[Owed], results: list[Result], stored: list[StoredEvent]) -> None:
        """Resolve the futures, one call into each event loop, and tell of what was stored."""
        by_loop: dict[Loop | None, Resolved] = {}
        rest = iter(results)
        for owed in taken:
            result = list(islice(rest, len(owed.events))) if owed.is_group else next(rest)
            by_loop.setdefault(owed.loop, []).append((owed.future, result))
        _resolve(by_loop.pop(None, []))
        for loop, resolved in by_loop.items():
            if self._into(loop, resolved, stored):
                stored = []
        self._tell(stored)

    def _into(self, loop: Loop | None, resolved: Resolved, stored: list[StoredEvent]) -> bool:
        """Resolve in the loop, and tell there too. False if the loop is closed: then nobody waits in it."""
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._resolve_and_tell, resolved, stored)
        except RuntimeError:
            return False
        return True

    def _resolve_and_tell(self, resolved: Resolved, stored: list[StoredEvent]) -> None:
        _resolve(resolved)
        self._tell(stored)

    def _tell(self, stored: list[StoredEvent]) -> None:
        if stored and self._on_committed is not None:
            self._on_committed(stored)


def _stored(events: list[NewEvent], results: list[Result]) -> list[StoredEvent]:
    """Return what is new in the log."""
    return [
        StoredEvent.of(event, place)
        for event, place in zip(events, results, strict=True)
        if isinstance(place, Appended) and not place.duplicate
    ]


def _resolve(resolved: Resolved) -> None:
    for future, result in resolved:
        try:
            if isinstance(result, BusError):
                future.set_exception(result)
            else:
                future.set_result(result)
        except (InvalidStateError, asyncio.InvalidStateError):
            # Whoever has stopped waiting may do so at this very moment, in another thread.
            continue
