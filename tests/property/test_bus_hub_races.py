"""Races that the simulation has found, each told by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bus.fanout.hub import Hub
from bus.fanout.sending import PlainOutlet
from bus.log.current import event_log
from bus.protocol.errors import UnsubscribeCode
from bus.protocol.positions import Position
from bus.publishing import aend, apublish
from bus.replay import Recovery, Replay
from tests.integration.readers import Reader

pytestmark = pytest.mark.django_db(transaction=True)


async def begin_anew(topic: str) -> str:
    """End a topic and begin it again; returns its new epoch."""
    await aend(topic, "completed")
    return (await apublish(topic, "task.started")).epoch


async def test_a_position_of_the_life_before_the_last_is_answered(own_hub: Hub) -> None:
    """A process remembers which life followed which, but that one may be over, too."""
    reader = Reader(own_hub)
    first = (await apublish("task:1", "task.started")).epoch
    await reader.read("task:1")
    await begin_anew("task:1")
    assert await reader.until_ended() == ("task:1", UnsubscribeCode.INSUFFICIENT_STATE)
    last = await begin_anew("task:1")
    found = await Reader(own_hub).read("task:1", Position(epoch=first, offset=1))
    assert (found.epoch, found.recovered, found.offset) == (last, False, 1)


class HeldReplay(Replay):
    """Reads as ever, but gives its first answer only when told."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.has_read, self.go_on = asyncio.Event(), asyncio.Event()

    async def recover(self, topic: str, since: Position | None) -> Recovery:
        found = await super().recover(topic, since)
        if not self.has_read.is_set():
            self.has_read.set()
            await self.go_on.wait()
        return found


async def test_who_reads_the_log_early_misses_nothing_that_another_has_read_later(own_hub: Hub) -> None:
    """The place of a feed comes from whichever of two reads returns first, which may be the later one."""
    held = own_hub._replay = HeldReplay(event_log())
    place = await apublish("lab:1", "output", 1)
    start = Position(epoch=place.epoch, offset=0)
    early, late = Reader(own_hub, "early"), Reader(own_hub, "late")
    reading = asyncio.ensure_future(early.read("lab:1", start))
    await held.has_read.wait()
    await apublish("lab:1", "output", 2)
    await late.read("lab:1", start)
    held.go_on.set()
    assert (await reading).recovered
    await apublish("lab:1", "output", 3)
    assert await early.until(3) == [1, 2, 3]
    assert await late.until(3) == [1, 2, 3]


async def test_closing_a_socket_that_the_server_has_closed_is_no_error() -> None:
    async def send(_: dict[str, Any]) -> None:
        raise RuntimeError("websocket.close was sent already")

    await PlainOutlet(send).close(3501, "bad request")
