"""Fixtures of the integration ring: the bus within the test's own process, and a site of real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from bus import layer, publishing
from bus.fanout.hub import Hub, hub, running, shut_down
from bus.log import threads
from tests.harness import Site


@pytest.fixture
async def bus_process() -> AsyncIterator[None]:
    """Ends the hub and the threads of the bus when the test is over, and their database connections."""
    yield
    if running() is not None:
        await shut_down(0.0)
    publishing.stop_writer()
    layer.close()
    threads.close()


@pytest.fixture
async def own_hub(bus_process: None) -> AsyncIterator[Hub]:
    """The hub of this process, in the loop of the test."""
    running = hub()
    yield running
    await shut_down(0.0)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One web process on a database and a Valkey of its own, for the whole module."""
    started = Site().start()
    yield started
    started.stop()
