"""What the stock SDKs can ask for: joins and leaves, verbs of a subscription, server-side subscriptions,
recovery in all its outcomes, topics that end, and options that this server does not have."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.clients import Refused, StockClient
from tests.e2e.publisher import Publisher
from tests.harness import START_TIMEOUT, Program, Site
from tests.proxy import TcpProxy
from tests.servers import free_port, listens, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

SDKS = ("javascript", "python")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site(web=2, DJANGO_SETTINGS_MODULE="tests.e2e.quick_settings")
    yield site.start()
    site.stop()


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return site.api_key("publish")


@pytest.fixture(params=SDKS)
def sdk(request: pytest.FixtureRequest) -> Iterator[StockClient]:
    with StockClient(request.param) as client:
        yield client


def fill(site: Site, topic: str, count: int) -> None:
    """Store numbered events, in one go, in a process of their own."""
    site.python(
        "from bus.log import NewEvent; from bus.log.current import event_log\n"
        f"numbers = range(1, {count} + 1)\n"
        f"event_log().append([NewEvent(topic={topic!r}, event_type='', payload=b'%d' % n) for n in numbers])"
    )


def test_joins_and_leaves_are_told_and_a_quick_reconnect_never_empties_the_room(
    site: Site, sdk: StockClient
) -> None:
    topic, guest = f"hall:{sdk.sdk}", f"guest-{sdk.sdk}"
    with TcpProxy(site.web[1].port) as proxy, StockClient("python") as other:
        sdk.connect(site.web[0].socket, site.token(f"host-{sdk.sdk}"))
        sdk.do("subscribe", topic=topic, joinLeave=True)
        other.connect(proxy.socket, site.token(guest))
        other.do("subscribe", topic=topic, recoverable=True, positioned=True)
        first = sdk.wait("join", topic=topic, user=guest)["client"]
        proxy.cut()
        second = sdk.wait("join", topic=topic, user=guest, count=2)["client"]
        assert sdk.wait("leave", topic=topic, client=first)["user"] == guest
        other.do("unsubscribe", topic=topic)
        sdk.wait("leave", topic=topic, client=second)
    told = [(e["event"], e["client"]) for e in sdk.events if e["event"] in ("join", "leave")]
    assert told == [("join", first), ("join", second), ("leave", first), ("leave", second)]
    assert [entry["user"] for entry in sdk.do("presence", topic=topic)] == [f"host-{sdk.sdk}"]


def test_a_subscription_publishes_and_looks_around(site: Site, sdk: StockClient) -> None:
    topic, name = f"verbs:{sdk.sdk}", f"actor-{sdk.sdk}"
    client = sdk.connect(site.web[0].socket, site.token(name, "publish"))["client"]
    sdk.do("subscribe", topic=topic, positioned=True)
    for number in (1, 2):
        sdk.do("publish_here", topic=topic, data={"n": number})
    sdk.wait("publication", topic=topic, count=2)
    assert sdk.do("look_here", topic=topic) == {"clients": [client], "count": 1, "offsets": [1, 2]}
    assert sdk.seen("publication")[0]["info"] == {"client": client, "user": name}


@pytest.mark.sqlite_only
def test_a_batch_is_one_frame_and_messages_outside_of_topics_go_both_ways(site: Site) -> None:
    with StockClient("javascript") as js:
        js.connect(site.web[0].socket, site.token("batcher", "publish"), agent_id="batcher")
        events = [{"topic": "batch:1", "data": number} for number in range(50)]
        js.do("send", data={"words": "to nobody"})
        assert js.do("batch", publish=events, rpc="bus.whoami") == 51
        found = js.do("history", topic="batch:1", limit=-1)["publications"]
        assert [entry["data"] for entry in found] == list(range(50))
        assert not js.seen("error")
        site.python(
            "import asyncio; from bus.connections.manager import connection_manager as manager\n"
            "asyncio.run(manager.send_json('batcher', {'words': 'for you alone'}))"
        )
        assert js.wait("message")["data"] == {"words": "for you alone"}


def test_server_side_subscriptions_bring_events_joins_and_leaves(
    site: Site, sdk: StockClient, key: str
) -> None:
    topic, name = f"given:{sdk.sdk}", f"taker-{sdk.sdk}"
    sdk.connect(site.web[0].socket, site.token(name, "publish", channels=[topic]))
    assert sdk.wait("subscribed", topic=topic)["server"]
    with StockClient("python") as other:
        theirs = other.connect(site.web[1].socket, site.token(f"visitor-{sdk.sdk}"))["client"]
        other.do("subscribe", topic=topic)
        assert sdk.wait("join", topic=topic, client=theirs)["server"]
        sdk.do("publish", topic=topic, data=1)
        assert sdk.wait("publication", topic=topic)["offset"] == 1
        assert other.wait("publication", topic=topic)["info"]["user"] == name
        other.do("unsubscribe", topic=topic)
        assert sdk.wait("leave", topic=topic, client=theirs)["server"]
    assert [entry["data"] for entry in sdk.do("history", topic=topic, limit=5)["publications"]] == [1]
    with pytest.raises(Refused) as refusal:
        sdk.do("subscribe", topic=topic)
    assert sdk.wait("unsubscribed", topic=topic)["code"] == 105, refusal


def test_a_server_side_subscription_is_recovered_or_says_that_it_is_not(site: Site, key: str) -> None:
    topic, web = "kept:1", site.web
    with TcpProxy(web[0].port) as proxy, ExitStack() as stack:
        both = [stack.enter_context(StockClient(sdk)) for sdk in SDKS]
        for sdk in both:
            sdk.connect(proxy.socket, site.token(f"keeper-{sdk.sdk}", channels=[topic]))
        publisher = Publisher([web[1].url], key=key, topic=topic, count=30, pause=0.01)
        publisher.start()
        for sdk in both:
            sdk.wait("publication", topic=topic, count=3)
        proxy.cut()
        publisher.finish()
        for sdk in both:
            sdk.wait("publication", topic=topic, count=30)
            assert sdk.offsets(topic) == list(range(1, 31))
            resumed = sdk.seen("subscribed", topic=topic)[-1]
            assert (resumed["was_recovering"], resumed["recovered"]) == (True, True)
        proxy.refuse()
        fill(site, topic, 10)
        site.manage("bus", "trim", topic, "--max-events", "2")
        before = [len(sdk.seen("subscribed", topic=topic)) for sdk in both]
        proxy.release()
        for sdk, number in zip(both, before, strict=True):
            lost = sdk.wait("subscribed", topic=topic, count=number + 1)
            assert (lost["was_recovering"], lost["recovered"]) == (True, False)
            assert sdk.offsets(topic) == list(range(1, 31))


def test_a_long_absence_is_made_up_page_by_page_while_others_publish(site: Site, key: str) -> None:
    topic, missed, live = "long:1", 2_500, 100
    fill(site, topic, missed)
    beginning = [{"offset": 0, "epoch": ""}]
    publisher = Publisher([site.web[1].url], key=key, topic=topic, count=live)
    with StockClient("javascript") as js, StockClient("python") as py:
        publisher.start()
        publisher.wait_for(10)
        for client in (js, py):
            client.connect(site.web[0].socket, site.token(f"back-{client.sdk}"))
            client.do("subscribe", topic=topic, positioned=True, recoverable=True, states=beginning)
        publisher.finish()
        for client in (js, py):
            client.wait("publication", topic=topic, count=missed + live)
            assert client.offsets(topic) == list(range(1, missed + live + 1))
            assert client.seen("subscribed", topic=topic)[0]["recovered"]
            assert len(client.seen("subscribed", topic=topic)) == 1


def test_a_position_that_is_gone_makes_the_sdk_load_its_state_again(site: Site, sdk: StockClient) -> None:
    topic = f"state:{sdk.sdk}"
    sdk.connect(site.web[0].socket, site.token(f"loader-{sdk.sdk}", "publish"))
    for number in range(1, 6):
        sdk.do("publish", topic=topic, data=number)
    epoch = sdk.do("history", topic=topic)["epoch"]
    states = [{"offset": 2, "epoch": "another life"}, {"offset": 3, "epoch": epoch}]
    sdk.do("subscribe", topic=topic, positioned=True, recoverable=True, states=states)
    assert sdk.wait("subscribed", topic=topic)["recovered"]
    sdk.wait("publication", topic=topic, count=2)
    assert sdk.offsets(topic) == [4, 5]
    assert len(sdk.seen("state wanted")) == 2


@pytest.mark.sqlite_only
@pytest.mark.parametrize("options", [{"delta": "fossil"}, {"data": {"mine": 1}}])
def test_an_option_that_the_server_does_not_have_is_left_out(
    site: Site, sdk: StockClient, options: dict[str, Any]
) -> None:
    topic = f"plain:{sdk.sdk}-{next(iter(options))}"
    sdk.connect(site.web[0].socket, site.token(f"optional-{sdk.sdk}", "publish"))
    sdk.do("subscribe", topic=topic, positioned=True, **options)
    for number in (1, 2):
        sdk.do("publish", topic=topic, data={"much": "the same", "n": number})
    sdk.wait("publication", topic=topic, count=2)
    assert sdk.payloads(topic) == [{"much": "the same", "n": 1}, {"much": "the same", "n": 2}]


@pytest.mark.sqlite_only
def test_a_filter_that_would_not_be_applied_is_refused(site: Site, sdk: StockClient) -> None:
    topic = f"filtered:{sdk.sdk}"
    sdk.connect(site.web[0].socket, site.token(f"picky-{sdk.sdk}"))
    sdk.start("subscribe", topic=topic, tagsFilter={"key": "kind", "cmp": "eq", "val": "a"})
    assert sdk.wait("unsubscribed", topic=topic)["code"] == 108
    assert sdk.do("rpc", method="bus.whoami", data={})


def begin(client: StockClient, topic: str) -> None:
    client.do("rpc", method="bus.publish", data={"topic": topic, "event_type": "task.started"})


def test_the_end_of_a_task_is_read_by_those_who_are_there_and_by_those_who_come_late(site: Site) -> None:
    topic, beginning = "task:ends", [{"offset": 0, "epoch": ""}]
    options = {"topic": topic, "positioned": True, "recoverable": True}
    with ExitStack() as stack:
        readers = [stack.enter_context(StockClient(sdk)) for sdk in SDKS]
        late = [stack.enter_context(StockClient(sdk)) for sdk in SDKS]
        for client in (*readers, *late):
            client.connect(site.web[0].socket, site.token(f"worker-{id(client)}", "publish:task"))
        for client in readers:
            client.do("subscribe", **options)
        begin(readers[0], topic)
        readers[1].do("rpc", method="bus.end", data={"topic": topic, "status": "failed"})
        for client in late:
            client.do("subscribe", **options, states=beginning)
        for client in (*readers, *late):
            client.wait("publication", topic=topic, count=2)
            final = client.seen("publication", topic=topic)[-1]
            assert (final["offset"], final["tags"]["end"]) == (2, "failed")
            for action, words in (
                ("publish", {"topic": topic, "data": 1}),
                ("rpc", {"method": "bus.publish", "data": {"topic": topic, "event_type": "output"}}),
                ("rpc", {"method": "bus.end", "data": {"topic": topic}}),
            ):
                with pytest.raises(Refused) as refusal:
                    client.do(action, **words)
                assert refusal.value.code == 400
        for client in (*readers, *late):
            ended = client.wait("unsubscribed", topic=topic)
            assert (ended["code"], ended["reason"]) == (2100, "topic ended")
            history = client.do("history", topic=topic, limit=-1)
            assert [entry["offset"] for entry in history["publications"]] == [1, 2]


def test_a_task_that_begins_again_has_a_new_epoch_and_its_readers_follow(site: Site) -> None:
    topic = "task:again"
    with ExitStack() as stack:
        readers = [stack.enter_context(StockClient(sdk)) for sdk in SDKS]
        for client in readers:
            client.connect(site.web[1].socket, site.token(f"follower-{client.sdk}", "publish:task"))
            client.do("subscribe", topic=topic, positioned=True, recoverable=True)
        begin(readers[0], topic)
        readers[0].do("rpc", method="bus.end", data={"topic": topic})
        for client in readers:
            client.wait("publication", topic=topic, count=2)
        begin(readers[1], topic)
        for client in readers:
            assert client.wait("subscribing", topic=topic, count=2)["code"] == 2500
            first, second = (client.wait("subscribed", topic=topic, count=n) for n in (1, 2))
            assert second["epoch"] != first["epoch"]
            assert not second["recovered"]
        readers[1].do("publish", topic=topic, data={"step": 1})
        for client in readers:
            client.wait("publication", topic=topic, count=4)
            assert client.offsets(topic) == [1, 2, 1, 2]
            assert not client.seen("unsubscribed")


@pytest.fixture
def uvicorn(site: Site) -> Iterator[int]:
    """The port of another ASGI server on the same database."""
    port = free_port()
    options = [
        "--port",
        str(port),
        "--ws",
        "websockets-sansio",
        "--lifespan",
        "off",
        "--log-level",
        "warning",
    ]
    command = [sys.executable, "-m", "uvicorn", *options, "xnai_site.asgi:application"]
    program = Program("uvicorn", command, site.environment, site.folder / "uvicorn.log")
    program.start()
    wait_until(lambda: listens(port), timeout=START_TIMEOUT, what="uvicorn")
    yield port
    program.kill()


@pytest.mark.sqlite_only
def test_both_sdks_are_served_by_another_asgi_server(site: Site, uvicorn: int) -> None:
    topic, count = "asgi:1", 40
    with TcpProxy(uvicorn) as proxy, StockClient("javascript") as js, StockClient("python") as py:
        for sdk in (js, py):
            sdk.connect(proxy.socket, site.token(f"other-{sdk.sdk}", "publish"), agent_id=f"other-{sdk.sdk}")
            sdk.do("subscribe", topic=topic, positioned=True, recoverable=True, joinLeave=True)
        for number in range(1, count + 1):
            (js, py)[number % 2].do("publish", topic=topic, data=number)
            if number == count // 2:
                proxy.cut()
                for sdk in (js, py):
                    sdk.wait("subscribed", topic=topic, count=2)
        for sdk in (js, py):
            sdk.wait("publication", topic=topic, count=count)
            assert sdk.payloads(topic) == list(range(1, count + 1))
            assert len(sdk.do("history", topic=topic, limit=-1)["publications"]) == count
            users = {entry["user"] for entry in sdk.do("presence", topic=topic)}
            assert users == {"other-javascript", "other-python"}
            assert sdk.do("rpc", method="bus.ack", data={"topic": topic, "offset": count})["lag"] == 0
        with StockClient("python") as newest:
            newest.connect(site.web[0].socket, site.token("other-javascript"), agent_id="other-javascript")
            assert js.wait("disconnected")["code"] == 4501
