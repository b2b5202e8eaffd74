"""Golden conversations that both clients, Python's and JavaScript's, must understand alike.

`clients.json` holds them: for each connection of a client what the server answers to `subscribe`, which
frames it sends then, and how it closes; and what the reader of the topic `lab:1` must have been told in the
end.
`Script` speaks the server's part, word for word, to whichever client connects.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

FILE = Path(__file__).parent / "clients.json"
VECTORS: list[dict[str, Any]] = json.loads(FILE.read_text())
TOPIC = "lab:1"


class Script:
    """The server's part of the conversations; the path of a connection names the one it wants."""

    def __init__(self) -> None:
        #: A copy, for what was said is struck out.
        self._vectors = {vector["name"]: deepcopy(vector) for vector in VECTORS}
        self._met: dict[str, int] = {}
        #: What a client did that the conversation does not foresee.
        self.surprises: list[str] = []

    async def __call__(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        name = unquote(socket.request.path.strip("/"))
        vector = self._vectors[name]
        number = self._met[name] = self._met.get(name, -1) + 1
        if number >= len(vector["connections"]):
            self.surprises.append(f"{name}: a connection too many")
            return
        with suppress(ConnectionClosed):
            async for frame in socket:
                for command in map(json.loads, str(frame).split("\n")):
                    await self._answer(socket, name, vector["connections"][number], command)

    async def _answer(self, socket: ServerConnection, name: str, part: Any, command: Any) -> None:
        id = command.get("id")
        if "connect" in command:
            await socket.send(json.dumps({"id": id, "connect": {"client": "c", "version": "v", "ping": 25}}))
        elif "subscribe" in command:
            asked = command["subscribe"]
            if missing := {k: v for k, v in part.pop("asked", {}).items() if asked.get(k) != v}:
                self.surprises.append(f"{name}: {missing} was to be asked, not {asked}")
            await self._subscribed(socket, id, part)
        elif "unsubscribe" in command:
            await socket.send(json.dumps({"id": id, "unsubscribe": {}}))

    async def _subscribed(self, socket: ServerConnection, id: int, part: dict[str, Any]) -> None:
        frames, part["then"] = part.get("then", []), []
        await socket.send(json.dumps({"id": id, "subscribe": part["subscribe"]}))
        part["subscribe"] = part.get("again", part["subscribe"])
        for frame in frames:
            await socket.send("\n".join(map(json.dumps, frame)))
            await asyncio.sleep(0.02)  # another frame: what is in one may be taken together
        if "close" in part:
            await socket.close(part["close"])


@asynccontextmanager
async def scripted() -> AsyncIterator[tuple[str, Script]]:
    """Serve the conversations; gives the address, to which the name of one is added, and the script."""
    script = Script()
    async with serve(script, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/", script
