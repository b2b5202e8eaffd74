"""What is taken away ends on live sockets within five seconds, on every server, with Redis and without."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.e2e.clients import RawClient, Refused
from tests.harness import Site
from tests.integration.rights.kit import client, cookie, subscription_token, token
from tests.servers import wait_until

#: Seconds from the commit to the end, as promised.
PROMISED = 5.0
#: Causes after which the connection is closed for good with 3500.
CLOSED = (
    "logged_out", "deactivated", "deleted", "password_changed", "key_revoked", "key_deleted", "key_expired",
    "jti", "user", "agent",
)  # fmt: skip
#: Causes after which it loses a topic, with 2101, and goes on.
LESS = {"no_longer_staff": "sys:stats", "key_fenced": "task:left"}
#: Causes after which it only reads.
MUTE = ("no_longer_publisher", "key_without_scope")

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def hear(client: RawClient) -> tuple[float, Any]:
    """Read until something ends; when that was, and what: the code of the close, or the push."""
    while True:
        try:
            push = client.receive(90).get("push", {})
        except ConnectionClosed as end:
            return time.time(), end.rcvd and end.rcvd.code
        if "unsubscribe" in push:
            return time.time(), (push["channel"], push["unsubscribe"]["code"])


def opened(site: Site, mark: str, stack: ExitStack) -> tuple[dict[str, RawClient], dict[str, str]]:
    """Open a connection for each cause, on one server and the other in turn."""
    made = json.loads(
        site.python(f"from tests.integration.rights.cast import victims; victims({mark!r})").splitlines()[-1]
    )
    tokens = {
        "jti": {"sub": "x", "jti": f"jti{mark}"},
        "user": {"sub": f"user{mark}", "iat": int(time.time())},
        "agent": {"sub": "x", "agent": f"agent{mark}"},
        "innocent": {"sub": "x", "jti": "other", "iat": int(time.time())},
    }
    found = {}
    for number, cause in enumerate([*made, *tokens]):
        server = number % 2
        if cause in tokens:
            headers = {"Authorization": f"Bearer {token(site, **tokens[cause])}"}
        elif cause.startswith("key"):
            headers = {"X-API-Key": made[cause]}
        else:
            headers = cookie(site, made[cause], server)
        found[cause] = stack.enter_context(client(site, headers, server))
    for cause, topic in LESS.items():
        found[cause].call("subscribe", channel=topic)
    for cause in MUTE:
        found[cause].call("publish", channel=f"task:{cause}", data=1)
    return found, made


def strike(site: Site, mark: str, sessions: dict[str, str]) -> float:
    """Take everything away; return when the last of it was committed."""
    said = site.python(f"from tests.integration.rights.cast import strike; strike({mark!r}, {sessions!r})")
    return float(said.splitlines()[-1])


@pytest.mark.parametrize("has_redis", [True, False])
def test_what_is_taken_away_ends_within_five_seconds(site: Site, has_redis: bool) -> None:
    mark = "a" if has_redis else "b"
    with ExitStack() as stack, ThreadPoolExecutor(20) as threads:
        clients, made = opened(site, mark, stack)
        if not has_redis:
            site.valkey.kill()
            stack.callback(site.valkey.start)
        heard = {cause: threads.submit(hear, clients[cause]) for cause in (*CLOSED, *LESS)}
        struck = strike(site, mark, made)
        mute = {cause: threads.submit(until_mute, clients[cause], cause) for cause in MUTE}
        for cause in CLOSED:
            check_end(heard[cause], struck, cause, 3500)
        for cause, topic in LESS.items():
            check_end(heard[cause], struck, cause, (topic, 2101))
        for cause in MUTE:
            assert mute[cause].result(100) - struck < PROMISED + 0.5, f"{cause} publishes for too long"
        assert clients["innocent"].call("rpc", method="bus.whoami")["data"]["user"] == "x"
        assert clients["no_longer_staff"].call("rpc", method="bus.whoami")["data"]["user"]
        with pytest.raises(Refused, match="103"):
            clients["key_fenced"].call("history", channel="task:left", limit=1)


def check_end(heard: Future[tuple[float, Any]], struck: float, cause: str, what: Any) -> None:
    at, ended = heard.result(100)
    assert ended == what, cause
    assert at - struck < PROMISED, f"{cause}: {at - struck:.1f} s"


def until_mute(client: RawClient, cause: str) -> float:
    """Publish now and then until that is refused; when it was."""
    wait_until(lambda: is_mute(client, cause), timeout=90, interval=0.25, what=f"{cause} to be refused")
    return time.time()


def is_mute(client: RawClient, cause: str) -> bool:
    """Whether it may still read and no longer publish."""
    client.call("history", channel=f"task:{cause}", limit=1)
    try:
        client.call("publish", channel=f"task:{cause}", data=2)
    except Refused as refusal:
        return refusal.code == 103
    return False


def test_a_revoked_subscription_token_ends_its_subscription_alone(site: Site) -> None:
    held = subscription_token(site, "u30", "vault:30", jti="sub30")
    with client(site, {"Authorization": f"Bearer {token(site, sub='u30')}"}) as reader:
        reader.call("subscribe", channel="vault:30", token=held)
        site.python("from bus.access.revocation import revoke; revoke(token_id='sub30')")
        assert hear(reader)[1] == ("vault:30", 2101)
        assert reader.call("rpc", method="bus.whoami")["data"]["user"] == "u30"
        with pytest.raises(Refused, match="101"):
            reader.call("subscribe", channel="vault:30", token=held)


def test_a_revoked_user_comes_back_with_a_token_that_was_issued_later(site: Site) -> None:
    site.python("from bus.access.revocation import revoke; revoke(user_id='u31')")
    old, new = int(time.time()) - 60, int(time.time()) + 2
    for issued, is_good in ((old, False), (None, False), (new, True)):
        claims: dict[str, Any] = {"sub": "u31"} if issued is None else {"sub": "u31", "iat": issued}
        headers = {"Authorization": f"Bearer {token(site, **claims)}"}
        with RawClient(site.web[0].socket, additional_headers=headers) as socket:
            socket.send({"id": 1, "connect": {}})
            if is_good:
                assert "connect" in socket.receive()
            else:
                assert socket.ending()[1:] == (3500, "invalid token: it was revoked")


def test_other_rights_of_a_new_token_hold_at_once(site: Site) -> None:
    first = token(site, sub="u32", scopes=["publish"], exp=int(time.time()) + 600)
    with RawClient(site.web[0].socket) as socket:
        answer = socket.call("connect", token=first)
        assert answer["expires"]
        assert 500 <= answer["ttl"] <= 600
        socket.call("subscribe", channel="room:32")
        socket.call("publish", channel="room:32", data=1)
        narrow = token(site, sub="u32", topics=["task:*"], exp=int(time.time()) + 900)
        socket.send({"id": 9, "refresh": {"token": narrow}})
        assert {hear(socket)[1] for _ in range(2)} == {("room:32", 2101), ("broadcast", 2101)}
        assert socket.receive()["refresh"]["expires"]
        with pytest.raises(Refused, match="103"):
            socket.call("publish", channel="task:32", data=1)
        socket.call("subscribe", channel="task:32")


@pytest.mark.parametrize("claims", [{"sub": "u34"}, {"sub": "u33", "agent": "a33"}, {"channel": "x"}])
def test_a_token_of_somebody_else_refreshes_nothing(site: Site, claims: dict[str, str]) -> None:
    with RawClient(site.web[0].socket) as socket:
        socket.call("connect", token=token(site, sub="u33", exp=int(time.time()) + 60))
        socket.send({"id": 9, "refresh": {"token": token(site, **claims)}})
        assert socket.ending()[1] == 3500


def test_a_plain_socket_ends_with_its_token(site: Site) -> None:
    url = f"ws://127.0.0.1:{site.web[0].port}/ws/progress/p1/"
    given = token(site, sub="u35", exp=int(time.time()) + 6)
    with connect(
        url, additional_headers={"Authorization": f"Bearer {given}"}, proxy=None, open_timeout=60
    ) as socket:
        with suppress(ConnectionClosed):
            list(socket)
        assert socket.close_code == 3005
