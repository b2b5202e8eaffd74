"""Clients that subscribe and then never read again, as a frozen browser tab does.

Their receive buffers are small, so that what the operating system takes for them does not hide how much the
server owes.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect

from tests.history import Start
from tests.servers import PATIENCE


@dataclass(slots=True)
class Sleeper:
    """A client that subscribes and then reads nothing any more."""

    name: str
    socket: ClientConnection
    #: Where it stood when it fell asleep.
    at: Start


async def fall_asleep(url: str, token: str, topic: str, name: str) -> Sleeper:
    """Connect, subscribe, and read no further; the operating system keeps little for it."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    own.setblocking(False)
    host, port = url.split("/")[2].split(":")
    await asyncio.get_running_loop().sock_connect(own, (host, int(port)))
    connection = await connect(
        url,
        sock=own,
        proxy=None,
        open_timeout=PATIENCE,
        ping_interval=None,
        compression=None,
        max_queue=1,
        max_size=None,
    )
    subscribe = {"channel": topic, "positioned": True, "recoverable": True}
    hello = [{"id": 1, "connect": {"token": token}}, {"id": 2, "subscribe": subscribe}]
    await connection.send("\n".join(map(json.dumps, hello)))
    while True:
        for line in str(await connection.recv()).split("\n"):
            if (message := json.loads(line)).get("id") == 2:
                result = message["subscribe"]
                at = Start(epoch=result["epoch"], offset=result.get("offset", 0))
                return Sleeper(name, connection, at)


async def put_to_sleep(url: str, tokens: Mapping[str, str], topic: str) -> Sequence[Sleeper]:
    """One for each name, all at once."""
    return await asyncio.gather(*[fall_asleep(url, token, topic, name) for name, token in tokens.items()])


async def wake(sleepers: Sequence[Sleeper]) -> None:
    """They find that they have no connection any more."""
    for sleeper in sleepers:
        sleeper.socket.transport.abort()
    await asyncio.gather(*[sleeper.socket.wait_closed() for sleeper in sleepers])
