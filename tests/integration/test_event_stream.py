"""One stream within the test's own process: time, back-pressure, and what a server may do to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bus import publishing
from bus.access.tokens import issue_connection_token
from bus.connections.manager import connection_manager
from bus.doors import events
from bus.doors.events import EventStream
from bus.fanout.hub import Hub
from bus.log.threads import in_thread
from bus.models import ConnectionSession

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.sqlite_only]


class Server:
    """An ASGI server with one request: it takes what is sent, as slowly as it is told."""

    def __init__(self, topic: str, *, held: int | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self.held = held
        self.was_aborted = False
        self.may_take = asyncio.Event()
        self.may_take.set()
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        token = issue_connection_token("reader", ttl=None)
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": f"/events/{topic}",
            "query_string": b"",
            "client": ("127.0.0.1", 5),
            "headers": [(b"authorization", f"Bearer {token}".encode())],
        }
        if held is not None:
            extension = {"pending_bytes": lambda: self.held or 0, "abort": self._abort}
            self.scope["extensions"] = {"bus.stream": extension}

    def _abort(self) -> None:
        self.was_aborted = True
        self.go()

    def go(self) -> None:
        """The client goes."""
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def send(self, message: dict[str, Any]) -> None:
        await self.may_take.wait()
        self.sent.append(message)

    def run(self) -> asyncio.Task[None]:
        return asyncio.ensure_future(EventStream(self.scope, self._incoming.get, self.send).run())

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def until(condition: Callable[[], Any], *, timeout: float = 60.0) -> None:
    """Wait in the loop until the condition holds."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


async def begun(server: Server) -> asyncio.Task[None]:
    """Start a stream and wait until it is open."""
    running = server.run()
    await until(lambda: b"retry:" in server.body or running.done())
    return running


async def code_of_session() -> int | None:
    return (await in_thread(ConnectionSession.objects.get, transport="sse")).code


async def test_an_idle_stream_is_kept_alive_by_comments(
    own_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE", 0.05)
    server = Server("lab:idle")
    running = await begun(server)
    await until(lambda: server.body.count(b":\n\n") >= 2)
    server.go()
    await running
    assert connection_manager.count == 0


async def test_a_client_that_goes_leaves_nothing_behind(own_hub: Hub) -> None:
    server = Server("lab:gone")
    running = await begun(server)
    assert own_hub.topics == ["lab:gone"]
    server.go()
    await running
    assert (own_hub.topics, connection_manager.count) == ([], 0)
    assert await code_of_session() == 3000


async def test_what_the_server_still_holds_counts_as_owed(own_hub: Hub) -> None:
    server = Server("lab:slow", held=2_000_000)
    running = await begun(server)
    await publishing.apublish("lab:slow", "output", 1)
    await publishing.apublish("lab:slow", "output", 2)
    await asyncio.wait_for(running, 60)
    assert server.was_aborted
    assert await code_of_session() == 3008


async def test_a_server_that_takes_nothing_does_not_hold_the_end_up(own_hub: Hub) -> None:
    server = Server("lab:stuck")
    running = await begun(server)
    server.may_take.clear()
    await publishing.apublish("lab:stuck", "output", 1)
    (live,) = connection_manager._live.values()
    await live.connection.close(code=3001, reason="shutdown")
    await asyncio.wait_for(running, 60)
    assert await code_of_session() == 3001


async def test_a_stream_that_is_cancelled_still_leaves_in_order(own_hub: Hub) -> None:
    running = await begun(Server("lab:cancelled"))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: connection_manager.count == 0)


async def test_a_stream_beyond_the_limit_is_told_to_come_later(own_hub: Hub, settings: Any) -> None:
    settings.BUS = {**settings.BUS, "MAX_CONNECTIONS": 1}
    first, second = Server("lab:1"), Server("lab:2")
    running = await begun(first)
    await second.run()
    head = second.sent[0]
    assert (head["status"], dict(head["headers"])[b"retry-after"]) == (503, b"5")
    assert b'"code":3504' in second.body
    first.go()
    await running
