"""What the log leaves out: the queries of addresses, for people put secrets and payloads there.

A processor of structlog; `settings.py` puts it into the chain.
"""

from __future__ import annotations

from structlog.typing import EventDict


def without_query(logger: object, method: str, event: EventDict) -> EventDict:
    """Cut the query off the request that an event is about."""
    request = event.get("request")
    if isinstance(request, str) and "?" in request:
        event["request"] = request.partition("?")[0] + "?…"
    return event
