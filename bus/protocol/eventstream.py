"""Server-sent events: how events and the server's own words look in a stream, and what an id means.

An event of a topic has its position as `id` (`epoch:offset`), its type as `event` and its JSON as `data`. A
browser sends the last id back as `Last-Event-ID` when it comes again, which is all that a recovery needs. The
words of the server are `gap` and `disconnect`; no event of a topic is ever sent under these names.
"""

from __future__ import annotations

import re

from bus.protocol.errors import BadRequest
from bus.protocol.limits import MAX_INT
from bus.protocol.positions import Position

#: A line that every reader ignores; keeps proxies from cutting an idle stream.
COMMENT = b":\n\n"

#: Names of the server's own words.
GAP, DISCONNECT = "gap", "disconnect"
_RESERVED = frozenset({GAP, DISCONNECT, ""})
#: What ends a line, and so cannot be in a name.
_LINE_END = re.compile(r"[\r\n\0]")

_ID = re.compile(r"([0-9A-Za-z]{1,16}):([0-9]{1,19})", re.ASCII)


def event(epoch: str, offset: int, event_type: str, payload: bytes) -> bytes:
    """Return an event of a topic. One that is not logged has no id, and leaves the reader's last one alone.

    Args:
        epoch: life of the topic.
        offset: its place, 0 if it is not logged.
        event_type: becomes the name, unless it could be taken for a word of the server or is no single line.
        payload: JSON in one line, as `bus.publishing` encodes it.
    """
    parts = [b"id: %b:%d\n" % (epoch.encode(), offset)] if offset else []
    if event_type not in _RESERVED and _LINE_END.search(event_type) is None:
        parts.append(b"event: %b\n" % event_type.encode())
    return b"%bdata: %b\n\n" % (b"".join(parts), payload)


def word(name: str, body: bytes, position: Position | None = None) -> bytes:
    """Return a word of the server; with a position, from which the reader is to come again."""
    place = b"id: %b:%d\n" % (position.epoch.encode(), position.offset) if position else b""
    return b"%bevent: %b\ndata: %b\n\n" % (place, name.encode(), body)


def retry(milliseconds: int) -> bytes:
    """Tell how long to wait before coming again."""
    return b"retry: %d\n\n" % milliseconds


def position_of(last_id: str) -> Position:
    """Return the position that an id names. Raises `BadRequest`."""
    found = _ID.fullmatch(last_id)
    if found is None or int(found[2]) > MAX_INT:
        raise BadRequest("an event id is EPOCH:OFFSET")
    return Position(epoch=found[1], offset=int(found[2]))


def is_id(text: str) -> bool:
    """Tell whether a text looks like an id rather than like a time."""
    return _ID.fullmatch(text) is not None
