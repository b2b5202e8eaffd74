"""What SQLite and PostgreSQL need said differently by the event log: locks, times, many rows at once."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeAlias

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper

from bus.log import NewEvent

#: An event to be inserted: the id of its topic, its offset, and what it says.
EventRow: TypeAlias = tuple[int, int, NewEvent]

INSERT_COLUMNS = 'topic_id, "offset", event_type, payload, tags, info, "key", publisher, created_at'


def _insert_statement(rows: int, mark: str) -> str:
    values = f"({', '.join([mark] * 9)})"
    return f"INSERT INTO bus_event ({INSERT_COLUMNS}) VALUES {', '.join([values] * rows)}"  # noqa: S608


#: On SQLite INSERTs of so many rows at once: few sizes, so that all of them stay prepared, and no more
#: parameters (9 a row) than SQLite takes in a statement, which is 32,766.
_SQLITE_INSERTS = [(rows, _insert_statement(rows, "?")) for rows in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)]

# Reading a page: one row with the topic's state even if there are no events, for one statement is one moment.
_EVENT = 'e."offset", e.event_type, e.payload, e.tags, e.info, e."key", e.publisher, '
_WANTED = "e.topic_id = t.id AND (%(epoch)s = '' OR t.epoch = %(epoch)s) AND e.\"offset\""
_SQLITE_READ = (
    f"SELECT t.epoch, t.first_offset, t.last_offset, {_EVENT}e.created_at || '+00:00' FROM bus_topic t "  # noqa: S608
    f"LEFT JOIN bus_event e ON {_WANTED} {{compare}} %(bound)s WHERE t.name = %(name)s "
    'ORDER BY e."offset" {order} LIMIT %(limit)s'
)
# PostgreSQL would take all events up to the end of the topic and sort them, for every page; so the limit is
# within. The time is selected as a number: Django has the driver parse it as text, in Python, which takes as
# long as the rest of the row.
_POSTGRES_READ = (
    "SELECT t.epoch, t.first_offset, t.last_offset, e.* FROM bus_topic t "  # noqa: S608
    f"LEFT JOIN LATERAL (SELECT {_EVENT}(EXTRACT(EPOCH FROM e.created_at) * 1000000)::bigint "
    f"FROM bus_event e WHERE {_WANTED} {{compare}} %(bound)s "
    'ORDER BY e."offset" {order} LIMIT %(limit)s) e ON TRUE WHERE t.name = %(name)s '
    'ORDER BY e."offset" {order}'
)

#: From here on COPY is faster than a statement with parameters.
_COPY_FROM_ROWS = 8
#: On PostgreSQL the INSERTs of fewer rows, by their number.
_POSTGRES_INSERTS = [_insert_statement(rows, "%s") for rows in range(_COPY_FROM_ROWS)]
_COPY = f"COPY bus_event ({INSERT_COLUMNS}) FROM STDIN WITH (FORMAT BINARY)"
# The binary form of COPY: a signature, rows of a count and fields, each after its length, and an end.
_COPY_BEGIN = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
_COPY_NULL = b"\xff\xff\xff\xff"
_copy_length = struct.Struct(">i").pack
_copy_time = struct.Struct(">iq").pack
#: How many fields; the topic's id and the offset, each of 8 bytes; the length of the next field.
_copy_head = struct.Struct(">hiqiqi").pack
_COPY_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Dialect(Protocol):
    """One database's way."""

    #: Ends a SELECT whose rows are to stay locked until the commit.
    lock: str
    #: Select a topic's state, and events behind `bound`, in reading order; and those before it, in reverse.
    #: Parameters: `name`, `epoch` (none if it is another; empty: any), `bound`, `limit`.
    read: str
    read_back: str

    def to_column(self, moment: datetime) -> Any:
        """Return a time as a parameter of a statement."""
        ...

    def from_column(self, value: Any) -> datetime:
        """Return a selected time, with its zone."""
        ...

    def insert(self, cursor: CursorWrapper, rows: Sequence[EventRow], now: datetime) -> None:
        """Insert events, all stored at the same time."""
        ...


class SqliteDialect:
    """SQLite: BEGIN IMMEDIATE has locked the whole database already; times are text in UTC."""

    lock = ""
    # The time is selected as an expression: that has no declared type, so Django's converter, which takes
    # longer than the rest of the row, is not asked.
    read = _SQLITE_READ.format(compare=">", order="ASC")
    read_back = _SQLITE_READ.format(compare="<", order="DESC")

    def to_column(self, moment: datetime) -> str:
        """Return the time as Django's backend writes it."""
        return str(moment.astimezone(UTC).replace(tzinfo=None))

    def from_column(self, value: datetime | str) -> datetime:
        """Return the time; Django's converter has parsed it unless the column came through an expression."""
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment if moment.tzinfo is UTC else moment.replace(tzinfo=UTC)

    def insert(self, cursor: CursorWrapper, rows: Sequence[EventRow], now: datetime) -> None:
        """Insert many rows a statement.

        At every step of a statement the interpreter is free for other threads, and has to be waited for
        afterwards, up to 5 ms under load: so as few steps as can be, and past Django's cursor, which would
        look for placeholders in each.
        """
        moment = self.to_column(now)
        with cursor.db.wrap_database_errors, closing(cursor.db.connection.cursor()) as plain:
            start = 0
            for size, statement in _SQLITE_INSERTS:
                while len(rows) - start >= size:
                    plain.execute(statement, _flat(rows[start : start + size], moment))
                    start += size


class PostgresDialect:
    """PostgreSQL: row locks; times have a zone."""

    lock = " FOR UPDATE"
    read = _POSTGRES_READ.format(compare=">", order="ASC")
    read_back = _POSTGRES_READ.format(compare="<", order="DESC")

    def to_column(self, moment: datetime) -> datetime:
        """Return the time as it is."""
        return moment

    def from_column(self, value: datetime | int) -> datetime:
        """Return the time in UTC: of microseconds, or of a column in whatever zone the connection has."""
        if isinstance(value, int):
            return _UNIX_EPOCH + timedelta(microseconds=value)
        return value.astimezone(UTC)

    def insert(self, cursor: CursorWrapper, rows: Sequence[EventRow], now: datetime) -> None:
        """Insert with COPY, or with one statement where there are few."""
        if len(rows) < _COPY_FROM_ROWS:
            cursor.execute(_POSTGRES_INSERTS[len(rows)], _flat(rows, now))
            return
        # Django translates the driver's errors for its own methods only.
        with cursor.db.wrap_database_errors, cursor.copy(_COPY) as copy:
            copy.write(_copied(rows, now))


def _flat(rows: Sequence[EventRow], moment: Any) -> list[Any]:
    """Return the values of all rows one after the other, as the parameters of one statement."""
    values: list[Any] = []
    for topic_id, offset, event in rows:
        values += (
            topic_id,
            offset,
            event.event_type,
            event.payload.decode(),
            event.tags.decode() if event.tags else "",
            event.info.decode() if event.info else "",
            event.key,
            event.publisher,
            moment,
        )
    return values


def _copied(rows: Sequence[EventRow], now: datetime) -> bytes:
    """Return rows in the binary form of COPY: no text has to be escaped, and none to be parsed."""
    length, moment = _copy_length, _copy_time(8, _microseconds(now))
    parts = [_COPY_BEGIN]
    for topic_id, offset, event in rows:
        event_type, publisher = event.event_type.encode(), event.publisher.encode()
        payload, tags, info = event.payload, event.tags or b"", event.info or b""
        parts += (
            _copy_head(9, 8, topic_id, 8, offset, len(event_type)),
            event_type,
            length(len(payload)),
            payload,
            length(len(tags)),
            tags,
            length(len(info)),
            info,
            _COPY_NULL if event.key is None else _copied_text(event.key),
            length(len(publisher)),
            publisher,
            moment,
        )
    parts.append(_COPY_END)
    return b"".join(parts)


def _copied_text(text: str) -> bytes:
    data = text.encode()
    return _copy_length(len(data)) + data


def _microseconds(moment: datetime) -> int:
    """Return a time as PostgreSQL keeps it."""
    past = moment - _COPY_EPOCH
    return (past.days * 86_400 + past.seconds) * 1_000_000 + past.microseconds


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
