"""A reader in the test's own process: what the hub sees of a socket, with an outlet of lists."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

from bus.connections.leases import Details
from bus.fanout.feeds import Form
from bus.fanout.hub import Hub, Subscribed
from bus.fanout.sending import Frame, SendQueue
from bus.layer import Control
from bus.protocol.errors import UnsubscribeCode
from bus.protocol.positions import Position


class ListOutlet:
    """Keeps what is written; `pending` plays a socket that takes nothing."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.pending = 0
        self.is_stuck = False
        self.closed: tuple[int, str] | None = None

    def write(self, frame: Frame) -> int:
        self.frames.append(frame)
        if self.is_stuck:
            self.pending += frame.size
        return self.pending

    def pending_bytes(self) -> int:
        return self.pending

    async def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)


class Reader:
    """A subscriber that remembers everything."""

    form = Form.CENTRIFUGO

    def __init__(self, hub: Hub, name: str = "r", *, max_bytes: int = 1_000_000) -> None:
        self.hub = hub
        self.outlet = ListOutlet()
        self.queue = SendQueue(self.outlet, max_bytes=max_bytes, max_frames=1_024)
        self.details = Details(client_id=name, connected_at=datetime.now(UTC))
        self.replied: list[int] = []
        self.ended: list[tuple[str, UnsubscribeCode]] = []
        self.final: list[str] = []
        self.orders: list[Control] = []
        self.is_too_slow = False

    async def read(self, topic: str, since: Position | None = None) -> Subscribed:
        found = await self.hub.subscribe(self, topic, since)
        self.replied += [event.offset for event in found.events]
        self.hub.release(found)
        return found

    def pushes(self) -> list[dict[str, Any]]:
        texts = [text for frame in self.outlet.frames for text in frame.texts]
        return [json.loads(line)["push"] for text in texts for line in text.split(b"\n")]

    def publications(self) -> list[dict[str, Any]]:
        return [push["pub"] for push in self.pushes() if "pub" in push]

    def offsets(self) -> list[int]:
        """Every offset it was given, in the reply and after it."""
        return self.replied + [pub.get("offset", 0) for pub in self.publications()]

    async def until(self, count: int, timeout: float = 60.0) -> list[int]:
        """Wait until it was given so many events."""
        async with asyncio.timeout(timeout):
            while len(self.offsets()) < count:
                await asyncio.sleep(0.005)
        return self.offsets()

    async def until_ended(self, timeout: float = 60.0) -> tuple[str, UnsubscribeCode]:
        async with asyncio.timeout(timeout):
            while not self.ended:
                await asyncio.sleep(0.005)
        return self.ended[-1]

    def unsubscribed(self, topic: str, code: UnsubscribeCode) -> None:
        self.ended.append((topic, code))

    def finished(self, topic: str) -> None:
        self.final.append(topic)

    def somebody_came_or_went(self, order: Control) -> None:
        self.orders.append(order)

    def too_slow(self) -> None:
        self.is_too_slow = True
