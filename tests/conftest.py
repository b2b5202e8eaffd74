"""Fixtures that every ring may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from hypothesis import HealthCheck, settings

from tests.servers import Valkey

# Examples are judged by their outcome: how long one takes says how busy the machine is.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings: None) -> None:
    """Let Django empty the tables after a test; PostgreSQL refuses to empty those of the audit otherwise."""
    options = connection.settings_dict["OPTIONS"]
    if connection.vendor == "postgresql":
        options["options"] += " -c cleanup.audit_flush=on"


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A Valkey server that the test may kill, freeze or empty."""
    server = Valkey().start()
    yield server
    server.stop()
