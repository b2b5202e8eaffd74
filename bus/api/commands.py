"""The commands by name, each with its shapes, and the one way by which all are called.

`POST /api/<name>` calls one, `POST /api/batch` many. A command that Centrifugo knows and the bus does not
offer is answered with 108, one that nobody knows with 104.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from django.http import HttpResponse
from ninja import Header
from pydantic import ValidationError

from bus.access.permissions import Identity
from bus.api import answers, operators, shapes, verbs
from bus.api.base import answer, api, error_body, malformed
from bus.api.callers import KnownRequest, by_key
from bus.api.examples import EXAMPLES
from bus.protocol.errors import (
    BadRequest,
    BusError,
    InternalError,
    LimitExceeded,
    MethodNotFound,
    NotAvailable,
)

logger = logging.getLogger(__name__)

#: Commands of Centrifugo that are not offered here: user status, blocking and push notifications.
UNOFFERED = frozenset(
    {
        "block_user",
        "cancel_push",
        "delete_user_status",
        "device_list",
        "device_register",
        "device_remove",
        "device_topic_list",
        "device_topic_update",
        "device_update",
        "get_user_status",
        "send_push_notification",
        "unblock_user",
        "update_push_status",
        "update_user_status",
        "user_topic_list",
        "user_topic_update",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command."""

    #: Shape of what is said.
    says: type[shapes.Request]
    #: Does it and returns the result, or raises `BusError`.
    does: Callable[[Identity, Any], Awaitable[dict[str, Any]]]
    #: Shape of the result.
    gives: Any
    tag: str = "topics"


COMMANDS: dict[str, Command] = {
    "publish": Command(says=shapes.PublishRequest, does=verbs.publish, gives=answers.Place),
    "broadcast": Command(says=shapes.BroadcastRequest, does=verbs.broadcast, gives=answers.BroadcastOut),
    "history": Command(says=shapes.HistoryRequest, does=verbs.history, gives=answers.HistoryOut),
    "history_remove": Command(says=shapes.ChannelRequest, does=verbs.history_remove, gives=answers.Nothing),
    "presence": Command(says=shapes.ChannelRequest, does=verbs.presence, gives=answers.PresenceOut),
    "presence_stats": Command(
        says=shapes.ChannelRequest, does=verbs.presence_stats, gives=answers.PresenceStatsOut
    ),
    "rpc": Command(says=shapes.RpcRequest, does=verbs.rpc, gives=answers.RpcOut),
    "channels": Command(
        says=shapes.ChannelsRequest, does=operators.channels, gives=answers.ChannelsOut, tag="operators"
    ),
    "info": Command(says=shapes.InfoRequest, does=operators.info, gives=answers.InfoOut, tag="operators"),
    "connections": Command(
        says=shapes.ConnectionsRequest, does=operators.connections, gives=answers.LinksOut, tag="operators"
    ),
    "disconnect": Command(
        says=shapes.DisconnectRequest, does=operators.disconnect, gives=answers.Nothing, tag="operators"
    ),
    "unsubscribe": Command(
        says=shapes.UnsubscribeRequest, does=operators.unsubscribe, gives=answers.Nothing, tag="operators"
    ),
    "subscribe": Command(
        says=shapes.SubscribeRequest, does=operators.subscribe, gives=answers.Nothing, tag="operators"
    ),
    "revoke_token": Command(
        says=shapes.RevokeTokenRequest, does=operators.revoke_token, gives=answers.Nothing, tag="operators"
    ),
    "invalidate_user_tokens": Command(
        says=shapes.InvalidateUserTokensRequest,
        does=operators.invalidate_user_tokens,
        gives=answers.Nothing,
        tag="operators",
    ),
    "refresh": Command(
        says=shapes.RefreshRequest, does=operators.refresh, gives=answers.Nothing, tag="operators"
    ),
}

#: Commands that take the `Idempotency-Key` header.
KEYED = frozenset({"publish", "broadcast"})


async def call(by: Identity, name: str, said: shapes.Request) -> dict[str, Any]:
    """Do one command. Raises `BusError` alone: what else goes wrong is logged and told as internal."""
    try:
        return await COMMANDS[name].does(by, said)
    except BusError:
        raise
    except Exception as error:
        logger.exception("the command %s failed", name)
        raise InternalError from error


def _with_key(said: shapes.Content, header: str) -> shapes.Content:
    if not header:
        return said
    if said.idempotency_key not in (None, "", header):
        raise BadRequest("the header Idempotency-Key and the field idempotency_key differ")
    return said.model_copy(update={"idempotency_key": header})


async def _answer(request: KnownRequest, name: str, said: Any, key: str = "") -> HttpResponse:
    try:
        if isinstance(said, shapes.Content):
            said = _with_key(said, key)
        return answer({"result": await call(request.auth, name, said)})
    except BusError as error:
        return answer(error_body(error))


def _offer(name: str, command: Command) -> None:
    """Give a command its address."""
    if name in KEYED:

        async def view(
            request: KnownRequest,
            said: Any,
            idempotency_key: str = Header("", alias="Idempotency-Key"),  # type: ignore[type-arg]
        ) -> HttpResponse:
            return await _answer(request, name, said, idempotency_key)

    else:

        async def view(request: KnownRequest, said: Any) -> HttpResponse:  # type: ignore[misc]
            return await _answer(request, name, said)

    view.__annotations__["said"] = command.says
    shown = EXAMPLES[name]
    api.post(
        f"/{name}",
        response={
            200: answers.Answer[command.gives],  # type: ignore[name-defined]
            400: answers.Refusal,
            401: answers.Refusal,
        },
        auth=by_key,
        summary=name.replace("_", " ").capitalize(),
        description=command.does.__doc__,
        operation_id=name,
        tags=[command.tag],
        openapi_extra=shown.for_openapi(),
    )(view)


for _name, _command in COMMANDS.items():
    _offer(_name, _command)


@api.post(
    "/batch",
    response={200: answers.BatchOut, 400: answers.Refusal, 401: answers.Refusal},
    auth=by_key,
    summary="Batch",
    operation_id="batch",
    tags=["topics"],
    openapi_extra=EXAMPLES["batch"].for_openapi(),
)
async def batch(request: KnownRequest, said: shapes.BatchRequest) -> HttpResponse:
    """Do many commands, each by itself: one that is refused does not hinder the others."""
    if len(said.commands) > shapes.MAX_COMMANDS:
        raise LimitExceeded(f"a batch has at most {shapes.MAX_COMMANDS} commands")
    if "idempotency-key" in request.headers:
        raise BadRequest("in a batch each command has its own idempotency_key")
    if said.parallel:
        replies = await asyncio.gather(*(_reply(request.auth, one) for one in said.commands))
    else:
        replies = [await _reply(request.auth, one) for one in said.commands]
    return answer({"replies": replies})


async def _reply(by: Identity, one: dict[str, Any]) -> dict[str, Any]:
    try:
        name, said = _read(one)
        return {name: await call(by, name, said)}
    except BusError as error:
        return error_body(error)


def _read(one: dict[str, Any]) -> tuple[str, shapes.Request]:
    """Return the command of one entry of a batch. Raises `BusError`."""
    if len(one) != 1:
        raise BadRequest("an entry has one command by its name")
    ((name, words),) = one.items()
    if name not in COMMANDS:
        raise refusal_of(name)
    try:
        return name, COMMANDS[name].says.model_validate(words)
    except ValidationError as error:
        raise malformed(list(error.errors())) from None


def refusal_of(name: str) -> BusError:
    """Return how a command is refused that is none of `COMMANDS`."""
    return NotAvailable(f"{name} is not offered") if name in UNOFFERED else MethodNotFound()
