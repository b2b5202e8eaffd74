"""Bodies of uploads: taken from the connection as they come, kept on disk, bounded in size and in time.

Django would read a body to its end before a view begins, and keep 2.5 MiB of each in memory. `with_bodies`
keeps Django from it for the addresses of uploads: a view sees who asks for what, and only then receives the
body, by `receive`. What came before a connection was cut, or before we lost patience, is told, too.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal

from django.conf import settings
from django.http import HttpRequest

from cleanup.conf import conf
from cleanup.staging.errors import TooLarge
from cleanup.staging.room import needing_room

Scope = dict[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Below which address uploads are.
PREFIX = "/files/"
#: Where a view finds the body that Django has not read, in the scope of its request.
EXTENSION = "staging.body"
#: A body above this is kept on disk (bytes): a hundred at once are to cost little memory.
IN_MEMORY = 65_536
#: Bytes that are handed over at a time.
CHUNK = 262_144

#: How the receiving of a body ended: whole, cut by the other side, or given up by us.
End = Literal["whole", "cut", "slow"]


@dataclass(slots=True, kw_only=True)
class Body:
    """What was received. `close` it."""

    file: IO[bytes]
    size: int
    end: End

    def chunks(self) -> Iterator[bytes]:
        """Yield it from the beginning, `CHUNK` bytes at a time."""
        self.file.seek(0)
        while chunk := self.file.read(CHUNK):
            yield chunk

    def close(self) -> None:
        """Let the disk have its room back."""
        self.file.close()


def with_bodies(django: Application) -> Application:
    """Return an HTTP application that leaves the bodies below `PREFIX` to the views of `django`."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(PREFIX):
            await django(scope, receive, send)
            return
        await django({**scope, EXTENSION: receive}, _empty(), send)

    return application


def _empty() -> Receive:
    """Return a `receive` that knows of no body and of no end: the view itself hears when the client goes."""
    first = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if first:
            return first.pop()
        never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await never

    return receive


async def receive(request: HttpRequest, *, limit: int) -> Body:
    """Receive the body of a request, to its end or as far as it comes.

    Args:
        request: the body has not been read yet.
        limit: bytes that it may have at most.

    Raises:
        TooLarge: it has more; the rest was not read.
        StorageFull: there is no room to keep it.
    """
    file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, dir=settings.FILE_UPLOAD_TEMP_DIR)  # noqa: SIM115
    body = Body(file=file, size=0, end="whole")
    try:
        with needing_room():
            body.end = await _receive(_source(request), body, limit)
    except BaseException:
        file.close()
        raise
    return body


def _source(request: HttpRequest) -> Receive:
    if (found := getattr(request, "scope", {}).get(EXTENSION)) is not None:
        return found  # type: ignore[no-any-return]

    async def read() -> Message:
        piece = request.read(CHUNK)
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    return read


async def _receive(source: Receive, body: Body, limit: int) -> End:
    began, patience, slowest = time.monotonic(), conf().upload_patience.total_seconds(), conf().upload_slowest
    while True:
        left = began + patience + body.size / slowest - time.monotonic()
        try:
            message = await asyncio.wait_for(source(), max(left, 0.001))
        except TimeoutError:
            return "slow"
        if message["type"] == "http.disconnect":
            return "cut"
        piece = message.get("body", b"")
        body.size += len(piece)
        if body.size > limit:
            raise TooLarge(f"a part has at most {limit} bytes")
        body.file.write(piece)
        if not message.get("more_body", False):
            return "whole"
