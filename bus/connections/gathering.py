"""Small writes of many coroutines, made together: whatever came while one transaction ran is the next.

Each connection that comes or goes writes a few rows. One transaction for each would cost one fsync for each,
and a server to which all clients come back at once would spend half a minute on them. There is no timer: a
single write goes at once. A write that the database refuses as such harms nobody but itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

from django.db import DataError, IntegrityError, OperationalError

from bus.log.threads import in_thread

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
_Entry: TypeAlias = "tuple[ItemT, asyncio.Future[ResultT]]"


class Gathering(Generic[ItemT, ResultT]):
    """Writes items together. It belongs to the event loop in which it is used.

    Args:
        write: writes items in one transaction, in a thread, and returns a result for each in their order. It
            may be called again with some of the items of a call that has raised.
        most: items of one transaction.
    """

    def __init__(self, write: Callable[[list[ItemT]], list[ResultT]], *, most: int = 256) -> None:
        self._write = write
        self._most = most
        self._waiting: list[_Entry[ItemT, ResultT]] = []
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: ItemT) -> ResultT:
        """Write an item and return its result once it is committed. Raises what its write raises.

        Whoever is cancelled here leaves the write to happen.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ResultT] = loop.create_future()
        if self._task is not None and self._task.get_loop() is not loop:
            self._task, self._waiting = None, []
        self._waiting.append((item, future))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._write_all())
        return await future

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            await self._write_together(batch)

    async def _write_together(self, batch: list[_Entry[ItemT, ResultT]]) -> None:
        items = [item for item, _ in batch]
        try:
            try:
                results = await in_thread(self._write, items)
            except OperationalError:
                # A deadlock with another process is over by now; a database that is away is asked once more.
                results = await in_thread(self._write, items)
        except (DataError, IntegrityError, ValueError) as error:
            if len(batch) == 1:
                _fail(batch, error)
            for entry in batch if len(batch) > 1 else ():
                await self._write_together([entry])
        except BaseException as error:
            _fail(batch, error)
            if not isinstance(error, Exception):
                raise
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)


def _fail(batch: list[_Entry[ItemT, ResultT]], error: BaseException) -> None:
    for _, future in batch:
        if future.done():
            continue
        if isinstance(error, asyncio.CancelledError):
            future.cancel()
        else:
            future.set_exception(error)
