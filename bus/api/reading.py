"""Reading for people and scripts: topics, their events, and who is connected.

With an API key or the session of staff. Statuses are HTTP's own: 403 for what is not allowed, 404 for topics
that no rule knows.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from django.http import HttpResponse
from pydantic import Field

from bus.access.permissions import allows, check
from bus.api.answers import ConnectionOut, EventsOut, Refusal, TopicOut
from bus.api.base import answer, api
from bus.api.callers import SEE_CONNECTIONS, KnownRequest, by_key, by_session, require
from bus.api.examples import reading
from bus.log import StoredEvent
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.models import ActiveConnection
from bus.protocol.positions import Position
from bus.replay import Replay

#: Rows in one answer.
MAX_ROWS = 1_000
#: An offset of the log has at most 63 bits.
MAX_OFFSET = 2**63 - 1

Limit = Annotated[int, Field(ge=1, le=MAX_ROWS)]
Since = Annotated[
    int | None, Field(ge=0, le=MAX_OFFSET, description="After this offset; without it, the newest.")
]
NameFrom = Annotated[str, Field(max_length=200, pattern="^[^\\x00]*$")]

READERS = [by_key, by_session]
REFUSALS = dict.fromkeys((400, 401, 403, 404), Refusal)


@api.get(
    "/topics",
    response={200: list[TopicOut], **REFUSALS},
    auth=READERS,
    summary="Topics",
    operation_id="topics",
    openapi_extra=reading("topics"),
    tags=["reading"],
)
async def topics(request: KnownRequest, after: NameFrom = "", limit: Limit = 100) -> HttpResponse:
    """List topics whose history may be read, by name, those behind `after`."""
    log = event_log()
    names = await in_thread(log.names, after, limit=limit)
    states = await in_thread(log.states, [name for name in names if allows(request.auth, "history", name)])
    listed = [
        {
            "topic": state.topic,
            "epoch": state.epoch,
            "first_offset": state.first_offset,
            "last_offset": state.last_offset,
            "ended_at": state.ended_at and state.ended_at.isoformat(),
        }
        for state in sorted(states.values(), key=lambda state: state.topic)
    ]
    return answer(listed)


@api.get(
    "/topics/{topic}/events",
    response={200: EventsOut, **REFUSALS},
    auth=READERS,
    summary="Events",
    operation_id="topic_events",
    openapi_extra=reading("topic_events"),
    tags=["reading"],
)
async def topic_events(
    request: KnownRequest,
    topic: str,
    since: Since = None,
    epoch: str = "",
    limit: Limit = 100,
) -> HttpResponse:
    """Read events of a topic, in the order of their offsets."""
    check(request.auth, "history", topic)
    at = None if since is None else Position(epoch=epoch, offset=since)
    replay = Replay(event_log(), page=MAX_ROWS)
    page = await replay.history(topic, since=at, limit=limit, reverse=at is None)
    found = sorted(page.events, key=lambda event: event.offset)
    return answer(
        {
            "topic": topic,
            "epoch": page.epoch,
            "first_offset": page.first_offset,
            "last_offset": page.last_offset,
            "events": [_shown(event) for event in found],
        }
    )


def _shown(event: StoredEvent) -> dict[str, Any]:
    return {
        "offset": event.offset,
        "event_type": event.event_type,
        "created_at": event.created_at.isoformat(),
        "data": msgspec.Raw(event.payload),
        "tags": msgspec.Raw(event.tags) if event.tags else None,
    }


@api.get(
    "/connections",
    response={200: list[ConnectionOut], **REFUSALS},
    auth=READERS,
    summary="Connections",
    operation_id="list_connections",
    openapi_extra=reading("list_connections"),
    tags=["reading"],
)
async def connections(request: KnownRequest, agent_id: NameFrom = "", limit: Limit = 100) -> HttpResponse:
    """List live connections of all servers: for staff, and for keys with the scope `read:connections`."""
    require(request.auth, SEE_CONNECTIONS)
    return answer(await in_thread(_connections, agent_id, limit))


def _connections(agent_id: str, limit: int) -> list[dict[str, Any]]:
    rows = ActiveConnection.objects.order_by("-connected_at")
    if agent_id:
        rows = rows.filter(agent_id=agent_id)
    return [
        {
            "client": row.client_id,
            "agent_id": row.agent_id,
            "user": row.user_id,
            "server": row.server_instance_id,
            "transport": row.transport,
            "address": row.address,
            "connected_at": row.connected_at.isoformat(),
            "last_heartbeat": row.last_heartbeat.isoformat(),
            "topics": row.topics,
            "pending_bytes": row.pending_bytes,
        }
        for row in rows[:limit]
    ]
