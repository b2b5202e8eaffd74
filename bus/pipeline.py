"""Many publishes under way, answered in the order in which they came.

A client that sends a thousand publishes in one frame is not to wait for a thousand commits one after the
other: all are begun at once, share commits, and whatever is done at the head of the line is answered in one
frame.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from bus.protocol.frames import join


class Pipeline:
    """The line of one connection.

    Args:
        send: takes a frame of answers.
        depth: how many may be under way; whoever adds more waits.
    """

    def __init__(self, send: Callable[[bytes], None], *, depth: int = 512) -> None:
        self._send = send
        self._depth = depth
        self._loop = asyncio.get_running_loop()
        self._line: deque[tuple[asyncio.Task[Any], Callable[[asyncio.Task[Any]], bytes]]] = deque()
        self._moved = asyncio.Event()
        self._is_due = False

    async def add(self, work: Coroutine[Any, Any, Any], answer: Callable[[asyncio.Task[Any]], bytes]) -> None:
        """Begin work; `answer` makes the words for it once it is done and its turn has come."""
        while len(self._line) >= self._depth:
            await self._wait()
        task = self._loop.create_task(work)
        self._line.append((task, answer))
        task.add_done_callback(self._soon)

    async def drain(self) -> None:
        """Wait until all that was begun is answered."""
        while self._line:
            await self._wait()

    async def _wait(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    def _soon(self, _: object) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._answer)

    def _answer(self) -> None:
        self._is_due = False
        words = []
        while self._line and self._line[0][0].done():
            task, answer = self._line.popleft()
            if not task.cancelled():
                words.append(answer(task))
        if words:
            self._send(join(words))
        self._moved.set()
