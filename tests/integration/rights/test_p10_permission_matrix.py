"""No event crosses a permission: every role, topic and verb, at every door, against a table written by hand.

The table names for each topic who may read it and who may publish there; it knows nothing of rules, grants
or identities. `-` is nobody, `*` is everybody. Reading is subscribing and reading history alike.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.e2e.clients import RawClient
from tests.harness import Site
from tests.integration.rights.kit import KEYS, PEOPLE, ROLES, Cast, subscription_token

#: Topic | who reads | who publishes | who may ask for presence.
TABLE = """
agent:a7      | boss viewer agent | boss worker server                         | !fenced
task:1        | !fenced           | boss worker server keyed                   | !fenced
task:x1       | *                 | boss worker server keyed fenced fenced_key | *
broadcast     | !fenced           | boss worker server                         | !fenced
room:1        | !fenced           | boss worker server                         | !fenced
cleanup:audit | boss viewer       | -                                          | boss viewer
sys:stats     | boss viewer       | -                                          | boss viewer
vault:1       | boss viewer       | server                                     | boss viewer
closed:1      | boss viewer       | -                                          | boss viewer
"""


def _who(words: str) -> frozenset[str]:
    words = words.strip()
    if words in ("*", "-"):
        return frozenset(ROLES if words == "*" else ())
    if words == "!fenced":
        return frozenset(ROLES) - {"fenced", "fenced_key"}
    return frozenset(words.split())


def _oracle() -> dict[str, dict[str, frozenset[str]]]:
    rows = [line.split("|") for line in TABLE.strip().splitlines()]
    return {
        topic.strip(): {"read": _who(read), "publish": _who(publish), "presence": _who(presence)}
        for topic, read, publish, presence in rows
    }


ORACLE = _oracle()
TOPICS = list(ORACLE)
#: Commands of the protocol, each with the column of the table that decides.
COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "subscribe": ("read", {}),
    "history": ("read", {"limit": 1}),
    "publish": ("publish", {"data": {"event_type": "output"}}),
    "presence": ("presence", {}),
    "presence_stats": ("presence", {}),
}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "bus.publish": ("publish", {"event_type": "output", "data": 1}),
    "bus.cursor": ("read", {}),
    "bus.ack": ("read", {"offset": 0}),
}

pytestmark = [pytest.mark.e2e, pytest.mark.sqlite_only]


def expected(role: str) -> dict[tuple[str, str], bool]:
    """What the table says of a role: (topic, command) -> whether it may."""
    verbs = {name: column for name, (column, _) in {**COMMANDS, **CALLS}.items()}
    return {
        (topic, verb): role in ORACLE[topic][column] for topic in TOPICS for verb, column in verbs.items()
    }


@pytest.mark.parametrize("role", ROLES)
def test_the_centrifugo_protocol_lets_a_role_do_what_the_table_says(cast: Cast, role: str) -> None:
    asked: dict[int, tuple[str, str]] = {}
    commands: list[dict[str, Any]] = []
    for topic in TOPICS:
        for verb, (_, words) in COMMANDS.items():
            asked[number := len(commands) + 100] = (topic, verb)
            commands.append({"id": number, verb: {"channel": topic, **words}})
        for method, (_, words) in CALLS.items():
            asked[number := len(commands) + 100] = (topic, method)
            commands.append({"id": number, "rpc": {"method": method, "data": {"topic": topic, **words}}})
    with cast.client(role) as client:
        client.send(*commands)
        found = {asked[number]: code != 103 for number, code in answers(client, len(commands)).items()}
    assert found == expected(role)


def answers(client: RawClient, count: int) -> dict[int, int]:
    """Read so many answers; command id to error code, 0 for none."""
    found: dict[int, int] = {}
    while len(found) < count:
        message = client.receive(30)
        if "id" in message:
            found[message["id"]] = message.get("error", {}).get("code", 0)
            assert found[message["id"]] != 100, message
    return found


@pytest.mark.parametrize("role", ROLES)
def test_a_plain_socket_lets_a_role_do_what_the_table_says(cast: Cast, role: str) -> None:
    frames = {
        "publish": {"event_type": "output", "data": 1},
        "subscribe": {},
        "ack": {"offset": 0},
    }
    asked = [(topic, kind) for topic in TOPICS if topic != "task:x1" for kind in frames]
    with cast.plain(role, "/ws/progress/x1/") as socket:
        for number, (topic, kind) in enumerate(asked, start=1):
            socket.send(json.dumps({"type": kind, "topic": topic, "id": number, **frames[kind]}))
        found: dict[tuple[str, str], bool] = {}
        while len(found) < len(asked):
            message = json.loads(socket.recv(30))
            if message["event_type"] in ("done", "error") and "offset" not in message:
                found[asked[message["id"] - 1]] = message["data"].get("code") != 103
    columns = {"publish": "publish", "subscribe": "read", "ack": "read"}
    assert found == {(topic, kind): role in ORACLE[topic][columns[kind]] for topic, kind in asked}


@pytest.mark.parametrize("role", KEYS)
def test_the_http_api_lets_a_key_do_what_the_table_says(cast: Cast, role: str) -> None:
    found, wanted = {}, {}
    bodies = {
        "publish": ("publish", {"data": 1}),
        "history": ("read", {"limit": 1}),
        "presence": ("presence", {}),
        "presence_stats": ("presence", {}),
    }
    with http(cast, role) as web:
        for topic in TOPICS:
            for verb, (column, words) in bodies.items():
                answer = web.post(f"/api/{verb}", json={"channel": topic, **words}).json()
                found[topic, verb] = answer.get("error", {}).get("code") != 103
                wanted[topic, verb] = role in ORACLE[topic][column]
            both = web.post("/api/broadcast", json={"channels": [topic], "data": 1}).json()
            found[topic, "broadcast"] = "103" not in json.dumps(both)
            wanted[topic, "broadcast"] = role in ORACLE[topic]["publish"]
    assert found == wanted


@pytest.mark.parametrize("role", [*KEYS, *PEOPLE])
def test_reading_over_http_lets_a_role_see_what_the_table_says(cast: Cast, role: str) -> None:
    with http(cast, role) as web:
        statuses = {topic: web.get(f"/api/topics/{topic}/events").status_code for topic in TOPICS}
        listed = web.get("/api/topics", params={"limit": 1000})
    if role == "person":  # whoever is no staff has no business there at all
        assert set(statuses.values()) == {401}
        assert listed.status_code == 401
        return
    assert statuses == {topic: 200 if role in ORACLE[topic]["read"] else 403 for topic in TOPICS}
    names = {row["topic"] for row in listed.json()}
    assert not [topic for topic in TOPICS if topic in names and role not in ORACLE[topic]["read"]]


@pytest.mark.parametrize("role", ROLES)
def test_an_event_stream_lets_a_role_read_what_the_table_says(cast: Cast, role: str) -> None:
    with http(cast, role) as web:
        statuses = {}
        for topic in TOPICS:
            with web.stream("GET", f"/events/{topic}") as answer:
                statuses[topic] = answer.status_code
    assert statuses == {topic: 200 if role in ORACLE[topic]["read"] else 403 for topic in TOPICS}


def http(cast: Cast, role: str) -> httpx.Client:
    return httpx.Client(
        base_url=cast.site.web[0].url, headers=cast.headers(role), timeout=60, trust_env=False
    )


def test_an_event_reaches_those_who_may_read_it_and_nobody_else(cast: Cast, site: Site) -> None:
    last = "task:x1"
    topics = [*(topic for topic in TOPICS if topic not in (last, "sys:stats")), last]
    with ExitStack() as stack:
        clients = {
            role: stack.enter_context(cast.client(role, number % 2)) for number, role in enumerate(ROLES)
        }
        for client in clients.values():
            client.send(*({"id": n, "subscribe": {"channel": topic}} for n, topic in enumerate(topics, 10)))
            answers(client, len(topics))
        site.python(f"from tests.integration.rights.cast import say; say(*{topics!r})")
        for role, client in clients.items():
            heard = set()
            while last not in heard:
                pushed = client.receive(30).get("push", {})
                if "pub" in pushed and pushed["pub"]["data"].get("event_type") == "said":
                    heard.add(pushed["channel"])
            assert heard <= {topic for topic in topics if role in ORACLE[topic]["read"]}, role
            assert heard, role


def test_a_subscription_token_opens_its_topic_to_its_user_and_nothing_else(site: Site, cast: Cast) -> None:
    good = subscription_token(site, "u9", "vault:1")
    with cast.client("user") as owner, cast.client("fenced") as fenced, cast.client("person") as other:
        owner.call("subscribe", channel="vault:1", token=good)
        owner.call("history", channel="vault:1", limit=1)
        owner.call("presence", channel="vault:1")
        commands = {
            1001: {"subscribe": {"channel": "vault:2", "token": good}},
            1002: {"history": {"channel": "vault:2"}},
            1003: {"presence": {"channel": "vault:2"}},
            1004: {"publish": {"channel": "vault:1", "data": 1}},
        }
        owner.send(*({"id": number, **command} for number, command in commands.items()))
        assert answers(owner, 4) == {1001: 101, 1002: 103, 1003: 103, 1004: 103}
        out_of_reach = subscription_token(site, "u10", "vault:1")
        for client, given, code in ((fenced, out_of_reach, 103), (other, good, 101)):
            client.send({"id": 2001, "subscribe": {"channel": "vault:1", "token": given}})
            assert answers(client, 1) == {2001: code}
        owner.call("unsubscribe", channel="vault:1")
        owner.send({"id": 3001, "history": {"channel": "vault:1"}})
        assert answers(owner, 1) == {3001: 103}
