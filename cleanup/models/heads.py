"""The beginning of a path, as an index keeps it and as queries must write it to be answered by that index.

A path may be longer than an entry of an index of PostgreSQL, so only its head is indexed; and it is sorted by
its bytes, as SQLite sorts anyway, so that all paths with the same beginning stand together.
"""

from __future__ import annotations

from typing import Any

from django.db.models import Func, TextField

#: Characters of a path that are indexed.
HEAD = 200


class PathHead(Func):
    """The first characters of a path, sorted by their bytes."""

    arity = 1
    output_field = TextField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """With the length as a literal: SQLite matches no index by an expression with parameters."""
        return self.as_sql(compiler, connection, template=f"SUBSTR(%(expressions)s, 1, {HEAD})", **context)

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(
            compiler, connection, template=f'(LEFT(%(expressions)s, {HEAD}) COLLATE "C")', **context
        )
