"""How qdrant-client reaches its server: through exchanges that end, and past answers that are none.

The client's own time-outs hold for each read, its answers have no limit, and it takes `true` or "3" for a
number. Imported only when Qdrant is asked, because httpx comes with qdrant-client.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
from qdrant_client import QdrantClient

from cleanup.engine.verify import Deadline
from cleanup.verifiers.bounded import Exchanger


class _Count(msgspec.Struct):
    count: int


class _Answer(msgspec.Struct):
    result: _Count
    status: str


class _Transport(httpx.BaseTransport):
    """Carries requests of one client over one connection."""

    def __init__(self, exchanger: Exchanger) -> None:
        self.exchanger = exchanger

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the answer is whole, and if it is one of success it counts points."""
        # Of the client's headers those that mean something; the others are about connections.
        kept = {
            name: request.headers[name] for name in ("content-type", "api-key") if name in request.headers
        }
        target = request.url.raw_path.decode("ascii")
        reply = self.exchanger.exchange(request.method, target, body=request.read(), headers=kept)
        if reply.status == httpx.codes.OK:
            answer = msgspec.json.decode(reply.body, type=_Answer)
            if answer.status != "ok" or answer.result.count < 0:
                raise ValueError("an answer of success that reports none")
        headers = [(name, value) for name, value in reply.headers if name.lower() == "content-type"]
        return httpx.Response(reply.status, headers=headers, content=reply.body)

    def close(self) -> None:
        """End the connection."""
        self.exchanger.close()


def connected(url: str, api_key: str, deadline: Deadline) -> QdrantClient:
    """A client of the server at `url` whose requests all end by the deadline."""
    split = urlsplit(url)
    tls = split.scheme == "https"
    exchanger = Exchanger(
        split.hostname or "", split.port or (443 if tls else 6333), tls=tls, deadline=deadline
    )
    options: dict[str, Any] = {"transport": _Transport(exchanger), "trust_env": False}
    # Without the question for the server's version, which is a request before the first one.
    if api_key:
        options["headers"] = {"api-key": api_key}
    return QdrantClient(url=url, check_compatibility=False, **options)
