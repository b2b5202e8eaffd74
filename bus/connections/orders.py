"""Orders about other people's connections: close them, end or begin a subscription, on whichever server.

    order --> a row, and the channel layer --> the hub that holds the connection --> carried out, once

The layer brings an order at once; where it does not, the server finds the row with its next tick, within a
second. A wish to close stands in the connection's own row (`bus.connections.leases`); subscriptions have rows
of their own here, each with a number by which an order that came both ways is carried out once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import msgspec
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from bus import layer
from bus.connections import leases
from bus.layer import Control
from bus.log.threads import in_thread
from bus.models import ActiveConnection, SubscriptionOrder
from bus.protocol.positions import Position

logger = logging.getLogger(__name__)

#: Orders that nobody has taken for so long are for connections that are gone.
LIFETIME = timedelta(minutes=5)
#: Numbers of orders that are remembered as carried out.
MAX_REMEMBERED = 1_000

_carried_out: dict[int, None] = {}


async def disconnect(wanted: Q, code: int, reason: str, *, actor: str) -> list[str]:
    """Have connections closed; return their client ids.

    Args:
        wanted: which rows of `ActiveConnection`.
        code: close code, 3000 to 4999.
        reason: at most 120 characters.
        actor: who wants it, for the log of the process.
    """
    clients = await in_thread(leases.request_close, wanted, code, reason)
    for client in clients:
        layer.control("disconnect", client_id=client, code=code, reason=reason)
    logger.info("%s asked to disconnect %s with %d (%s)", actor or "somebody", clients, code, reason)
    return clients


async def unsubscribe(wanted: Q, topic: str, code: int) -> int:
    """Have subscriptions of a topic ended; return of how many connections, subscribed or not."""
    return await _give(wanted, Control(layer.INSTANCE, "unsubscribe", topic=topic, code=code))


async def subscribe(wanted: Q, topic: str, since: Position | None = None) -> int:
    """Have connections subscribed that may read the topic; return how many were asked."""
    order = Control(layer.INSTANCE, "subscribe", topic=topic)
    if since is not None:
        order = msgspec.structs.replace(order, data=msgspec.Raw(msgspec.json.encode(since)))
    return await _give(wanted, order)


def message(wanted: Q, payload: bytes) -> list[str]:
    """Have an object sent to connections, outside of all topics; return their client ids.

    Args:
        wanted: which rows of `ActiveConnection`.
        payload: the object, JSON.
    """
    order = Control(layer.INSTANCE, "message", data=msgspec.Raw(payload))
    with transaction.atomic():
        numbered = _note(wanted, order)
        transaction.on_commit(partial(_tell, numbered))
    return [one.client_id for one in numbered]


def start_of(order: Control) -> Position | None:
    """Return the position from which an ordered subscription begins, or None for what comes now."""
    return msgspec.json.decode(order.data, type=Position) if order.data else None


def is_new(order: Control) -> bool:
    """Tell whether an order is still to be carried out, and remember that it was."""
    if not order.number:
        return True
    if order.number in _carried_out:
        return False
    _carried_out[order.number] = None
    if len(_carried_out) > MAX_REMEMBERED:
        del _carried_out[next(iter(_carried_out))]
    return True


async def carry_out(hear: Callable[[Control], None]) -> None:
    """Hear the orders for this server that the layer may not have brought, and take their rows away."""
    waiting = await in_thread(_waiting, layer.INSTANCE)
    for order in waiting:
        hear(order)
    if waiting:
        await in_thread(_take_away, [order.number for order in waiting])


def forget_old(now: datetime) -> int:
    """Take away orders for servers and connections that are gone; return how many."""
    return SubscriptionOrder.objects.filter(created_at__lt=now - LIFETIME).delete()[0]


async def _give(wanted: Q, order: Control) -> int:
    numbered = await in_thread(_note, wanted, order)
    _tell(numbered)
    return len(numbered)


def _tell(numbered: list[Control]) -> None:
    for one in numbered:
        layer.control(
            one.kind,
            client_id=one.client_id,
            topic=one.topic,
            code=one.code,
            data=one.data,
            number=one.number,
        )


def _note(wanted: Q, order: Control) -> list[Control]:
    now = timezone.now()
    with transaction.atomic():
        found = ActiveConnection.objects.filter(wanted).values_list("client_id", "server_instance_id")
        orders = [(server, msgspec.structs.replace(order, client_id=client)) for client, server in found]
        rows = SubscriptionOrder.objects.bulk_create(
            SubscriptionOrder(server_instance=server, order=msgspec.json.encode(one).decode(), created_at=now)
            for server, one in orders
        )
    return [msgspec.structs.replace(one, number=row.pk) for (_, one), row in zip(orders, rows, strict=True)]


def _waiting(server: str) -> list[Control]:
    rows = SubscriptionOrder.objects.filter(server_instance=server).order_by("pk")
    return [
        msgspec.structs.replace(msgspec.json.decode(order, type=Control), number=number)
        for number, order in rows.values_list("pk", "order")
    ]


def _take_away(numbers: list[int]) -> None:
    SubscriptionOrder.objects.filter(pk__in=numbers).delete()
