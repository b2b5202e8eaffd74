"""The golden frames of `vectors.json`, byte for byte, through a session whose driver always says the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bus.protocol import frames, session
from bus.protocol.errors import (
    BusError,
    DisconnectCode,
    ErrorCode,
    InternalError,
    PermissionDenied,
    TokenExpired,
    TooManyRequests,
    UnrecoverablePosition,
    UnsubscribeCode,
)
from bus.protocol.frames import ClientInfo, ConnectResult, RefreshResult, SubRefreshResult, SubscribeResult
from bus.protocol.session import Session, SessionLimits

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())

MISSED = [
    frames.publication(
        8, b'{"event_type":"output","data":{}}', b'{"id":"x"}', b'{"user":"42","client":"c9"}'
    ),
    frames.publication(9, '[1,2.5,"ü"]'.encode()),
]

#: The class of each error, by its code.
ERRORS = {int(kind.default_code): kind for kind in BusError.__subclasses__()}


def error_of(code: int) -> BusError:
    """An error as it is raised; the one about rates says how long to wait."""
    kind = ERRORS[code]
    return kind(retry_after=0.25) if kind is TooManyRequests else kind()


class Driver:
    """Carries out the actions of a session in order, as a server would, with answers that never change."""

    def __init__(self) -> None:
        self.session = Session(SessionLimits(), now=0.0)

    def exchange(self, frame: str) -> str:
        sent: list[bytes] = []
        for action in self.session.receive(frame, now=0.0):
            if isinstance(action, session.Fail):
                sent.append(frames.push_disconnect(action.disconnect.code, action.disconnect.reason))
            elif self.session.is_closed:
                break
            elif isinstance(action, session.Reply):
                sent.append(action.data)
            elif not isinstance(action, session.Send | session.Pong):
                sent.append(self._answer(action))
        return frames.join(sent).decode()

    def _answer(self, action: Any) -> bytes:
        try:
            answer: Callable[[Any], bytes] = getattr(self, f"_{type(action).__name__.lower()}")
            return answer(action)
        except BusError as error:
            return self.session.failed(action, error)

    def _connect(self, action: session.Connect) -> bytes:
        if action.request.token == "old":
            raise TokenExpired
        inbox = SubscribeResult(recoverable=True, positioned=True, epoch="e0", offset=4)
        if "agent:a7" in action.request.subs:
            inbox = msgspec.structs.replace(inbox, was_recovering=True, recovered=True)
        result = ConnectResult(
            client="c1",
            version="0.1",
            expires=True,
            ttl=3600,
            subs={"agent:a7": inbox} if action.request.token else {},
            ping=25,
            pong=True,
            session="s",
            node="n",
        )
        return self.session.connected(action, result, now=0.0)

    def _subscribe(self, action: session.Subscribe) -> bytes:
        if action.topic == "secret":
            raise PermissionDenied
        result = SubscribeResult(recoverable=True, positioned=True, epoch="e1", offset=9)
        if action.request.recover:
            publications = [msgspec.Raw(event) for event in MISSED]
            result = msgspec.structs.replace(
                result, recovered=True, was_recovering=True, publications=publications
            )
        if action.request.recover and action.request.epoch != "e1":
            if action.request.rejects_unrecovered:
                raise UnrecoverablePosition
            result = msgspec.structs.replace(result, recovered=False, publications=msgspec.UNSET)
        if action.request.token:
            result = msgspec.structs.replace(result, expires=True, ttl=60)
        return self.session.subscribed(action, result)

    def _unsubscribe(self, action: session.Unsubscribe) -> bytes:
        return self.session.unsubscribed(action)

    def _publish(self, action: session.Publish) -> bytes:
        if action.topic == "broken":
            raise InternalError
        if action.topic.startswith("error:"):
            raise error_of(int(action.topic.removeprefix("error:")))
        return self.session.published(action)

    def _presence(self, action: session.Presence) -> bytes:
        return self.session.presence(action, {"c1": ClientInfo(user="42", client="c1")})

    def _presencestats(self, action: session.PresenceStats) -> bytes:
        return self.session.presence_stats(action, 1, 0)

    def _history(self, action: session.History) -> bytes:
        found = [frames.publication(n, b"{}") for n in (2, 1)] if action.request.limit else []
        return self.session.history(action, found, "e1", 9)

    def _rpc(self, action: session.Rpc) -> bytes:
        return self.session.called(action, {"method": action.method, "given": action.data})

    def _refresh(self, action: session.Refresh) -> bytes:
        return self.session.refreshed(
            action, RefreshResult(client="c1", version="0.1", expires=True, ttl=3600)
        )

    def _subrefresh(self, action: session.SubRefresh) -> bytes:
        return self.session.sub_refreshed(action, SubRefreshResult(expires=True, ttl=60))


@pytest.mark.parametrize("conversation", VECTORS["conversations"], ids=lambda found: found["name"])
def test_a_conversation_is_answered_byte_for_byte(conversation):
    driver = Driver()
    for step in conversation["steps"]:
        answer = driver.exchange(step["C"])
        if step["S"] is not None:
            assert answer == step["S"]


def argument(name: str, value: Any) -> tuple[str, Any]:
    """An argument of an encoder: what JSON has no word for is told by its name."""
    if name in ("payload", "tags", "info", "published"):
        return name, value.encode()
    if name == "who":
        return "info", ClientInfo(**value)
    if name == "result":
        return name, SubscribeResult(**value)
    if name == "error":
        return name, error_of(value)
    if name == "events":
        return name, [SimpleNamespace(**dict(argument(*pair) for pair in event.items())) for event in value]
    return name, value


@pytest.mark.parametrize("vector", VECTORS["pushes"], ids=lambda found: found["S"][:60])
def test_a_push_is_encoded_byte_for_byte(vector):
    arguments = dict(argument(name, value) for name, value in vector["with"].items())
    assert getattr(frames, vector["call"])(**arguments).decode() == vector["S"]


def test_every_command_of_the_protocol_is_in_a_vector():
    sent = {
        name
        for conversation in VECTORS["conversations"]
        for step in conversation["steps"]
        if step["C"].startswith("{")
        for line in step["C"].split("\n")
        for name in json.loads(line)
    }
    assert sent - {"id"} == set(frames.Command.__struct_fields__) - {"id"}


def test_every_error_of_the_protocol_is_in_a_vector():
    told = [
        json.loads(line).get("error", {}).get("code")
        for conversation in VECTORS["conversations"]
        for step in conversation["steps"]
        for line in (step["S"] or "").split("\n")
        if line
    ]
    assert set(told) - {None} == {int(code) for code in ErrorCode} == set(ERRORS)


def test_every_push_and_every_code_is_in_a_vector():
    calls = {vector["call"] for vector in VECTORS["pushes"]}
    encoders = {
        name for name in vars(frames) if name.startswith(("push_", "plain_")) or name == "publication"
    }
    assert calls == encoders
    for call, codes in (("push_disconnect", DisconnectCode), ("push_unsubscribe", UnsubscribeCode)):
        found = {v["with"]["code"]: v["with"]["reason"] for v in VECTORS["pushes"] if v["call"] == call}
        assert found == {int(code): code.reason for code in codes}
