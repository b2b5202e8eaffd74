"""Pytest plugin: starts the servers that a test run needs before Django reads its settings.

Loaded by `-p tests.services`, which comes before pytest-django configures Django. `TEST_DATABASE` is
`sqlite` (the default) or `postgresql`; `manage.py test` runs the suite once with each. Everything lives in a
temporary folder and is ended by process id.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from tests.servers import Postgres, Valkey

folder = Path(tempfile.mkdtemp(prefix="xnai-tests-"))
valkey = Valkey(folder=folder / "valkey")
postgres = Postgres() if os.environ.get("TEST_DATABASE", "sqlite") == "postgresql" else None

#: Rings whose files start sites of their own and wait for them.
LONG_RINGS = ("tests/chaos/", "tests/e2e/")


def _start() -> None:
    (folder / "valkey").mkdir()
    valkey.start()
    os.environ.update(
        XNAI_VAR=str(folder / "var"),
        REDIS_URL=valkey.url,
        SECRET_KEY="only-for-tests-" + "x" * 40,
        LOG_LEVEL="WARNING",
        # A test says itself what it uploads to, and what goes through the pipeline.
        CLEANUP_UPLOAD_AREA="",
        CLEANUP_PIPELINE_AUTO="",
    )
    (folder / "var" / "static").mkdir(parents=True)
    if postgres is not None:
        os.environ["DATABASE_URL"] = postgres.start().url
    else:
        os.environ.pop("DATABASE_URL", None)


def _stop() -> None:
    valkey.stop()
    if postgres is not None:
        postgres.stop()
    shutil.rmtree(folder, ignore_errors=True)


_start()
atexit.register(_stop)
# By default SIGTERM ends Python at once, and the servers would stay behind: end as Ctrl-C does.
signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_report_header() -> str:
    return f"servers: Valkey {valkey.url}, database {'PostgreSQL' if postgres else 'SQLite'}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the long files first; on the second run (PostgreSQL) leave out what never touches a database."""
    # Of two processes neither is to begin the longest file when the other has nothing left to do.
    items.sort(key=lambda item: not item.nodeid.startswith(LONG_RINGS))
    if postgres is None:
        return
    rings = ("tests/unit/", "tests/property/test_engine", "tests/property/test_bus_positions")
    once = [item for item in items if item.get_closest_marker("sqlite_only") or item.nodeid.startswith(rings)]
    if once:
        config.hook.pytest_deselected(items=once)
        items[:] = [item for item in items if item not in set(once)]
