"""Inboxes of plain objects: what is stored for an agent reaches whatever object stands for it here.

`ConnectionManager.connect` takes any object that has async `send_json` and `close`. Such an object cannot
subscribe, so this does: to the agent's inbox and to `broadcast`, from now on, in the order of the log,
whichever process stores the events. What came before is for `replay_missed_events`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from bus.conf import conf
from bus.connections import manager
from bus.connections.leases import Details
from bus.connections.live import Live
from bus.connections.manager import ConnectionManager
from bus.fanout.feeds import Form, Subscription
from bus.fanout.hub import hub
from bus.fanout.sending import PlainOutlet, SendQueue
from bus.layer import Control
from bus.protocol.errors import BusError, DisconnectCode, UnsubscribeCode

#: Longest wait for an event that is stored to be handed over (s); the next tick would bring it.
PATIENCE = 2.0


class ObjectInbox:
    """The subscriptions of one object.

    Args:
        live: the connection.
        lost: called when the object takes no more, with code and reason.
    """

    form = Form.PLAIN

    def __init__(self, live: Live, lost: Callable[[DisconnectCode, str], None]) -> None:
        options = conf()
        self._live = live
        self._lost = lost
        self._hub = hub()
        self._reads: dict[str, Subscription] = {}
        self._moved = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.queue = SendQueue(
            PlainOutlet(self._send), max_bytes=options.send_queue_bytes, max_frames=options.send_queue_frames
        )

    @property
    def details(self) -> Details:
        """Who is connected."""
        return self._live.details

    async def begin(self) -> None:
        """Read from now on. Raises `BusError`."""
        for topic in (f"agent:{self.details.agent_id}", "broadcast"):
            await self._read(topic)

    async def _read(self, topic: str) -> None:
        found = await self._hub.subscribe(self, topic)
        self._reads[topic] = found.subscription
        self._hub.release(found)

    def end(self) -> None:
        """Read no more."""
        for topic in list(self._reads):
            self._hub.unsubscribe(self, topic)
        self._reads.clear()
        self._moved.set()

    async def until(self, topic: str, offset: int) -> None:
        """Wait until the object was given the event at `offset`; not for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while (read := self._reads.get(topic)) is not None and read.at < offset:
                    self._moved.clear()
                    await self._moved.wait()

    async def _send(self, message: dict[str, Any]) -> None:
        """Be the ASGI `send` of an outlet."""
        try:
            if message["type"] == "websocket.send":
                await self._live.connection.send_json(msgspec.json.decode(message["text"]))
        except Exception:
            self._lost(DisconnectCode.CONNECTION_CLOSED, "send failed")
            raise
        finally:
            self._moved.set()

    def unsubscribed(self, topic: str, code: int) -> None:
        """Read again what has begun anew; there is no client that could."""
        self._reads.pop(topic, None)
        if code >= UnsubscribeCode.INSUFFICIENT_STATE:
            task = asyncio.ensure_future(self._again(topic))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _again(self, topic: str) -> None:
        try:
            await self._read(topic)
        except BusError as error:
            self._lost(DisconnectCode.INSUFFICIENT_STATE, str(error))

    def finished(self, topic: str) -> None:
        """An inbox does not end."""

    def somebody_came_or_went(self, order: Control) -> None:
        """It has not asked."""

    def too_slow(self) -> None:
        """Let it go; what it missed is in its inbox."""
        self._lost(DisconnectCode.SLOW, DisconnectCode.SLOW.reason)


async def open_inbox(live: Live, manager: ConnectionManager) -> ObjectInbox:
    """Read the inbox of an object from now on. Raises `BusError`."""
    inbox = ObjectInbox(live, lambda code, reason: manager.let_go(live, code, reason))
    try:
        await inbox.begin()
    except BaseException:
        inbox.end()
        raise
    return inbox


manager.open_inbox = open_inbox
