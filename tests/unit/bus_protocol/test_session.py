"""The state of one client: order, subscriptions, limits, pings."""

from __future__ import annotations

import json

import pytest

from bus.protocol import frames, session
from bus.protocol.errors import AlreadySubscribed, Disconnect, DisconnectCode, PermissionDenied
from bus.protocol.frames import ConnectResult, SubscribeResult
from bus.protocol.session import Fail, Ping, Reply, Session, SessionLimits


def connected(**limits) -> Session:
    client = Session(SessionLimits(**limits), now=0.0)
    (action,) = client.receive('{"id":1,"connect":{}}', now=0.0)
    client.connected(action, ConnectResult(client="c"), now=0.0)
    return client


def send(client: Session, *commands: dict, now: float = 0.0) -> list:
    return client.receive("\n".join(json.dumps(command) for command in commands), now=now)


def error_code(action) -> int:
    assert isinstance(action, Reply)
    return json.loads(action.data)["error"]["code"]


def test_a_session_is_connected_only_once_connect_was_answered():
    client = Session(SessionLimits(), now=0.0)
    (connect, subscribe) = send(client, {"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "t"}})
    assert not client.is_connected
    client.connected(connect, ConnectResult(client="c"), now=0.0)
    assert client.is_connected
    assert isinstance(subscribe, session.Subscribe)


def test_bytes_and_text_mean_the_same():
    frame = '{"id":2,"publish":{"channel":"t","data":"ü"}}'
    assert connected().receive(frame, 0.0) == connected().receive(frame.encode(), 0.0)


def test_empty_lines_of_a_frame_are_nothing():
    assert connected().receive('\n\n{"id":2,"rpc":{"method":"m"}}\n', 0.0) == [session.Rpc(2, "m", None)]


def test_a_server_subscription_of_connect_takes_its_topic():
    client = Session(SessionLimits(), now=0.0)
    connect, subscribe = send(
        client, {"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "agent:a"}}
    )
    client.connected(connect, ConnectResult(client="c", subs={"agent:a": SubscribeResult()}), now=0.0)
    assert not client.is_current(subscribe)
    client.failed(subscribe, AlreadySubscribed())
    assert client.topics == {"agent:a"}
    assert error_code(send(client, {"id": 3, "subscribe": {"channel": "agent:a"}})[0]) == 105


def test_a_refused_subscribe_frees_its_topic():
    client = connected()
    (action,) = send(client, {"id": 2, "subscribe": {"channel": "t"}})
    client.failed(action, PermissionDenied())
    assert client.topics == frozenset()
    assert isinstance(send(client, {"id": 3, "subscribe": {"channel": "t"}})[0], session.Subscribe)


def test_subscribe_and_unsubscribe_within_one_frame_keep_their_order():
    client = connected()
    topic = {"channel": "t"}
    first, _, second = send(
        client, {"id": 2, "subscribe": topic}, {"id": 3, "unsubscribe": topic}, {"id": 4, "subscribe": topic}
    )
    assert not client.is_current(first)
    client.failed(first, AlreadySubscribed())
    assert client.is_current(second)
    assert client.topics == {"t"}


def test_a_subscription_that_the_server_ends_can_be_made_again():
    client = connected()
    send(client, {"id": 2, "subscribe": {"channel": "t"}})
    client.server_unsubscribed("t", 2500, "insufficient state")
    assert isinstance(send(client, {"id": 3, "subscribe": {"channel": "t"}})[0], session.Subscribe)


def test_a_subscription_made_by_the_server_is_pushed_without_events():
    client = connected()
    result = SubscribeResult(recoverable=True, epoch="e", offset=3, was_recovering=True)
    pushed = json.loads(client.server_subscribed("t", result))
    assert pushed == {"push": {"channel": "t", "subscribe": {"recoverable": True, "epoch": "e", "offset": 3}}}
    assert client.topics == {"t"}


def test_the_subscription_limit_is_an_error_and_unsubscribing_makes_room():
    client = connected(max_subscriptions=2)
    actions = send(client, *({"id": n, "subscribe": {"channel": f"t{n}"}} for n in (2, 3, 4)))
    assert error_code(actions[2]) == 106
    send(client, {"id": 5, "unsubscribe": {"channel": "t2"}})
    assert isinstance(send(client, {"id": 6, "subscribe": {"channel": "t4"}})[0], session.Subscribe)


def test_connecting_with_too_many_positions_is_final():
    client = Session(SessionLimits(max_subscriptions=1), now=0.0)
    (action,) = send(client, {"id": 1, "connect": {"subs": {"a": {}, "b": {}}}})
    assert action.disconnect.code is DisconnectCode.TOPIC_LIMIT


def test_refreshing_a_subscription_that_is_not_there_is_an_error():
    assert error_code(send(connected(), {"id": 2, "sub_refresh": {"channel": "t", "token": "x"}})[0]) == 107


def test_two_commands_in_one_message_are_an_error():
    assert error_code(send(connected(), {"id": 2, "ping": {}, "rpc": {"method": "m"}})[0]) == 107


@pytest.mark.parametrize(
    "frame",
    [
        '{"id":2,"subscribe":{"channel":7}}',
        '{"id":2,"subscribe":"t"}',
        '{"id":2,"history":{"channel":"t","since":{"offset":-1}}}',
        '{"id":2,"publish":{"channel":"t","data":NaN}',
        '{"id":2,"publish":{"channel":"t","data":' + "[" * 33 + "]" * 33 + "}}",
    ],
)
def test_a_bad_body_is_an_error_as_long_as_its_id_can_be_read(frame):
    client = connected()
    (action,) = client.receive(frame, 0.0)
    if isinstance(action, Fail):
        assert "NaN" in frame  # the id of broken JSON cannot be read
        assert action.disconnect.code is DisconnectCode.BAD_REQUEST
    else:
        assert error_code(action) == 107
        assert not client.is_closed


@pytest.mark.parametrize("command_id", [-1, 2**32, "1", 1.5, None])
def test_an_id_that_is_no_32_bit_number_ends_the_connection(command_id):
    (action,) = send(connected(), {"id": command_id, "rpc": {"method": "m"}})
    assert action.disconnect.code is DisconnectCode.BAD_REQUEST


def test_a_message_that_is_too_large_is_refused_before_it_is_read():
    client = connected(max_bytes=1000)
    (action,) = send(client, {"id": 2, "publish": {"channel": "t", "data": "x" * 1000}})
    assert error_code(action) == 107
    assert isinstance(send(client, {"id": 3, "publish": {"channel": "t", "data": "x"}})[0], session.Publish)


def test_thirty_two_levels_of_data_are_fine_at_every_place():
    deep = json.loads("[" * 32 + "]" * 32)
    for command in ({"publish": {"channel": "t", "data": deep}}, {"rpc": {"method": "m", "data": deep}}):
        assert not isinstance(send(connected(), {"id": 2, **command})[0], Reply | Fail)


def test_commands_beyond_the_rate_are_told_when_to_come_again():
    client = connected(command_rate=10.0, command_burst=3)
    actions = send(client, *({"id": n, "rpc": {"method": "m"}} for n in range(2, 5)))
    error = json.loads(actions[2].data)["error"]
    assert error == {
        "code": 111,
        "message": "too many requests",
        "temporary": True,
        "data": {"retry_after": 0.1},
    }
    assert isinstance(send(client, {"id": 9, "rpc": {"method": "m"}}, now=0.1)[0], session.Rpc)


def test_who_goes_on_beyond_the_rate_is_closed():
    client = connected(command_rate=1.0, command_burst=1, refusals=5)
    actions = send(client, *({"id": n, "rpc": {"method": "m"}} for n in range(2, 50)))
    assert len(actions) == 6
    assert actions[-1].disconnect.code is DisconnectCode.TOO_MANY_REQUESTS
    assert client.is_closed
    assert send(client, {"id": 99, "rpc": {"method": "m"}}, now=60.0) == []


def test_a_flood_of_pongs_is_closed():
    client = connected(command_rate=1.0, command_burst=3)
    actions = client.receive("{}\n" * 10, 0.0)
    assert actions[-1].disconnect.code is DisconnectCode.TOO_MANY_REQUESTS


def test_a_client_is_pinged_and_closed_when_it_does_not_answer():
    client = connected(ping_interval=25.0, pong_timeout=8.0)
    assert client.due(24.9) is None
    assert client.next_due() == 25.0
    assert isinstance(client.due(25.0), Ping)
    assert client.due(32.9) is None
    assert client.next_due() == 33.0
    ended = client.due(33.0)
    assert isinstance(ended, Fail)
    assert ended.disconnect.code is DisconnectCode.NO_PONG
    assert client.is_closed


def test_a_client_that_answers_pings_lives_on():
    client = connected(ping_interval=25.0, pong_timeout=8.0, command_rate=0.001, command_burst=1)
    for turn in range(1, 20):
        assert isinstance(client.due(25.0 * turn), Ping)
        assert client.receive("{}", 25.0 * turn + 7.9) == [session.Pong()]
        assert client.due(25.0 * turn + 8.0) is None


def test_an_unanswered_ping_is_not_covered_by_a_later_one():
    client = connected(ping_interval=5.0, pong_timeout=8.0)
    assert isinstance(client.due(5.0), Ping)
    assert isinstance(client.due(10.0), Ping)
    assert isinstance(client.due(13.0), Fail)


def test_a_client_that_never_connects_is_closed():
    client = Session(SessionLimits(connect_timeout=15.0), now=100.0)
    assert client.due(114.9) is None
    ended = client.due(115.0)
    assert isinstance(ended, Fail)
    assert ended.disconnect.code is DisconnectCode.STALE
    assert client.due(200.0) is None


def test_a_clean_connect_fails_closed_after_an_error():
    client = Session(SessionLimits(), now=0.0)
    (action,) = send(client, {"id": 1, "connect": {}})
    client.failed(action, PermissionDenied())
    assert client.is_closed
    assert not client.is_connected


def test_a_close_reason_fits_into_a_close_frame():
    client = connected()
    (action,) = client.receive("x" * 500, 0.0)
    assert len(action.disconnect.reason.encode()) <= 123
    assert len(Disconnect(DisconnectCode.FORCED, "ü" * 300).reason.encode()) <= 123


def test_no_encoded_message_contains_a_line_end():
    assert b"\n" not in frames.push_message({"text": "a\nb", "list": [1, {"b": None}]})
