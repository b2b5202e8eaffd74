"""Threads in which coroutines use the database.

`database_sync_to_async` has one thread for a whole process, so one slow query would stop them all. Here are
a few, each with a connection of its own: kept open on SQLite, where opening costs most, and given back to
the pool on PostgreSQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from django.db import connections

P = ParamSpec("P")
T = TypeVar("T")

_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="bus-sql")


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in one of the threads and return what it returns, or raise what it raises."""
    call = partial(function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads, _called, call)


def _called(call: Callable[[], T]) -> T:
    try:
        result = call()
    except BaseException:
        connections.close_all()
        raise
    for connection in connections.all(initialized_only=True):
        if connection.vendor != "sqlite":
            connection.close()
    return result


def close() -> None:
    """Wait for the threads to end what they do and close their connections; the next call starts new ones."""
    global _threads
    former = _threads
    _threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="bus-sql")
    for _ in range(4):
        former.submit(connections.close_all)
    former.shutdown()
