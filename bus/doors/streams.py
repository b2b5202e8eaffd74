"""The way to one reader of a stream: bytes in order, bounded, and a way to be rid of one that does not read.

ASGI lets an application send without end to a client that takes nothing: Daphne buffers it all, other servers
let `send` wait. So one task sends, what it has not sent is counted, and under `bus.transport` what the server
itself still holds, too. The send queue judges by that whether the reader is slow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from bus.fanout.sending import Frame

logger = logging.getLogger(__name__)

#: Name of the extension that `bus.transport` puts into the scope of an HTTP request.
EXTENSION = "bus.stream"
#: Seconds for which a close waits until the last words are out; the manager grants it one.
GOODBYE = 0.7
#: How often it looks whether they are (s): no server tells.
LOOK = 0.02


class StreamOutlet:
    """See the module; an `Outlet` of `bus.fanout.sending`.

    Args:
        send: of the ASGI server.
        extension: `pending_bytes`, what the server holds, and `abort`, which drops it and the connection;
            None under a server that has neither.
    """

    def __init__(
        self,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        extension: Mapping[str, Callable[[], Any]] | None,
    ) -> None:
        self._send = send
        self._held: Callable[[], int] = extension["pending_bytes"] if extension else int
        self._abort: Callable[[], None] | None = extension["abort"] if extension else None
        self._waiting: list[bytes] = []
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        #: Before the start there is no stream to write to, and after the close no more.
        self._is_open = False
        #: Set once nothing more will go out.
        self.over = asyncio.Event()

    async def start(self, head: dict[str, Any]) -> None:
        """Send status and headers; from now on there is a stream."""
        await self._send(head)
        self._is_open = True

    def write(self, frame: Frame) -> int:
        """Send soon, in order."""
        if not self._is_open:
            return 0
        self._waiting.extend(frame.texts)
        self._size += frame.size
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())
        return self.pending_bytes()

    def pending_bytes(self) -> int:
        """Return what was written and is not known to be out."""
        return self._size + self._held()

    async def close(self, code: int, reason: str) -> None:
        """End the stream; whoever does not take its last words in time is cut off."""
        if not self._is_open:
            self.broke()
            return
        self._is_open = False
        try:
            async with asyncio.timeout(GOODBYE):
                while self.pending_bytes():  # noqa: ASYNC110  (no server tells when something is out)
                    await asyncio.sleep(LOOK)
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            if self._abort is not None:
                self._abort()
        finally:
            self.broke()

    def broke(self) -> None:
        """Give up what is waiting: the client is gone."""
        self._is_open = False
        self._waiting.clear()
        self._size = 0
        if self._task is not None:
            self._task.cancel()
        self.over.set()

    async def _drain(self) -> None:
        try:
            while self._waiting:
                body = b"".join(self._waiting)
                self._waiting.clear()
                await self._send({"type": "http.response.body", "body": body, "more_body": True})
                self._size = max(0, self._size - len(body))
        except Exception as error:  # noqa: BLE001  (servers differ in what they raise on a closed connection)
            logger.debug("a stream took no more: %r", error)
            self._size = 0
        finally:
            self._task = None
