"""The sockets, over a real Daphne: the Centrifugo protocol, plain JSON, and what a client may not do."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.e2e.clients import RawClient, Refused
from tests.harness import ROOT, Site
from tests.integration.sockets import closing, plain, read, staff_headers
from tests.servers import free_port, listens, wait_until


@pytest.fixture
def staff(site: Site) -> dict[str, str]:
    return staff_headers(site)


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    """An API key that may publish, for any agent."""
    return site.python(
        "from bus.access.tokens import create_api_key; "
        "print(create_api_key('tests', scopes=['publish', 'publish:agent', 'publish:task'])[1])"
    )


@pytest.fixture
def client(site: Site) -> Iterator[RawClient]:
    with RawClient(site.web[0].socket) as client:
        yield client


def test_commands_of_one_frame_are_answered_in_order(site: Site, client: RawClient) -> None:
    commands: list[dict[str, Any]] = [{"id": 1, "connect": {"token": site.token("o1", "publish")}}]
    commands += [{"id": 2, "subscribe": {"channel": "order:1"}}]
    commands += [{"id": n, "publish": {"channel": "order:1", "data": n}} for n in range(3, 203)]
    commands += [{"id": 203, "rpc": {"method": "no.such"}}, {"id": 204, "history": {"channel": "order:1"}}]
    client.send(*commands)
    answers, events = [], []
    while len(answers) < 204:
        message = client.receive()
        if "id" in message:
            answers.append(message)
        else:
            events.append(message["push"]["pub"])
    assert [answer["id"] for answer in answers] == list(range(1, 205))
    assert [event["offset"] for event in events] == list(range(1, 201))
    assert [event["data"] for event in events] == list(range(3, 203))
    assert answers[202]["error"]["code"] == 104
    assert answers[203]["history"]["offset"] == 200


def test_a_subscription_in_one_frame_with_connect_gives_way_to_that_of_the_server(
    site: Site, client: RawClient
) -> None:
    inbox = "agent:eager"
    client.send(
        {"id": 1, "connect": {"token": site.token("eager", "publish:agent")}},
        {"id": 2, "subscribe": {"channel": inbox}},
        {"id": 3, "publish": {"channel": inbox, "data": "once"}},
    )
    messages = [client.receive() for _ in range(4)]
    answers = {message["id"]: message for message in messages if "id" in message}
    assert inbox in answers[1]["connect"]["subs"]
    assert answers[2]["error"]["code"] == 105
    assert [m["push"]["pub"]["data"] for m in messages if "push" in m] == ["once"]
    assert client.call("ping") == {}


def test_a_session_needs_a_good_origin(site: Site, staff: dict[str, str]) -> None:
    for origin, code in ((None, 3507), ("http://evil.example", 3507)):
        with RawClient(site.web[0].socket, additional_headers=staff, origin=origin) as client:
            client.send({"id": 1, "connect": {}})
            assert client.ending()[1] == code
    with RawClient(site.web[0].socket, additional_headers=staff, origin=site.web[0].url) as client:
        assert client.call("connect")["subs"].keys() == {"broadcast"}
        assert client.call("subscribe", channel="sys:stats") == {}
        stats = client.receive()["push"]["pub"]["data"]
        assert stats["event_type"] == "stats"
        assert stats["data"]["connections"] >= 1


def test_nobody_connects_without_proof(client: RawClient) -> None:
    client.send({"id": 1, "connect": {}})
    assert client.ending()[1:] == (3500, "invalid token")


def test_an_expired_token_is_told_apart_so_that_the_client_gets_a_new_one(
    site: Site, client: RawClient
) -> None:
    client.send({"id": 1, "connect": {"token": site.token("x", ttl=-10)}})
    messages, code, _ = client.ending()
    assert messages[0]["error"]["code"] == 109
    assert code == 3005


def test_an_api_key_is_the_agent_that_it_says(site: Site, key: str) -> None:
    with RawClient(site.web[0].socket, additional_headers={"X-API-Key": key}) as client:
        subs = client.call("connect", data={"agent_id": "k1"})["subs"]
        assert subs.keys() == {"agent:k1", "broadcast"}
    with RawClient(site.web[0].socket) as client:
        client.call("connect", token=key, data={"agent_id": "k2"})
        assert client.call("rpc", method="bus.whoami")["data"]["agent_id"] == "k2"


def test_a_revoked_key_closes_its_socket_within_five_seconds(site: Site) -> None:
    key = site.python("from bus.access.tokens import create_api_key; print(create_api_key('brief')[1])")
    with RawClient(site.web[0].socket) as client, ThreadPoolExecutor(1) as reading:
        client.call("connect", token=key, data={"agent_id": "brief"})
        ended = reading.submit(lambda: (client.ending(), time.time()))
        revoked_at = site.python(
            "import time; from bus.models import ApiKey; from bus.access.tokens import revoke_api_key; "
            "revoke_api_key(ApiKey.objects.get(name='brief')); print(time.time())"
        )
        (_, code, reason), ended_at = ended.result(100)
        assert (code, reason) == (3500, "invalid token: the API key was revoked or has expired")
        assert ended_at - float(revoked_at) < 6


def test_a_person_is_no_agent_but_their_own(site: Site, client: RawClient) -> None:
    client.send({"id": 1, "connect": {"token": site.token("honest"), "data": {"agent_id": "other"}}})
    assert client.ending()[1] == 3507


def test_what_comes_before_connect_is_no_protocol(client: RawClient) -> None:
    client.send({"id": 1, "subscribe": {"channel": "x"}})
    assert client.ending()[1] == 3501


def test_a_message_that_is_too_large_is_refused_with_1009(site: Site, client: RawClient) -> None:
    client.call("connect", token=site.token("big", "publish"))
    with suppress(ConnectionClosed):
        client.send("x" * (3 * 2**20))
    assert client.ending()[1] == 1009


def test_a_flood_of_pings_ends_the_connection_but_a_few_do_not(site: Site) -> None:
    with plain(site, "/ws/agents/pinger/", "pinger") as client:
        for _ in range(5):
            assert client.ping().wait(60)
        with suppress(ConnectionClosed):
            for _ in range(500):
                client.ping()
        assert closing(client) == (3013, "too many requests")


def test_presence_joins_and_leaves(site: Site, client: RawClient) -> None:
    client.call("connect", token=site.token("watcher"))
    client.call("subscribe", channel="hall:1", join_leave=True)
    with RawClient(site.web[0].socket) as other:
        theirs = other.call("connect", token=site.token("guest"))["client"]
        other.call("subscribe", channel="hall:1")
        pushes = [client.receive()["push"] for _ in range(1)]
        while "join" not in pushes[-1] or pushes[-1]["join"]["info"]["client"] != theirs:
            pushes.append(client.receive()["push"])
        assert client.call("presence", channel="hall:1")["presence"][theirs] == {
            "user": "guest",
            "client": theirs,
        }
        other.call("unsubscribe", channel="hall:1")
        leave = client.receive()["push"]
        assert leave == {"channel": "hall:1", "leave": {"info": {"user": "guest", "client": theirs}}}
        assert theirs not in client.call("presence", channel="hall:1")["presence"]


def test_an_operator_disconnects_an_agent_for_good(site: Site, client: RawClient) -> None:
    client.call("connect", token=site.token("unwanted"), data={"agent_id": "unwanted"})
    site.manage("bus", "disconnect", "unwanted")
    messages, code, reason = client.ending()
    assert messages[-1] == {"push": {"disconnect": {"code": 3503, "reason": "force disconnect"}}}
    assert (code, reason) == (3503, "force disconnect")
    wait_until(
        lambda: site.sql("SELECT code FROM bus_connectionsession WHERE agent_id = 'unwanted'") == [(3503,)],
        what="the end in the history",
    )
    assert not site.sql("SELECT 1 FROM bus_activeconnection WHERE agent_id = 'unwanted'")


def test_a_replaced_connection_may_not_write_any_more(site: Site, client: RawClient) -> None:
    client.call("connect", token=site.token("dup", "publish"), data={"agent_id": "dup"})
    with RawClient(site.web[0].socket) as second:
        second.call("connect", token=site.token("dup", "publish"), data={"agent_id": "dup"})
        with pytest.raises((Refused, ConnectionClosed)):
            client.call("publish", channel="order:9", data=1)
        assert second.call("history", channel="order:9") == {"publications": [], "epoch": "", "offset": 0}


def test_progress_of_a_task_ends_with_1000(site: Site, key: str) -> None:
    with plain(site, "/ws/progress/p1/", "reader") as client:
        site.python(
            "from bus.progress import Progress\n"
            "with Progress('p1') as progress:\n    progress.update(1, 2, step='first')"
        )
        kinds = [read(client)["event_type"] for _ in range(3)]
        assert kinds == ["task.started", "task.progress", "task.completed"]
        assert closing(client) == (1000, "the task has ended")
    with plain(site, "/ws/progress/p1/", "late") as late:
        assert read(late)["event_type"] == "task.completed"
        assert closing(late)[0] == 1000
    with plain(site, "/ws/progress/p1/?offset=0", "again") as again:
        assert [read(again)["offset"] for _ in range(3)] == [1, 2, 3]
        assert closing(again)[0] == 1000


def test_a_plain_socket_replays_from_a_time(site: Site, key: str) -> None:
    code = "from bus.publishing import publish; [publish('task:p2', 'output', n) for n in range({})]"
    site.python(code.format(3))
    middle = time.time()
    site.python(code.format(2))
    with plain(site, f"/ws/progress/p2/?since={middle}", "reader") as client:
        assert [read(client)["offset"] for _ in range(2)] == [4, 5]
    with plain(site, "/ws/progress/p2/?since=1970-01-01T00:00:00Z", "reader") as client:
        assert [read(client)["offset"] for _ in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "query",
    [
        "offset=-1",
        "offset=x",
        "offset=1_0",
        "offset=1&epoch=%00",
        "offset=9223372036854775808",
        "since=yesterday",
        "since=1e99",
    ],
)
def test_a_malformed_place_is_refused(site: Site, query: str) -> None:
    with plain(site, f"/ws/progress/p3/?{query}", "reader") as client:
        assert closing(client)[0] == 3501


def test_an_inbox_waits_and_is_acknowledged_over_a_plain_socket(site: Site) -> None:
    publish = "from bus.publishing import publish; publish('agent:pl', 'agent.message', {})"
    for number in range(3):
        site.python(publish.format(number))
    with plain(site, "/ws/agents/pl/", "pl") as client:
        events = [read(client) for _ in range(3)]
        assert [(e["topic"], e["offset"], e["data"]) for e in events] == [
            ("agent:pl", n + 1, n) for n in range(3)
        ]
        client.send('{"type":"ack","offset":2}')
        client.send('{"type":"ping"}')
        assert read(client) == {"event_type": "pong"}
    with plain(site, "/ws/agents/pl/", "pl") as client:
        assert read(client)["offset"] == 3


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xfe",
        "nonsense",
        "[]",
        '{"type":"dance"}',
        '{"type":7}',
        '{"type":"ack"}',
        '{"type":"ack","offset":9}',
        '{"type":"publish","topic":"agent:x"}',
        '{"type":"subscribe","topic":"agent:somebody"}',
        '{"type":"ping","type":"ping"}',
    ],
)
def test_what_is_wrong_is_answered_and_the_socket_stays_open(site: Site, frame: str | bytes) -> None:
    with plain(site, "/ws/agents/clumsy/", "clumsy") as client:
        client.send(frame)
        answer = read(client)
        assert answer["event_type"] == "error"
        assert answer["data"]["code"] in (103, 107)
        client.send('{"type":"ping"}')
        assert read(client) == {"event_type": "pong"}


def test_a_frame_with_an_id_is_answered_when_it_is_done(site: Site) -> None:
    with plain(site, "/ws/agents/asker/", "asker", "publish") as client:

        def ask(frame: dict[str, Any]) -> dict[str, Any]:
            client.send(json.dumps(frame))
            answer = read(client)
            while answer["event_type"] not in ("done", "error"):
                answer = read(client)
            return answer

        event = {"type": "publish", "topic": "asked:1", "event_type": "output", "data": 1, "key": "k"}
        done = ask({**event, "id": 7})
        assert (done["event_type"], done["id"]) == ("done", 7)
        assert {name: done["data"][name] for name in ("topic", "offset", "duplicate")} == {
            "topic": "asked:1",
            "offset": 1,
            "duplicate": False,
        }
        assert ask({**event, "id": "again"})["data"]["duplicate"] is True
        assert ask({"type": "ping", "id": 1}) == {"event_type": "done", "id": 1, "data": {}}
        acked = ask({"type": "ack", "topic": "asked:1", "offset": 1, "id": 2})
        assert (acked["id"], acked["data"]["offset"], acked["data"]["lag"]) == (2, 1, 0)
        refused = ask({"type": "publish", "topic": "agent:x", "event_type": "output", "id": 3})
        assert (refused["id"], refused["data"]["code"]) == (3, 103)
        twice = ask({"type": "subscribe", "topic": "broadcast", "id": 4})
        assert (twice["id"], twice["data"]["code"]) == (4, 105)


def test_a_topic_is_added_from_a_place_and_its_end_closes_nothing_else(site: Site) -> None:
    site.python("from bus.publishing import publish; [publish('task:added', 'output', n) for n in range(3)]")
    with plain(site, "/ws/agents/adder/", "adder") as client:
        client.send('{"type":"subscribe","topic":"task:added","offset":1}')
        assert [read(client)["offset"] for _ in range(2)] == [2, 3]
        client.send('{"type":"subscribe","topic":"task:added","id":1}')
        assert read(client)["data"]["code"] == 105
        site.python(
            "import asyncio; from django.db.models import Q; from bus.connections import orders\n"
            "asyncio.run(orders.unsubscribe(Q(agent_id='adder'), 'task:added', 2100))"
        )
        left = {"topic": "task:added", "code": 2100, "reason": "topic ended"}
        assert read(client) == {"event_type": "unsubscribed", "data": left}
        client.send('{"type":"subscribe","topic":"task:added","since":"1970-01-01T00:00:00Z"}')
        assert [read(client)["offset"] for _ in range(3)] == [1, 2, 3]


def test_a_plain_socket_without_its_own_topic_closes(site: Site) -> None:
    closes = {2000: 3503, 2100: 1000, 2101: 3507, 2500: 3010}
    with ExitStack() as stack:
        clients = {
            code: stack.enter_context(plain(site, f"/ws/agents/bare-{code}/", f"bare-{code}"))
            for code in closes
        }
        for client in clients.values():
            client.send('{"type":"ping"}')
            assert read(client) == {"event_type": "pong"}
        site.python(
            "import asyncio; from django.db.models import Q; from bus.connections import orders\n"
            "async def order():\n"
            f"    for code in {list(closes)}:\n"
            "        await orders.unsubscribe(Q(agent_id=f'bare-{code}'), f'agent:bare-{code}', code)\n"
            "asyncio.run(order())"
        )
        assert {code: closing(client)[0] for code, client in clients.items()} == closes


def test_another_agents_inbox_is_closed_to_everybody(site: Site) -> None:
    with plain(site, "/ws/agents/secret/", "curious") as client:
        assert closing(client)[0] == 3507


def test_an_address_that_does_not_exist_is_refused_before_the_handshake(site: Site) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        connect(f"ws://127.0.0.1:{site.web[0].port}/ws/nowhere/", proxy=None)
    assert refusal.value.response.status_code == 403


def test_the_site_still_answers_http(site: Site) -> None:
    assert httpx.get(f"{site.web[0].url}/healthz/live", timeout=60).status_code == 200


def test_sigterm_tells_all_clients_to_come_again_and_leaves_no_row() -> None:
    site = Site().start()
    try:
        with RawClient(site.web[0].socket) as client, plain(site, "/ws/agents/b/", "b") as other:
            client.call("connect", token=site.token("a"), data={"agent_id": "a"})
            wait_until(lambda: len(site.sql("SELECT 1 FROM bus_activeconnection")) == 2, what="both rows")
            site.web[0].process.send_signal(signal.SIGTERM)
            messages, code, reason = client.ending()
            assert messages[-1]["push"]["disconnect"]["code"] == 3001
            assert (code, reason) == (3001, "shutdown")
            assert closing(other) == (3001, "shutdown")
            assert site.web[0].process.wait(60) == 0
        assert not site.sql("SELECT 1 FROM bus_activeconnection")
        assert not site.sql("SELECT 1 FROM bus_serverinstance")
        assert set(site.sql("SELECT code FROM bus_connectionsession")) == {(3001,)}
    finally:
        site.stop()


def test_a_listening_socket_can_be_handed_over(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        listener.set_inheritable(True)
        command = [
            sys.executable,
            "-m",
            "bus.transport",
            "--fd",
            str(listener.fileno()),
            "xnai_site.asgi:application",
        ]
        process = subprocess.Popen(command, env=site.environment, pass_fds=[listener.fileno()], cwd=ROOT)
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/healthz/live"
            assert httpx.get(url, timeout=100).status_code == 200
        finally:
            process.terminate()
            assert process.wait(60) == 0


def test_a_client_that_answers_no_ping_is_closed() -> None:
    site = Site(BUS_PING_INTERVAL="1", BUS_PONG_TIMEOUT="1").start()
    try:
        with connect(site.web[0].socket, proxy=None) as client:
            client.send(json.dumps({"id": 1, "connect": {"token": site.token("mute")}}))
            assert closing(client) == (3012, "no pong")
    finally:
        site.stop()


def test_any_other_asgi_server_serves_the_same(site: Site) -> None:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "--ws", "websockets-sansio"]
    process = subprocess.Popen(
        [*command, "--lifespan", "off", "--log-level", "warning", "xnai_site.asgi:application"],
        env=site.environment,
        cwd=ROOT,
    )
    try:
        wait_until(lambda: listens(port), timeout=100, what="uvicorn")
        with (
            RawClient(f"ws://127.0.0.1:{port}/connection/websocket") as other,
            RawClient(site.web[0].socket) as here,
        ):
            other.call("connect", token=site.token("u1", "publish"), data={"agent_id": "u1"})
            other.call("subscribe", channel="servers:1")
            here.call("connect", token=site.token("u2", "publish"))
            here.call("publish", channel="servers:1", data="from daphne")
            other.send(*({"id": 100 + n, "publish": {"channel": "servers:1", "data": n}} for n in range(50)))
            got: list[Any] = []
            while len(got) < 51:
                message = other.receive()
                got += [message["push"]["pub"]["data"]] if "push" in message else []
            assert got == ["from daphne", *range(50)]
            with RawClient(site.web[0].socket) as newest:
                newest.call("connect", token=site.token("u1"), data={"agent_id": "u1"})
                assert other.ending()[1:] == (4501, "replaced")
    finally:
        process.kill()
        process.wait(60)
