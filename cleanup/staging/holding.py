"""Who writes to an upload: a lease in its row, taken and renewed by compare-and-set.

Every change of an upload by whoever writes to it names the lease, so a writer that was overtaken changes
nothing. A lease ends by time, by being given back, and at once when the process that had it has died or has
forgotten it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

from django.db.models import Q, QuerySet

from cleanup.models import Upload
from cleanup.staging.errors import Gone, Locked, WrongOffset
from cleanup.stores.leases import is_dead, owner_name
from cleanup.stores.sql import database_now

#: A writer that got no byte for this long may be overtaken.
LEASE = timedelta(seconds=60)

#: Leases that somebody in this process has right now.
_mine: set[str] = set()


class Hold:
    """The lease of one upload, while it is written to."""

    def __init__(self, upload: Upload, token: str) -> None:
        self.upload, self.token = upload, token
        self._renewed = time.monotonic()

    def keep(self) -> None:
        """Renew the lease if a third of it is over.

        Raises:
            Locked: it has passed to somebody else.
            Gone: the upload is over.
        """
        if time.monotonic() - self._renewed > LEASE.total_seconds() / 3:
            self.change(lease_until=database_now() + LEASE)
            self._renewed = time.monotonic()

    def change(self, **changes: Any) -> None:
        """Write `changes` to the row, if it is as we know it.

        Raises:
            Locked: the lease has passed to somebody else; nothing was written.
            Gone: the upload is over; nothing was written.
        """
        if not _unchanged(self.upload).filter(lease_by=self.token).update(**changes):
            raise _why_not(self.upload)
        for name, value in changes.items():
            setattr(self.upload, name, value)


@contextmanager
def held(upload: Upload) -> Iterator[Hold]:
    """Hold `upload`, as it is known here, for one writer.

    Raises:
        Locked: somebody else holds it.
        WrongOffset: somebody has written to it since it was read.
        Gone: it is over.
    """
    now, token = database_now(), f"{owner_name()}#{uuid4().hex[:8]}"
    _mine.add(token)
    try:
        if not _unchanged(upload).filter(_free(upload, now)).update(lease_by=token, lease_until=now + LEASE):
            raise _why_not(upload)
        try:
            yield Hold(upload, token)
        finally:
            Upload.objects.filter(pk=upload.pk, lease_by=token).update(lease_by="", lease_until=None)
    finally:
        _mine.discard(token)


def is_free(upload: Upload, now: Any) -> bool:
    """Whether nobody is writing to it."""
    return upload.lease_until is None or upload.lease_until < now or _is_left(upload.lease_by)


def _free(upload: Upload, now: Any) -> Q:
    free = Q(lease_until__isnull=True) | Q(lease_until__lt=now)
    return free | Q(lease_by=upload.lease_by) if _is_left(upload.lease_by) else free


def _is_left(token: str) -> bool:
    """Whether nobody has this lease any more: its process is dead, or is this one and does not know it."""
    owner = token.partition("#")[0]
    return bool(owner) and (is_dead(owner) or (owner == owner_name() and token not in _mine))


def _unchanged(upload: Upload) -> QuerySet[Upload]:
    return Upload.objects.filter(pk=upload.pk, state=upload.state, offset=upload.offset)


def _why_not(upload: Upload) -> Exception:
    found = Upload.objects.filter(pk=upload.pk).first()
    if found is None or found.state != upload.state:
        return Gone("this upload is over")
    if found.offset != upload.offset:
        return WrongOffset(found.offset)
    return Locked("somebody else is writing to this upload")
