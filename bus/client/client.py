"""`BusClient`: connect as an agent, read topics, publish, acknowledge.

The SDK keeps the connection and resumes after a loss; here are the agent's identity, event objects instead of
raw publications, publishes with a key that are tried again until they are acknowledged (so that each has one
effect), and iteration that stops where a topic ends.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import centrifuge
import stamina
from centrifuge import CentrifugeError, Client, ClientEventHandler, ReplyError, SubscriptionEventHandler

from bus.client.errors import BufferFull, BusClientError, Closed, Refused
from bus.client.events import Event, Place
from bus.client.feed import Feed
from bus.client.stats import ClientStats

#: Codes with which a subscription ends for good below 2500; this one means that the topic has ended.
TOPIC_ENDED = 2100
#: Seconds that the closing of the socket may take.
GOODBYE = 2.0


class BusClient:
    """A connection to the bus. Use it as an async context manager.

    Args:
        url: `ws://HOST/connection/websocket`.
        agent_id: the agent that it is; empty for a mere reader.
        token: its connection token or API key.
        get_token: gives a new token when the old one is about to expire.
        session_id: told to the people who look at connections.
        retry_for: how long a publish is tried again while the server cannot be reached or cannot commit.
        buffer: publishes that may wait at once, for example while the connection is away.
    """

    def __init__(
        self,
        url: str,
        agent_id: str = "",
        token: str = "",
        *,
        get_token: Callable[[], Awaitable[str]] | None = None,
        session_id: str = "",
        retry_for: timedelta = timedelta(minutes=1),
        buffer: int = 1_000,
    ) -> None:
        self.agent_id = agent_id
        self.stats = ClientStats()
        self._retry_for = retry_for
        self._room = buffer
        self._feeds: dict[str, Feed] = {}
        self._closed: Closed | None = None
        data = {name: value for name, value in (("agent_id", agent_id), ("session_id", session_id)) if value}
        self._client = Client(
            url, events=_ClientEvents(self), token=token, get_token=get_token, data=data, name="xnai-bus"
        )

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self, *, within: timedelta = timedelta(seconds=30)) -> None:
        """Connect, and wait until it is done.

        Raises:
            Closed: the server does not want us.
            BusClientError: it could not be reached in time; the client goes on trying until `close`.
        """
        await self._client.connect()
        try:
            await self._client.ready(timeout=within.total_seconds())
        except (CentrifugeError, TimeoutError) as failure:
            raise self._closed or BusClientError(f"not connected: {failure}") from failure

    async def close(self) -> None:
        """Disconnect; whoever reads a topic is let go."""
        opening = self._client._open_task
        await self._client.disconnect()
        # The SDK closes its sockets in the background; a program that ends now would leave them half open.
        if closing := {task for task in (opening, *self._client._background_tasks) if task is not None}:
            await asyncio.wait(closing, timeout=GOODBYE)
        await asyncio.sleep(0)
        for feed in self._feeds.values():
            await feed.end()

    async def events(self, topic: str) -> AsyncIterator[Event]:
        """Yield the events of a topic as they come, and after a loss what was missed.

        The own inbox (`agent:<agent_id>`) and `broadcast` come by themselves from the moment of connecting,
        the inbox from the last acknowledged event on. Ends after the final event of a task.

        Raises:
            Refused: the topic may not be read.
            Closed: the connection has ended for good.
        """
        if self._closed is not None:
            raise self._closed
        feed = self._feed(topic)
        subscription = None if self._is_given(topic) else await self._subscribe(topic, feed)
        try:
            async for event in feed.read():
                yield event
        finally:
            if subscription is not None:
                self._feeds.pop(topic, None)
                await subscription.unsubscribe()
                self._client.remove_subscription(subscription)

    async def publish(
        self, topic: str, event_type: str, data: Any = None, key: str | None = None, **fields: Any
    ) -> Place:
        """Publish an event and return its place once it is committed. It is tried until then.

        Args:
            topic: `area:id`.
            event_type: such as `output`.
            data: any JSON.
            key: what makes it the same event when it is published again; drawn if absent.
            fields: `run_id`, `session_id`.

        Raises:
            Refused: the server does not take it.
            BufferFull: too many publishes wait already.
            Closed: the connection has ended for good.
        """
        if self._room <= 0:
            raise BufferFull(f"{topic}: too many publishes wait for the connection")
        call = {
            "topic": topic,
            "event_type": event_type,
            "data": data,
            "key": key or uuid.uuid4().hex,
            **fields,
        }
        self._room -= 1
        began = time.perf_counter()
        try:
            answer = await self._call_until("bus.publish", call)
        finally:
            self._room += 1
        self.stats.published += 1
        self.stats.note_latency(time.perf_counter() - began)
        return Place(**answer)

    async def ack(self, topic: str, offset: int, cursor: str = "") -> int:
        """Acknowledge everything up to an offset; return how many events are left behind it.

        Args:
            topic: of the event.
            offset: of the last event that is done.
            cursor: name of a cursor beside the agent's own.

        Raises:
            Refused: the server does not take it.
            Closed: the connection has ended for good.
        """
        answer = await self._call_until("bus.ack", {"topic": topic, "offset": offset, "cursor": cursor})
        return int(answer["lag"])

    async def cursor(self, topic: str, cursor: str = "") -> int:
        """Return the last acknowledged offset of a topic. Raises as `ack` does."""
        answer = await self._call_until("bus.cursor", {"topic": topic, "cursor": cursor})
        return int(answer["offset"])

    async def end(self, topic: str, status: str = "completed", data: Any = None) -> Place:
        """Publish the final event of a topic. Raises as `publish` does."""
        call = {"topic": topic, "status": status, "data": data, "key": uuid.uuid4().hex}
        return Place(**await self._call_until("bus.end", call))

    async def _call_until(self, method: str, call: dict[str, Any]) -> dict[str, Any]:
        """Call, again and again while the failure is one that passes."""
        try:
            async for attempt in stamina.retry_context(
                on=_passes, attempts=None, timeout=self._retry_for, wait_initial=0.05, wait_max=2.0
            ):
                with attempt:
                    self.stats.retried += attempt.num == 2
                    return await self._call(method, call)
        except BusClientError as error:
            self.stats.retries_failed += _passes(error)
            raise
        raise AssertionError("unreachable")

    async def _call(self, method: str, call: dict[str, Any]) -> dict[str, Any]:
        try:
            result = await self._client.rpc(method, call)
        except ReplyError as error:
            raise Refused(error.code, str(error), retryable=error.temporary) from error
        except (CentrifugeError, TimeoutError, OSError) as error:
            raise self._closed or Refused(0, f"no answer: {error!r}", retryable=True) from error
        answer: dict[str, Any] = result.data
        return answer

    def _feed(self, topic: str) -> Feed:
        return self._feeds.setdefault(topic, Feed(topic, self.stats))

    def _is_given(self, topic: str) -> bool:
        return topic == "broadcast" or (bool(self.agent_id) and topic == f"agent:{self.agent_id}")

    async def _subscribe(self, topic: str, feed: Feed) -> centrifuge.Subscription:
        subscription = self._client.new_subscription(
            topic, events=_TopicEvents(feed), positioned=True, recoverable=True
        )
        await subscription.subscribe()
        return subscription

    async def _connected(self) -> None:
        self.stats.connects += 1
        self.stats.reconnects = self.stats.connects - 1

    async def _ended(self, code: int, reason: str) -> None:
        # 0 is our own `close`.
        if code:
            self._closed = Closed(code, reason)
            for feed in self._feeds.values():
                await feed.end(self._closed)


class _ClientEvents(ClientEventHandler):  # type: ignore[misc]
    """What the SDK tells of the connection and of the topics that the server has subscribed."""

    def __init__(self, owner: BusClient) -> None:
        self._owner = owner

    async def on_connected(self, ctx: Any) -> None:
        await self._owner._connected()

    async def on_disconnected(self, ctx: Any) -> None:
        await self._owner._ended(ctx.code, ctx.reason)

    async def on_subscribed(self, ctx: Any) -> None:
        feed = self._owner._feed(ctx.channel)
        feed.resumed(was_recovering=ctx.was_recovering, recovered=ctx.recovered)

    async def on_publication(self, ctx: Any) -> None:
        await self._owner._feed(ctx.channel).put(ctx.pub)


class _TopicEvents(SubscriptionEventHandler):  # type: ignore[misc]
    """What the SDK tells of one subscription."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def on_subscribed(self, ctx: Any) -> None:
        self._feed.resumed(was_recovering=ctx.was_recovering, recovered=ctx.recovered)

    async def on_publication(self, ctx: Any) -> None:
        await self._feed.put(ctx.pub)

    async def on_unsubscribed(self, ctx: Any) -> None:
        # 0 is our own unsubscribe.
        refused = ctx.code not in (0, TOPIC_ENDED)
        await self._feed.end(Refused(ctx.code, ctx.reason) if refused else None)


def _passes(error: Exception) -> bool:
    """Tell whether a failure may be gone at the next try."""
    return isinstance(error, Refused) and error.retryable
