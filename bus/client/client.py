"""`BusClient`: connect as an agent, read topics, publish, acknowledge.

The SDK keeps the connection and resumes after a loss; here are the agent's identity, event objects instead of
raw publications, publishes with a key that are tried again until they are acknowledged (so that each has one
effect), reading from a durable cursor, and iteration that stops where a topic ends.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import centrifuge
import stamina
from centrifuge import CentrifugeError, Client, ReplyError

from bus.client.errors import BufferFull, BusClientError, Closed, Refused
from bus.client.events import Event, Place
from bus.client.feed import Feed
from bus.client.handlers import ConnectionEvents, TopicEvents
from bus.client.start import Start
from bus.client.stats import ClientStats

#: Seconds that the closing of the socket may take.
GOODBYE = 2.0
#: Seconds that a reader waits for the former one of the topic to be gone.
HANDOVER = 1.0


class BusClient:
    """A connection to the bus. Use it as an async context manager.

    Args:
        url: `ws://HOST/connection/websocket`.
        agent_id: the agent that it is; empty for a mere reader.
        token: its connection token or API key.
        get_token: gives a new token when the old one is about to expire, and the first if there is none.
        session_id: told to the people who look at connections.
        retry_for: how long a request is tried again while the server cannot be reached or cannot commit.
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
        self._buffer = buffer
        self._feeds: dict[str, Feed] = {}
        #: Topics that are being read, each with the event of the reader's going.
        self._readers: dict[str, asyncio.Event] = {}
        self._closed: Closed | None = None
        #: Said with every connect; the SDK encodes it anew each time.
        self._said: dict[str, Any] = {
            name: value for name, value in (("agent_id", agent_id), ("session_id", session_id)) if value
        }
        self._client = Client(
            url,
            events=ConnectionEvents(self),
            token=token,
            get_token=get_token,
            data=self._said,
            name="xnai-bus",
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
        self._closed = None
        await self._client.connect()
        try:
            await self._client.ready(timeout=within.total_seconds())
        except (CentrifugeError, TimeoutError) as failure:
            raise self._closed or BusClientError(f"not connected: {failure}") from failure

    async def close(self) -> None:
        """Disconnect; whoever reads a topic is let go, whoever waits for an answer is told `Closed`."""
        self._closed = self._closed or Closed(0, "closed by the program")
        opening = self._client._open_task
        await self._client.disconnect()
        # The SDK closes its sockets in the background; a program that ends now would leave them half open.
        if closing := {task for task in (opening, *self._client._background_tasks) if task is not None}:
            await asyncio.wait(closing, timeout=GOODBYE)
        await asyncio.sleep(0)
        for feed in self._feeds.values():
            await feed.end()
        self._feeds.clear()

    async def events(
        self, topic: str, *, cursor: str | None = None, since: int | None = None, epoch: str = ""
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of a topic as they come, and after a loss what was missed.

        The own inbox (`agent:<agent_id>`) and `broadcast` come by themselves from the moment of connecting,
        the inbox from the last acknowledged event on. Ends after the final event of a task.

        Args:
            topic: `area:id`.
            cursor: begin after what was acknowledged with the cursor of this name (see `ack`), at first with
                the oldest event that is kept; an empty name is the agent's own cursor.
            since: begin after this offset; 0 is the oldest event that is kept. Without it and a cursor:
                from now on.
            epoch: the life of the topic in which `since` counts; by default the present one.

        Raises:
            Refused: the topic may not be read, or nothing follows the given place.
            Closed: the connection has ended for good.
            BusClientError: the topic is being read already.
            ValueError: both a cursor and an offset, or one for a topic where the server chooses.
        """
        self._check_start(topic, cursor, since)
        start = None
        if cursor is not None or since is not None:
            start = (cursor, since or 0, epoch)
        async with self._alone(topic):
            if self._closed is not None:
                raise self._closed
            feed = self._feed(topic)
            subscription = None if self._is_given(topic) else await self._subscribe(topic, feed, start)
            try:
                async with aclosing(feed.read()) as events:
                    async for event in events:
                        yield event
            finally:
                if subscription is not None:
                    self._feeds.pop(topic, None)
                    await subscription.unsubscribe()
                    self._client.remove_subscription(subscription)

    @asynccontextmanager
    async def _alone(self, topic: str) -> AsyncIterator[None]:
        """Be the one who reads a topic. A loop that was left with `break` may need a moment to be gone."""
        try:
            async with asyncio.timeout(HANDOVER):
                while (former := self._readers.get(topic)) is not None:
                    await former.wait()
        except TimeoutError:
            raise BusClientError(f"{topic} is being read already; one loop may hand its events on") from None
        gone = self._readers[topic] = asyncio.Event()
        try:
            yield
        finally:
            del self._readers[topic]
            gone.set()

    def _check_start(self, topic: str, cursor: str | None, since: int | None) -> None:
        if cursor is not None and since is not None:
            raise ValueError("give a cursor or an offset, not both")
        if self._is_given(topic) and (cursor or since is not None):
            raise ValueError(f"the server chooses where {topic} begins: inboxes at their agent's cursor")

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

        Those that wait at the same time for a lost connection may arrive in another order: await each where
        the order matters.

        Raises:
            Refused: the server does not take it.
            BufferFull: too many publishes wait already.
            Closed: the connection has ended for good.
        """
        if self.stats.waiting >= self._buffer:
            self.stats.overflowed += 1
            raise BufferFull(f"{topic}: {self._buffer} publishes wait for their acknowledgement already")
        call = {
            "topic": topic,
            "event_type": event_type,
            "data": data,
            "key": key or uuid.uuid4().hex,
            **fields,
        }
        self.stats.waiting += 1
        began = time.perf_counter()
        try:
            answer = await self._call_until("bus.publish", call)
        finally:
            self.stats.waiting -= 1
        self.stats.published += 1
        self.stats.note_latency(time.perf_counter() - began)
        return Place(**answer)

    async def ack(self, topic: str, offset: int, cursor: str = "", *, epoch: str = "") -> int:
        """Acknowledge everything up to an offset; return how many events are left behind it.

        Args:
            topic: of the event.
            offset: of the last event that is done.
            cursor: name of a cursor beside the agent's own.
            epoch: of the event; with it, an ack for a former life of the topic does not count for this one.

        Raises:
            Refused: the server does not take it.
            Closed: the connection has ended for good.
        """
        call = {"topic": topic, "offset": offset, "cursor": cursor, "epoch": epoch}
        answer = await self._call_until("bus.ack", call)
        self.stats.acked += 1
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
        """Call, again and again while the failure is one that passes, for `retry_for` at most."""
        give_up = time.monotonic() + self._retry_for.total_seconds()
        try:
            async for attempt in stamina.retry_context(
                on=_passes, attempts=None, timeout=self._retry_for, wait_initial=0.05, wait_max=2.0
            ):
                with attempt:
                    self.stats.retried += attempt.num == 2
                    return await self._call(method, call, within=max(give_up - time.monotonic(), 0.05))
        except BusClientError as error:
            if _passes(error):
                self.stats.retries_failed += 1
                self._said["retries_failed"] = self._said.get("retries_failed", 0) + 1
            raise
        raise AssertionError("unreachable")

    async def _call(self, method: str, call: dict[str, Any], *, within: float) -> dict[str, Any]:
        if self._closed is not None:
            raise self._closed
        try:
            async with asyncio.timeout(within):
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

    async def _subscribe(
        self, topic: str, feed: Feed, start: tuple[str | None, int, str] | None
    ) -> centrifuge.Subscription:
        find = None
        if start is not None:
            cursor, since, epoch = start
            find = Start(self._client, self._call_until, feed, cursor=cursor, since=since, epoch=epoch)
        subscription = self._client.new_subscription(
            topic, events=TopicEvents(feed), positioned=True, recoverable=True, get_state=find
        )
        await subscription.subscribe()
        return subscription

    async def connected(self) -> None:
        """The SDK has a connection."""
        self.stats.connects += 1
        self.stats.reconnects = self.stats.connects - 1
        self._said.pop("retries_failed", None)

    async def ended(self, code: int, reason: str) -> None:
        """The SDK has none, and does not look for one any more."""
        # 0 is our own `close`.
        if code:
            self._closed = Closed(code, reason)
            for feed in self._feeds.values():
                await feed.end(self._closed)

    def feed_of(self, topic: str) -> Feed:
        """Return where the events of a topic go that the server has subscribed."""
        return self._feed(topic)


def _passes(error: Exception) -> bool:
    """Tell whether a failure may be gone at the next try."""
    return isinstance(error, Refused) and error.retryable
