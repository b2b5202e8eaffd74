"""Rows by the thousand, and the database's clock.

The ORM builds an object and a parameter list for every row; for a batch of a run that is three times the cost
of the renames. `insert_rows` takes tuples and uses `executemany` on SQLite and COPY on PostgreSQL. Values
must be in the form that the database takes: `as_uuid`, `as_time` and `as_json` bring them there.
"""

from __future__ import annotations

import json
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


def as_uuid(value: UUID) -> Any:
    """`value` as this database stores a UUID."""
    return value if is_postgresql() else value.hex


def as_time(value: datetime | None) -> Any:
    """`value` as this database stores a moment."""
    return value if value is None or is_postgresql() else connection.ops.adapt_datetimefield_value(value)


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
                for row in rows:
                    copy.write_row(row)
        else:
            marks = ", ".join(["%s"] * len(fields))
            cursor.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)  # noqa: S608


def chunks(values: Iterable[T], size: int = IN_LIST) -> Iterator[list[T]]:
    """Cut `values` into lists of at most `size`."""
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk
