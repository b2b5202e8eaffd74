"""The send queue of one connection: frames go out at once, and what cannot go out is bounded.

A `Frame` is encoded once and shared by all who get it. An `Outlet` is the way to one socket: Daphne's, which
takes whole frames and knows what it owes (`bus.transport`), or that of any other ASGI server. A queue owes at
most `BUS["SEND_QUEUE_BYTES"]` and `SEND_QUEUE_FRAMES`; beyond it an event is refused (`must`: the connection
is closed as slow and recovers), kept back so that a newer one with its key replaces it (`latest`), or dropped
(`ephemeral`).
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from enum import Enum
from typing import Any, Protocol

from bus.metrics import DELIVERIES

logger = logging.getLogger(__name__)

#: A client that has taken nothing for so long (s) is slow, however little it is owed.
STUCK = 20.0
#: Seconds that a socket has to take its last message, and then to take the close.
GOODBYE = 1.0
#: Keys of one connection whose newest event is kept back; more than these and it counts as slow.
MAX_KEPT_BACK = 256


def text_frame(payload: bytes) -> bytes:
    """Return a text message as one whole frame of a server: final, unmasked, uncompressed (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 65_536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)


class Frame:
    """One or more text messages that go out together."""

    __slots__ = ("size", "texts", "wire")

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = texts
        self.size = sum(map(len, texts))
        #: The messages as they travel; empty until `prepare`.
        self.wire = b""

    def prepare(self) -> bytes:
        """Make `wire`, once for all who get it, and return it."""
        self.wire = b"".join([text_frame(text) for text in self.texts])
        return self.wire


class Outlet(Protocol):
    """The way to one socket."""

    def write(self, frame: Frame) -> int:
        """Send now, or as soon as the socket takes it, in order; return the bytes that are pending then.

        Does nothing on a closed socket.
        """

    def pending_bytes(self) -> int:
        """How much the socket has not taken yet."""

    async def close(self, code: int, reason: str) -> None:
        """Close with a code; what is pending and cannot be sent within a second is dropped."""


class PreparedOutlet:
    """A socket of `bus.transport`, by the extension that it offers in the scope."""

    __slots__ = ("_close", "direct", "pending_bytes")

    def __init__(self, extension: dict[str, Any]) -> None:
        self.direct: Callable[[bytes], int] = extension["send_prepared"]
        self._close: Callable[[int, str], None] = extension["close"]
        self.pending_bytes: Callable[[], int] = extension["pending_bytes"]

    def write(self, frame: Frame) -> int:
        """Hand over the prepared frame."""
        return self.direct(frame.wire or frame.prepare())

    async def close(self, code: int, reason: str) -> None:
        """Close with the reason, which plain Daphne would drop."""
        self._close(code, reason)


class PlainOutlet:
    """A socket of any ASGI server.

    `send` is driven by hand as far as it goes at once; only when it waits, which is back-pressure, a task
    takes over and the rest queues. (A task or a queue for every message would cost more than the message.)
    """

    __slots__ = ("_is_closed", "_pending", "_send", "_task", "_waiting")

    def __init__(self, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: deque[dict[str, Any]] = deque()
        self._pending = 0
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    def write(self, frame: Frame) -> int:
        """Send each message of the frame, or queue it behind one that waits."""
        for text in frame.texts:
            if self._is_closed:
                return 0
            message = {"type": "websocket.send", "text": text.decode()}
            if self._task is None:
                self._start(message, len(text))
            else:
                self._waiting.append(message)
                self._pending += len(text)
        return self._pending

    def pending_bytes(self) -> int:
        """Bytes of the message that waits and of those queued behind it."""
        return self._pending

    async def close(self, code: int, reason: str) -> None:
        """Drop what is queued, give the message under way a moment, and close.

        Raises:
            TimeoutError: the socket takes nothing, not even this; the server ends it once the application
                has returned.
        """
        self._is_closed = True
        self._waiting.clear()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=GOODBYE)
        self._pending = 0
        async with asyncio.timeout(GOODBYE):
            try:
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
            except Exception as error:  # noqa: BLE001  (the server has closed it already, for a broken frame)
                self._broke(error)

    def _start(self, message: dict[str, Any], size: int) -> None:
        sending = _as_coroutine(self._send(message))
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001  (servers differ in what they raise on a closed socket)
            self._broke(error)
            return
        self._pending += size
        self._task = asyncio.get_running_loop().create_task(self._finish(sending, waits_for, size))

    async def _finish(self, sending: Coroutine[Any, Any, None], waits_for: Any, size: int) -> None:
        try:
            await _resume(sending, waits_for)
            self._pending -= size
            while self._waiting:
                message = self._waiting.popleft()
                await self._send(message)
                self._pending -= len(message["text"].encode())
        except Exception as error:  # noqa: BLE001  (as above)
            self._broke(error)
        finally:
            self._task = None

    def _broke(self, error: Exception) -> None:
        """The client is gone: `receive` will tell the socket, and nothing is owed any more."""
        logger.debug("a socket took no message: %r", error)
        self._is_closed = True
        self._waiting.clear()
        self._pending = 0


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable


@types.coroutine
def _resume(sending: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Go on with a coroutine that was driven by hand and has yielded `waits_for`."""
    try:
        while True:
            try:
                answer = yield waits_for
            except BaseException as error:  # noqa: BLE001  (a cancellation belongs to the coroutine)
                waits_for = sending.throw(error)
            else:
                waits_for = sending.send(answer)
    except StopIteration:
        return


class Verdict(Enum):
    """What became of an event that was offered."""

    SENT = "sent"
    #: A newer one with the same key may replace it before it goes out.
    KEPT_BACK = "kept_back"
    DROPPED = "dropped"
    #: The connection is too slow for events that must arrive.
    TOO_SLOW = "too_slow"


_COUNTERS = {verdict: DELIVERIES.labels(verdict.value) for verdict in Verdict}


def count(verdict: Verdict, deliveries: int = 1) -> None:
    """Count what became of deliveries. All of a fan-out at once: a counter costs as much as a delivery."""
    _COUNTERS[verdict].inc(deliveries)


class SendQueue:
    """What is owed to one connection.

    Args:
        outlet: the way to its socket.
        max_bytes: bytes that may be pending.
        max_frames: frames that may have been written since nothing was pending.
        direct: writes the wire of a frame past the queue and returns what is pending then. Whoever serves
            many calls it while nothing is owed, and `fell_behind` once something is. None: the outlet has no
            wire.
    """

    __slots__ = (
        "_frames",
        "_kept_back",
        "_max_bytes",
        "_max_frames",
        "_stuck_since",
        "_taken",
        "_written",
        "direct",
        "events",
        "outlet",
        "owes",
    )

    def __init__(
        self,
        outlet: Outlet,
        *,
        max_bytes: int,
        max_frames: int,
        direct: Callable[[bytes], int] | None = None,
    ) -> None:
        self.outlet = outlet
        self.direct = direct
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        #: Whether the socket had not taken everything, or something was kept back, after the last write.
        self.owes = False
        self._frames = 0
        self._kept_back: dict[tuple[str, str], Frame] = {}
        #: Bytes handed over since something is owed, and how many of them were taken when we last looked.
        self._written = self._taken = 0
        self._stuck_since: float | None = None
        #: Events that were offered and not dropped, for the figures of the connection.
        self.events = 0

    @property
    def pending_bytes(self) -> int:
        """How much the socket has not taken yet."""
        return self.outlet.pending_bytes()

    @property
    def is_relaxed(self) -> bool:
        """Whether there is room for a page of a replay, or for the answer to another command."""
        return not self.owes or self.outlet.pending_bytes() < self._max_bytes // 4

    def send(self, text: bytes) -> None:
        """Send an answer. Answers are as many as commands, so they are not refused."""
        self._write(Frame((text,)))

    def offer(self, frame: Frame, delivery: str) -> Verdict:
        """Send events, or say that they do not fit in. `latest` ones that do not are for `keep_back`."""
        if not self.owes or self._makes_room():
            self._write(frame)
            return Verdict.SENT
        if delivery == "must":
            return Verdict.TOO_SLOW
        return Verdict.DROPPED if delivery == "ephemeral" else Verdict.KEPT_BACK

    def fell_behind(self, pending: int) -> None:
        """Note that the socket did not take all of a frame that went past the queue."""
        self.owes = True
        self._frames = 1
        self._written, self._taken = pending, 0

    def keep_back(self, topic: str, key: str, frame: Frame) -> bool:
        """Remember the newest frame of a key until there is room. False: there are too many keys."""
        self._kept_back.pop((topic, key), None)
        self._kept_back[topic, key] = frame
        return len(self._kept_back) <= MAX_KEPT_BACK

    def forget(self, topic: str) -> None:
        """Send nothing of this topic any more."""
        for place in [place for place in self._kept_back if place[0] == topic]:
            del self._kept_back[place]

    def tend(self, now: float) -> float:
        """Send what was kept back if there is room; return for how long the socket has taken nothing.

        Args:
            now: steady seconds, of any origin.
        """
        if not self.owes:
            return 0.0
        if self._kept_back:
            self._send_kept_back()
        pending = self.outlet.pending_bytes()
        taken = self._written - pending
        if not pending:
            self._settle()
        elif taken > self._taken or self._stuck_since is None:
            self._stuck_since = now
        self._taken = taken
        return 0.0 if self._stuck_since is None else now - self._stuck_since

    def _settle(self) -> None:
        """Nothing is pending: begin to count anew."""
        self._frames = self._written = self._taken = 0
        self._stuck_since = None
        self.owes = bool(self._kept_back)

    def _makes_room(self) -> bool:
        """Look again at what is owed; tell whether another frame fits in."""
        pending = self.outlet.pending_bytes()
        if not pending:
            self._settle()
        if pending >= self._max_bytes or self._frames >= self._max_frames:
            return False
        return not self._kept_back or self._send_kept_back()

    def _send_kept_back(self) -> bool:
        """Send what was kept back once half of the queue is free. False: it is not."""
        if self.outlet.pending_bytes() >= self._max_bytes // 2:
            return False
        kept, self._kept_back = self._kept_back, {}
        for frame in kept.values():
            self._write(frame)
        return True

    def _write(self, frame: Frame) -> None:
        pending = self.outlet.write(frame)
        if not pending:
            if self.owes:
                self._settle()
        elif self.owes:
            self._written += frame.size
            self._frames += 1
        else:
            self.fell_behind(pending)
