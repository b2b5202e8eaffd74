"""The HTTP API: publishing in the shapes of Centrifugo's server API, and reading for people and scripts.

An API key comes in `X-API-Key`; the reading addresses also take the session of staff. What the bus refuses is
an `error` with its code in an answer of status 200, as in Centrifugo, so that PyPI's `cent` works; what is no
sound request at all is 400, and nobody we know 401. `/api/docs` shows it all, from local files.
"""

from __future__ import annotations

from typing import Annotated, Any

from django.http import HttpRequest, HttpResponse
from ninja import Header, NinjaAPI, Schema
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.parser import Parser
from pydantic import Field

from bus import publishing
from bus.conf import conf
from bus.credentials import KEY_MARK
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.models import ActiveConnection
from bus.permissions import Identity, allows, check
from bus.protocol.errors import BadRequest, BusError, Expired, PermissionDenied, Unauthorized, UnknownTopic
from bus.protocol.limits import strict_json
from bus.protocol.positions import Position
from bus.replay import Replay
from bus.tokens import check_api_key

#: Scope of a key that may see who is connected.
SEE_CONNECTIONS = "read:connections"
#: Rows in one answer.
MAX_ROWS = 1_000

Limit = Annotated[int, Field(ge=1, le=MAX_ROWS)]
Since = Annotated[int | None, Field(ge=0, description="After this offset; without it, the newest.")]


class StrictParser(Parser):
    """Bodies pass the same gate as everything that comes in."""

    def parse_body(self, request: HttpRequest) -> Any:
        """Return the body. Raises `BadRequest`."""
        return strict_json(request.body, conf().max_message_bytes)


class Fault(Schema):
    """Why something was refused."""

    code: int
    message: str


class PublishRequest(Schema):
    """What to publish."""

    channel: str = Field(description="Topic, such as task:8f2c.")
    data: Any = Field(description="Any JSON; it is the whole payload.")
    tags: dict[str, str] | None = Field(None, description="Strings beside the event.")
    idempotency_key: str | None = Field(None, description="As the Idempotency-Key header.")


class Place(Schema):
    """Where an event is in the log."""

    offset: int
    epoch: str


class PublishAnswer(Schema):
    """A place, or why there is none."""

    result: Place | None = None
    error: Fault | None = None


class TopicOut(Schema):
    """A topic of the log."""

    topic: str
    epoch: str
    first_offset: int
    last_offset: int
    ended_at: str | None


class EventOut(Schema):
    """An event of a topic."""

    offset: int
    event_type: str
    created_at: str
    data: Any = Field(description="The whole event object.")
    tags: dict[str, str] | None


class EventsOut(Schema):
    """Events of a topic and the state in which it was read."""

    topic: str
    epoch: str
    first_offset: int
    last_offset: int
    events: list[EventOut]


class ConnectionOut(Schema):
    """A live connection of any server."""

    client: str
    agent_id: str
    user: str
    server: str
    transport: str
    address: str
    connected_at: str
    last_heartbeat: str
    topics: list[str]
    pending_bytes: int


class KnownRequest(HttpRequest):
    """A request of somebody we know."""

    auth: Identity


async def by_key(request: HttpRequest) -> Identity | None:
    """Return who the API key is, or None without one."""
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    key = request.headers.get("X-API-Key") or (given if kind.lower() in ("apikey", "bearer") else "")
    if not key.startswith(KEY_MARK):
        return None
    try:
        return (await in_thread(check_api_key, key)).identity
    except (Unauthorized, Expired):
        return None


async def by_session(request: HttpRequest) -> Identity | None:
    """Return who is logged in, if it is staff. For reading only: any page can make a browser write."""
    user = await request.auser()
    if user.is_active and user.is_staff:
        return Identity(kind="user", user_id=str(user.pk), is_staff=True, may_publish=False)
    return None


api = NinjaAPI(title="XNAi message bus", version="1", urls_namespace="bus-api", parser=StrictParser())
READERS = [by_key, by_session]


@api.exception_handler(AuthenticationError)
def _on_nobody(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    return api.create_response(request, _error(Unauthorized()), status=401)


@api.exception_handler(ValidationError)
def _on_malformed(request: HttpRequest, error: ValidationError) -> HttpResponse:
    first = error.errors[0] if error.errors else {}
    where = ".".join(str(part) for part in first.get("loc", ())[1:])
    return api.create_response(
        request, _error(BadRequest(f"{where}: {first.get('msg', 'malformed')}")), status=400
    )


@api.exception_handler(HttpError)
def _on_unreadable(request: HttpRequest, error: HttpError) -> HttpResponse:
    cause = error.__cause__
    refusal = cause if isinstance(cause, BusError) else BadRequest(error.message)
    return api.create_response(request, _error(refusal), status=error.status_code)


@api.exception_handler(BusError)
def _on_refused(request: HttpRequest, error: BusError) -> HttpResponse:
    statuses = {PermissionDenied: 403, UnknownTopic: 404}
    return api.create_response(request, _error(error), status=statuses.get(type(error), 400))


def _error(error: BusError) -> dict[str, Any]:
    body: dict[str, Any] = {"code": int(error.code), "message": error.message}
    if error.retryable:
        body["temporary"] = True
    return {"error": body}


@api.post(
    "/publish",
    response=PublishAnswer,
    auth=by_key,
    exclude_none=True,
    summary="Publish",
    operation_id="publish",
)
async def publish(
    request: KnownRequest, body: PublishRequest, idempotency_key: Header[str | None] = None
) -> dict[str, Any]:
    """Publish an event. The answer comes after the commit; with a key it may be asked again."""
    try:
        place = await publishing.apublish_verbatim(
            body.channel,
            body.data,
            body.idempotency_key or idempotency_key,
            by=request.auth,
            tags=body.tags,
        )
    except BusError as error:
        return _error(error)
    return {"result": {"offset": place.offset, "epoch": place.epoch}}


@api.get("/topics", response=list[TopicOut], auth=READERS, summary="Topics", operation_id="topics")
async def topics(request: KnownRequest, after: str = "", limit: Limit = 100) -> list[dict[str, Any]]:
    """List topics whose history may be read, by name, those behind `after`."""
    log = event_log()
    names = await in_thread(log.names, after, limit=limit)
    states = await in_thread(log.states, [name for name in names if allows(request.auth, "history", name)])
    return [
        {
            "topic": state.topic,
            "epoch": state.epoch,
            "first_offset": state.first_offset,
            "last_offset": state.last_offset,
            "ended_at": state.ended_at and state.ended_at.isoformat(),
        }
        for state in sorted(states.values(), key=lambda state: state.topic)
    ]


@api.get(
    "/topics/{topic}/events", response=EventsOut, auth=READERS, summary="Events", operation_id="topic_events"
)
async def topic_events(
    request: KnownRequest,
    topic: str,
    since: Since = None,
    epoch: str = "",
    limit: Limit = 100,
) -> dict[str, Any]:
    """Read events of a topic, in the order of their offsets."""
    check(request.auth, "history", topic)
    at = None if since is None else Position(epoch=epoch, offset=since)
    replay = Replay(event_log(), page=MAX_ROWS)
    page = await replay.history(topic, since=at, limit=limit, reverse=at is None)
    found = sorted(page.events, key=lambda event: event.offset)
    return {
        "topic": topic,
        "epoch": page.epoch,
        "first_offset": page.first_offset,
        "last_offset": page.last_offset,
        "events": [
            {
                "offset": event.offset,
                "event_type": event.event_type,
                "created_at": event.created_at.isoformat(),
                "data": strict_json(event.payload),
                "tags": strict_json(event.tags) if event.tags else None,
            }
            for event in found
        ],
    }


@api.get(
    "/connections",
    response=list[ConnectionOut],
    auth=READERS,
    summary="Connections",
    operation_id="connections",
)
async def connections(request: KnownRequest, agent_id: str = "", limit: Limit = 100) -> list[dict[str, Any]]:
    """List live connections of all servers: for staff, and for keys with the scope `read:connections`."""
    if not (request.auth.is_staff or SEE_CONNECTIONS in request.auth.scopes):
        raise PermissionDenied
    return await in_thread(_connections, agent_id, limit)


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
