"""How much one uploader may send: uploads open, bytes within a day, uploads begun within a minute.

All three are counted from the rows, in the transaction that makes one more and behind a lock of this uploader
alone, so they hold exactly however many requests come at once and to however many processes.
"""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta

from django.db import connection
from django.db.models import QuerySet, Sum

from cleanup.conf import conf
from cleanup.models import Upload, UploadState
from cleanup.staging.errors import QuotaExceeded, TooLarge
from cleanup.stores.sql import is_postgresql

_DAY, _MINUTE = timedelta(hours=24), timedelta(minutes=1)

#: An upload ends when it ends: worth asking again after this long (s).
_ASK_AGAIN = 60

#: Names the kind of lock, so that no other use of advisory locks meets these.
_LOCK_KIND = 0x75706C  # "upl"


def check_quota(uploader: str, size: int, *, now: datetime) -> None:
    """Refuse one more upload of `size` bytes if that is too much for `uploader`, in a transaction.

    Raises:
        QuotaExceeded: for now.
        TooLarge: it could never be within what is taken in a day.
    """
    _lock(uploader)
    mine = Upload.objects.filter(uploader=uploader).order_by()
    _check_open(mine)
    _check_rate(mine.filter(created_at__gt=now - _MINUTE), now)
    _check_bytes(mine.filter(created_at__gt=now - _DAY), size, now)


def _lock(uploader: str) -> None:
    """Of one uploader's requests, the others wait. SQLite's IMMEDIATE transaction holds everybody already."""
    if is_postgresql():
        key = zlib.crc32(uploader.encode()) - (1 << 31)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [_LOCK_KIND, key])


def _check_open(mine: QuerySet[Upload]) -> None:
    limit = conf().upload_max_open
    if mine.filter(state__in=(UploadState.OPEN, UploadState.FINISHING)).count() >= limit:
        raise QuotaExceeded(f"at most {limit} uploads may be open at a time", retry_after=_ASK_AGAIN)


def _check_rate(lately: QuerySet[Upload], now: datetime) -> None:
    limit = conf().upload_rate
    if lately.count() >= limit:
        wait = _until_oldest_is_past(lately, _MINUTE, now)
        raise QuotaExceeded(f"at most {limit} uploads may begin within a minute", retry_after=wait)


def _check_bytes(today: QuerySet[Upload], size: int, now: datetime) -> None:
    limit = conf().upload_daily_bytes
    if size > limit:
        raise TooLarge(f"at most {limit} bytes may be sent within 24 hours; this file has {size}")
    if (today.aggregate(bytes=Sum("size"))["bytes"] or 0) + size > limit:
        wait = _until_oldest_is_past(today, _DAY, now)
        raise QuotaExceeded(f"at most {limit} bytes may be sent within 24 hours", retry_after=wait)


def _until_oldest_is_past(rows: QuerySet[Upload], span: timedelta, now: datetime) -> int:
    oldest = rows.order_by("created_at").values_list("created_at", flat=True).first() or now
    return max(1, -(-int((oldest + span - now).total_seconds() * 1000) // 1000))
