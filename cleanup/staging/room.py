"""No room on the disk or for the database: one error for both, whichever way they say it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DatabaseError, InterfaceError

from cleanup.staging.errors import StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT)

#: SQLSTATE of PostgreSQL's `disk_full`.
_PG_DISK_FULL = "53100"


@contextmanager
def needing_room() -> Iterator[None]:
    """Turn what a full disk or a full database makes of the calls within into one error.

    Raises:
        StorageFull: there is no room.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFull("there is no room for this file; try again later") from error
    except DatabaseError as error:
        if not is_full(error):
            raise
        raise StorageFull("the database has no room; try again later") from error


def is_full(error: DatabaseError | InterfaceError) -> bool:
    """Whether the database failed for want of room."""
    cause = error.__cause__
    if getattr(cause, "sqlstate", None) == _PG_DISK_FULL:
        return True
    return "database or disk is full" in str(error) or "No space left on device" in str(error)
