"""Orders about subscriptions: each is carried out once, whichever way it comes, and none is kept for ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest
from django.db.models import Q
from django.utils import timezone
from msgspec import Raw

from bus import layer
from bus.connections import leases, orders
from bus.connections.leases import Details
from bus.connections.manager import ConnectionManager
from bus.layer import Control, LiveEvent
from bus.log.threads import in_thread
from bus.models import SubscriptionOrder
from bus.protocol.positions import Position
from tests.integration.plain_connections import live, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("bus_process")]


class Process:
    """What a server process hears, and what it sends to others; it hears its own orders at once."""

    def __init__(self) -> None:
        self.carried_out: list[Control] = []
        self.sent: list[str] = []

    def hear_hint(self, topic: str, epoch: str, first: int, last: int, events: Sequence[LiveEvent]) -> None:
        raise AssertionError("nothing is published here")

    def hear_control(self, order: Control) -> None:
        if orders.is_new(order):
            self.carried_out.append(order)

    def send(self, group: str, body: str) -> None:
        self.sent.append(body)


@pytest.fixture
async def process() -> Iterator[Process]:
    own = Process()
    layer.attach(own, own)
    yield own
    layer.detach(own)


async def connect(client: str, server: str) -> None:
    details = Details(client_id=client, user_id="u", connected_at=timezone.now())
    await in_thread(leases.enter, details, server)


async def waiting() -> list[str]:
    rows = SubscriptionOrder.objects.order_by("pk").values_list("server_instance", flat=True)
    return await in_thread(lambda: list(rows))


async def test_an_order_that_comes_both_ways_is_carried_out_once(process: Process) -> None:
    await connect("here", layer.INSTANCE)
    await connect("there", "another")
    assert await orders.unsubscribe(Q(user_id="u"), "lab:1", 2000) == 2
    assert {order.client_id for order in process.carried_out} == {"here", "there"}
    assert len(process.sent) == 2
    assert sorted(await waiting()) == sorted([layer.INSTANCE, "another"])
    await orders.carry_out(process.hear_control)
    assert len(process.carried_out) == 2
    assert await waiting() == ["another"]


async def test_an_order_that_the_layer_lost_is_found_in_its_row(process: Process) -> None:
    await connect("here", layer.INSTANCE)
    layer.detach(process)
    await orders.subscribe(Q(client_id="here"), "lab:1", Position(epoch="e1", offset=7))
    await orders.carry_out(process.hear_control)
    (order,) = process.carried_out
    assert (order.kind, order.client_id, order.topic) == ("subscribe", "here", "lab:1")
    assert orders.start_of(order) == Position(epoch="e1", offset=7)
    assert await waiting() == []


async def test_a_message_that_the_layer_lost_is_found_in_its_row(process: Process) -> None:
    await connect("here", layer.INSTANCE)
    await connect("there", "another")
    layer.detach(process)
    assert await in_thread(orders.message, Q(client_id="here"), b'{"a":1}') == ["here"]
    await orders.carry_out(process.hear_control)
    await orders.carry_out(process.hear_control)
    (order,) = process.carried_out
    assert (order.kind, order.client_id, bytes(order.data or b"")) == ("message", "here", b'{"a":1}')


async def test_a_message_reaches_the_one_connection_that_is_meant() -> None:
    manager, meant, other = ConnectionManager(), live("meant", user_id="u"), live("other", user_id="u")
    for each in (meant, other):
        await manager.enter(each)
    manager.hear(Control(layer.INSTANCE, "message", client_id="meant", data=Raw(b'{"a":1}')))
    await until(lambda: meant.connection.sent)
    assert (meant.connection.sent, other.connection.sent) == ([{"a": 1}], [])


async def test_orders_that_nobody_takes_are_forgotten(process: Process) -> None:
    await connect("there", "a server that dies")
    await orders.unsubscribe(Q(user_id="u"), "lab:1", 2000)
    assert await in_thread(orders.forget_old, timezone.now()) == 0
    assert await in_thread(orders.forget_old, timezone.now() + orders.LIFETIME + timedelta(seconds=1)) == 1
    assert await waiting() == []


async def test_what_is_remembered_as_carried_out_is_bounded() -> None:
    def order(number: int) -> Control:
        return Control("me", "unsubscribe", number=number)

    first, last = 10**9, 10**9 + orders.MAX_REMEMBERED
    assert all(orders.is_new(order(number)) for number in range(first, last + 1))
    assert not orders.is_new(order(last))
    assert orders.is_new(order(first))
    assert orders.is_new(Control("me", "join"))
