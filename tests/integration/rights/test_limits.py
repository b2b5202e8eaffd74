"""Limits of the two servers: each is answered clearly, counted, and closes who goes on regardless."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.clients import RawClient, Refused
from tests.harness import Site
from tests.integration.rights.kit import SCOPES, Cast, client, token
from tests.integration.rights.site_settings import BUS

BURST: int = BUS["PUBLISH_BURST"]

pytestmark = [pytest.mark.e2e, pytest.mark.sqlite_only]


def as_user(site: Site, name: str, **claims: object) -> RawClient:
    return client(site, {"Authorization": f"Bearer {token(site, sub=name, scopes=SCOPES, **claims)}"})


def refused(site: Site, code: int) -> float:
    """How often the first server has refused something with this code."""
    for line in httpx.get(f"{site.web[0].url}/metrics", trust_env=False, timeout=60).text.splitlines():
        if line.startswith(f'bus_errors_total{{code="{code}"}}'):
            return float(line.split()[-1])
    return 0.0


def test_publishes_over_all_doors_spend_one_rate_and_who_goes_on_is_closed(site: Site) -> None:
    before = refused(site, 111)
    with as_user(site, "hasty") as first, as_user(site, "hasty") as second:
        half = [{"id": n, "publish": {"channel": "room:l1", "data": n}} for n in range(1, BURST // 2 + 1)]
        for socket in (first, second):
            socket.send(*half)
            assert all("publish" in socket.receive() for _ in half)
        rest = [{"id": n, "publish": {"channel": "room:l1", "data": n}} for n in range(1, BURST + 400)]
        second.send(*rest)
        messages, code, reason = second.ending()
        refusals = [message["error"] for message in messages if "error" in message]
        assert (code, reason) == (3013, "too many requests")
        assert {error["code"] for error in refusals} == {111}
        assert all(error["temporary"] and 0 < error["data"]["retry_after"] <= 1 for error in refusals)
        assert refused(site, 111) > before
        passed = [message for message in messages if "publish" in message]
        assert len(passed) < BURST // 2, "what the other connection has spent is spent"
        first.call("history", channel="room:l1", limit=1)


def test_a_key_that_publishes_over_http_is_told_when_to_come_again(site: Site) -> None:
    given = site.api_key("publish")
    with httpx.Client(
        base_url=site.web[0].url, headers={"X-API-Key": given}, trust_env=False, timeout=60
    ) as web:
        batch = [{"publish": {"channel": "room:l2", "data": n}} for n in range(BURST)]
        for start in range(0, BURST, 50):
            assert "error" not in web.post("/api/batch", json={"commands": batch[start : start + 50]}).text
        error = web.post("/api/broadcast", json={"channels": ["room:l2"] * 30, "data": 1}).text
        assert '"code":111' in error


def test_a_plain_socket_has_the_same_rates(site: Site, cast: Cast) -> None:
    frames: list[str | bytes] = []
    words = {"type": "publish", "topic": "room:l3", "event_type": "output"}
    with cast.plain("worker", "/ws/progress/l3/") as socket:
        for number in range(BURST + 300):
            socket.send(json.dumps({**words, "id": number}))
        with suppress(ConnectionClosed):
            while True:
                frames.append(socket.recv(60))
        assert socket.close_code == 3013
    assert 111 in [json.loads(frame)["data"].get("code") for frame in frames]


def test_one_subscription_too_many_is_refused_and_a_token_with_too_many_closes(site: Site) -> None:
    most = BUS["MAX_SUBSCRIPTIONS"]
    with as_user(site, "collector") as socket:
        for number in range(most - 1):  # `broadcast` is one, too
            socket.call("subscribe", channel=f"room:l4.{number}")
        with pytest.raises(Refused, match=f"106: more than {most} subscriptions"):
            socket.call("subscribe", channel="room:l4.x")
        socket.call("unsubscribe", channel="room:l4.0")
        socket.call("subscribe", channel="room:l4.x")
    with RawClient(site.web[0].socket) as socket:
        named = [f"room:l5.{number}" for number in range(most + 1)]
        socket.send({"id": 1, "connect": {"token": token(site, sub="hoarder", channels=named)}})
        assert socket.ending()[1:] == (4502, "topic limit")


def test_a_person_has_so_many_connections_and_no_more(site: Site, cast: Cast) -> None:
    held = [cast.client("person") for _ in range(BUS["MAX_CONNECTIONS_PER_USER"])]
    try:
        headers = cast.headers("person")
        with RawClient(
            site.web[0].socket, origin=headers.pop("Origin"), additional_headers=headers
        ) as socket:
            socket.send({"id": 1, "connect": {}})
            assert socket.ending()[1:] == (3504, "connection limit: a user has at most 3")
    finally:
        for each in held:
            each.close()


def test_what_is_too_large_is_refused_and_the_connection_lives_on(site: Site) -> None:
    with as_user(site, "wordy") as socket:
        with pytest.raises(Refused, match="bytes"):
            socket.call("publish", channel="room:l6", data="x" * BUS.get("MAX_MESSAGE_BYTES", 262_144))
        socket.call("publish", channel="room:l6", data="x" * 1_000)


def test_a_rate_that_was_exceeded_recovers(site: Site) -> None:
    with as_user(site, "patient") as socket:
        socket.send(*({"id": n, "publish": {"channel": "room:l7", "data": n}} for n in range(1, BURST + 20)))
        waits = [
            m["error"]["data"]["retry_after"] for _ in range(BURST + 19) if "error" in (m := socket.receive())
        ]
        time.sleep(max(waits))  # what the server says is what has to be waited
        socket.call("publish", channel="room:l7", data=0)
