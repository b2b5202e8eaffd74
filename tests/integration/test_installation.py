"""The pieces are in place: a sound SQLite, the database settings, the checks."""

from __future__ import annotations

import os

import pytest
from django.core.management import call_command
from django.db import connection

from xnai_site import sqlite


def test_sqlite_is_free_of_the_wal_reset_bug():
    assert sqlite.is_sound(), sqlite.version()


@pytest.mark.django_db
def test_sqlite_commits_are_durable_and_wait_for_each_other():
    if connection.vendor != "sqlite":
        pytest.skip("settings of SQLite")
    with connection.cursor() as cursor:
        assert cursor.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.transaction_mode == "IMMEDIATE"


@pytest.mark.django_db
def test_the_suite_runs_on_the_database_it_says():
    wanted = os.environ.get("TEST_DATABASE", "sqlite")
    assert connection.vendor == wanted


def test_system_checks_find_nothing():
    call_command("check", fail_level="WARNING")


@pytest.mark.django_db
def test_no_migration_is_missing():
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


def test_channel_layer_is_the_pubsub_layer():
    from channels.layers import get_channel_layer

    assert type(get_channel_layer()).__name__ == "RedisPubSubChannelLayer"
