"""The layer is a hint: it arrives in milliseconds, and its absence harms nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import redis
from channels.layers import channel_layers, get_channel_layer
from django.utils import timezone

from bus import layer
from bus.courier import MESSAGE_TYPE, Breaker, Courier
from bus.layer import Control, LiveEvent
from bus.link import Link
from bus.log import StoredEvent
from tests.servers import Valkey


class Ears:
    """Remembers what is heard."""

    def __init__(self) -> None:
        self.hints: list[tuple[str, str, int, int, Sequence[LiveEvent]]] = []
        self.orders: list[Control] = []

    def hear_hint(self, *hint: Any) -> None:
        self.hints.append(hint)

    def hear_control(self, order: Control) -> None:
        self.orders.append(order)


def stored(offset: int, payload: bytes = b'{"n":1}', topic: str = "lab:1") -> StoredEvent:
    return StoredEvent(
        topic=topic,
        epoch="e",
        offset=offset,
        event_type="output",
        payload=payload,
        tags=b'{"id":"x"}',
        info=None,
        key=None,
        publisher="server",
        created_at=timezone.now(),
    )


async def until(condition: Any, timeout: float = 60.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def own_layer(own_valkey: Valkey, settings: Any) -> Iterator[Valkey]:
    """The layer on a Valkey that the test may break; short times, so that the test is short."""
    backend = settings.CHANNEL_LAYERS["default"]["BACKEND"]
    settings.CHANNEL_LAYERS = {
        "default": {"BACKEND": backend, "CONFIG": {"hosts": [own_valkey.url], "prefix": "t"}}
    }
    settings.BUS = {
        **settings.BUS,
        "LAYER_TIMEOUT": timedelta(milliseconds=300),
        "CANARY_INTERVAL": timedelta(milliseconds=200),
    }
    channel_layers.backends.clear()
    yield own_valkey
    channel_layers.backends.clear()


@pytest.fixture
async def ears() -> Ears:
    return Ears()


@pytest.fixture
async def link(own_layer: Valkey, ears: Ears) -> AsyncIterator[Link]:
    """A server's end of the layer."""
    link = Link(ears)
    link.start()
    await until(lambda: link.is_up)
    yield link
    await link.stop()


@pytest.fixture
def elsewhere(own_layer: Valkey) -> Iterator[Courier]:
    """Another process, as far as the layer can tell."""
    courier = Courier(lambda: timedelta(milliseconds=300))
    yield courier
    courier.close()


def listeners(server: Valkey, *topics: str) -> list[int]:
    """How many processes hear what is said to each topic."""
    with redis.Redis.from_url(server.url) as client:
        channels = client.pubsub_channels("*")
        groups = [layer.group_name(topic).encode() for topic in topics]
        found = [next((one for one in channels if one.endswith(group)), b"") for group in groups]
        return [client.pubsub_numsub(one)[0][1] if one else 0 for one in found]


def as_from_elsewhere(body: str) -> str:
    return body.replace(layer.INSTANCE, "another")


async def test_a_hint_of_another_process_arrives_with_its_events(
    link: Link, ears: Ears, elsewhere: Courier
) -> None:
    link.join("lab:1")
    body = as_from_elsewhere(layer.encode_hint("lab:1", "e", 3, 4, [stored(3), stored(4)]))

    def heard() -> bool:
        elsewhere.send(layer.group_name("lab:1"), body)
        return bool(ears.hints)

    await until(heard)
    topic, epoch, first, last, events = ears.hints[0]
    assert (topic, epoch, first, last) == ("lab:1", "e", 3, 4)
    assert events[0] == LiveEvent(3, "output", b'{"n":1}', b'{"id":"x"}', None)


async def test_a_process_ignores_its_own_hints_and_topics_that_it_has_left(
    link: Link, ears: Ears, elsewhere: Courier, own_layer: Valkey
) -> None:
    link.join("lab:1")
    link.join("lab:2")
    await until(lambda: listeners(own_layer, "lab:1", "lab:2") == [1, 1])
    link.leave("lab:1")
    await until(lambda: listeners(own_layer, "lab:1", "lab:2") == [0, 1])
    own = layer.encode_hint("lab:2", "e", 1, 1, [stored(1)])
    order = Control("another", "disconnect", client_id="c")

    def heard() -> bool:
        elsewhere.send(layer.group_name("lab:1"), as_from_elsewhere(own))
        elsewhere.send(layer.group_name("lab:2"), own)
        elsewhere.send(layer.EVERYONE, msgspec.json.encode(order).decode())
        return bool(ears.orders)

    await until(heard)
    assert ears.hints == []


async def test_large_events_travel_as_a_position(own_layer: Valkey) -> None:
    body = layer.encode_hint("lab:1", "e", 1, 1, [stored(1, b'"%s"' % (b"x" * 70_000))])
    hint = layer.decode(body)
    assert isinstance(hint, layer.Hint)
    assert (hint.last, hint.events) == (1, [])


@pytest.mark.parametrize("body", [None, 7, "{", '{"type":"exec"}', '{"type":"hint","topic":1}'])
def test_what_is_none_of_our_messages_is_ignored(body: Any) -> None:
    assert layer.decode(body) is None


async def test_nonsense_on_the_layer_does_not_make_a_server_deaf(
    link: Link, ears: Ears, elsewhere: Courier
) -> None:
    channel_layer = get_channel_layer()
    for message in ({"type": "x"}, {"type": MESSAGE_TYPE}, {"type": MESSAGE_TYPE, "body": [1]}):
        await channel_layer.group_send(layer.EVERYONE, message)
    order = Control("another", "disconnect", client_id="c")

    def heard() -> bool:
        elsewhere.send(layer.EVERYONE, msgspec.json.encode(order).decode())
        return bool(ears.orders)

    await until(heard)  # what the layer is too slow to take is dropped, so it is said again
    await until(lambda: link.is_up)  # a machine with much to do may have missed an answer to itself


async def test_a_restarted_redis_is_noticed_and_heard_again(
    link: Link, ears: Ears, elsewhere: Courier, own_layer: Valkey
) -> None:
    link.join("lab:1")
    own_layer.kill()
    await until(lambda: not link.is_up)
    own_layer.start()
    await until(lambda: link.is_up)
    body = as_from_elsewhere(layer.encode_hint("lab:1", "e", 1, 1, [stored(1)]))

    def heard() -> bool:
        elsewhere.send(layer.group_name("lab:1"), body)
        return bool(ears.hints)

    await until(heard)


async def test_an_emptied_redis_is_no_harm(
    link: Link, ears: Ears, elsewhere: Courier, own_layer: Valkey
) -> None:
    link.join("lab:1")
    await asyncio.sleep(0.1)
    with redis.Redis.from_url(own_layer.url) as client:
        client.flushall()
    body = as_from_elsewhere(layer.encode_hint("lab:1", "e", 1, 1, [stored(1)]))

    def heard() -> bool:
        elsewhere.send(layer.group_name("lab:1"), body)
        return bool(ears.hints)

    await until(heard)
    await until(lambda: link.is_up)


async def test_a_listener_that_dies_is_started_again(link: Link, ears: Ears, elsewhere: Courier) -> None:
    link.join("lab:1")
    link._serving[0].cancel()
    body = as_from_elsewhere(layer.encode_hint("lab:1", "e", 1, 1, [stored(1)]))

    def heard() -> bool:
        elsewhere.send(layer.group_name("lab:1"), body)
        return bool(ears.hints)

    await until(lambda: link._serving[0].done())
    await until(heard)


async def test_a_server_with_many_topics_leaves_the_layer_at_once(own_layer: Valkey, ears: Ears) -> None:
    link = Link(ears)
    link.start()
    for number in range(100):
        link.join(f"lab:{number}")
    await until(lambda: link.is_up)
    for number in range(100):
        link.leave(f"lab:{number}")
    await asyncio.sleep(0.01)
    async with asyncio.timeout(60):
        await link.stop()


def test_hints_of_this_process_are_known_without_reading_them() -> None:
    own = layer.encode_hint("lab:1", "e", 1, 1, [stored(1)])
    assert layer.is_own_hint(own)
    assert not layer.is_own_hint(as_from_elsewhere(own))
    assert not layer.is_own_hint(layer.encode_canary(1))


async def test_a_frozen_redis_is_noticed_and_holds_nobody_up(
    link: Link, elsewhere: Courier, own_layer: Valkey
) -> None:
    own_layer.freeze()
    began = time.perf_counter()
    for number in range(200):
        link.send(layer.EVERYONE, str(number))
        elsewhere.send(layer.EVERYONE, str(number))
    assert time.perf_counter() - began < 0.2
    await until(lambda: not link.is_up)
    own_layer.thaw()
    await until(lambda: link.is_up)


async def test_without_any_layer_nothing_fails(settings: Any, ears: Ears) -> None:
    settings.CHANNEL_LAYERS = {}
    channel_layers.backends.clear()
    link = Link(ears)
    link.start()
    link.join("lab:1")
    link.send(layer.EVERYONE, "x")
    await asyncio.sleep(0.05)
    assert not link.is_up
    await link.stop()
    channel_layers.backends.clear()


def test_a_breaker_lets_a_moment_pass_after_a_failure() -> None:
    now = [100.0]
    breaker = Breaker(pause=1.0, clock=lambda: now[0])
    assert not breaker.is_open
    breaker.failed()
    assert breaker.is_open
    now[0] += 1.5
    assert not breaker.is_open
    breaker.failed()
    breaker.worked()
    assert not breaker.is_open
