"""What answers look like, for the documentation: the commands encode theirs themselves."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from ninja import Schema
from pydantic import Field


class Fault(Schema):
    """Why something was refused."""

    code: int = Field(examples=[103])
    message: str = Field(examples=["permission denied"])
    temporary: bool | None = Field(None, description="The same request may succeed later.")
    data: dict[str, Any] | None = Field(None, description="`retry_after`, in seconds, of a rate limit.")


class Refusal(Schema):
    """An answer that is no success."""

    error: Fault


class Nothing(Schema):
    """It is done; there is nothing more to say."""


class Place(Schema):
    """Where an event is in the log; offset 0 and no epoch where the topic is not logged."""

    offset: int
    epoch: str
    duplicate: bool | None = Field(None, description="It was there before, under the same key.")


class ClientOut(Schema):
    """A client, as others see it."""

    user: str | None = None
    client: str | None = None


class PublicationOut(Schema):
    """An event."""

    offset: int
    data: Any
    tags: dict[str, str] | None = None
    info: ClientOut | None = None


class HistoryOut(Schema):
    """Events and where the topic stands."""

    publications: list[PublicationOut]
    offset: int
    epoch: str


class PresenceOut(Schema):
    """Who is there, by client id."""

    presence: dict[str, ClientOut]


class PresenceStatsOut(Schema):
    """How many are there."""

    num_clients: int
    num_users: int


class ChannelOut(Schema):
    """How many read a topic."""

    num_clients: int


class ChannelsOut(Schema):
    """Topics that are read now. What other servers hold is as old as their last heartbeat, 10 s at most."""

    channels: dict[str, ChannelOut]


class MetricsOut(Schema):
    """Figures of a server."""

    interval: float
    items: dict[str, float]


class NodeOut(Schema):
    """A server."""

    uid: str
    name: str
    version: str
    num_clients: int
    num_users: int
    num_subs: int
    num_channels: int
    uptime: int
    metrics: MetricsOut


class InfoOut(Schema):
    """The servers."""

    nodes: list[NodeOut]


class RpcOut(Schema):
    """What the method returned."""

    data: dict[str, Any]


class LinkOut(Schema):
    """A connection."""

    app_name: str
    app_version: str
    transport: str
    protocol: str
    user: str
    state: dict[str, Any]


class LinksOut(Schema):
    """Connections by client id."""

    connections: dict[str, LinkOut]


ResultT = TypeVar("ResultT")


class Answer(Schema, Generic[ResultT]):
    """A result, or why there is none."""

    result: ResultT | None = None
    error: Fault | None = None


class BroadcastOut(Schema):
    """One answer for each channel, in the order of the request."""

    responses: list[Answer[Place]]


class BatchOut(Schema):
    """One reply for each command, in order: its result under its name, or an `error`."""

    replies: list[dict[str, Any]]


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
