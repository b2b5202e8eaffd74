"""Path B: JSON objects, for a shell and for ten lines of code.

`/ws/agents/<agent_id>/` is an inbox, `/ws/progress/<task_id>/` the progress of a task.
Each frame out is one event with its `topic`, `offset` and `epoch`; each frame in is an object with a `type`.
What is wrong is answered with an `error` event and the socket stays open. `?offset=&epoch=` or `?since=`
replays; an inbox begins at its agent's cursor. After the final event of a task the server closes with 1000.
The pings of the WebSocket protocol itself keep these sockets alive.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

import msgspec

from bus import credentials, remote
from bus.acks import position
from bus.conf import conf
from bus.feeds import Form
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.permissions import check
from bus.protocol import frames
from bus.protocol.errors import (
    BadRequest,
    BusError,
    Disconnect,
    DisconnectCode,
    Expired,
    TokenExpired,
    Unauthorized,
    UnsubscribeCode,
)
from bus.protocol.limits import strict_json
from bus.protocol.positions import BEGINNING, Position
from bus.protocol.topics import check_topic, is_topic
from bus.remote import Caller
from bus.sockets import Socket, as_bus_error

#: Topics that one plain socket may add to its own.
MAX_ADDED = 32


class PlainSocket(Socket):
    """What both kinds share: frames in, and events out."""

    form = Form.PLAIN
    transport = "plain"

    #: The topic that `ack` is about.
    topic: str = ""

    async def begin(self) -> None:
        """Prove who it is, subscribe to what the address names, and replay what it asks for."""
        try:
            proof = await credentials.prove(self.scope)
            since = _asked(self.scope)
            await self.take_place(proof)
            await self.read(since)
        except (Unauthorized, TokenExpired, Expired) as error:
            raise credentials.refusal_of(error) from error
        except BadRequest as error:
            raise Disconnect(DisconnectCode.BAD_REQUEST, f"bad request: {error.message}") from error
        except BusError as error:
            self.queue.send(frames.plain_error(error))
            raise Disconnect(DisconnectCode.PERMISSION_DENIED, error.message) from error

    async def take_place(self, proof: Any) -> None:
        """Become the connection that the address names. Raises `BusError` and `Disconnect`."""
        raise NotImplementedError

    async def read(self, since: Position | datetime | None) -> None:
        """Subscribe to what the address names."""
        raise NotImplementedError

    async def follow(self, topic: str, since: Position | None) -> None:
        """Read a topic from a position on."""
        await self.join(topic)
        found = await self.subscribe(topic, since)
        if since is not None and not found.recovered:
            words = {"code": 112, "message": "unrecoverable position", "topic": topic}
            self.queue.send(frames.encode({"event_type": "error", "data": words}))
        found.subscription.send_events(found.events)
        self.hub.release(found)

    async def received(self, data: str | bytes) -> None:
        """Do what a frame says, or answer with an error."""
        try:
            words = strict_json(data, conf().max_message_bytes)
            kind = words.get("type") if isinstance(words, dict) else None
            handler = _HANDLERS.get(kind) if isinstance(kind, str) else None
            if handler is None:
                raise BadRequest(f"a frame is an object with a type of {', '.join(_HANDLERS)}")
            await handler(self, {name: value for name, value in words.items() if name != "type"})
        except Disconnect:
            raise
        except Exception as error:  # noqa: BLE001  (as_bus_error logs what is not ours)
            self.queue.send(frames.plain_error(as_bus_error(error)))

    async def _ping(self, _: dict[str, Any]) -> None:
        self.queue.send(b'{"event_type":"pong"}')

    async def _ack(self, words: dict[str, Any]) -> None:
        call = remote.arguments(remote.AckCall, {"topic": self.topic, **words})
        await remote.ack(self._caller(), call)

    async def _publish(self, words: dict[str, Any]) -> None:
        await remote.publish(self._caller(), remote.arguments(remote.PublishCall, words))

    async def _subscribe(self, words: dict[str, Any]) -> None:
        topic = check_topic(words.get("topic"))
        check(self.identity, "subscribe", topic)
        if topic in self._subscribed:
            raise BadRequest(f"subscribed to {topic} already")
        if len(self._subscribed) >= MAX_ADDED:
            raise BadRequest(f"more than {MAX_ADDED} topics")
        await self.follow(topic, None)

    def _caller(self) -> Caller:
        return Caller(
            identity=self.identity,
            info=self.info,
            name=self.name,
            session_id=self.details.session_id,
            check_generation=self.check_generation,
        )

    async def send_json(self, data: Any) -> None:
        """Send an object."""
        self.queue.send(frames.encode(data))

    def goodbye(self, end: Disconnect) -> bytes | None:
        """Say why, unless it is a good end."""
        if int(end.code) == 1000:
            return None
        words = {"code": int(end.code), "message": end.reason}
        return frames.encode({"event_type": "error", "data": words})

    def unsubscribed(self, topic: str, code: UnsubscribeCode) -> None:
        """There is no word for this here: close, so that the client comes again."""
        super().unsubscribed(topic, code)
        final = code is UnsubscribeCode.ENDED
        end = Disconnect(1000, code.reason) if final else Disconnect(DisconnectCode.INSUFFICIENT_STATE)  # type: ignore[arg-type]
        self.soon(self.end(end))


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
        start = await _start(self.topic, since)
        if start is None and not conf().volatile:
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
        start = await _start(self.topic, since)
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


_HANDLERS: dict[str, Callable[[PlainSocket, dict[str, Any]], Awaitable[None]]] = {
    "ping": PlainSocket._ping,
    "ack": PlainSocket._ack,
    "publish": PlainSocket._publish,
    "subscribe": PlainSocket._subscribe,
}


def _asked(scope: Any) -> Position | datetime | None:
    """Return where the address asks to begin. Raises `BadRequest`."""
    query = {
        name: values[-1] for name, values in parse_qs(scope.get("query_string", b"").decode("latin1")).items()
    }
    if "since" in query:
        return _moment(query["since"])
    if "offset" not in query:
        return None
    try:
        return Position(epoch=query.get("epoch", ""), offset=int(query["offset"]))
    except ValueError:
        raise BadRequest("offset is a whole number, at least 0") from None


def _moment(text: str) -> datetime:
    try:
        return datetime.fromtimestamp(float(text), UTC)
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return msgspec.convert(text, datetime).astimezone(UTC)
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise BadRequest("since is a time: seconds since 1970, or ISO 8601 with a zone") from None


async def _start(topic: str, since: Position | datetime | None) -> Position | None:
    if isinstance(since, datetime):
        return await in_thread(_position_at, topic, since)
    return since


def _position_at(topic: str, moment: datetime) -> Position | None:
    """Return the position before the first event after `moment`, by halving: times grow with the offsets."""
    log = event_log()
    state = log.states([topic]).get(topic)
    if state is None:
        return None
    low, high = state.first_offset, state.last_offset + 1
    while low < high:
        middle = (low + high) // 2
        page = log.read(topic, Position(epoch=state.epoch, offset=middle - 1), limit=1)
        if page.events and page.events[0].created_at <= moment:
            low = middle + 1
        else:
            high = middle
    return Position(epoch=state.epoch, offset=low - 1)
