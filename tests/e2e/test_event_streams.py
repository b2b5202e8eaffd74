"""Server-sent events from real servers: Daphne, and another ASGI server."""

from __future__ import annotations

import socket
import sys
import uuid
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.clients import StockClient
from tests.e2e.publisher import Publisher
from tests.e2e.stream_reader import StreamReader
from tests.harness import START_TIMEOUT, Program, Site
from tests.proxy import TcpProxy
from tests.servers import PATIENCE, free_port, listens, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site(web=1)
    yield site.start()
    site.stop()


@pytest.fixture(scope="module")
def uvicorn(site: Site) -> Iterator[str]:
    """The address of another ASGI server on the same database."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "--lifespan", "off"]
    log = site.folder / "uvicorn.log"
    program = Program("uvicorn", [*command, "xnai_site.asgi:application"], site.environment, log)
    program.start()
    wait_until(lambda: listens(port), timeout=START_TIMEOUT, what="uvicorn")
    yield f"http://127.0.0.1:{port}"
    program.kill()


@pytest.fixture(params=["daphne", "uvicorn"])
def base(request: pytest.FixtureRequest, site: Site) -> str:
    """A server to read from; what is published comes in at Daphne."""
    if request.param == "daphne":
        return site.web[0].url
    url: str = request.getfixturevalue("uvicorn")
    return url


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return site.api_key("publish", "publish:task", "manage:connections", "manage:topics", "read:connections")


@pytest.fixture
def headers(key: str) -> dict[str, str]:
    return {"X-API-Key": key}


@pytest.fixture
def topic() -> str:
    return f"flow:{uuid.uuid4().hex[:10]}"


def command(site: Site, headers: dict[str, str], name: str, **body: object) -> dict[str, object]:
    """Call a command of the HTTP API."""
    answer = httpx.post(f"{site.web[0].url}/api/{name}", json=body, headers=headers, timeout=PATIENCE).json()
    assert "error" not in answer, answer
    found: dict[str, object] = answer["result"]
    return found


def test_a_stream_replays_goes_live_and_is_resumed_where_it_broke(
    site: Site, base: str, headers: dict[str, str], topic: str
) -> None:
    def publish(number: int) -> None:
        event = {"event_type": "output", "n": number} if number % 2 else number
        command(site, headers, "publish", channel=topic, data=event)

    for number in (1, 2):
        publish(number)
    with StreamReader(f"{base}/events/{topic}?since=0", headers) as first:
        first.wait(2)
        publish(3)
        told = first.wait(3)
    assert [(e.name, e.offset) for e in told] == [("output", 1), ("message", 2), ("output", 3)]
    assert [e.data for e in told][:2] == [{"event_type": "output", "n": 1}, 2]
    publish(4)
    with StreamReader(f"{base}/events/{topic}", {**headers, "Last-Event-ID": told[1].id}) as second:
        assert [e.offset for e in second.wait(2)] == [3, 4]
    with StreamReader(f"{base}/events/{topic}", headers) as third:
        third.wait_open()
        publish(5)
        assert [e.offset for e in third.wait()] == [5]


def test_cuts_and_a_killed_server_lose_no_event_and_repeat_none(
    site: Site, uvicorn: str, key: str, headers: dict[str, str], topic: str
) -> None:
    count, web = 250, site.web[0]
    publisher = Publisher([uvicorn, web.url], key=key, topic=topic, count=count)
    with TcpProxy(web.port) as proxy:
        host = proxy.socket.removeprefix("ws://").partition("/")[0]
        url = f"http://{host}/events/{topic}?since=0"
        with StreamReader(url, headers, comes_again=True) as reader:
            publisher.start()
            publisher.wait_for(50)
            proxy.cut()
            publisher.wait_for(100)
            web.kill()
            publisher.wait_for(140)  # through the other server, while this one is down
            web.restart()
            publisher.wait_for(190)
            proxy.cut(reset=False)
            acks = publisher.finish()
            told = reader.wait(count)
    assert [ack.offset for ack in acks] == list(range(1, count + 1))
    assert [e.offset for e in told] == [e.data["n"] for e in told] == list(range(1, count + 1))
    assert len(reader.statuses) >= 4


def test_a_position_that_is_gone_is_told_before_anything_else(
    site: Site, base: str, headers: dict[str, str], topic: str
) -> None:
    for number in range(3):
        command(site, headers, "publish", channel=topic, data=number)
    epoch = command(site, headers, "history", channel=topic)["epoch"]
    command(site, headers, "history_remove", channel=topic)
    with StreamReader(f"{base}/events/{topic}", {**headers, "Last-Event-ID": f"{epoch}:1"}) as reader:
        (gap,) = reader.wait()
        assert (gap.name, gap.data["code"], gap.id) == ("gap", 112, f"{epoch}:3")
        command(site, headers, "publish", channel=topic, data="later")
        assert reader.wait(2)[1].offset == 4


def test_a_stream_ends_with_its_task_and_is_told_to_stay_away(
    site: Site, base: str, headers: dict[str, str]
) -> None:
    topic = f"task:{uuid.uuid4().hex[:10]}"
    url = f"{base}/events/{topic}"
    command(site, headers, "publish", channel=topic, data={"event_type": "task.started"})
    with StreamReader(f"{url}?since=0", headers, comes_again=True) as reader:
        reader.wait()
        command(site, headers, "rpc", method="bus.end", params={"topic": topic, "status": "completed"})
        told = reader.wait(3)
        reader.wait_over()
    assert [e.name for e in told] == ["task.started", "task.completed", "disconnect"]
    assert told[2].data == {"code": 1000, "reason": "the topic has ended", "reconnect": False}
    assert reader.statuses == [200, 204]
    with StreamReader(url, headers) as late:
        assert [e.name for e in late.wait(2)] == ["task.completed", "disconnect"]
        late.wait_over()


def test_a_stream_counts_as_a_connection_and_ends_by_order(
    site: Site, base: str, headers: dict[str, str], topic: str
) -> None:
    name = f"watcher-{topic[5:]}"
    bearer = {"Authorization": f"Bearer {site.token(name)}"}
    with StockClient("python") as agent, StreamReader(f"{base}/events/{topic}", bearer) as reader:
        agent.connect(site.web[0].socket, site.token(name), agent_id=name)
        reader.wait_open()
        links = command(site, headers, "connections", user=name)["connections"]
        assert isinstance(links, dict)
        assert sorted(link["transport"] for link in links.values()) == ["sse", "websocket"]
        (stream,) = [client for client, link in links.items() if link["transport"] == "sse"]
        ending = {"code": 4000, "reason": "come again"}
        command(site, headers, "disconnect", user=name, client=stream, disconnect=ending)
        (told,) = reader.wait()
        assert (told.name, told.data) == ("disconnect", {**ending, "reconnect": True})
        reader.wait_over()
        assert agent.do("rpc", method="bus.whoami", data={})["agent_id"] == name
    query = "SELECT code, reason FROM bus_connectionsession WHERE client_id = %s AND code IS NOT NULL"
    assert wait_until(lambda: site.sql(query, stream), what="the end of the session") == [
        (4000, "come again")
    ]


def test_an_ended_subscription_and_a_revoked_key_end_the_stream(
    site: Site, headers: dict[str, str], topic: str
) -> None:
    mine = {"X-API-Key": site.api_key("publish")}
    url = f"{site.web[0].url}/events/{topic}"
    with StreamReader(url, mine) as first:
        first.wait_open()
        rows = site.sql("SELECT user_id FROM bus_activeconnection ORDER BY connected_at DESC")
        user = rows[0][0]
        command(site, headers, "unsubscribe", user=user, channel=topic)
        assert first.wait()[0].data["reconnect"] is False
        first.wait_over()
    with StreamReader(url, mine) as second:
        second.wait_open()
        site.sql("UPDATE bus_apikey SET revoked_at = created_at WHERE name = %s", user.removeprefix("key:"))
        (told,) = second.wait(name="disconnect")
        assert told.data["reconnect"] is False


def test_a_reader_that_does_not_read_is_closed_and_holds_nobody_up(
    site: Site, base: str, headers: dict[str, str], topic: str
) -> None:
    host, port = base.removeprefix("http://").split(":")
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    stuck.connect((host, int(port)))
    key = headers["X-API-Key"]
    stuck.sendall(f"GET /events/{topic} HTTP/1.1\r\nHost: {host}:{port}\r\nX-API-Key: {key}\r\n\r\n".encode())
    assert b"200 OK" in stuck.recv(100)
    with StreamReader(f"{base}/events/{topic}", headers) as reader, stuck:
        reader.wait_open()
        for number in range(40):
            command(site, headers, "publish", channel=topic, data={"n": number, "ballast": "x" * 200_000})
        assert [e.data["n"] for e in reader.wait(40)] == list(range(40))

        def codes() -> list[int]:
            rows = site.sql("SELECT code FROM bus_connectionsession WHERE code = 3008 AND transport = 'sse'")
            return [code for (code,) in rows]

        wait_until(lambda: codes(), what="the end of the stuck reader")
    site.sql("DELETE FROM bus_connectionsession WHERE code = 3008")


def test_what_is_no_stream_is_refused_with_its_status(site: Site, base: str, headers: dict[str, str]) -> None:
    cases = [
        ("GET", "/events/lab:1", {}, 401, 101),
        ("GET", "/events/lab:1", {"X-API-Key": "xk_0000000000_no"}, 401, 101),
        ("GET", "/events/lab:1", {"Cookie": "sessionid=abc"}, 403, 3507),
        ("GET", "/events/lab:1", {"Cookie": "sessionid=abc", "Sec-Fetch-Site": "same-origin"}, 401, 101),
        ("GET", "/events/lab:1", {"Cookie": "sessionid=abc", "Sec-Fetch-Site": "cross-site"}, 403, 3507),
        ("GET", "/events/cleanup:audit", headers, 403, 103),
        ("GET", "/events/agent:else", headers, 403, 103),
        ("GET", "/events/no topic", headers, 400, 107),
        ("GET", "/events/", headers, 400, 107),
        ("GET", "/events/lab:1?since=yesterday", headers, 400, 107),
        ("GET", "/events/lab:1?token=secret", headers, 400, 3501),
        ("POST", "/events/lab:1", headers, 405, None),
    ]
    for method, path, given, status, code in cases:
        answer = httpx.request(method, f"{base}{path}", headers=given, timeout=PATIENCE)
        told = answer.json()["error"]["code"] if answer.content else None
        assert (answer.status_code, told) == (status, code), (path, given, answer.text)
        assert answer.headers["cache-control"] == "no-store"
