"""Writes of many coroutines in few transactions; the gate before the handshake; places."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import DataError, OperationalError

from bus.conf import BusSettings
from bus.connections.admission import Gate
from bus.connections.gathering import Gathering
from bus.connections.leases import Details
from bus.connections.places import Places
from bus.fanout.sending import Frame as Message
from bus.fanout.sending import PlainOutlet, SendQueue, Verdict
from bus.metrics import REFUSED
from bus.protocol.errors import Disconnect

pytestmark = [pytest.mark.sqlite_only, pytest.mark.usefixtures("bus_process")]


#: An item that the table does not take.
REFUSED_ITEM = -1


class Table:
    """Remembers its transactions; the first one waits until it is let go."""

    def __init__(self) -> None:
        self.transactions: list[list[int]] = []
        self.go_on = threading.Event()
        self.failures: list[Exception] = []

    def write(self, items: list[int]) -> list[int]:
        if self.failures:
            raise self.failures.pop(0)
        if REFUSED_ITEM in items:
            raise DataError("refused")
        self.transactions.append(items)
        if len(self.transactions) == 1:
            assert self.go_on.wait(60)
        return [item * 10 for item in items]


async def test_what_comes_while_a_transaction_runs_is_the_next_one() -> None:
    table = Table()
    rows = Gathering(table.write)
    first = asyncio.ensure_future(rows.submit(0))
    while not table.transactions:
        await asyncio.sleep(0.001)
    others = [asyncio.ensure_future(rows.submit(number)) for number in range(1, 50)]
    await asyncio.sleep(0)
    table.go_on.set()
    assert await asyncio.gather(first, *others) == [number * 10 for number in range(50)]
    assert table.transactions == [[0], list(range(1, 50))]


async def test_a_write_that_is_refused_fails_alone() -> None:
    table = Table()
    table.go_on.set()
    rows = Gathering(table.write)
    results = await asyncio.gather(*map(rows.submit, (12, REFUSED_ITEM, 14)), return_exceptions=True)
    assert (results[0], results[2]) == (120, 140)
    assert isinstance(results[1], DataError)


async def test_a_database_that_was_away_for_a_moment_is_asked_once_more() -> None:
    table = Table()
    table.go_on.set()
    rows = Gathering(table.write)
    table.failures = [OperationalError("deadlock")]
    assert await rows.submit(1) == 10
    table.failures = [OperationalError("gone"), OperationalError("gone")]
    with pytest.raises(OperationalError):
        await rows.submit(2)
    assert await rows.submit(3) == 30


async def test_who_is_cancelled_leaves_the_write_and_the_others_alone() -> None:
    table = Table()
    rows = Gathering(table.write)
    waiting = [asyncio.ensure_future(rows.submit(number)) for number in range(3)]
    await asyncio.sleep(0.01)
    waiting[1].cancel()
    table.go_on.set()
    assert await waiting[0] == 0
    assert await waiting[2] == 20
    assert sorted(item for items in table.transactions for item in items) == [0, 1, 2]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def refused(why: str) -> float:
    return REFUSED.labels(why)._value.get()


def test_the_gate_lets_a_burst_in_and_then_its_rate() -> None:
    clock, before = Clock(), refused("rate")
    gate = Gate(BusSettings(connect_rate=2.0, connect_burst=3), clock=clock)
    assert [gate.wait("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    clock.now += 0.5
    assert [gate.wait("a"), gate.wait("a")] == [0.0, 0.5]
    assert refused("rate") == before + 2


def test_an_address_has_a_rate_of_its_own_if_one_is_set() -> None:
    clock = Clock()
    gate = Gate(BusSettings(address_connect_rate=1.0, address_connect_burst=1), clock=clock)
    assert [gate.wait("a"), gate.wait("a"), gate.wait("b")] == [0.0, 1.0, 0.0]
    open_gate = Gate(BusSettings(), clock=clock)
    assert [open_gate.wait("a") for _ in range(1_000)] == [0.0] * 1_000


def test_a_server_that_ends_lets_nobody_in() -> None:
    gate = Gate(BusSettings(), clock=Clock())
    gate.is_closed = True
    assert gate.wait("a") == 1.0


def someone(client_id: str, **details: Any) -> Details:
    return Details(client_id=client_id, connected_at=datetime.now(UTC), **details)


def test_a_place_that_is_given_back_is_free_again() -> None:
    places = Places(lambda: 2)
    first, second, third = (someone(name, user_id="7", address="10.0.0.1") for name in "abc")
    places.take(first, replaces=False)
    places.take(second, replaces=False)
    with pytest.raises(Disconnect, match="this server takes 2"):
        places.take(third, replaces=False)
    places.take(third, replaces=True)
    for details in (first, second, third):
        places.free(details)
    places.take(first, replaces=False)
    assert (places._users, places._addresses) == ({"7": 1}, {"10.0.0.1": 1})


class Server:
    """The `send` of an ASGI server, which can stop taking."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.takes = asyncio.Event()
        self.takes.set()

    async def __call__(self, message: dict[str, Any]) -> None:
        await self.takes.wait()
        self.sent.append(message.get("text") or message["type"])


async def test_a_plain_outlet_sends_at_once_and_queues_behind_what_waits() -> None:
    server = Server()
    queue = SendQueue(PlainOutlet(server), max_bytes=1_000, max_frames=100)
    queue.send(b"one")
    assert server.sent == ["one"]
    server.takes.clear()
    queue.send(b"two")
    queue.send(b"three")
    assert queue.pending_bytes == 8
    server.takes.set()
    while queue.pending_bytes:
        await asyncio.sleep(0.001)
    assert server.sent == ["one", "two", "three"]


async def test_a_plain_outlet_that_takes_nothing_owes_no_more_than_its_bound() -> None:
    server = Server()
    server.takes.clear()
    outlet = PlainOutlet(server)
    queue = SendQueue(outlet, max_bytes=1_000, max_frames=100)
    verdicts = [queue.offer(Message([b"x" * 300]), "must") for _ in range(6)]
    assert verdicts == [Verdict.SENT] * 4 + [Verdict.TOO_SLOW] * 2
    assert queue.offer(Message([b"x"]), "ephemeral") is Verdict.DROPPED
    assert queue.offer(Message([b"x"]), "latest") is Verdict.KEPT_BACK
    with pytest.raises(TimeoutError):
        await outlet.close(3008, "slow")
    server.takes.set()
    await asyncio.sleep(0.01)


async def test_a_plain_outlet_whose_client_is_gone_is_quiet() -> None:
    async def send(message: dict[str, Any]) -> None:
        raise ConnectionResetError("gone")

    queue = SendQueue(PlainOutlet(send), max_bytes=1_000, max_frames=100)
    for _ in range(3):
        queue.send(b"x")
    assert queue.pending_bytes == 0
