"""What a command asks for that this server does not have: refused where it is missed, else left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bus.protocol import session
from bus.protocol.errors import UnsubscribeCode, unsubscribe_reason
from bus.protocol.frames import ConnectResult
from bus.protocol.session import Reply, Session, SessionLimits


@pytest.fixture
def client() -> Session:
    client = Session(SessionLimits(), now=0.0)
    (action,) = client.receive('{"id":1,"connect":{"flag":3,"profile":"p","dict":"d"}}', now=0.0)
    assert isinstance(action, session.Connect)
    client.connected(action, ConnectResult(client="c"), now=0.0)
    return client


def one(client: Session, command: dict[str, Any]) -> Any:
    (action,) = client.receive(json.dumps({"id": 2, **command}), now=0.0)
    return action


@pytest.mark.parametrize(
    "command",
    [
        {"subscribe": {"channel": "t", "type": 1}},
        {"subscribe": {"channel": "t", "tf": {"key": "k", "cmp": "eq", "val": "v"}}},
        {"publish": {"channel": "t", "data": 1, "type": 1, "key": "k"}},
    ],
)
def test_what_would_be_missed_is_refused_with_108(client: Session, command: dict[str, Any]) -> None:
    action = one(client, command)
    assert isinstance(action, Reply)
    assert json.loads(action.data)["error"]["code"] == 108
    assert client.topics == frozenset()


def test_another_kind_of_sub_refresh_is_refused_and_the_subscription_stays(client: Session) -> None:
    one(client, {"subscribe": {"channel": "t"}})
    action = one(client, {"sub_refresh": {"channel": "t", "type": 1, "track": []}})
    assert json.loads(action.data)["error"]["code"] == 108
    assert client.topics == {"t"}


@pytest.mark.parametrize(
    "more", [{"delta": "fossil"}, {"flag": 1}, {"data": {"mine": 1}}, {"phase": 0, "limit": 5, "unheard": []}]
)
def test_what_is_not_missed_is_left_out(client: Session, more: dict[str, Any]) -> None:
    action = one(client, {"subscribe": {"channel": "t", **more}})
    assert isinstance(action, session.Subscribe)
    assert not action.request.rejects_unrecovered


def test_every_unsubscribe_code_has_a_reason_and_so_has_one_that_an_operator_made_up() -> None:
    assert all(unsubscribe_reason(code) == code.reason for code in UnsubscribeCode)
    assert unsubscribe_reason(2345) == "server unsubscribe"
