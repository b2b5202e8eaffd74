"""A client of a socket in the test's own process: real consumer, hub and log, no network.

`Talk` runs an ASGI application for one connection and speaks to it frame by frame.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from typing import Any

import jwt

from bus.conf import conf


def token(agent: str, *scopes: str) -> str:
    """A connection token of an agent, signed for this process."""
    claims = {"sub": agent, "agent": agent, "exp": int(time.time()) + 3_600, "scopes": list(scopes)}
    return jwt.encode(claims, conf().token_secret, algorithm="HS256")


class Gone(Exception):
    """The server has closed the connection."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code


class Talk:
    """One connection. Use as an asynchronous context manager.

    Args:
        application: an ASGI application. path, headers, kwargs: of the address.
    """

    def __init__(
        self,
        application: Any,
        path: str = "/connection/websocket",
        *,
        headers: dict[str, str] | None = None,
        kwargs: dict[str, str] | None = None,
        query: str = "",
    ) -> None:
        self._application = application
        self._scope = {
            "type": "websocket",
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ["127.0.0.1", 1],
            "url_route": {"args": (), "kwargs": kwargs or {}},
            "extensions": {},
        }
        self._in: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._out: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._lines: deque[str] = deque()
        self.pushes: deque[dict[str, Any]] = deque()
        self._id = 0

    async def __aenter__(self) -> Talk:
        self._in.put_nowait({"type": "websocket.connect"})
        self._task = asyncio.ensure_future(self._application(self._scope, self._in.get, self._out.put))
        first = await asyncio.wait_for(self._out.get(), 60)
        assert first["type"] == "websocket.accept", first
        return self

    async def __aexit__(self, *_: object) -> None:
        self._in.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(self._task, 60)

    def send(self, frame: str | bytes) -> None:
        """Send a frame as it is."""
        field = "text" if isinstance(frame, str) else "bytes"
        self._in.put_nowait({"type": "websocket.receive", field: frame})

    async def line(self, timeout: float = 60.0) -> dict[str, Any]:
        """The next message. Raises `Gone` at the end."""
        while not self._lines:
            message = await asyncio.wait_for(self._out.get(), timeout)
            if message["type"] == "websocket.close":
                raise Gone(message.get("code", 1000), message.get("reason", ""))
            self._lines.extend(message["text"].split("\n"))
        said: dict[str, Any] = json.loads(self._lines.popleft())
        return said

    async def call(self, method: str, **body: Any) -> dict[str, Any]:
        """Send a command; return its answer. Pushes that come before it are kept."""
        self._id += 1
        self.send(json.dumps({"id": self._id, method: body}))
        while "id" not in (said := await self.line()):
            if "push" in said:
                self.pushes.append(said["push"])
        assert said["id"] == self._id, said
        return said

    async def push(self) -> dict[str, Any]:
        """The next push."""
        while not self.pushes:
            said = await self.line()
            if "push" in said:
                self.pushes.append(said["push"])
        return self.pushes.popleft()
