"""Where a reader asks to begin: at a position, or at a moment.

For the doors whose address says it (`?offset=&epoch=`, `?since=`). A moment becomes the position before the
first event after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qs

import msgspec

from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.protocol.errors import BadRequest
from bus.protocol.limits import MAX_INT
from bus.protocol.positions import BEGINNING, Position


def query_of(raw: bytes) -> dict[str, str]:
    """Return the words of a query string; of repeated ones the last."""
    return {name: values[-1] for name, values in parse_qs(raw.decode("latin1")).items()}


def place(words: Mapping[str, str]) -> Position | datetime | None:
    """Return where `since`, or `offset` and `epoch`, ask to begin; None: with what comes now.

    Raises:
        BadRequest: they are no time and no position.
    """
    if "since" in words:
        return moment(words["since"])
    if "offset" not in words:
        return None
    text, epoch = words["offset"], words.get("epoch", "")
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= MAX_INT):
        raise BadRequest("offset is a whole number, at least 0")
    if "\0" in epoch:
        raise BadRequest("a NUL character is in no epoch")
    return Position(epoch=epoch, offset=int(text))


def moment(text: str) -> datetime:
    """Return a time given in seconds since 1970 or in ISO 8601. Raises `BadRequest`."""
    try:
        return datetime.fromtimestamp(float(text), UTC)
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return msgspec.convert(text, datetime).astimezone(UTC)
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise BadRequest("since is a time: seconds since 1970, or ISO 8601 with a zone") from None


async def located(topic: str, since: Position | datetime | None) -> Position | None:
    """Return the position that is meant in a topic."""
    if isinstance(since, datetime):
        return await in_thread(_position_at, topic, since)
    return since


def _position_at(topic: str, since: datetime) -> Position:
    """Return the position before the first event after `since`, by halving: times grow with the offsets."""
    log = event_log()
    state = log.states([topic]).get(topic)
    if state is None:
        # Not None, which is now: the first event may be stored between this look and the subscription.
        return BEGINNING
    low, high = state.first_offset, state.last_offset + 1
    while low < high:
        middle = (low + high) // 2
        page = log.read(topic, Position(epoch=state.epoch, offset=middle - 1), limit=1)
        if page.events and page.events[0].created_at <= since:
            low = middle + 1
        else:
            high = middle
    return Position(epoch=state.epoch, offset=low - 1)
