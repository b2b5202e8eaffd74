"""Never a silent gap: clients come with every position around the edge of what is kept, while it moves.

A publisher appends and trims without a pause. Whoever is told `recovered` gets exactly what follows its
position; whoever is not was in truth below the edge, and is told so: by the answer, or by error 112.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from bus.doors.consumers import ClientSocket
from bus.fanout.hub import Hub
from bus.log import NewEvent, TopicState
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.publishing import apublish
from tests.property.sockets import Talk, token

pytestmark = pytest.mark.django_db(transaction=True)

CASES = 10_000 if os.environ.get("TEST_DEEP") else 1_000
CLIENTS = 4
TOPIC = "edge:1"
#: Events that a trim leaves, and how far around the edge clients come.
KEPT, AROUND = 24, 6


@dataclass
class Counts:
    """How often each answer came."""

    recovered: int = 0
    refused: int = 0
    pages: int = 0
    no_page: int = 0


async def state() -> TopicState:
    return (await in_thread(event_log().states, [TOPIC]))[TOPIC]


@asynccontextmanager
async def moving_edge(chance: Random) -> AsyncIterator[None]:
    """Publish and trim until the block is left."""
    log = event_log()
    first = [NewEvent(topic=TOPIC, event_type="output", payload=b"{}") for _ in range(KEPT)]
    await in_thread(log.append, first)

    async def move() -> None:
        while True:
            await asyncio.gather(*(apublish(TOPIC, "output", {}) for _ in range(chance.randint(1, 4))))
            keep, batch = KEPT + chance.randint(-2, 2), chance.randint(1, 5)
            await in_thread(log.trim, TOPIC, max_age=None, max_events=keep, batch=batch)

    moving = asyncio.ensure_future(move())
    yield
    assert not moving.done(), moving.exception()
    moving.cancel()
    await asyncio.gather(moving, return_exceptions=True)


async def subscribe(client: Talk, since: int, epoch: str, chance: Random, counts: Counts) -> None:
    """One case: come with a position, read on, leave."""
    flag = chance.choice([0, 2])
    answer = await client.call(
        "subscribe", channel=TOPIC, recover=True, epoch=epoch, offset=since, flag=flag, recoverable=True
    )
    if "error" in answer:
        assert (answer["error"]["code"], flag) == (112, 2)
        counts.refused += 1
        assert (await state()).first_offset > since + 1, f"{since} could have been recovered"
        return
    found = answer["subscribe"]
    at = found.get("offset", 0)
    given = [event["offset"] for event in found.get("publications", [])]
    if found.get("recovered"):
        counts.recovered += 1
        assert given == list(range(since + 1, at + 1))
    else:
        counts.refused += 1
        assert (given, flag, found["was_recovering"]) == ([], 0, True)
        assert (await state()).first_offset > since + 1, f"{since} could have been recovered"
    await read_on(client, at, chance.choice([0, 0, 0, 3]))
    assert await client.call("unsubscribe", channel=TOPIC) == {"id": client._id, "unsubscribe": {}}
    client.pushes.clear()


async def read_on(client: Talk, at: int, count: int) -> None:
    """Every push is the next one; if the edge has overtaken the reader it is told so (2500)."""
    for offset in range(at + 1, at + 1 + count):
        push = await client.push()
        if "unsubscribe" in push:
            assert push["unsubscribe"]["code"] == 2500
            return
        assert push["pub"]["offset"] == offset


async def history(client: Talk, since: int, epoch: str, counts: Counts) -> None:
    """One case: look back from a position."""
    answer = await client.call("history", channel=TOPIC, limit=10, since={"offset": since, "epoch": epoch})
    if "error" in answer:
        counts.no_page += 1
        assert answer["error"]["code"] == 112
        assert (await state()).first_offset > since + 1, f"{since} could have been read"
        return
    counts.pages += 1
    found = answer["history"]
    top = min(since + 10, found["offset"])
    assert [event["offset"] for event in found["publications"]] == list(range(since + 1, top + 1))


async def visit(number: int, cases: int, counts: Counts) -> None:
    chance = Random(number)
    async with Talk(ClientSocket.as_asgi()) as client:
        await client.call("connect", token=token(f"edge{number}"))
        for case in range(cases):
            now = await state()
            # Right below the edge is the last position that can be recovered: those around it in turn.
            since = max(0, now.first_offset - 1 + case % (2 * AROUND + 1) - AROUND)
            if chance.random() < 0.3:
                await history(client, since, now.epoch, counts)
            else:
                await subscribe(client, since, now.epoch, chance, counts)


@pytest.mark.timeout(900 if os.environ.get("TEST_DEEP") else 400)
async def test_every_position_around_the_edge_is_continued_or_refused(own_hub: Hub, settings: Any) -> None:
    rule = {"pattern": "edge:*"}
    settings.BUS = {**settings.BUS, "TOPICS": [rule], "COMMAND_RATE": 1e6, "COMMAND_BURST": 10**6}
    counts = Counts()
    async with moving_edge(Random(7)):
        await asyncio.gather(*(visit(number, CASES // CLIENTS, counts) for number in range(CLIENTS)))
    # Both sides of the edge were met, by both ways of asking.
    assert min(counts.recovered, counts.refused) > CASES / 20
    assert min(counts.pages, counts.no_page) > CASES / 50


async def test_a_position_beyond_the_top_or_of_another_life_is_refused(own_hub: Hub, settings: Any) -> None:
    settings.BUS = {**settings.BUS, "TOPICS": [{"pattern": "edge:*"}]}
    place = await apublish(TOPIC, "output", {})
    async with Talk(ClientSocket.as_asgi()) as client:
        await client.call("connect", token=token("edge"))
        for since, epoch in ((2, place.epoch), (1, "another"), (0, "another")):
            words = {"channel": TOPIC, "recover": True, "offset": since, "epoch": epoch}
            refused = await client.call("subscribe", **words, flag=2)
            assert refused["error"]["code"] == 112
            told = (await client.call("subscribe", **words))["subscribe"]
            assert "recovered" not in told
            assert "publications" not in told
            assert (told["was_recovering"], told["offset"], told["epoch"]) == (True, 1, place.epoch)
            await client.call("unsubscribe", channel=TOPIC)
            page = await client.call(
                "history", channel=TOPIC, limit=5, since={"offset": since, "epoch": epoch}
            )
            assert page["error"]["code"] == 112
