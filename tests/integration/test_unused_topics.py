"""Topics that were only ever read: kept while somebody reads them, then forgotten, and never a silent gap."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from bus import publishing, retention
from bus.fanout.hub import Hub
from bus.fanout.openings import Openings
from bus.log.threads import in_thread
from bus.models import Topic
from bus.protocol.errors import TooManyRequests, UnsubscribeCode
from bus.protocol.positions import Position
from tests.integration.readers import Reader

pytestmark = pytest.mark.django_db(transaction=True)

LONG_AGO = timedelta(days=1)


@pytest.fixture
def quick(settings: Any) -> None:
    """An age of a minute; the hub renews every quarter of it, which is to say at its first tick."""
    settings.BUS = {
        **settings.BUS,
        "UNUSED_TOPIC_AGE": timedelta(minutes=1),
        "TICK_INTERVAL": timedelta(milliseconds=20),
    }


async def make_old(topic: str) -> None:
    await in_thread(Topic.objects.filter(name=topic).update, updated_at=timezone.now() - LONG_AGO)


async def names() -> list[str]:
    return await in_thread(lambda: sorted(Topic.objects.values_list("name", flat=True)))


async def test_what_somebody_reads_is_kept_and_what_nobody_reads_is_forgotten(
    quick: None, own_hub: Hub
) -> None:
    reader = Reader(own_hub)
    own_hub._renew_at = math.inf  # not yet
    for topic in ("room:read", "room:left"):
        await reader.read(topic)
        await make_old(topic)
    own_hub.unsubscribe(reader, "room:left")
    own_hub._renew_at = 0.0  # its time has come

    def is_renewed() -> bool:
        return Topic.objects.get(name="room:read").updated_at > timezone.now() - timedelta(minutes=1)

    async with asyncio.timeout(60):
        while not await in_thread(is_renewed):
            await asyncio.sleep(0.01)
    await in_thread(retention.trim_all)
    assert await names() == ["room:read"]
    place = await publishing.apublish("room:read", "output")
    assert await reader.until(1) == [1]
    assert place.epoch == reader.hub._feeds["room:read"].epoch
    assert not reader.ended


async def test_a_reader_whose_topic_was_forgotten_is_told_and_misses_nothing_of_the_next_life(
    quick: None, own_hub: Hub
) -> None:
    own_hub._renew_at = math.inf  # as if its server had stood still
    reader = Reader(own_hub)
    first = await reader.read("room:1")
    await make_old("room:1")
    await in_thread(retention.trim_all)
    assert await reader.until_ended() == ("room:1", UnsubscribeCode.INSUFFICIENT_STATE)
    again = await reader.read("room:1", Position(epoch=first.epoch, offset=0))
    assert again.epoch != first.epoch
    assert not again.recovered
    await publishing.apublish("room:1", "output")
    assert await reader.until(1) == [1]


async def test_who_was_away_while_its_topic_was_forgotten_and_written_to_is_not_recovered(
    quick: None, own_hub: Hub
) -> None:
    own_hub._renew_at = math.inf  # as if its server had stood still
    reader = Reader(own_hub)
    first = await reader.read("room:1")
    own_hub.unsubscribe(reader, "room:1")
    await make_old("room:1")
    await in_thread(retention.trim_all)
    await publishing.apublish("room:1", "output")
    again = await reader.read("room:1", Position(epoch=first.epoch, offset=0))
    assert (again.recovered, again.offset) == (False, 1)
    assert reader.offsets() == []


async def test_a_reader_that_opens_topics_without_end_is_slowed_down(own_hub: Hub) -> None:
    own_hub._openings = Openings(rate=0.001, burst=2)
    reader = Reader(own_hub)
    await publishing.apublish("room:used", "output")
    for topic in ("room:1", "room:2", "room:used"):
        await reader.read(topic)
    with pytest.raises(TooManyRequests) as refusal:
        await reader.read("room:3")
    assert refusal.value.retry_after > 900
    assert own_hub.topics == ["room:1", "room:2", "room:used"]
    assert await names() == ["room:1", "room:2", "room:used"]
    await Reader(own_hub, "another").read("room:3")
