"""What commands say, in the words of Centrifugo's server API (`api.proto`): one class for each request.

Types are taken strictly, and a field that is not named here is refused. Fields that are named and that the
bus does not offer are refused in `verbs` and `operators` as soon as they ask for something; so nothing that a
caller asks for is left out without a word.
"""

from __future__ import annotations

from typing import Annotated, Any

from ninja import Schema
from pydantic import ConfigDict, Field

#: Channels of one broadcast, and commands of one batch.
MAX_CHANNELS = 1_000
MAX_COMMANDS = 100

Channel = Annotated[str, Field(description="A topic, such as task:8f2c.", examples=["task:8f2c"])]
User = Annotated[
    str,
    Field(description="User id of the token, id of the Django user, or agent id.", examples=["a7"]),
]


class Request(Schema):
    """What all requests share."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Content(Request):
    """What is published, and how."""

    data: Any = Field(None, description="Any JSON; it is the whole payload.")
    b64data: str | None = Field(None, description="Instead of `data`: base64 of UTF-8 JSON.")
    skip_history: bool | None = Field(
        None, description="Only true of what the topic's rule says anyway: 108 where events are logged."
    )
    tags: dict[str, str] | None = Field(
        None,
        description="Strings beside the event. `key` is what a newer event replaces in a `latest` topic; "
        "`end` is not for you to set: the call `bus.end` of `/rpc` ends a topic.",
    )
    idempotency_key: str | None = Field(
        None, description="The same key again: no second event. As the header."
    )
    delta: bool | None = Field(None, description="Not offered: true is refused with 108.")
    version: int | None = Field(None, description="Not offered: above 0 is refused with 108.")
    version_epoch: str | None = Field(None, description="Not offered.")


class PublishRequest(Content):
    """Publish an event."""

    channel: Channel


class BroadcastRequest(Content):
    """Publish the same to many topics, each by itself."""

    channels: list[str] = Field(description=f"1 to {MAX_CHANNELS} topics.")


class StreamPosition(Request):
    """A place in a topic."""

    offset: int = Field(0, ge=0)
    epoch: str = ""


class HistoryRequest(Request):
    """Read the log."""

    channel: Channel
    limit: int | None = Field(
        None, description="Events; 0 or none: only the position; negative: all, in pages of 1,000."
    )
    since: StreamPosition | None = Field(
        None, description="Events after it, or before it in reverse; 112 if they are gone."
    )
    reverse: bool | None = Field(None, description="Newest first.")


class ChannelRequest(Request):
    """What needs a topic alone."""

    channel: Channel


class ChannelsRequest(Request):
    """List topics that are read now."""

    pattern: str | None = Field(None, description="`*` is any run of characters; without: all.")


class InfoRequest(Request):
    """Ask for the servers."""


class Whom(Request):
    """Whose connections. At least one of the three; together they narrow."""

    user: User = ""
    client: str | None = Field(None, description="One connection, by its client id.")
    session: str | None = Field(None, description="The session id that the client named at connect.")


class DisconnectObject(Request):
    """How to close."""

    code: int = Field(0, description="3000 to 4999; 0 is 3503. 3500-3999 and 4500-4999: not to come back.")
    reason: str = Field("", description="At most 120 bytes.")


class DisconnectRequest(Whom):
    """Close connections."""

    whitelist: list[str] | None = Field(None, description="Client ids that stay.")
    disconnect: DisconnectObject | None = None


class UnsubscribeRequest(Whom):
    """End subscriptions, for good: code 2000."""

    channel: Channel


class BoolValue(Request):
    """A wrapped bool."""

    value: bool


class SubscribeOverride(Request):
    """Not offered: the rule of the topic holds."""

    presence: BoolValue | None = None
    join_leave: BoolValue | None = None
    force_push_join_leave: BoolValue | None = None
    force_positioning: BoolValue | None = None
    force_recovery: BoolValue | None = None


class SubscribeRequest(Whom):
    """Subscribe connections to a topic that they may read, until they end."""

    channel: Channel
    recover_since: StreamPosition | None = Field(None, description="Send what came after it, too.")
    info: Any = Field(None, description="Not offered.")
    b64info: str | None = Field(None, description="Not offered.")
    data: Any = Field(None, description="Not offered.")
    b64data: str | None = Field(None, description="Not offered.")
    override: SubscribeOverride | None = None
    expire_at: int | None = Field(None, description="Not offered.")


class RefreshRequest(Whom):
    """Let connections expire."""

    expired: bool | None = Field(
        None, description="True: close with 3005, so that the client gets a new token."
    )
    expire_at: int | None = Field(None, description="Not offered: a token itself says when it expires.")
    info: Any = Field(None, description="Not offered.")


class RpcRequest(Request):
    """Call a method of the bus."""

    method: str = Field(description="`bus.publish`, `bus.end`, `bus.ack`, `bus.cursor` or `bus.whoami`.")
    params: Any = Field(None, description="Its arguments.")


class ConnectionsRequest(Request):
    """List the connections of a user."""

    user: User
    expression: str | None = Field(None, description="Not offered: anything but an empty text is refused.")


#: A time in whole seconds since 1970, as far as databases keep dates.
Seconds = Annotated[int | None, Field(None, ge=0, le=253_402_300_799)]


class RevokeTokenRequest(Request):
    """Take one token back."""

    uid: str = Field(min_length=1, max_length=200, description="Its `jti`.")
    expire_at: Seconds = Field(
        None, description="When it expires by itself, in seconds since 1970; then this is forgotten."
    )


class InvalidateUserTokensRequest(Request):
    """Take all tokens of a user back."""

    user: str = Field(min_length=1, max_length=180, description="`sub` of the tokens.")
    issued_before: Seconds = Field(None, description="Those issued until then; without it, until now.")
    expire_at: Seconds = Field(None, description="When the last of them expires by itself.")
    channel: str | None = Field(None, description="Not offered: refused with 108.")


class BatchRequest(Request):
    """Many commands in one request."""

    commands: list[dict[str, Any]] = Field(
        description=f"Up to {MAX_COMMANDS} objects, each with one command by name."
    )
    parallel: bool | None = Field(None, description="All at once. Otherwise one after the other.")
