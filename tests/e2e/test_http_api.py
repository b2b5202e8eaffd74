"""The stock server SDK, `cent` of PyPI, unmodified: all of its commands, against two servers.

What a command does is seen by a client of the stock SDK at the other server.
"""

from __future__ import annotations

import asyncio
import base64
import re
import shlex
import uuid
from collections.abc import Iterator
from typing import Any

import cent
import httpx
import pytest
from cent import dto

from bus.api.callers import MANAGE_CONNECTIONS, MANAGE_TOKENS, MANAGE_TOPICS, SEE_CONNECTIONS
from bus.api.commands import COMMANDS
from tests.e2e.clients import RawClient, StockClient
from tests.harness import ROOT, Site
from tests.servers import PATIENCE, wait_until

OWN_SCOPES = (SEE_CONNECTIONS, MANAGE_CONNECTIONS, MANAGE_TOKENS, MANAGE_TOPICS)
SCOPES = ("publish", "publish:task", *OWN_SCOPES)
DOCUMENT = (ROOT / "docs" / "http.md").read_text()

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

#: Commands of the paid edition of Centrifugo, each with arguments that its model takes.
UNOFFERED: list[tuple[str, Any]] = [
    ("update_user_status", cent.UpdateUserStatusRequest(users=["a"])),
    ("get_user_status", cent.GetUserStatusRequest(users=["a"])),
    ("delete_user_status", cent.DeleteUserStatusRequest(users=["a"])),
    ("block_user", cent.BlockUserRequest(user="a")),
    ("unblock_user", cent.UnblockUserRequest(user="a")),
    ("device_register", cent.DeviceRegisterRequest(provider="fcm", token="t", platform="web")),
    ("device_update", cent.DeviceUpdateRequest(ids=["a"])),
    ("device_remove", cent.DeviceRemoveRequest(ids=["a"])),
    ("device_list", cent.DeviceListRequest()),
    ("device_topic_list", cent.DeviceTopicListRequest()),
    ("device_topic_update", cent.DeviceTopicUpdateRequest(device_id="a", op="add", topics=["t"])),
    ("user_topic_list", cent.UserTopicListRequest()),
    ("user_topic_update", dto.UserTopicUpdateRequest(user="a", op="add", topics=["t"])),
    (
        "send_push_notification",
        cent.SendPushNotificationRequest(
            recipient=dto.PushRecipient(fcm_tokens=["t"]), notification=cent.PushNotification()
        ),
    ),
    ("update_push_status", cent.UpdatePushStatusRequest(analytics_uid="a", status="delivered")),
    ("cancel_push", cent.CancelPushRequest(uid="a")),
]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site(web=2)
    yield site.start()
    site.stop()


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return site.api_key(*SCOPES)


class Both:
    """`cent.Client` and `cent.AsyncClient` behind one call."""

    def __init__(self, kind: str, url: str, key: str) -> None:
        self.kind, self.url, self.key = kind, url, key

    def __call__(self, method: str, request: Any) -> Any:
        if self.kind == "sync":
            with cent.Client(self.url, self.key, timeout=PATIENCE) as client:
                return getattr(client, method)(request)
        return asyncio.run(self._call(method, request))

    async def _call(self, method: str, request: Any) -> Any:
        async with cent.AsyncClient(self.url, self.key, timeout=PATIENCE) as client:
            return await getattr(client, method)(request)

    def refused(self, method: str, request: Any) -> int:
        """Call what must be refused and return the code."""
        with pytest.raises(cent.CentApiResponseError) as refusal:
            self(method, request)
        return refusal.value.code


@pytest.fixture(params=["sync", "async"])
def server(request: pytest.FixtureRequest, site: Site, key: str) -> Both:
    return Both(request.param, f"{site.web[0].url}/api", key)


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return uuid.uuid4().hex[:12]


@pytest.fixture
def reader(site: Site, name: str) -> Iterator[StockClient]:
    """A client at the other server."""
    with StockClient("python") as client:
        client.connect(site.web[1].socket, site.token(name), agent_id=name)
        yield client


def test_what_is_published_reaches_a_client_of_the_other_server(
    server: Both, reader: StockClient, name: str
) -> None:
    topic = f"sdk:{name}"
    reader.do("subscribe", topic=topic)
    first = server("publish", cent.PublishRequest(channel=topic, data={"n": 1}, idempotency_key="k"))
    again = server("publish", cent.PublishRequest(channel=topic, data={"n": 1}, idempotency_key="k"))
    coded = base64.b64encode(b'{"n":2}').decode()
    second = server("publish", cent.PublishRequest(channel=topic, data=None, b64data=coded))
    many = server(
        "broadcast", cent.BroadcastRequest(channels=[topic, "cleanup:x", f"{topic}-2"], data={"n": 3})
    )
    assert (first.offset, again.offset, second.offset) == (1, 1, 2)
    assert [r.result.offset if r.result else r.error.code for r in many.responses] == [3, 103, 1]
    reader.wait("publication", topic=topic, count=3)
    assert [payload["n"] for payload in reader.payloads(topic)] == [1, 2, 3]


def test_history_is_read_in_pages_and_removed(site: Site, server: Both, name: str) -> None:
    topic = f"sdk:{name}"
    for number in range(1, 6):
        server("publish", cent.PublishRequest(channel=topic, data={"n": number}, tags={"kind": "test"}))

    def history(**words: Any) -> Any:
        return server("history", cent.HistoryRequest(channel=topic, **words))

    top = history()
    assert (top.offset, top.publications) == (5, [])
    since = cent.StreamPosition(offset=2, epoch=top.epoch)
    assert [p.offset for p in history(limit=-1).publications] == [1, 2, 3, 4, 5]
    assert [p.data["n"] for p in history(limit=2, since=since).publications] == [3, 4]
    assert [p.offset for p in history(limit=2, reverse=True).publications] == [5, 4]
    assert history(limit=1).publications[0].tags["kind"] == "test"
    server("history_remove", cent.HistoryRemoveRequest(channel=topic))
    assert (history(limit=-1).publications, history().offset) == ([], 5)
    gone = cent.HistoryRequest(channel=topic, limit=1, since=since)
    assert server.refused("history", gone) == 112
    with RawClient(site.web[1].socket) as raw:
        raw.call("connect", token=site.token(name))
        place = {"recover": True, "epoch": top.epoch}
        lost = raw.call("subscribe", channel=topic, offset=2, **place)
        raw.call("unsubscribe", channel=topic)
        whole = raw.call("subscribe", channel=topic, offset=5, **place)
        assert (lost.get("recovered"), whole["recovered"], whole["offset"]) == (None, True, 5)


def test_presence_and_figures_tell_of_both_servers(
    site: Site, server: Both, reader: StockClient, name: str
) -> None:
    topic = f"sdk:{name}"
    with StockClient("python") as other:
        theirs = other.connect(site.web[0].socket, site.token(f"{name}-2"))["client"]
        other.do("subscribe", topic=topic)
        reader.do("subscribe", topic=topic)
        mine = reader.seen("connected")[0]["client"]
        present = server("presence", cent.PresenceRequest(channel=topic)).presence
        assert {client: info.user for client, info in present.items()} == {mine: name, theirs: f"{name}-2"}
        stats = server("presence_stats", cent.PresenceStatsRequest(channel=topic))
        assert (stats.num_clients, stats.num_users) == (2, 2)

        def readers() -> int:
            found = server("channels", cent.ChannelsRequest(pattern=f"*:{name}")).channels
            return found[topic].num_clients

        assert readers() >= 1
        nodes = server("info", cent.InfoRequest()).nodes
        assert len(nodes) == len({node.uid for node in nodes}) == 2

        def connections() -> int:
            return sum(node.num_clients for node in server("info", cent.InfoRequest()).nodes)

        wait_until(lambda: connections() == 2, what="the end of those whose test is over")
        links = server("connections", cent.ConnectionsRequest(user=name, expression="")).connections
        assert list(links) == [mine]
    assert server.refused("presence", cent.PresenceRequest(channel="broadcast")) == 108


@pytest.mark.parametrize(("code", "comes_back"), [(3000, True), (3503, False), (4000, True), (4500, False)])
def test_a_disconnect_keeps_its_code_and_its_meaning(
    server: Both, reader: StockClient, name: str, code: int, comes_back: bool
) -> None:
    ending = cent.Disconnect(code=code, reason="by order")
    server("disconnect", cent.DisconnectRequest(user=name, disconnect=ending))
    if comes_back:
        assert reader.wait("connecting", code=code)["reason"] == "by order"
        reader.wait("connected", count=2)
    else:
        assert reader.wait("disconnected")["code"] == code


def test_a_disconnect_can_spare_or_name_a_client(server: Both, reader: StockClient, name: str) -> None:
    mine = reader.seen("connected")[0]["client"]
    server("disconnect", cent.DisconnectRequest(user=name, whitelist=[mine]))
    server("disconnect", cent.DisconnectRequest(user=name, client=str(uuid.uuid4())))
    server("disconnect", cent.DisconnectRequest(user=f"not {name}", client=mine))
    assert reader.do("rpc", method="bus.whoami", data={})["client"] == mine
    server("disconnect", cent.DisconnectRequest(user=name, client=mine))
    assert reader.wait("disconnected")["code"] == 3503
    nonsense = cent.DisconnectRequest(user=name, disconnect=cent.Disconnect(code=1000))
    assert server.refused("disconnect", nonsense) == 107
    assert server.refused("disconnect", cent.DisconnectRequest(user="")) == 107


def test_subscriptions_are_begun_and_ended_by_order(server: Both, reader: StockClient, name: str) -> None:
    topic = f"sdk:{name}"
    server("publish", cent.PublishRequest(channel=topic, data={"n": 1}))
    epoch = server("history", cent.HistoryRequest(channel=topic)).epoch
    since = cent.StreamPosition(offset=0, epoch=epoch)
    server("subscribe", cent.SubscribeRequest(user=name, channel=topic, recover_since=since))
    assert reader.wait("subscribed", topic=topic)["server"]
    server("publish", cent.PublishRequest(channel=topic, data={"n": 2}))
    reader.wait("publication", topic=topic, count=2)
    assert reader.offsets(topic) == [1, 2]
    server("unsubscribe", cent.UnsubscribeRequest(user=name, channel=topic))
    reader.wait("unsubscribed", topic=topic)
    server("publish", cent.PublishRequest(channel=topic, data={"n": 3}))
    assert reader.do("rpc", method="bus.whoami", data={})
    assert reader.offsets(topic) == [1, 2]
    unoffered = cent.SubscribeRequest(user=name, channel=topic, data={"x": 1})
    assert server.refused("subscribe", unoffered) == 108


def test_an_order_is_carried_out_without_a_channel_layer(
    site: Site, key: str, reader: StockClient, name: str
) -> None:
    server = Both("sync", f"{site.web[0].url}/api", key)
    topic = f"sdk:{name}"
    reader.do("subscribe", topic=topic)
    site.valkey.freeze()
    try:
        server("unsubscribe", cent.UnsubscribeRequest(user=name, channel=topic))
        assert reader.wait("unsubscribed", topic=topic)["code"] == 2000
        reader.start("subscribe", topic=topic)
        server("refresh", cent.RefreshRequest(user=name, expired=True))
        assert reader.wait("connecting", code=3005)
    finally:
        site.valkey.thaw()
    wait_until(
        lambda: not site.sql("SELECT 1 FROM bus_subscriptionorder"), what="the orders to be taken away"
    )
    assert server.refused("refresh", cent.RefreshRequest(user=name, expire_at=2**31)) == 108


def test_tokens_are_taken_back(site: Site, key: str, reader: StockClient, name: str) -> None:
    server = Both("sync", f"{site.web[0].url}/api", key)
    server("invalidate_user_tokens", cent.InvalidateUserTokensRequest(user=name))
    assert reader.wait("disconnected")["code"] == 3500
    server("revoke_token", cent.RevokeTokenRequest(uid=f"id of {name}", expire_at=2**31))
    with StockClient("python") as other:
        other.do("connect", url=site.web[1].socket, token=site.token(f"{name}-2", jti=f"id of {name}"))
        assert other.wait("disconnected")["code"] == 3500
    refused = cent.InvalidateUserTokensRequest(user=name, channel="a:1")
    assert server.refused("invalidate_user_tokens", refused) == 108


@pytest.mark.parametrize("parallel", [False, True])
def test_a_batch_answers_each_command_in_its_place(server: Both, name: str, parallel: bool) -> None:
    topic = f"sdk:{name}"
    commands = [
        cent.PublishRequest(channel=topic, data={"n": 1}),
        cent.BroadcastRequest(channels=[topic], data={"n": 2}),
        cent.PresenceStatsRequest(channel=topic),
    ]
    replies = server("batch", cent.BatchRequest(requests=commands, parallel=parallel)).replies
    assert {replies[0].offset, replies[1].responses[0].result.offset} == {1, 2}
    assert replies[2].num_clients == 0


def test_what_is_not_offered_is_refused_with_108(site: Site, key: str) -> None:
    with cent.Client(f"{site.web[0].url}/api", key, timeout=PATIENCE) as client:
        for method, request in UNOFFERED:
            with pytest.raises(cent.CentApiResponseError) as refusal:
                getattr(client, method)(request)
            assert refusal.value.code == 108, method
    named = {method for method in vars(cent.Client) if not method.startswith("_")} - {"close"}
    tried = {method for method, _ in UNOFFERED}
    offered = {
        *("publish", "broadcast", "subscribe", "unsubscribe", "disconnect", "presence", "presence_stats"),
        *("history", "history_remove", "info", "refresh", "channels", "connections", "batch"),
        *("revoke_token", "invalidate_user_tokens"),
    }
    assert named == tried | offered


def test_a_key_without_the_scope_may_not_touch_others(site: Site, reader: StockClient, name: str) -> None:
    server = Both("sync", f"{site.web[0].url}/api", site.api_key("publish"))
    topic = f"sdk:{name}"
    for method, request in [
        ("disconnect", cent.DisconnectRequest(user=name)),
        ("refresh", cent.RefreshRequest(user=name, expired=True)),
        ("unsubscribe", cent.UnsubscribeRequest(user=name, channel=topic)),
        ("subscribe", cent.SubscribeRequest(user=name, channel=topic)),
        ("history_remove", cent.HistoryRemoveRequest(channel=topic)),
        ("revoke_token", cent.RevokeTokenRequest(uid=name)),
        ("invalidate_user_tokens", cent.InvalidateUserTokensRequest(user=name)),
        ("info", cent.InfoRequest()),
        ("channels", cent.ChannelsRequest()),
        ("connections", cent.ConnectionsRequest(user=name, expression="")),
    ]:
        assert server.refused(method, request) == 103, method
    assert reader.do("rpc", method="bus.whoami", data={})
    nobody = Both("sync", f"{site.web[0].url}/api", "xk_0000000000_nonsense")
    with pytest.raises(cent.CentUnauthorizedError):
        nobody("info", cent.InfoRequest())


class Console:
    """Runs the `curl` lines of a document and compares what they print."""

    def __init__(self, site: Site, key: str) -> None:
        self._values = {"$SITE": site.web[0].url, "$KEY": key}
        self._known: dict[str, str] = {}

    def run(self, block: str) -> None:
        """Run one block: lines that begin with `$ `, each followed by what it prints."""
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            line, _, printed = part.partition("\n")
            self._check(self._request(line), printed.rstrip("\n"), line)

    def _request(self, line: str) -> str:
        for name, value in (self._values | {f"<{n}>": v for n, v in self._known.items()}).items():
            line = line.replace(name, value)
        words = shlex.split(line)
        headers = dict(words[n + 1].split(": ", 1) for n, word in enumerate(words) if word == "-H")
        body = words[words.index("-d") + 1] if "-d" in words else None
        (url,) = [word for word in words if word.startswith("http")]
        method = "GET" if body is None else "POST"
        return httpx.request(method, url, content=body, headers=headers, timeout=PATIENCE).text.rstrip("\n")

    def _check(self, got: str, wanted: str, line: str) -> None:
        pattern, fresh = "", []
        for number, piece in enumerate(re.split(r"<([^<>]+)>", wanted)):
            if number % 2 == 0:
                pattern += re.escape(piece)
            elif piece in self._known:
                pattern += re.escape(self._known[piece])
            elif piece in fresh:
                pattern += f"(?P=g{fresh.index(piece)})"
            else:
                pattern += f'(?P<g{len(fresh)}>[^"\\s]+?)'
                fresh.append(piece)
        found = re.fullmatch(pattern, got)
        assert found, f"{line}\nprinted\n{got}\nand not\n{wanted}"
        self._known |= {name: found[f"g{number}"] for number, name in enumerate(fresh)}


def test_every_example_of_the_document_happens_as_written(site: Site) -> None:
    console = Console(site, site.api_key(*SCOPES))
    blocks = re.findall(r"^```console\n(.*?)^```$", DOCUMENT, re.M | re.S)
    assert len(blocks) >= 10
    for block in blocks:
        console.run(block)


@pytest.mark.parametrize("word", [*COMMANDS, "batch", *OWN_SCOPES])
def test_every_command_and_scope_is_explained(word: str) -> None:
    assert f"`{word}`" in DOCUMENT or re.search(rf"^### .*\b{word}\b", DOCUMENT, re.M)
