"""What the SDK tells us, handed on: of the connection, and of each topic."""

from __future__ import annotations

from typing import Any, Protocol

from centrifuge import ClientEventHandler, SubscriptionEventHandler

from bus.client.errors import Refused
from bus.client.feed import Feed

#: Codes with which a subscription ends for good below 2500; this one means that the topic has ended.
TOPIC_ENDED = 2100


class Owner(Protocol):
    """Whoever holds the connection."""

    async def connected(self) -> None:
        """There is a connection."""

    async def ended(self, code: int, reason: str) -> None:
        """There is none, and will be none."""

    def feed_of(self, topic: str) -> Feed:
        """Return where the events of a topic go."""


class ConnectionEvents(ClientEventHandler):  # type: ignore[misc]
    """Of the connection, and of the topics that the server has subscribed."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    async def on_connected(self, ctx: Any) -> None:
        """Tell the owner."""
        await self._owner.connected()

    async def on_disconnected(self, ctx: Any) -> None:
        """Tell the owner."""
        await self._owner.ended(ctx.code, ctx.reason)

    async def on_subscribed(self, ctx: Any) -> None:
        """Tell the topic's feed."""
        self._owner.feed_of(ctx.channel).resumed(ctx)

    async def on_publication(self, ctx: Any) -> None:
        """Hand on an event."""
        await self._owner.feed_of(ctx.channel).put(ctx.pub)


class TopicEvents(SubscriptionEventHandler):  # type: ignore[misc]
    """Of one subscription."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def on_subscribed(self, ctx: Any) -> None:
        """Note how it was taken up."""
        self._feed.resumed(ctx)

    async def on_publication(self, ctx: Any) -> None:
        """Hand on an event."""
        await self._feed.put(ctx.pub)

    async def on_unsubscribed(self, ctx: Any) -> None:
        """End the reading: without a word if it was our wish, or the topic's end."""
        refused = ctx.code not in (0, TOPIC_ENDED)
        await self._feed.end(Refused(ctx.code, ctx.reason) if refused else None)
