"""Path C, reading live: `GET /events/<topic>`, server-sent events for browsers and `curl -N`.

Each event has its position as id. `Last-Event-ID`, which browsers send by themselves, goes on from there;
`?since=` (an id, seconds since 1970 or an ISO time) begins there, without either the stream begins now. What
cannot be recovered is told by a `gap` event before anything else. The server says `disconnect` before it ends
a stream, and answers 204 to one that comes again for a task that has ended: then a browser stays away.

A stream is a connection like any socket: it is counted, listed, disconnected and revoked in the same ways.
It is read-only, so a stream of an agent does not replace the agent's socket.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from django.utils import timezone

from bus.access import credentials
from bus.access.permissions import check
from bus.access.proofs import Proof
from bus.acks import position
from bus.conf import conf
from bus.connections import admission
from bus.doors import starts
from bus.doors.sockets import Receive, Scope, Send, Socket, address_of, as_bus_error, end_for
from bus.doors.streams import EXTENSION, StreamOutlet
from bus.fanout.feeds import Form, Subscribed
from bus.fanout.sending import SendQueue
from bus.log import TopicState
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.protocol import eventstream, frames
from bus.protocol.errors import (
    BusError,
    Disconnect,
    DisconnectCode,
    ErrorCode,
    PermissionDenied,
    TooManyRequests,
    UnrecoverablePosition,
    may_reconnect,
)
from bus.protocol.positions import BEGINNING, Position

#: A comment goes out so often: below the 30 s idle cut of common proxies.
KEEP_ALIVE = 15.0
#: Readers come again after so many milliseconds, each after another time.
RETRY = (1_000, 3_000)
#: The longest that a timer is set to (s); no stream lives that long.
FAR = 1_000_000.0
#: Seconds after which a refused reader may come again.
RETRY_AFTER = 5.0

_STATUSES: dict[int, int] = {
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.TOKEN_EXPIRED: 401,
    ErrorCode.EXPIRED: 401,
    ErrorCode.PERMISSION_DENIED: 403,
    ErrorCode.UNKNOWN_TOPIC: 404,
    ErrorCode.TOO_MANY_REQUESTS: 429,
    ErrorCode.INTERNAL: 500,
    ErrorCode.LOG_UNAVAILABLE: 503,
}
_CLOSE_STATUSES: dict[int, int] = {
    DisconnectCode.INVALID_TOKEN: 401,
    DisconnectCode.PERMISSION_DENIED: 403,
    DisconnectCode.BAD_REQUEST: 400,
    DisconnectCode.TOO_MANY_REQUESTS: 429,
}


class NothingToCome(Exception):
    """The topic has ended and its reader has all of it."""


class EventStream(Socket):
    """One stream of one topic."""

    form = Form.STREAM
    transport = "sse"

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        options = conf()
        self._loop = asyncio.get_running_loop()
        self._outlet = StreamOutlet(send, (scope.get("extensions") or {}).get(EXTENSION))
        self.queue = SendQueue(
            self._outlet, max_bytes=options.send_queue_bytes, max_frames=options.send_queue_frames
        )
        self.topic = str(scope["path"]).removeprefix("/events/")
        self._headers = credentials.headers_of(scope)
        self._has_ended = False
        self._keeper: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None

    @classmethod
    def as_asgi(cls) -> Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]:
        """Return the application: one stream for each request that the gate lets in."""

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            stream = cls(scope, receive, send)
            if wait := admission.gate().wait(address_of(scope)):
                await stream.refuse(TooManyRequests(retry_after=wait), 503)
            else:
                await stream.run()

        return application

    async def run(self) -> None:
        """Answer the request: with a stream, or with why there is none."""
        if self.scope["method"] != "GET":
            await self._respond(405, (b"allow", b"GET"))
            return
        try:
            await self._body()
            await self._stream()
        finally:
            # Whoever cancels a stream does not cancel what it leaves in order.
            await asyncio.shield(asyncio.ensure_future(self._gone(int(DisconnectCode.CONNECTION_CLOSED))))

    async def _stream(self) -> None:
        try:
            found, has_gap = await self._begin()
            if self._ending is not None:
                raise self._ending
        except NothingToCome:
            await self._respond(204)
        except Disconnect as refusal:
            error = BusError(refusal.reason, code=int(refusal.code))
            await self.refuse(error, _CLOSE_STATUSES.get(error.code, 503))
        except Exception as error:  # noqa: BLE001  (as_bus_error logs what is not ours)
            told = as_bus_error(error)
            await self.refuse(told, _STATUSES.get(told.code, 400))
        else:
            await self._outlet.start(self._start())
            self._go_on(found, has_gap)
            await self._until_over()

    async def _body(self) -> None:
        while (await self._receive()).get("more_body"):
            pass

    async def _begin(self) -> tuple[Subscribed, bool]:
        """Prove who it is and subscribe; tell, too, whether what was asked for is gone.

        Raises `BusError`, `Disconnect` and `NothingToCome`.
        """
        proof = await credentials.prove(self.scope)
        check(proof.identity, "subscribe", self.topic)
        given = self._given()
        state = (await in_thread(event_log().states, [self.topic])).get(self.topic)
        since = await self._since(proof, given, state)
        await self._count(proof)
        found = await self.subscribe(self.topic, since)
        await self.join(self.topic)
        return found, since is not None and not found.recovered

    def _given(self) -> str:
        return self._headers.get("last-event-id") or starts.query_of(self.scope["query_string"]).get(
            "since", ""
        )

    async def _since(self, proof: Proof, given: str, state: TopicState | None) -> Position | None:
        """Return where the stream begins. A topic that has ended is read from its final event at least."""
        top = Position(epoch=state.epoch, offset=state.last_offset) if state else BEGINNING
        has_ended = self._has_ended = state is not None and state.ended_at is not None
        if eventstream.is_id(given):
            since = eventstream.position_of(given)
            if has_ended and since == top:
                raise NothingToCome
            return since
        if given:
            return await starts.located(self.topic, starts.moment(given))
        if has_ended and top.offset:
            return replace(top, offset=top.offset - 1)
        if self.topic == f"agent:{proof.identity.agent_id}" and not conf().volatile:
            return await in_thread(position, proof.identity.agent_id, self.topic) or BEGINNING
        return None

    async def _count(self, proof: Proof) -> None:
        """Become a connection that counts; not the connection of an agent, of which there is but one."""
        identity = proof.identity
        reader = replace(identity, agent_id="", user_id=identity.user_id or identity.agent_id)
        await self.enter(replace(proof, identity=reader))
        self.proof, self.identity = proof, identity
        if proof.expires_at is not None:
            left = (proof.expires_at - timezone.now()).total_seconds()
            end = Disconnect(DisconnectCode.EXPIRED)
            self._expiry = self._loop.call_later(min(max(left, 0.0), FAR), lambda: self.soon(self.end(end)))

    def check_generation(self) -> None:
        """Refuse every write: a stream only reads."""
        raise PermissionDenied

    def _start(self) -> dict[str, Any]:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store, no-transform"),
            (b"x-accel-buffering", b"no"),
            *self._common_headers(),
        ]
        return {"type": "http.response.start", "status": 200, "headers": headers}

    def _common_headers(self) -> list[tuple[bytes, bytes]]:
        origin = self._headers.get("origin", "")
        found = [(b"x-content-type-options", b"nosniff"), (b"vary", b"Origin, Cookie")]
        if origin in conf().allowed_origins:
            found.append((b"access-control-allow-origin", origin.encode("latin1")))
            found.append((b"access-control-allow-credentials", b"true"))
        return found

    def _go_on(self, found: Subscribed, has_gap: bool) -> None:
        """Send what was missed and go live, or say that it is gone."""
        self.queue.send(eventstream.retry(random.randint(*RETRY)))
        if has_gap:
            error = UnrecoverablePosition()
            body = {"code": error.code, "message": error.message, "topic": self.topic}
            at = Position(epoch=found.epoch, offset=found.offset)
            self.queue.send(eventstream.word(eventstream.GAP, frames.encode(body), at))
        found.subscription.send_events(found.events)
        self.hub.release(found)
        if has_gap and self._has_ended:
            self.finished(self.topic)  # the final event is behind the reader, and nothing follows it
        elif self._ending is None:
            self._keeper = self._loop.call_later(KEEP_ALIVE, self._keep_alive)

    def _keep_alive(self) -> None:
        self.queue.send(eventstream.COMMENT)
        self._keeper = self._loop.call_later(KEEP_ALIVE, self._keep_alive)

    def stopped(self) -> None:
        """Stop the timers."""
        for timer in (self._keeper, self._expiry):
            if timer is not None:
                timer.cancel()

    async def _until_over(self) -> None:
        """Wait until the client has gone, or has been told to."""
        gone = asyncio.ensure_future(self._disconnected())
        over = asyncio.ensure_future(self._outlet.over.wait())
        try:
            await asyncio.wait({gone, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, over):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._outlet.broke()

    def goodbye(self, end: Disconnect) -> bytes:
        """Say why the stream ends, and whether to come again: a browser does if nobody closes it."""
        code = int(end.code)
        body = {"code": code, "reason": end.reason, "reconnect": code != 1000 and may_reconnect(code)}
        return eventstream.word(eventstream.DISCONNECT, frames.encode(body))

    async def send_json(self, data: Any) -> None:
        """Send an object outside of the topic, as an event without a name or an id."""
        self.queue.send(eventstream.event("", 0, "", frames.encode(data)))

    def finished(self, topic: str) -> None:
        """The topic has ended and its final event went out."""
        self.soon(self.end(Disconnect(1000, "the topic has ended")))  # type: ignore[arg-type]

    def unsubscribed(self, topic: str, code: int) -> None:
        """A stream without its topic is over."""
        super().unsubscribed(topic, code)
        self.soon(self.end(end_for(code)))

    async def refuse(self, error: BusError, status: int) -> None:
        """Answer that there is no stream, and why."""
        body = frames.encode({"error": {"code": error.code, "message": error.message}})
        headers = [(b"content-type", b"application/json")]
        if status in (429, 503):
            wait = error.retry_after if isinstance(error, TooManyRequests) else RETRY_AFTER
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(wait))))
        if status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="bus"'))
        await self._respond(status, *headers, body=body)

    async def _respond(self, status: int, *headers: tuple[bytes, bytes], body: bytes = b"") -> None:
        length = (b"content-length", str(len(body)).encode())
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, length, (b"cache-control", b"no-store"), *self._common_headers()],
            }
        )
        await self._send({"type": "http.response.body", "body": body})


def is_stream(scope: Mapping[str, Any]) -> bool:
    """Tell whether a request is for a stream."""
    return cast(str, scope["path"]).startswith("/events/")
