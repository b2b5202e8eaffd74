"""Each suite here runs against every implementation of the contract it is about."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from django.db import connections

from bus.log import EventLog
from bus.log.database import DatabaseEventLog
from bus.log.memory import MemoryEventLog
from tests.conformance.kit import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "database"])
def log(request: pytest.FixtureRequest, clock: Clock) -> EventLog:
    return MemoryEventLog(clock) if request.param == "memory" else DatabaseEventLog(clock=clock)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Eight threads that leave no connection behind."""
    with ThreadPoolExecutor(8) as pool:
        yield pool
        barrier = Barrier(8)

        def leave() -> None:
            barrier.wait(10)
            connections.close_all()

        for closed in [pool.submit(leave) for _ in range(8)]:
            closed.result()
