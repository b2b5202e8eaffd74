"""Path B: JSON objects, for a shell and for ten lines of code.

`/ws/agents/<agent_id>/` is an inbox, `/ws/progress/<task_id>/` the progress of a task.
Each frame out is one event with its `topic`, `offset` and `epoch`; each frame in is an object with a `type`.
A frame in with an `id` is answered with a `done` event once it is done, and that means committed. What is
wrong is answered with an `error` event and the socket stays open. `?offset=&epoch=` or `?since=`
replays; an inbox begins at its agent's cursor. After the final event of a task the server closes with 1000.
The pings of the WebSocket protocol itself keep these sockets alive.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from bus.access import credentials
from bus.access.permissions import check
from bus.access.rates import Meter
from bus.acks import position
from bus.conf import conf
from bus.doors import remote, starts
from bus.doors.sockets import Receive, Scope, Send, Socket, as_bus_error, end_for
from bus.fanout.feeds import Form
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.protocol import frames
from bus.protocol.errors import (
    AlreadySubscribed,
    BadRequest,
    BusError,
    Disconnect,
    DisconnectCode,
    Expired,
    LimitExceeded,
    TokenExpired,
    Unauthorized,
    unsubscribe_reason,
)
from bus.protocol.limits import strict_json
from bus.protocol.positions import BEGINNING, Position
from bus.protocol.topics import check_topic, is_topic

#: Topics that one plain socket may add to its own.
MAX_ADDED = 32


class PlainSocket(Socket):
    """What both kinds share: frames in, and events out."""

    form = Form.PLAIN
    transport = "plain"

    #: The topic that `ack` is about.
    topic: str = ""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        options = conf()
        self._meter = Meter(rate=options.command_rate, burst=options.command_burst, now=time.monotonic())

    async def begin(self) -> None:
        """Prove who it is, subscribe to what the address names, and replay what it asks for."""
        try:
            proof = await credentials.prove(self.scope)
            since = starts.place(starts.query_of(self.scope.get("query_string", b"")))
            await self.take_place(proof)
            await self.read(since)
        except (Unauthorized, TokenExpired, Expired) as error:
            raise credentials.refusal_of(error) from error
        except BadRequest as error:
            raise Disconnect(DisconnectCode.BAD_REQUEST, f"bad request: {error.message}") from error
        except BusError as error:
            self.queue.send(frames.plain_error(error))
            code = DisconnectCode.SERVER_ERROR if error.retryable else DisconnectCode.PERMISSION_DENIED
            raise Disconnect(code, error.message) from error

    async def take_place(self, proof: Any) -> None:
        """Become the connection that the address names. Raises `BusError` and `Disconnect`."""
        raise NotImplementedError

    async def read(self, since: Position | datetime | None) -> None:
        """Subscribe to what the address names."""
        raise NotImplementedError

    async def follow(self, topic: str, since: Position | None) -> None:
        """Read a topic from a position on."""
        found = await self.subscribe(topic, since)
        try:
            await self.join(topic)
        except BaseException:
            await self.unsubscribe(topic)
            raise
        if since is not None and not found.recovered:
            words = {"code": 112, "message": "unrecoverable position", "topic": topic}
            self.queue.send(frames.encode({"event_type": "error", "data": words}))
        found.subscription.send_events(found.events)
        self.hub.release(found)

    async def received(self, data: str | bytes) -> None:
        """Do what a frame says, or answer with an error."""
        mark: dict[str, Any] = {}
        try:
            self._meter.spend(time.monotonic())
            words = _object(data)
            if (given := words.pop("id", None)) is not None:
                mark = {"id": given}
            handler = _HANDLERS.get(str(words.pop("type", None)))
            if handler is None:
                raise BadRequest(f"a frame is an object with a type of {', '.join(_HANDLERS)}")
            answer = await handler(self, words)
        except Disconnect:
            raise
        except Exception as error:  # noqa: BLE001  (as_bus_error logs what is not ours)
            self.queue.send(_error(as_bus_error(error), mark))
        else:
            if mark:
                self.queue.send(frames.encode({"event_type": "done", **mark, "data": answer}))

    async def _ping(self, _: dict[str, Any]) -> dict[str, Any]:
        self.queue.send(b'{"event_type":"pong"}')
        return {}

    async def _ack(self, words: dict[str, Any]) -> dict[str, Any]:
        call = remote.arguments(remote.AckCall, {"topic": self.topic, **words})
        return await remote.ack(self.caller(), call)

    async def _publish(self, words: dict[str, Any]) -> dict[str, Any]:
        return await remote.publish(self.caller(), remote.arguments(remote.PublishCall, words))

    async def _subscribe(self, words: dict[str, Any]) -> dict[str, Any]:
        topic = check_topic(words.get("topic"))
        check(self.identity, "subscribe", topic)
        if topic in self._subscribed:
            raise AlreadySubscribed
        if len(self._subscribed) >= MAX_ADDED:
            raise LimitExceeded(f"more than {MAX_ADDED} topics")
        since = await starts.located(topic, starts.place({name: str(value) for name, value in words.items()}))
        await self.follow(topic, since)
        return {"topic": topic}

    async def take_in(self, topic: str, since: Position | None) -> None:
        """Read another topic, as ordered."""
        check(self.identity, "subscribe", topic)
        if topic not in self._subscribed:
            await self.follow(topic, since)

    async def send_json(self, data: Any) -> None:
        """Send an object."""
        self.queue.send(frames.encode(data))

    def goodbye(self, end: Disconnect) -> bytes | None:
        """Say why, unless it is a good end."""
        if int(end.code) == 1000:
            return None
        words = {"code": int(end.code), "message": end.reason}
        return frames.encode({"event_type": "error", "data": words})

    def unsubscribed(self, topic: str, code: int) -> None:
        """Tell of a topic that was added; without its own topic the socket is of no use, and closes."""
        super().unsubscribed(topic, code)
        if topic == self.topic:
            self.soon(self.end(end_for(code)))
        else:
            words = {"topic": topic, "code": int(code), "reason": unsubscribe_reason(code)}
            self.queue.send(frames.encode({"event_type": "unsubscribed", "data": words}))


class AgentSocket(PlainSocket):
    """An agent's inbox, and `broadcast`."""

    async def take_place(self, proof: Any) -> None:
        """Be the agent of the address: nobody else may."""
        agent_id = self.scope["url_route"]["kwargs"]["agent_id"]
        self.topic = f"agent:{agent_id}"
        if not is_topic(self.topic):
            raise BadRequest("not an agent id")
        await self.enter(proof, agent_id=agent_id)

    async def read(self, since: Position | datetime | None) -> None:
        """Read the inbox from where it was asked or acknowledged, and broadcasts from now on."""
        check(self.identity, "subscribe", self.topic)
        start = await starts.located(self.topic, since)
        if start is None:
            start = await in_thread(position, self.name, self.topic) or BEGINNING
        await self.follow(self.topic, start)
        for topic in self.own_topics():
            if topic not in self._subscribed:
                await self.follow(topic, None)


class ProgressSocket(PlainSocket):
    """The progress of one task."""

    async def take_place(self, proof: Any) -> None:
        """Be a reader of the task of the address."""
        task_id = self.scope["url_route"]["kwargs"]["task_id"]
        self.topic = f"task:{task_id}"
        if not is_topic(self.topic):
            raise BadRequest("not a task id")
        check(proof.identity, "subscribe", self.topic)
        await self.enter(proof, task_id=task_id)

    async def read(self, since: Position | datetime | None) -> None:
        """Read from where it was asked; of a task that has ended at least its final event."""
        start = await starts.located(self.topic, since)
        state = (await in_thread(event_log().states, [self.topic])).get(self.topic)
        if state is not None and state.ended_at is not None:
            last = Position(epoch=state.epoch, offset=state.last_offset - 1)
            if start is None or start == Position(epoch=state.epoch, offset=state.last_offset):
                start = last
        await self.follow(self.topic, start)

    def finished(self, topic: str) -> None:
        """The task has ended and its final event went out."""
        if topic == self.topic:
            self.soon(self.end(Disconnect(1000, "the task has ended")))  # type: ignore[arg-type]


#: Frames in, by their type. Each returns what a `done` says.
_HANDLERS: dict[str, Callable[[PlainSocket, dict[str, Any]], Awaitable[dict[str, Any]]]] = {
    "ping": PlainSocket._ping,
    "ack": PlainSocket._ack,
    "publish": PlainSocket._publish,
    "subscribe": PlainSocket._subscribe,
}

#: All types of frames that come in, and those that go out beside events.
FRAMES_IN = tuple(_HANDLERS)
FRAMES_OUT = ("pong", "done", "error", "unsubscribed")


def _object(data: str | bytes) -> dict[str, Any]:
    words = strict_json(data, conf().max_message_bytes)
    return words if isinstance(words, dict) else {}


def _error(error: BusError, mark: dict[str, Any]) -> bytes:
    """Return an error, with the id of the frame that it answers."""
    words = {"code": error.code, "message": error.message, **error.data}
    return frames.encode({"event_type": "error", **mark, "data": words})
