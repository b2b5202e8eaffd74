"""The bytes of a staged file for a person: to be kept, never shown, and never all of them in memory.

The browser is told to save them and not to guess at their type: what somebody has uploaded never runs as a
page of this site. The next piece is read when the one before it has left, as far as the server can say so.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import BinaryIO

from django.http import HttpRequest, StreamingHttpResponse
from django.utils.http import content_disposition_header

from cleanup.models import StagedFile
from cleanup.staging.content import open_staged

#: Bytes that are read at a time.
PIECE = 256 * 1024
#: Bytes that may wait in the server for one reader, who may be slow.
MOST_OWED = 1 << 20
#: 20 ms: a fast reader waits so long at most, and 50 looks a second cost nothing.
_LOOK_AGAIN = 0.02


class _Pieces:
    """A file, piece by piece. Closed with the answer, whether it was read or not."""

    def __init__(self, file: BinaryIO, owed: Callable[[], int]) -> None:
        # A descriptor of its own: a file object would complain of an answer that nobody reads.
        self._fd, self._owed = os.dup(file.fileno()), owed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        at = 0
        while piece := await asyncio.to_thread(os.pread, self._fd, PIECE, at):
            at += len(piece)
            yield piece
            while self._owed() > MOST_OWED:  # noqa: ASYNC110 - the transport tells of no event
                await asyncio.sleep(_LOOK_AGAIN)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # An answer that is dropped before it was begun is closed by nobody.
        self.close()


def download(request: HttpRequest, row: StagedFile) -> StreamingHttpResponse:
    """Answer with the bytes of a staged file.

    Raises:
        FileNotFoundError: they are not there any more.
        EngineError: its area cannot be opened.
    """
    with open_staged(row) as file:
        size, pieces = os.fstat(file.fileno()).st_size, _Pieces(file, _owed_to(request))
    answer = StreamingHttpResponse(pieces, content_type="application/octet-stream")
    name = row.name or row.path.rpartition("/")[2]
    answer["Content-Disposition"] = content_disposition_header(True, name) or "attachment"
    answer["Content-Length"] = str(size)
    answer["X-Content-Type-Options"] = "nosniff"
    answer["Cache-Control"] = "private, no-store"
    return answer


def _owed_to(request: HttpRequest) -> Callable[[], int]:
    """What the server holds for this reader; a server that cannot say it waits by itself."""
    scope = getattr(request, "scope", {})
    stream = (scope.get("extensions") or {}).get("bus.stream") or {}
    found: Callable[[], int] = stream.get("pending_bytes", lambda: 0)
    return found
