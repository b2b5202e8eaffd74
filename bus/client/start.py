"""Where the reading of a topic begins: at a durable cursor, at an offset, or at what is kept of it.

The server is asked before the first subscribe, and once more if the place was trimmed meanwhile. A place that
is gone already is replaced by the oldest one that is kept, and the reader is told of the gap: nothing is left
out in silence.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from centrifuge import CentrifugeError, Client, HistoryResult, ReplyError, StreamPosition

from bus.client.errors import Refused
from bus.client.feed import Feed

#: Codes of the server: no such topic; one may not read its history, or there is none.
UNKNOWN_TOPIC = 102
NO_HISTORY = frozenset({103, 108})
UNRECOVERABLE = 112

#: Calls a remote method of the bus.
Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class Start:
    """The first position of one reader.

    Args:
        client: connected SDK client.
        call: calls a remote method, and raises `Refused`.
        feed: of the reader; told of a gap.
        cursor: name of the cursor that says where to begin; empty for the agent's own; None for `since`.
        since: offset after which to begin, if there is no cursor.
        epoch: the life of the topic in which `since` counts; empty for the present one.
    """

    def __init__(
        self, client: Client, call: Call, feed: Feed, *, cursor: str | None, since: int, epoch: str
    ) -> None:
        self._client = client
        self._call = call
        self._feed = feed
        self._cursor = cursor
        self._since = StreamPosition(offset=since, epoch=epoch)
        self._tried: StreamPosition | None = None

    async def __call__(self, _: str) -> StreamPosition:
        """Return the position after which to read; the SDK asks for it before it subscribes.

        Raises:
            Refused: the cursor or topic may not be read, or nothing follows the position. If no later try can
                change that, the reader is told.
        """
        try:
            return await self._find()
        except Refused as refusal:
            if not refusal.retryable:
                await self._feed.end(refusal)
            raise

    async def _find(self) -> StreamPosition:
        wanted = await self._wanted()
        kept = await self._kept()
        start = wanted if kept is None else self._within(wanted, kept)
        if self._tried is not None and start == self._tried:
            raise Refused(UNRECOVERABLE, "what follows the position cannot be had")
        self._tried = start
        return start

    async def _wanted(self) -> StreamPosition:
        if self._cursor is None:
            return self._since
        try:
            found = await self._call("bus.cursor", {"topic": self._feed.topic, "cursor": self._cursor})
        except Refused as refusal:
            if refusal.code != UNKNOWN_TOPIC:
                raise
            return StreamPosition(offset=0, epoch="")
        return StreamPosition(offset=int(found["offset"]), epoch=found["epoch"])

    async def _kept(self) -> HistoryResult | None:
        """Return the oldest event that is kept, and the top; None where that is not told."""
        try:
            return await self._client.history(self._feed.topic, limit=1)
        except ReplyError as error:
            if error.code in NO_HISTORY:
                return None
            raise Refused(error.code, str(error), retryable=error.temporary) from error
        except (CentrifugeError, TimeoutError, OSError) as error:
            raise Refused(0, f"no answer: {error!r}", retryable=True) from error

    def _within(self, wanted: StreamPosition, kept: HistoryResult) -> StreamPosition:
        """Return the wanted position, or that before the oldest event if it is gone."""
        first = kept.publications[0].offset if kept.publications else kept.offset + 1
        is_present = wanted.epoch in ("", kept.epoch)
        if is_present and wanted.offset >= first - 1:
            return StreamPosition(offset=wanted.offset, epoch=kept.epoch)
        # From the beginning means from what is kept; a place further on was promised more than that.
        if wanted.offset > 0:
            self._feed.note_gap()
        return StreamPosition(offset=first - 1, epoch=kept.epoch)
