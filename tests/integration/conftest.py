"""Fixtures of the integration ring: the bus within the test's own process, and a site of real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from bus import layer, publishing
from bus.hub import Hub, hub, shut_down
from bus.log import threads
from tests.harness import Site


@pytest.fixture
def bus_process() -> Iterator[None]:
    """Ends the threads of the bus when the test is over, and with them their database connections."""
    yield
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
