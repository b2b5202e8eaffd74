"""Commands about connections and servers, for those who run the site.

Each needs a scope of its own (`bus.api.callers`). What they order happens on whichever server the connections
are, within a second even without a channel layer: `bus.connections.orders` notes it in rows.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from django.db.models import Q
from django.utils import timezone

from bus import layer
from bus.access import revocation
from bus.access.permissions import Identity
from bus.api.callers import MANAGE_CONNECTIONS, MANAGE_TOKENS, SEE_CONNECTIONS, is_within, reach, require
from bus.api.shapes import (
    ChannelsRequest,
    ConnectionsRequest,
    DisconnectRequest,
    InfoRequest,
    InvalidateUserTokensRequest,
    RefreshRequest,
    RevokeTokenRequest,
    SubscribeRequest,
    UnsubscribeRequest,
    Whom,
)
from bus.conf import conf
from bus.connections import orders
from bus.fanout.hub import running
from bus.log.threads import in_thread
from bus.models import ActiveConnection, ServerInstance
from bus.protocol import topics
from bus.protocol.errors import BadRequest, DisconnectCode, NotAvailable, UnsubscribeCode
from bus.protocol.positions import Position

#: Codes of closes that the protocol leaves to servers.
FIRST_CODE, LAST_CODE = 3000, 4999
#: Bytes of a reason: rows hold 120 characters, a close frame 123 bytes.
MAX_REASON = 120
#: When this process began, in steady seconds.
_BEGAN = time.monotonic()


def _whom(said: Whom) -> Q:
    """Return the connections that are meant. Raises `BadRequest`."""
    if not (said.user or said.client or said.session):
        raise BadRequest("say whose connections: user, client or session")
    wanted = Q()
    if said.user:
        wanted &= Q(user_id=said.user) | Q(agent_id=said.user)
    if said.client:
        wanted &= Q(client_id=said.client)
    if said.session:
        wanted &= Q(session_id=said.session)
    return wanted


async def disconnect(by: Identity, said: DisconnectRequest) -> dict[str, Any]:
    """Close connections, on whichever servers they are."""
    require(by, MANAGE_CONNECTIONS)
    wanted = _whom(said)
    if said.whitelist:
        wanted &= ~Q(client_id__in=said.whitelist)
    code, reason = _ending(said)
    await orders.disconnect(wanted, code, reason, actor=by.name)
    return {}


def _ending(said: DisconnectRequest) -> tuple[int, str]:
    given = said.disconnect
    code = given.code if given and given.code else int(DisconnectCode.FORCED)
    if not FIRST_CODE <= code <= LAST_CODE:
        raise BadRequest(f"disconnect.code: {FIRST_CODE} to {LAST_CODE}")
    reason = given.reason if given else ""
    if len(reason.encode()) > MAX_REASON:
        raise BadRequest(f"disconnect.reason: at most {MAX_REASON} bytes")
    # The JavaScript SDK reads a final code only when there is a reason.
    known = DisconnectCode(code).reason if code in set(DisconnectCode) else "disconnect"
    return code, reason or known


async def unsubscribe(by: Identity, said: UnsubscribeRequest) -> dict[str, Any]:
    """End subscriptions; clients do not come back to the topic by themselves."""
    require(by, MANAGE_CONNECTIONS)
    reach(by, said.channel)
    await orders.unsubscribe(_whom(said), said.channel, int(UnsubscribeCode.SERVER))
    return {}


async def subscribe(by: Identity, said: SubscribeRequest) -> dict[str, Any]:
    """Subscribe connections to a topic, those of them that may read it, until they end."""
    require(by, MANAGE_CONNECTIONS)
    reach(by, said.channel)
    unoffered = (said.info, said.b64info, said.data, said.b64data, said.expire_at, said.override)
    if any(value not in (None, "", 0) for value in unoffered):
        raise NotAvailable("info, data, expire_at and override are not offered")
    since = said.recover_since
    at = Position(epoch=since.epoch, offset=since.offset) if since else None
    await orders.subscribe(_whom(said), said.channel, at)
    return {}


async def refresh(by: Identity, said: RefreshRequest) -> dict[str, Any]:
    """Let connections expire now: clients with a token fetch a new one and come back."""
    require(by, MANAGE_CONNECTIONS)
    if not said.expired or said.expire_at or said.info is not None:
        raise NotAvailable("only expired: true is offered; a token says itself when it expires")
    code = DisconnectCode.EXPIRED
    await orders.disconnect(_whom(said), int(code), code.reason, actor=by.name)
    return {}


async def revoke_token(by: Identity, said: RevokeTokenRequest) -> dict[str, Any]:
    """Take one token back: connections made with it are closed within seconds, on every server."""
    require(by, MANAGE_TOKENS)
    await _revoke(said.expire_at, token_id=said.uid, note=f"by {by.name}")
    return {}


async def invalidate_user_tokens(by: Identity, said: InvalidateUserTokensRequest) -> dict[str, Any]:
    """Take back all tokens that a user was issued so far; newer ones are good."""
    require(by, MANAGE_TOKENS)
    if said.channel:
        raise NotAvailable("channel is not offered")
    moment = None if said.issued_before is None else datetime.fromtimestamp(said.issued_before, UTC)
    await _revoke(said.expire_at, user_id=said.user, now=moment, note=f"by {by.name}")
    return {}


async def _revoke(expire_at: int | None, **what: Any) -> None:
    until = None if expire_at is None else datetime.fromtimestamp(expire_at, UTC)
    await in_thread(lambda: revocation.revoke(until=until, **what))


async def channels(by: Identity, said: ChannelsRequest) -> dict[str, Any]:
    """List topics that are read now, on all servers, and by how many."""
    require(by, SEE_CONNECTIONS)
    pattern = said.pattern or "*"
    if not topics.is_pattern(pattern):
        raise BadRequest("pattern: characters of topic names, and * for any run of them")
    counts = await _readers()
    return {
        "channels": {
            topic: {"num_clients": number}
            for topic, number in sorted(counts.items())
            if topics.matches(pattern, topic) and is_within(by, topic)
        }
    }


async def _readers() -> Counter[str]:
    """Count the readers of each topic: here as it is, elsewhere as of the last heartbeat."""
    counts = Counter(await in_thread(_readers_elsewhere))
    hub = running()
    if hub is not None:
        counts.update(hub.readers())
    return counts


def _readers_elsewhere() -> list[str]:
    rows = ActiveConnection.objects.exclude(server_instance=layer.INSTANCE)
    return [topic for listed in rows.values_list("topics", flat=True) for topic in listed]


async def info(by: Identity, said: InfoRequest) -> dict[str, Any]:
    """List the servers: this one as it is, others as of their last heartbeat."""
    require(by, SEE_CONNECTIONS)
    nodes = await in_thread(_nodes_elsewhere, timezone.now())
    return {"nodes": [await in_thread(_own_node), *nodes]}


def _own_node() -> dict[str, Any]:
    """Describe this server, which may have no row yet: it gets one with its first connection."""
    hub = running()
    rows = ActiveConnection.objects.filter(server_instance=layer.INSTANCE)
    users = [user or agent for user, agent in rows.values_list("user_id", "agent_id")]
    node = _node(layer.INSTANCE, socket.gethostname(), round(time.monotonic() - _BEGAN))
    node |= _figures(users, list(hub.readers().elements()) if hub else [])
    node["metrics"] = _metrics(**({"layer_up": hub.link.is_up} if hub else {}))
    return node


def _nodes_elsewhere(now: datetime) -> list[dict[str, Any]]:
    found = []
    for server in ServerInstance.objects.exclude(name=layer.INSTANCE).filter(lease_until__gte=now):
        rows = list(server.connections.values_list("user_id", "agent_id", "topics"))
        node = _node(server.name, server.hostname, round((now - server.started_at).total_seconds()))
        node |= _figures(
            [user or agent for user, agent, _ in rows], [topic for row in rows for topic in row[2]]
        )
        node["metrics"] = _metrics(layer_up=server.layer_up, loop_lag_ms=server.loop_lag_ms)
        found.append(node)
    return found


def _node(uid: str, name: str, uptime: int) -> dict[str, Any]:
    return {"uid": uid, "name": name, "version": layer.VERSION, "uptime": max(0, uptime)}


def _figures(users: list[str], read: list[str]) -> dict[str, int]:
    return {
        "num_clients": len(users),
        "num_users": len(set(users)),
        "num_subs": len(read),
        "num_channels": len(set(read)),
    }


def _metrics(**items: float) -> dict[str, Any]:
    interval = conf().heartbeat_interval.total_seconds()
    return {"interval": interval, "items": {name: float(value) for name, value in items.items()}}


async def connections(by: Identity, said: ConnectionsRequest) -> dict[str, Any]:
    """List the connections of a user, by client id."""
    require(by, SEE_CONNECTIONS)
    if said.expression:
        raise NotAvailable("expression is not offered")
    return {"connections": await in_thread(_links, said.user)}


def _links(user: str) -> dict[str, Any]:
    rows = ActiveConnection.objects.filter(Q(user_id=user) | Q(agent_id=user))
    return {
        row.client_id: {
            "app_name": row.user_agent,
            "app_version": "",
            "transport": "sse" if row.transport == "sse" else "websocket",
            "protocol": "json",
            "user": row.user_id or row.agent_id,
            "state": {"channels": {topic: {} for topic in row.topics}},
        }
        for row in rows.order_by("connected_at")[:1_000]
    }
