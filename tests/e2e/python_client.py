"""Drives the stock `centrifuge-python` SDK by JSON lines.

One command a line on stdin, answers and events on stdout: the same commands and events as
node/client.mjs, so that one test speaks to both SDKs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from centrifuge import (
    CentrifugeError,
    Client,
    ClientEventHandler,
    DeltaType,
    SubscriptionEventHandler,
    UnauthorizedError,
)
from centrifuge.exceptions import ReplyError
from centrifuge.filter import FilterNode
from centrifuge.types import StreamPosition


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def told(event: str, context: Any, *, topic: str | None = None, server: bool | None = None) -> None:
    position = getattr(context, "stream_position", None)
    names = ("code", "reason", "recovered", "was_recovering", "client", "data")
    say(
        {
            "event": event,
            "topic": topic or getattr(context, "channel", None),
            "server": server,
            "offset": position and position.offset,
            "epoch": position and position.epoch,
            "at": time.time(),
            **{name: getattr(context, name, None) for name in names},
        }
    )


def published(topic: str, pub: Any) -> None:
    say({"event": "publication", "topic": topic, "at": time.time(), **piece(pub)})


def piece(pub: Any) -> dict[str, Any]:
    info = pub.info and {"client": pub.info.client, "user": pub.info.user}
    return {"offset": pub.offset, "data": pub.data, "tags": pub.tags, "info": info}


def came_or_went(event: str, context: Any, *, topic: str, server: bool) -> None:
    info = {"client": context.info.client, "user": context.info.user}
    say({"event": event, "topic": topic, "server": server, **info, "at": time.time()})


def supply(values: list[Any], event: str) -> Callable[..., Awaitable[Any]]:
    """What the SDK calls for a token or a state: each value once, then the last again and again.

    For None it is told that there is none to be had, and for an empty text that the one who gives them does
    not answer.
    """

    async def give(*_: str) -> Any:
        value = values.pop(0) if len(values) > 1 else values[0]
        say({"event": event})
        if value is None:
            raise UnauthorizedError
        if value == "":
            raise ConnectionError("no answer")
        return value

    return give


class OfClient(ClientEventHandler):
    async def on_connecting(self, ctx: Any) -> None:
        told("connecting", ctx)

    async def on_connected(self, ctx: Any) -> None:
        told("connected", ctx)

    async def on_disconnected(self, ctx: Any) -> None:
        told("disconnected", ctx)

    async def on_error(self, ctx: Any) -> None:
        say({"event": "error", "code": ctx.code, "message": str(ctx.error)})

    async def on_subscribed(self, ctx: Any) -> None:
        told("subscribed", ctx, server=True)

    async def on_unsubscribed(self, ctx: Any) -> None:
        told("unsubscribed", ctx, server=True)

    async def on_publication(self, ctx: Any) -> None:
        published(ctx.channel, ctx.pub)

    async def on_join(self, ctx: Any) -> None:
        came_or_went("join", ctx, topic=ctx.channel, server=True)

    async def on_leave(self, ctx: Any) -> None:
        came_or_went("leave", ctx, topic=ctx.channel, server=True)


class OfSubscription(SubscriptionEventHandler):
    def __init__(self, topic: str) -> None:
        self.topic = topic

    async def on_subscribing(self, ctx: Any) -> None:
        told("subscribing", ctx, topic=self.topic, server=False)

    async def on_subscribed(self, ctx: Any) -> None:
        told("subscribed", ctx, topic=self.topic, server=False)

    async def on_unsubscribed(self, ctx: Any) -> None:
        told("unsubscribed", ctx, topic=self.topic, server=False)

    async def on_publication(self, ctx: Any) -> None:
        published(self.topic, ctx.pub)

    async def on_join(self, ctx: Any) -> None:
        came_or_went("join", ctx, topic=self.topic, server=False)

    async def on_leave(self, ctx: Any) -> None:
        came_or_went("leave", ctx, topic=self.topic, server=False)

    async def on_error(self, ctx: Any) -> None:
        code = ctx.error.code if isinstance(ctx.error, ReplyError) else ctx.code
        say({"event": "error", "topic": self.topic, "code": code, "message": str(ctx.error)})


class Driver:
    """One method per command."""

    client: Client

    async def connect(
        self,
        *,
        url: str,
        token: str = "",
        tokens: list[str | None] | None = None,
        data: Any = None,
        pingDelay: float = 10.0,
    ) -> None:
        self.client = Client(
            url,
            events=OfClient(),
            token=token,
            get_token=supply(tokens, "token wanted") if tokens else None,
            data=data,
            timeout=30.0,
            max_reconnect_delay=1.0,
            max_server_ping_delay=pingDelay,
            proxy=None,
        )
        await self.client.connect()

    async def nothing(self) -> None:
        """Answer."""

    async def disconnect(self) -> None:
        await self.client.disconnect()

    async def subscribe(
        self,
        *,
        topic: str,
        joinLeave: bool = False,
        delta: str = "",
        tagsFilter: dict[str, Any] | None = None,
        tokens: list[str | None] | None = None,
        states: list[dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        positions = [StreamPosition(**state) for state in states or []]
        subscription = self.client.new_subscription(
            topic,
            events=OfSubscription(topic),
            join_leave=joinLeave,
            delta=DeltaType(delta) if delta else None,
            tags_filter=FilterNode(tagsFilter) if tagsFilter else None,
            get_token=supply(tokens, "subscription token wanted") if tokens else None,
            get_state=supply(positions, "state wanted") if positions else None,
            **options,
        )
        await subscription.subscribe()
        await subscription.ready(60)

    def _subscription(self, topic: str) -> Any:
        subscription = self.client.get_subscription(topic)
        assert subscription is not None
        return subscription

    async def unsubscribe(self, *, topic: str) -> None:
        await self._subscription(topic).unsubscribe()

    async def resubscribe(self, *, topic: str) -> None:
        await self._subscription(topic).subscribe()
        await self._subscription(topic).ready(60)

    async def publish_here(self, *, topic: str, data: Any) -> None:
        await self._subscription(topic).publish(data)

    async def look_here(self, *, topic: str) -> Any:
        subscription = self._subscription(topic)
        present, counted = await subscription.presence(), await subscription.presence_stats()
        found = await subscription.history(limit=-1)
        return {
            "clients": sorted(present.clients),
            "count": counted.num_clients,
            "offsets": [pub.offset for pub in found.publications],
        }

    async def publish(self, *, topic: str, data: Any) -> None:
        await self.client.publish(topic, data)

    async def history(
        self, *, topic: str, limit: int = 0, since: dict[str, Any] | None = None, reverse: bool = False
    ) -> Any:
        start = StreamPosition(**since) if since else None
        found = await self.client.history(topic, limit=limit, since=start, reverse=reverse)
        pieces = [piece(pub) for pub in found.publications]
        return {"offset": found.offset, "epoch": found.epoch, "publications": pieces}

    async def presence(self, *, topic: str) -> Any:
        found = await self.client.presence(topic)
        return [{"client": info.client, "user": info.user} for info in found.clients.values()]

    async def presence_stats(self, *, topic: str) -> Any:
        found = await self.client.presence_stats(topic)
        return {"clients": found.num_clients, "users": found.num_users}

    async def rpc(self, *, method: str, data: Any) -> Any:
        return (await self.client.rpc(method, data)).data


async def answer(number: int, action: Callable[[], Awaitable[Any]]) -> None:
    try:
        say({"id": number, "result": await action() or {}})
    except (CentrifugeError, AssertionError) as error:
        code = error.code if isinstance(error, ReplyError) else None
        say({"id": number, "error": {"code": code, "message": str(error)}})


async def main() -> None:
    driver = Driver()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    tasks = set()
    while line := await reader.readline():
        words = json.loads(line)
        number, name = words.pop("id"), words.pop("do")
        task = asyncio.create_task(answer(number, lambda n=name, w=words: getattr(driver, n)(**w)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    asyncio.run(main())
