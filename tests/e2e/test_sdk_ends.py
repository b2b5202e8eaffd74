"""How connections and subscriptions of the stock SDKs end, and which of them come again: tokens that run out,
orders of an operator, silence on either side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import jwt
import pytest

from tests.e2e.clients import RawClient, Refused, StockClient
from tests.harness import Site
from tests.proxy import TcpProxy
from tests.servers import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

SDKS = ("javascript", "python")
#: Seconds for which a short-lived token is good: longer than a busy machine needs to connect. And so long
#: after the making of one it is over, with its grace.
SHORT, OVER = 5.0, 10.0


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site(web=2, DJANGO_SETTINGS_MODULE="tests.e2e.quick_settings")
    yield site.start()
    site.stop()


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return site.api_key("manage:connections", "publish")


@pytest.fixture
def both() -> Iterator[list[StockClient]]:
    """One client of each SDK: what takes seconds is seen with both at once."""
    with ExitStack() as stack:
        clients = [stack.enter_context(StockClient(sdk)) for sdk in SDKS]
        yield [client.awake() for client in clients]


def call(site: Site, key: str, method: str, **body: Any) -> None:
    """An order over the server API, given to the second server."""
    url = f"{site.web[1].url}/api/{method}"
    answer = httpx.post(url, json=body, headers={"X-API-Key": key}, timeout=60)
    assert "error" not in answer.json(), answer.text


def subscription_token(site: Site, user: str, topic: str, *, ttl: float) -> str:
    body = {"sub": user, "channel": topic, "exp": int(time.time() + ttl)}
    return jwt.encode(body, site.secret, algorithm="HS256")


@pytest.mark.sqlite_only
def test_a_connection_token_is_refreshed_before_it_ends(site: Site, both: list[StockClient]) -> None:
    made = time.monotonic()
    for sdk in both:
        user = f"fresh-{sdk.sdk}"
        tokens = [site.token(user, ttl=SHORT), site.token(user, ttl=600)]
        sdk.do("connect", url=site.web[0].socket, tokens=tokens)
    for sdk in both:
        sdk.wait("token wanted", count=2)
    time.sleep(max(0.0, made + OVER - time.monotonic()))
    for sdk in both:
        assert sdk.do("rpc", method="bus.whoami", data={})["user"] == f"fresh-{sdk.sdk}"
        assert len(sdk.seen("connected")) == 1
        assert not sdk.seen("error")


@pytest.mark.sqlite_only
def test_a_token_that_is_not_refreshed_ends_the_connection_and_a_new_one_begins_another(
    site: Site, both: list[StockClient]
) -> None:
    for sdk in both:
        user = f"stale-{sdk.sdk}"
        tokens = [site.token(user, ttl=SHORT), "", site.token(user, ttl=600)]
        sdk.do("connect", url=site.web[0].socket, tokens=tokens)
    for sdk in both:
        assert sdk.wait("connecting", count=2)["code"] == 3005
        sdk.wait("connected", count=2)
        assert not sdk.seen("disconnected")


@pytest.mark.sqlite_only
def test_a_connection_whose_token_nobody_refreshes_is_closed(site: Site, both: list[StockClient]) -> None:
    for sdk in both:
        sdk.connect(site.web[0].socket, site.token(f"left-{sdk.sdk}", ttl=SHORT))
    with RawClient(site.web[0].socket) as raw:
        raw.call("connect", token=site.token("left-raw", ttl=SHORT))
        assert raw.ending()[1:] == (3005, "connection expired")
    for sdk in both:
        assert sdk.wait("disconnected")["code"] == 1  # by its own decision: it has no way to another token


@pytest.mark.sqlite_only
def test_a_refresh_with_a_token_that_is_refused_is_final(site: Site, both: list[StockClient]) -> None:
    for sdk in both:
        bad = [site.token(f"bad-{sdk.sdk}", ttl=SHORT), site.token(f"bad-{sdk.sdk}") + "x"]
        sdk.do("connect", url=site.web[0].socket, tokens=bad)
    for sdk in both:
        assert sdk.wait("disconnected")["code"] == 3500
        assert len(sdk.seen("connected")) == 1


@pytest.mark.sqlite_only
def test_somebody_elses_token_refreshes_nothing(site: Site) -> None:
    with RawClient(site.web[0].socket) as raw:
        raw.call("connect", token=site.token("me"))
        raw.send({"id": 9, "refresh": {"token": site.token("you")}})
        assert raw.ending()[1:] == (3500, "invalid token")


@pytest.mark.sqlite_only
def test_who_is_told_that_there_is_no_token_stays_away(site: Site, both: list[StockClient]) -> None:
    for sdk in both:
        sdk.do("connect", url=site.web[0].socket, tokens=[site.token(f"once-{sdk.sdk}", ttl=SHORT), None])
    for sdk in both:
        assert sdk.wait("disconnected")["code"] == 1


@pytest.mark.sqlite_only
def test_a_subscription_token_is_refreshed_before_it_ends(site: Site, both: list[StockClient]) -> None:
    topic, made = "agent:private", time.monotonic()  # a topic that no rule opens to others
    for sdk in both:
        user = f"reader-{sdk.sdk}"
        sdk.connect(site.web[0].socket, site.token(user))
        tokens = [subscription_token(site, user, topic, ttl=ttl) for ttl in (SHORT, 600)]
        sdk.do("subscribe", topic=topic, tokens=tokens)
    for sdk in both:
        sdk.wait("subscription token wanted", count=2)
    time.sleep(max(0.0, made + OVER - time.monotonic()))
    site.python("from bus.publishing import publish; publish('agent:private', 'output', 1)")
    for sdk in both:
        sdk.wait("publication", topic=topic)
        assert len(sdk.seen("subscribed", topic=topic)) == 1


@pytest.mark.sqlite_only
def test_a_subscription_whose_token_ends_is_ended_and_comes_again_with_a_new_one(
    site: Site, both: list[StockClient]
) -> None:
    topic = "agent:secret"
    for sdk in both:
        user = f"guest-{sdk.sdk}"
        sdk.connect(site.web[0].socket, site.token(user))
        short, long = (subscription_token(site, user, topic, ttl=ttl) for ttl in (SHORT, 600))
        sdk.do("subscribe", topic=topic, tokens=[short, "", long])
    for sdk in both:
        assert sdk.wait("subscribing", topic=topic, count=2)["code"] == 2501
        sdk.wait("subscribed", topic=topic, count=2)
        assert not sdk.seen("unsubscribed", topic=topic)


@pytest.mark.sqlite_only
def test_a_token_for_something_else_opens_nothing(site: Site) -> None:
    with RawClient(site.web[0].socket) as raw:
        raw.call("connect", token=site.token("me"))
        wrong = {
            "another topic": subscription_token(site, "me", "agent:b", ttl=60),
            "another user": subscription_token(site, "you", "agent:a", ttl=60),
            "a connection token": site.token("me"),
            "nonsense": "nonsense",
        }
        for why, token in wrong.items():
            with pytest.raises(Refused) as refusal:
                raw.call("subscribe", channel="agent:a", token=token)
            assert refusal.value.code in (101, 103), why
        with pytest.raises(Refused) as refusal:
            raw.call("subscribe", channel="agent:a", token=subscription_token(site, "me", "agent:a", ttl=-60))
        assert refusal.value.code == 109
        with pytest.raises(Refused) as refusal:
            raw.call("sub_refresh", channel="agent:a", token=wrong["another topic"])
        assert refusal.value.code == 107


@pytest.mark.sqlite_only
def test_the_timer_of_an_old_token_ends_no_newer_subscription(site: Site) -> None:
    with RawClient(site.web[0].socket) as raw:
        raw.call("connect", token=site.token("again"))
        raw.call(
            "subscribe", channel="agent:x", token=subscription_token(site, "again", "agent:x", ttl=SHORT)
        )
        raw.call("unsubscribe", channel="agent:x")
        raw.call("subscribe", channel="agent:x", token=subscription_token(site, "again", "agent:x", ttl=600))
        with pytest.raises(TimeoutError):
            raw.receive(timeout=OVER)


def test_an_operators_code_says_whether_the_client_comes_again(
    site: Site, key: str, both: list[StockClient]
) -> None:
    for sdk in both:
        sdk.connect(site.web[0].socket, site.token(f"sent-{sdk.sdk}"))
    for number, code in enumerate((3000, 3499, 4000, 4499), 2):
        for sdk in both:
            call(site, key, "disconnect", user=f"sent-{sdk.sdk}", disconnect={"code": code, "reason": "away"})
        for sdk in both:
            again = sdk.wait("connecting", count=number)
            assert (again["code"], again["reason"]) == (code, "away")
            sdk.wait("connected", count=number)
            assert not sdk.seen("disconnected")


@pytest.mark.sqlite_only
@pytest.mark.parametrize("code", [3500, 3999, 4500, 4999])
def test_a_final_code_keeps_the_client_away(site: Site, key: str, both: list[StockClient], code: int) -> None:
    for sdk in both:
        sdk.connect(site.web[0].socket, site.token(f"final-{sdk.sdk}"))
    for sdk in both:
        call(
            site, key, "disconnect", user=f"final-{sdk.sdk}", disconnect={"code": code, "reason": "for good"}
        )
    for sdk in both:
        ended = sdk.wait("disconnected")
        assert (ended["code"], ended["reason"]) == (code, "for good")
        assert len(sdk.seen("connecting")) == 1


def test_an_unsubscribe_code_says_whether_the_client_subscribes_again(
    site: Site, both: list[StockClient]
) -> None:
    final, again = (2000, 2100, 2101, 2499), (2500, 2501, 2502, 2999)
    for sdk in both:
        sdk.connect(site.web[0].socket, site.token(f"ended-{sdk.sdk}"))
        for code in final + again:
            sdk.do("subscribe", topic=f"end:{code}", recoverable=True, positioned=True)
    site.python(
        "import asyncio; from django.db.models import Q; from bus.connections import orders\n"
        "async def order():\n"
        f"    for code in {final + again}:\n"
        "        await orders.unsubscribe(Q(user_id__startswith='ended-'), f'end:{code}', code)\n"
        "asyncio.run(order())"
    )
    for sdk in both:
        for code in final:
            assert sdk.wait("unsubscribed", topic=f"end:{code}")["code"] == code
            assert len(sdk.seen("subscribed", topic=f"end:{code}")) == 1
        for code in again:
            assert sdk.wait("subscribing", topic=f"end:{code}", count=2)["code"] == code
            sdk.wait("subscribed", topic=f"end:{code}", count=2)
            assert not sdk.seen("unsubscribed", topic=f"end:{code}")
        assert len(sdk.seen("connected")) == 1


@pytest.mark.sqlite_only
def test_silence_ends_a_connection_on_either_side_and_both_come_again(
    site: Site, both: list[StockClient]
) -> None:
    web = site.web[0]
    with TcpProxy(web.port) as proxy, ExitStack() as stack:
        others = [stack.enter_context(StockClient(sdk)) for sdk in SDKS]
        for sdk in both:
            # So patient that, when it goes on, it notices the close and not the pings that it has missed.
            sdk.do("connect", url=web.socket, token=site.token(f"mute-{sdk.sdk}"), pingDelay=120)
            sdk.wait("connected")
        for sdk in others:
            sdk.do("connect", url=proxy.socket, token=site.token(f"deaf-{sdk.sdk}"), pingDelay=1)
            sdk.wait("connected")
        for sdk in both:
            sdk.freeze()
        proxy.hold()
        for sdk in others:
            assert "ping" in sdk.wait("connecting", count=2)["reason"]
        proxy.cut()
        proxy.release()
        query = "SELECT count(*) FROM bus_connectionsession WHERE user_id LIKE 'mute-%%' AND code = 3012"
        wait_until(lambda: site.sql(query) == [(2,)], what="the end of both for want of a pong")
        for sdk in both:
            sdk.thaw()
        for sdk in both:
            assert sdk.wait("connecting", count=2)["code"] in (3012, 2)
        for sdk in (*both, *others):
            sdk.wait("connected", count=2)
