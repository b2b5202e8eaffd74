"""Fixtures of the integration ring: the bus in the test's own process, a site of real processes, an audit."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User

from bus import layer, publishing
from bus.fanout.hub import Hub, hub, running, shut_down
from bus.log import threads
from tests.auditing import AuditFiles, write
from tests.harness import Site
from tests.integration import console_rows
from tests.web import LOOPBACK, Web

# Tests ask for the pages of the console before they have asked for an address, with which they are loaded.
admin.autodiscover()


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


@pytest.fixture
def files(tmp_path: Path, settings: Any) -> AuditFiles:
    """A chain with its key and its file of checkpoints in a folder of its own."""
    return AuditFiles(tmp_path, settings)


@pytest.fixture
def sealed(files: AuditFiles) -> AuditFiles:
    """Three checkpoints of ten entries, and three entries more."""
    write(33)
    assert len(files.cut()) == 3
    return files


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server whose answers are the test's own."""
    with Web() as started:
        yield started


@pytest.fixture
def nearby(settings: Any) -> None:
    """Sources on this machine may be fetched."""
    settings.CLEANUP = {**settings.CLEANUP, "SOURCE_NETWORKS": LOOPBACK}


@pytest.fixture
def people() -> dict[str, User]:
    """One person of each role, and one of staff without a role."""
    return console_rows.people()


@pytest.fixture
def refusals_unlogged(caplog: pytest.LogCaptureFixture) -> None:
    """A refusal is logged with its trace; hundreds of them would take most of the time."""
    caplog.set_level(logging.ERROR, "django.request")
