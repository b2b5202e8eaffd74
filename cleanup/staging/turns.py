"""Threads in which the verbs of uploads run when a coroutine calls them: few, and each call in its turn.

A hundred parts may be ready at once. Each needs a connection to the database and syncs a file: more than a
few at a time would only wait for one another, or go beyond the pool of PostgreSQL.
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

_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="uploads")


async def in_turn(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in one of the threads and return what it returns, or raise what it raises.

    Once it runs it is not interrupted: what it has begun it ends, whoever waits for it.
    """
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
            connection.close()  # back to the pool; opening one costs most on SQLite
    return result
