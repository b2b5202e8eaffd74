"""Plain objects as connections, and their rows."""

from __future__ import annotations

import asyncio
from typing import Any

from django.utils import timezone

from bus.connections.leases import Details
from bus.connections.live import Live
from bus.log.threads import in_thread
from bus.models import ActiveConnection, ConnectionSession


class Socket:
    """Any object with async `send_json` and `close`."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed: tuple[int, str] | None = None
        self.is_broken = False

    async def send_json(self, data: Any) -> None:
        if self.is_broken:
            raise ConnectionResetError("gone")
        self.sent.append(data)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed = (code, reason)


def live(client_id: str, **details: Any) -> Live:
    return Live(Socket(), Details(client_id=client_id, connected_at=timezone.now(), **details))


async def rows(**wanted: Any) -> list[ActiveConnection]:
    return await in_thread(lambda: list(ActiveConnection.objects.filter(**wanted)))


async def session(client_id: str) -> ConnectionSession:
    return await in_thread(ConnectionSession.objects.get, client_id=client_id)


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)
