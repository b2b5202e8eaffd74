"""A channel layer for the processes of one simulated site, as bad as a layer may be.

It has the methods of a Channels layer that `bus.link` uses. A message to a group takes a seeded time to each
member, so messages overtake each other; some are repeated, some dropped. While it is frozen no call returns;
when it is emptied all memberships are gone without a word.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bus import layer

#: Name of the simulated process that runs at the moment.
HERE: ContextVar[str] = ContextVar("HERE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How bad it is."""

    slowness: float
    drops: float
    repeats: float


@dataclass(slots=True)
class _Mailbox:
    owner: str
    messages: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)


class Network:
    """See the module. All processes share it and know their own mailboxes only."""

    def __init__(self, random: Random, weather: Weather) -> None:
        self._random = random
        self.weather = weather
        self._mailboxes: dict[str, _Mailbox] = {}
        self._groups: dict[str, dict[str, None]] = {}
        self._thawed = asyncio.Event()
        self._thawed.set()

    def freeze(self) -> None:
        """Let no call return from now on."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Go on."""
        self._thawed.set()

    def empty(self) -> None:
        """Forget all groups, as a server that was restarted or flushed."""
        self._groups.clear()

    async def new_channel(self) -> str:
        await self._thawed.wait()
        name = f"sim!{len(self._mailboxes)}"
        self._mailboxes[name] = _Mailbox(HERE.get())
        return name

    async def group_add(self, group: str, channel: str) -> None:
        await self._thawed.wait()
        self._groups.setdefault(group, {})[channel] = None

    async def group_discard(self, group: str, channel: str) -> None:
        await self._thawed.wait()
        self._groups.get(group, {}).pop(channel, None)

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        await self._thawed.wait()
        self._carry(channel, message)

    async def receive(self, channel: str) -> dict[str, Any]:
        return await self._mailboxes[channel].messages.get()

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        await self._thawed.wait()
        # All simulated processes have the name of the one real process: give each its own.
        sender = HERE.get()
        signed = {**message, "body": message["body"].replace(layer.INSTANCE, sender)}
        for channel in list(self._groups.get(group, {})):
            if self._mailboxes[channel].owner != sender:
                self._throw(channel, signed)

    async def flush(self) -> None:
        """Let go of what the process has here, as a layer does that closes its connections."""
        for name, mailbox in list(self._mailboxes.items()):
            if mailbox.owner == HERE.get():
                self._mailboxes[name] = _Mailbox("")
                for members in self._groups.values():
                    members.pop(name, None)

    def _throw(self, channel: str, message: dict[str, Any]) -> None:
        if self._random.random() < self.weather.drops:
            return
        for _ in range(2 if self._random.random() < self.weather.repeats else 1):
            self._carry(channel, message)

    def _carry(self, channel: str, message: dict[str, Any]) -> None:
        delay = self.weather.slowness * self._random.random() ** 2
        loop = asyncio.get_running_loop()
        loop.call_later(delay, lambda: self._mailboxes[channel].messages.put_nowait(message))
