"""Checks of the database: does it answer, is it at this version, does a commit outlive a power cut."""

from __future__ import annotations

import psycopg
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from cleanup.stores.sql import database_now
from xnai_site import sqlite
from xnai_site.checkup.finding import FAILED, OK, WARNING, Finding, failed, first_line, ok, warning

#: Clocks further apart than this (s) make times in the console wrong; much further, leases and tokens.
_CLOCKS_WARN, _CLOCKS_FAIL = 2.0, 30.0


def sqlite_library() -> Finding:
    version = ".".join(map(str, sqlite.version()))
    if connection.vendor != "sqlite":
        return Finding(name="sqlite", state=OK, detail=f"{version}, not used")
    if sqlite.is_sound():
        return Finding(name="sqlite", state=OK, detail=version)
    return Finding(
        name="sqlite",
        state=WARNING,
        detail=f"{version} can corrupt a database in WAL mode; the slower rollback journal is used",
        mend="Install pysqlite3, use SQLite 3.51.3 or newer, or set DATABASE_URL to a PostgreSQL database.",
    )


def database() -> Finding:
    if error := database_trouble():
        return Finding(
            name="database",
            state=FAILED,
            detail=f"{connection.vendor}: {error}",
            mend="Check DATABASE_URL, and that the server runs and knows this user and database.",
        )
    return Finding(name="database", state=OK, detail=f"{connection.vendor} answers")


def database_trouble() -> str:
    """Why the database does not answer; empty if it does.

    PostgreSQL is first asked past the pool, which would hide the reason behind ten seconds of trying.
    """
    try:
        if connection.vendor == "postgresql" and connection.connection is None:
            psycopg.connect(**{**connection.get_connection_params(), "connect_timeout": 2}).close()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, psycopg.Error) as error:
        return first_line(error)
    return ""


def migrations() -> Finding:
    try:
        missing = unapplied_migrations()
    except DatabaseError as error:
        return Finding(name="migrations", state=FAILED, detail=f"cannot be read: {first_line(error)}")
    if missing:
        return Finding(
            name="migrations",
            state=FAILED,
            detail=f"{len(missing)} not applied, first {missing[0]}",
            mend="Run `manage.py migrate`.",
        )
    return Finding(name="migrations", state=OK, detail="all applied")


def unapplied_migrations() -> list[str]:
    """The migrations that the database lacks. Raises `DatabaseError` if it cannot be asked."""
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [f"{migration.app_label}.{migration.name}" for migration, _ in plan]


def durability() -> Finding:
    """Whether what was committed survives a power cut: an acknowledgement promises that."""
    try:
        return _sqlite_durability() if connection.vendor == "sqlite" else _postgresql_durability()
    except DatabaseError as error:
        return failed("durability", first_line(error))


def _ask(statement: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return str(cursor.fetchone()[0]).lower()


def _sqlite_durability() -> Finding:
    journal, sync = _ask("PRAGMA journal_mode"), _ask("PRAGMA synchronous")
    wanted = "wal" if sqlite.is_sound() else "delete"
    if int(sync) < 2:
        return failed(
            "durability",
            f"synchronous is {sync}: a commit may be lost",
            "Do not override OPTIONS of DATABASES.",
        )
    if journal not in (wanted, "memory"):
        return warning(
            "durability",
            f"the journal is {journal}, not {wanted}: readers and the writer wait for one another",
            "Stop all processes, then run `manage.py migrate`: the first connection sets the journal.",
        )
    return ok("durability", f"journal {journal}, every commit is synced")


def _postgresql_durability() -> Finding:
    found = {name: _ask(f"SHOW {name}") for name in ("fsync", "full_page_writes", "synchronous_commit")}
    off = [name for name, value in found.items() if value == "off"]
    if off:
        return failed(
            "durability",
            f"{' and '.join(off)} {'is' if len(off) == 1 else 'are'} off: a commit may be lost",
            "Turn it on in postgresql.conf, or for the role and the database, and reload the server.",
        )
    return ok("durability", ", ".join(f"{name} {value}" for name, value in found.items()))


def clocks() -> Finding:
    """Whether this machine and the database agree about the time."""
    if connection.vendor == "sqlite":
        return ok("clocks", "the database is on this machine")
    try:
        apart = abs((database_now() - timezone.now()).total_seconds())
    except DatabaseError as error:
        return failed("clocks", first_line(error))
    detail, mend = f"{apart:.1f} s from the clock of the database", "Let NTP or chrony set both clocks."
    if apart > _CLOCKS_FAIL:
        return failed("clocks", detail, mend)
    return warning("clocks", detail, mend) if apart > _CLOCKS_WARN else ok("clocks", detail)
