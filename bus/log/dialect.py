"""What SQLite and PostgreSQL need said differently by the event log: locks, times, many rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, Protocol

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper

INSERT_COLUMNS = 'topic_id, "offset", event_type, payload, tags, info, "key", publisher, created_at'
_INSERT = f"INSERT INTO bus_event ({INSERT_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"  # noqa: S608

_VALUES = "(?, ?, ?, ?, ?, ?, ?, ?, ?)"
#: On SQLite INSERTs of so many rows at once: few sizes, so that all of them stay prepared.
_SQLITE_INSERTS = [
    (rows, f"INSERT INTO bus_event ({INSERT_COLUMNS}) VALUES {', '.join([_VALUES] * rows)}")  # noqa: S608
    for rows in (64, 16, 4, 1)
]

#: From here on COPY is faster than statements sent in a pipeline.
_COPY_FROM_ROWS = 8


class Dialect(Protocol):
    """One database's way."""

    #: Ends a SELECT whose rows are to stay locked until the commit.
    lock: str
    #: How the time of an event `e` is selected.
    created_at: str

    def to_column(self, moment: datetime) -> Any:
        """Return a time as a parameter of a statement."""
        ...

    def from_column(self, value: Any) -> datetime:
        """Return a selected time, with its zone."""
        ...

    def insert(self, cursor: CursorWrapper, rows: Sequence[Sequence[Any]]) -> None:
        """Insert events; each row has the values of `INSERT_COLUMNS`."""
        ...


class SqliteDialect:
    """SQLite: BEGIN IMMEDIATE has locked the whole database already; times are text in UTC."""

    lock = ""
    # An expression has no declared type, so Django's converter, which takes longer than the rest of the row,
    # is not asked.
    created_at = "e.created_at || '+00:00'"

    def to_column(self, moment: datetime) -> str:
        """Return the time as Django's backend writes it."""
        return str(moment.astimezone(UTC).replace(tzinfo=None))

    def from_column(self, value: datetime | str) -> datetime:
        """Return the time; Django's converter has parsed it unless the column came through an expression."""
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment if moment.tzinfo is UTC else moment.replace(tzinfo=UTC)

    def insert(self, cursor: CursorWrapper, rows: Sequence[Sequence[Any]]) -> None:
        """Insert many rows a statement.

        At every step of a statement the interpreter is free for other threads, and has to be waited for
        afterwards: so few steps, past Django's cursor, which would look for placeholders in each.
        """
        with cursor.db.wrap_database_errors, closing(cursor.db.connection.cursor()) as plain:
            start = 0
            for size, statement in _SQLITE_INSERTS:
                while len(rows) - start >= size:
                    values = [value for row in rows[start : start + size] for value in row]
                    plain.execute(statement, values)
                    start += size


class PostgresDialect:
    """PostgreSQL: row locks; times have a zone."""

    lock = " FOR UPDATE"
    created_at = "e.created_at"

    def to_column(self, moment: datetime) -> datetime:
        """Return the time as it is."""
        return moment

    def from_column(self, value: datetime) -> datetime:
        """Return the time in UTC, whatever the zone of the connection is."""
        return value.astimezone(UTC)

    def insert(self, cursor: CursorWrapper, rows: Sequence[Sequence[Any]]) -> None:
        """Insert with COPY, or with single statements where there are few."""
        if len(rows) < _COPY_FROM_ROWS:
            cursor.executemany(_INSERT, rows)
            return
        with cursor.copy(f"COPY bus_event ({INSERT_COLUMNS}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)


def dialect_of(connection: BaseDatabaseWrapper) -> Dialect:
    """Return the dialect of a connection.

    Raises:
        NotImplementedError: the log knows SQLite and PostgreSQL only.
    """
    if connection.vendor == "postgresql":
        return PostgresDialect()
    if connection.vendor == "sqlite":
        return SqliteDialect()
    raise NotImplementedError(f"the event log knows no {connection.vendor}")
