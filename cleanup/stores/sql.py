"""Rows by the thousand, and the database's clock.

The ORM builds an object and a parameter list for every row; for a batch of a run that is three times the cost
of the renames. `insert_rows` takes tuples and uses `executemany` on SQLite and COPY on PostgreSQL. Values
must be in the form that the database takes: `as_uuid`, `as_time` and `as_json` bring them there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from django.db import connection, models

T = TypeVar("T")

#: Parameters in one IN list: below SQLite's oldest limit of 999.
IN_LIST = 900


def is_postgresql() -> bool:
    """Whether the default database is PostgreSQL."""
    return connection.vendor == "postgresql"


def database_now() -> datetime:
    """The time by the database's clock: what leases and purges go by, whichever host asks."""
    if not is_postgresql():
        return datetime.now(UTC)  # SQLite has no clock but this host's
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        moment: datetime = cursor.fetchone()[0]
    return moment.astimezone(UTC)


def as_uuid(value: UUID) -> str:
    """`value` as SQLite stores a UUID, which PostgreSQL reads as one too."""
    return value.hex


def as_time(value: datetime | None) -> str | None:
    """`value` as this database stores a moment, or reads one."""
    if value is None:
        return None
    return value.isoformat() if is_postgresql() else str(connection.ops.adapt_datetimefield_value(value))


def as_json(value: Any) -> str:
    """`value` as JSON text, which both databases take."""
    return json.dumps(value, separators=(",", ":"))


def field_of(model: type[models.Model], name: str) -> models.Field[Any, Any]:
    """The field `name` of `model`; a relation from elsewhere is none."""
    field = model._meta.get_field(name)
    if not isinstance(field, models.Field):
        raise TypeError(f"{model.__name__}.{name} has no column")
    return field


def column_of(model: type[models.Model], name: str) -> str:
    """The column of a field."""
    return str(field_of(model, name).column)


_SPECIAL = re.compile(r"[\\\t\n\r]")
_NULL = r"\N"
_SPELT = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}


def _line(row: Sequence[Any]) -> str:
    """One row in the text format of COPY: three times as fast as having the driver adapt every value."""
    line = "\t".join([value if type(value) is str else _plain(value) for value in row])
    # One look at the line: with no more than the tabs between values and the NULLs, nothing is to be spelt.
    is_plain = line.count("\t") == len(row) - 1 and line.count("\\") == row.count(None)
    if is_plain and "\n" not in line and "\r" not in line:
        return line + "\n"
    return "\t".join([_text(value) for value in row]) + "\n"


def _text(value: Any) -> str:
    if value is None:
        return _NULL
    text = value if type(value) is str else _plain(value)
    return _SPECIAL.sub(lambda found: _SPELT[found[0]], text) if _SPECIAL.search(text) else text


def _plain(value: Any) -> str:
    """A value that is no text, as PostgreSQL reads it.

    Raises:
        TypeError: there is more than one way to write it, or none that is known here.
    """
    if value is None:
        return _NULL
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, (int, str, UUID)):
        return str(value)
    raise TypeError(f"no column takes {type(value).__name__} this way")


def insert_rows(model: type[models.Model], fields: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Insert `rows` in one round; every column of the table must be among `fields` or allow NULL.

    Raises:
        django.db.Error: nothing was inserted, if the caller is in a transaction.
    """
    if not rows:
        return
    quote = connection.ops.quote_name
    table = quote(model._meta.db_table)
    columns = ", ".join(quote(column_of(model, name)) for name in fields)
    with connection.cursor() as cursor:
        if is_postgresql():
            with connection.wrap_database_errors, cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
                for part in chunks(rows):
                    copy.write("".join(map(_line, part)))
        else:
            marks = ", ".join(["%s"] * len(fields))
            cursor.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)  # noqa: S608


def among(model: type[models.Model], ids: Iterable[UUID], **equal: Any) -> tuple[list[str], list[Any]]:
    """Conditions for the rows of these ids, whose columns `equal` given values too, and their parameters.

    For thousands of ids: an IN list of the ORM costs more than the statement. SQLite, which knows nothing of
    how many rows share a value, would rather read all that are in one state than look thousands up; the plus
    sign keeps it from that.
    """
    quote = connection.ops.quote_name
    table, plus = quote(model._meta.db_table), "" if is_postgresql() else "+"
    same = [f"{plus}{table}.{quote(column_of(model, name))} = %s" for name in equal]
    if is_postgresql():
        return [f"{table}.{quote('id')} = ANY(%s)", *same], [list(ids), *equal.values()]
    found = f"{table}.{quote('id')} IN (SELECT value FROM json_each(%s))"  # noqa: S608 - our own names
    return [found, *same], [as_json([one.hex for one in ids]), *equal.values()]


def time_of(value: Any) -> datetime | None:
    """The moment that a column holds, from what the cursor gave."""
    if value is None:
        return None
    found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return found if found.tzinfo else found.replace(tzinfo=UTC)  # SQLite keeps no zone: it is UTC


def uuid_of(value: Any) -> UUID | None:
    """The UUID that a column holds, from what the cursor gave."""
    return value if value is None or isinstance(value, UUID) else UUID(value)


def chunks(values: Iterable[T], size: int = IN_LIST) -> Iterator[list[T]]:
    """Cut `values` into lists of at most `size`."""
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk
