"""The files of a preview, batch by batch: written while a worker judges, read for the lists and the CSV.

A batch holds files of one kind and one reason, so a list of one reason reads only its own batches; between
which two paths they lie stands beside them, so a search by path leaves out most of the others unpacked. A
page is read for a bounded time: where it stopped short of the end it says how to go on.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from django.db import transaction
from django.db.models import QuerySet

from cleanup.models import PolicyPreview, PreviewBatch
from cleanup.stores import jobs
from cleanup.stores.sql import database_now

#: Batches that are looked up at a time; a preview of a million files has a thousand.
_HEADS = 4_000

#: A page looks no longer than this for files that fit, seconds.
PATIENCE = 0.15


class Seen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file as a preview saw it."""

    path: str  #: below the area, escaped
    size: int
    detail: str = ""  #: what is to be said besides the reason
    stamp: int | None = None  #: when it was changed last, in seconds since 1970; None: not looked at


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Seen]).decode


class PreviewWriter:
    """Takes what a survey hands over, and keeps it in rows of the preview."""

    def __init__(self, preview: PolicyPreview) -> None:
        """Begin anew: what an earlier attempt has left is removed."""
        self._preview, self._number = preview, 0
        PreviewBatch.objects.filter(preview=preview).delete()

    def __call__(self, kind: str, reason: str, files: list[Seen]) -> None:
        """Keep one batch.

        Raises:
            LeaseLost: somebody else is at the preview now; nothing was kept.
        """
        paths = [one.path for one in files]
        with transaction.atomic():
            jobs.renew(self._preview, now=database_now())
            PreviewBatch.objects.create(
                preview=self._preview,
                number=self._number,
                kind=kind,
                reason=reason,
                files=len(files),
                low=min(paths),
                high=max(paths),
                body=zlib.compress(_encode(files), 1),
            )
        self._number += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which files of a preview a page is to show."""

    #: `goes`, `stays` or `doubt`.
    kind: str
    #: Empty: of any reason.
    reason: str = ""
    #: What the path begins with, escaped.
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Files with their reasons, and where the next page begins: None at the end."""

    files: list[tuple[str, Seen]]
    following: str | None


def page_of(preview: PolicyPreview, wanted: Wanted, *, after: str = "", limit: int = 200) -> Page:
    """Read up to `limit` files that fit, from the place `after`, which an earlier page gave."""
    number, skip = _place(after)
    until, found = time.monotonic() + PATIENCE, list[tuple[str, Seen]]()
    for at, reason in _batches(preview, wanted, number):
        files = _body(preview, at)
        for index in range(skip if at == number else 0, len(files)):
            if not files[index].path.startswith(wanted.prefix):
                continue
            if len(found) == limit:
                return Page(files=found, following=f"{at}.{index}")
            found.append((reason, files[index]))
        if time.monotonic() > until:
            return Page(files=found, following=f"{at + 1}.0")
    return Page(files=found, following=None)


def every_file(preview: PolicyPreview) -> Iterator[tuple[str, str, Seen]]:
    """Yield kind, reason and file of everything, one batch in memory at a time."""
    rows = PreviewBatch.objects.filter(preview=preview).order_by("number")
    for number, kind, reason in list(rows.values_list("number", "kind", "reason")):
        for one in _body(preview, number):
            yield kind, reason, one


def _place(after: str) -> tuple[int, int]:
    """The batch and the place in it; what cannot be read is the beginning."""
    number, _, skip = after.partition(".")
    if not (number.isdecimal() and skip.isdecimal()) or len(after) > 20:
        return 0, 0
    return int(number), int(skip)


def _batches(preview: PolicyPreview, wanted: Wanted, number: int) -> Iterator[tuple[int, str]]:
    """Yield number and reason of the batches that may hold what is wanted, from `number` on."""
    rows: QuerySet[PreviewBatch] = PreviewBatch.objects.filter(
        preview=preview, kind=wanted.kind, number__gte=number
    )
    if wanted.reason:
        rows = rows.filter(reason=wanted.reason)
    heads = rows.order_by("number").values_list("number", "reason", "low", "high")
    for at, reason, low, high in heads[:_HEADS].iterator(chunk_size=500):
        # Here and not by the database, whose order of text may be another.
        if high >= wanted.prefix and (low <= wanted.prefix or low.startswith(wanted.prefix)):
            yield at, reason


def _body(preview: PolicyPreview, number: int) -> list[Seen]:
    body = PreviewBatch.objects.values_list("body", flat=True).get(preview=preview, number=number)
    return _decode(zlib.decompress(body))
