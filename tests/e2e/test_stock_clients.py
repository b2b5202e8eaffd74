"""The stock SDKs of npm and PyPI, unmodified, against real servers: their verbs, and faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.clients import Refused, StockClient
from tests.e2e.publisher import Publisher
from tests.harness import Site
from tests.proxy import TcpProxy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

SDKS = ("javascript", "python")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site(web=2)
    yield site.start()
    site.stop()


@pytest.fixture(params=SDKS)
def sdk(request: pytest.FixtureRequest) -> Iterator[StockClient]:
    with StockClient(request.param) as client:
        yield client


def numbers(client: StockClient, topic: str) -> list[int]:
    """The numbers that a `Publisher` counted, as the SDK handed them over."""
    return [payload["n"] for payload in client.payloads(topic)]


def test_connect_answers_with_a_client_id_and_the_inbox(site: Site, sdk: StockClient) -> None:
    agent = f"greeter-{sdk.sdk}"
    connected = sdk.connect(site.web[0].socket, site.token(agent), agent_id=agent)
    assert len(connected["client"]) == 36
    assert sdk.wait("subscribed", topic=f"agent:{agent}")["server"]
    assert sdk.wait("subscribed", topic="broadcast")["server"]
    assert sdk.do("rpc", method="bus.whoami", data={})["agent_id"] == agent


def test_what_one_publishes_reaches_a_subscriber_at_another_server(site: Site, sdk: StockClient) -> None:
    topic = f"room:{sdk.sdk}"
    with StockClient("python") as listener:
        listener.connect(site.web[1].socket, site.token(f"listener-{sdk.sdk}"))
        listener.do("subscribe", topic=topic)
        sdk.connect(site.web[0].socket, site.token(f"speaker-{sdk.sdk}", "publish"))
        sdk.do("publish", topic=topic, data={"words": "hello"})
        sdk.do("publish", topic=topic, data={"words": "again"})
        listener.wait("publication", topic=topic, count=2)
    assert listener.offsets(topic) == [1, 2]
    assert [payload["words"] for payload in listener.payloads(topic)] == ["hello", "again"]


def test_history_goes_forwards_backwards_and_from_a_position(site: Site, sdk: StockClient) -> None:
    topic = f"past:{sdk.sdk}"
    sdk.connect(site.web[0].socket, site.token(f"historian-{sdk.sdk}", "publish"))
    for number in range(1, 6):
        sdk.do("publish", topic=topic, data={"n": number})
    top = sdk.do("history", topic=topic)
    assert (top["offset"], top["publications"]) == (5, [])
    since = {"offset": 2, "epoch": top["epoch"]}

    def offsets(**options: object) -> list[int]:
        return [entry["offset"] for entry in sdk.do("history", topic=topic, **options)["publications"]]

    assert offsets(limit=-1) == [1, 2, 3, 4, 5]
    assert offsets(limit=2) == [1, 2]
    assert offsets(limit=2, since=since) == [3, 4]
    assert offsets(limit=2, reverse=True) == [5, 4]
    assert offsets(limit=10, since=since, reverse=True) == [1]
    with pytest.raises(Refused) as refusal:
        offsets(limit=10, since={"offset": 2, "epoch": "another"})
    assert refusal.value.code == 112


def test_presence_names_every_subscriber_of_every_server(site: Site, sdk: StockClient) -> None:
    topic = f"hall:{sdk.sdk}"
    with StockClient("python") as other:
        theirs = other.connect(site.web[1].socket, site.token(f"other-{sdk.sdk}"))["client"]
        other.do("subscribe", topic=topic)
        mine = sdk.connect(site.web[0].socket, site.token(f"one-{sdk.sdk}"))["client"]
        sdk.do("subscribe", topic=topic)
        present = {entry["client"]: entry["user"] for entry in sdk.do("presence", topic=topic)}
        assert present == {mine: f"one-{sdk.sdk}", theirs: f"other-{sdk.sdk}"}
        assert sdk.do("presence_stats", topic=topic) == {"clients": 2, "users": 2}


def test_a_publish_with_a_key_has_one_effect(site: Site, sdk: StockClient) -> None:
    topic = f"once:{sdk.sdk}"
    sdk.connect(site.web[0].socket, site.token(f"careful-{sdk.sdk}", "publish"))
    event = {"topic": topic, "event_type": "output", "data": {"n": 1}, "key": "k1"}
    first = sdk.do("rpc", method="bus.publish", data=event)
    again = sdk.do("rpc", method="bus.publish", data=event)
    assert (first["offset"], first.get("duplicate", False)) == (1, False)
    assert (again["offset"], again["epoch"], again["duplicate"]) == (1, first["epoch"], True)
    assert sdk.do("history", topic=topic)["offset"] == 1


@pytest.mark.parametrize(
    ("action", "words", "code"),
    [
        ("publish", {"topic": "room:closed", "data": {}}, 103),
        ("subscribe", {"topic": "agent:somebody-else"}, 103),
        ("subscribe", {"topic": "cleanup:audit"}, 103),
        ("history", {"topic": "sys:stats"}, 103),
        ("rpc", {"method": "bus.nonsense", "data": {}}, 104),
    ],
)
def test_what_is_not_allowed_is_refused_and_the_connection_lives_on(
    site: Site, sdk: StockClient, action: str, words: dict[str, object], code: int
) -> None:
    sdk.connect(site.web[0].socket, site.token(f"plain-{sdk.sdk}"))
    if action == "subscribe":
        sdk.start(action, **words)
        assert sdk.wait("unsubscribed", topic=words["topic"])["code"] == code
    else:
        with pytest.raises(Refused) as refusal:
            sdk.do(action, **words)
        assert refusal.value.code == code
    assert sdk.do("rpc", method="bus.whoami", data={})
    assert not sdk.seen("disconnected")


def test_a_bad_token_is_final(site: Site, sdk: StockClient) -> None:
    sdk.do("connect", url=site.web[0].socket, token=site.token("thief") + "x")
    assert sdk.wait("disconnected")["code"] == 3500
    assert not sdk.seen("connected")


def test_cuts_and_a_killed_server_lose_no_event_and_repeat_none(site: Site) -> None:
    topic, count, web = "flow:1", 1_000, site.web[0]
    publisher = Publisher([site.web[1].url, web.url], key=site.api_key(), topic=topic, count=count)
    with TcpProxy(web.port) as proxy, StockClient("javascript") as js, StockClient("python") as py:
        for client in (js, py):
            client.connect(proxy.socket, site.token(f"reader-{client.sdk}"))
            client.do("subscribe", topic=topic, positioned=True, recoverable=True)
        publisher.start()
        publisher.wait_for(150)
        assert proxy.cut() == 2
        publisher.wait_for(400)
        web.kill()
        publisher.wait_for(550)  # through the other server, while this one is down
        web.restart()
        publisher.wait_for(700)
        proxy.cut_after(3_000)
        publisher.wait_for(850)
        proxy.cut(reset=False)
        acks = publisher.finish()
        assert [ack.offset for ack in acks] == list(range(1, count + 1))
        assert len({ack.epoch for ack in acks}) == 1
        for client in (js, py):
            client.wait("publication", topic=topic, count=count, timeout=30)
            assert client.offsets(topic) == numbers(client, topic) == list(range(1, count + 1))
            resumed = client.seen("subscribed", topic=topic)[1:]
            assert len(resumed) >= 3
            assert all(entry["was_recovering"] and entry["recovered"] for entry in resumed)


def test_a_resume_that_cannot_be_whole_says_so(site: Site, sdk: StockClient) -> None:
    topic = f"short:{sdk.sdk}"
    sdk.connect(site.web[0].socket, site.token(f"late-{sdk.sdk}", "publish"))
    with TcpProxy(site.web[0].port) as proxy, StockClient(sdk.sdk) as reader:
        reader.connect(proxy.socket, site.token(f"sleeper-{sdk.sdk}"))
        reader.do("subscribe", topic=topic, positioned=True, recoverable=True)
        sdk.do("publish", topic=topic, data={"n": 1})
        reader.wait("publication", topic=topic)
        proxy.refuse()
        for number in range(2, 12):
            sdk.do("publish", topic=topic, data={"n": number})
        site.manage("bus", "trim", topic, "--max-events", "3")
        proxy.release()
        resumed = reader.wait("subscribed", topic=topic, count=2)
        assert resumed["was_recovering"]
        assert not resumed["recovered"]
        assert reader.offsets(topic) == [1]
        sdk.do("publish", topic=topic, data={"n": 12})
        assert reader.wait("publication", topic=topic, count=2)["offset"] == 12
