"""Every frame of docs/protocol.md, sent to a real server and compared with what comes back.

A value `<like this>` stands for anything, and for the same thing each time; `"...": "..."` allows more
fields.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from bus.protocol.errors import DisconnectCode, ErrorCode, UnsubscribeCode
from tests.e2e.clients import RawClient
from tests.harness import ROOT, Site

pytestmark = pytest.mark.e2e

DOCUMENT = (ROOT / "docs" / "protocol.md").read_text()
BLOCKS = re.findall(r"^```(conversation|plain|http)([^\n]*)\n(.*?)^```$", DOCUMENT, re.M | re.S)
#: Seconds that a token may have aged between the making and the answer.
AGE = 30


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site()
    yield site.start()
    site.stop()


class Replay:
    """What the placeholders turned out to be, over all blocks."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.known: dict[str, Any] = {}

    def filled(self, line: str) -> str:
        """A line of the client with its placeholders replaced."""
        return re.sub(r"<([^<>]+)>", lambda match: self._value(match[1]), line).replace(r"}\n{", "}\n{")

    def _value(self, name: str) -> str:
        if found := re.fullmatch(r"token of (\w+)(?: with (.+))?", name):
            return self.site.token(found[1], *(found[2] or "").split())
        return str(self.known[name])

    def check(self, wanted: Any, got: Any, place: str) -> None:
        """Compare, and learn what a placeholder stands for."""
        if isinstance(wanted, str) and (name := re.fullmatch(r"<(.+)>", wanted)):
            if name[1] != "anything":
                assert self.known.setdefault(name[1], got) == got, place
        elif isinstance(wanted, dict) and isinstance(got, dict):
            self._check_fields(wanted, got, place)
        elif isinstance(wanted, list) and isinstance(got, list):
            assert len(wanted) == len(got), place
            for number, (one, other) in enumerate(zip(wanted, got, strict=True)):
                self.check(one, other, f"{place}[{number}]")
        elif place.endswith(".ttl"):
            assert wanted - AGE <= got <= wanted, place
        else:
            assert got == wanted, f"{place}: {got!r} is not {wanted!r}"

    def _check_fields(self, wanted: dict[str, Any], got: dict[str, Any], place: str) -> None:
        fields = {
            self.known[name.strip("<>")] if name.startswith("<") else name: value
            for name, value in wanted.items()
        }
        more = fields.pop("...", None) is not None
        assert fields.keys() <= got.keys() if more else fields.keys() == got.keys(), f"{place}: {got}"
        for name, value in fields.items():
            self.check(value, got[name], f"{place}.{name}")


def test_every_conversation_happens_as_written(site: Site) -> None:
    replay = Replay(site)
    assert len(BLOCKS) >= 9
    for kind, words, text in BLOCKS:
        lines = text.strip().split("\n")
        if kind == "http":
            request(replay, *lines)
        else:
            converse(replay, kind, words.split(), lines)


def request(replay: Replay, call: str, answer: str) -> None:
    """One call of the HTTP API."""
    method, path, body = call.split(" ", 2)
    headers = {"X-API-Key": replay.site.api_key(), "Content-Type": "application/json"}
    url = replay.site.web[0].url + path
    got = httpx.request(method, url, content=replay.filled(body), headers=headers)
    status, wanted = answer.split(" ", 1)
    assert got.status_code == int(status), got.text
    replay.check(json.loads(wanted), got.json(), call)


def converse(replay: Replay, kind: str, words: list[str], lines: list[str]) -> None:
    """One conversation; a push and the answer that it belongs to may come in either order."""
    with open_socket(replay, kind, words) as client:
        for turn in turns(lines):
            waiting = list(turn)
            while waiting:
                line = waiting.pop(0)
                if line.startswith("C "):
                    client.send(replay.filled(line[2:]))
                elif line.startswith("S close "):
                    code, reason = line.removeprefix("S close ").split(" ", 1)
                    assert client.ending()[1:] == (int(code), reason)
                else:
                    receive_one(replay, client, [line, *waiting], waiting)


def receive_one(replay: Replay, client: RawClient, expected: list[str], waiting: list[str]) -> None:
    """Read one message and strike the line that it is."""
    got = client.receive()
    messages = [line for line in expected if line.startswith("S {")]
    same = [line for line in messages if kind_of(json.loads(line[2:])) == kind_of(got)]
    assert same, f"{got} came instead of {expected[0]}"
    replay.check(json.loads(same[0][2:]), got, same[0])
    waiting[:] = expected
    waiting.remove(same[0])


def kind_of(message: dict[str, Any]) -> Any:
    """What tells the messages of one turn apart."""
    return message.get("id") or message.get("event_type") or "push"


def turns(lines: list[str]) -> list[list[str]]:
    """Cut a conversation where the client speaks after the server."""
    found: list[list[str]] = []
    for before, line in zip(["S", *lines], lines, strict=False):
        if not found or (line[0] == "C" and before[0] == "S"):
            found.append([])
        found[-1].append(line)
    return found


def open_socket(replay: Replay, kind: str, words: list[str]) -> RawClient:
    if kind == "conversation":
        return RawClient(replay.site.web[0].socket)
    path, _, agent, *scopes = words
    url = f"ws://127.0.0.1:{replay.site.web[0].port}{path}"
    token = replay.site.token(agent, *scopes[1:])
    return RawClient(url, additional_headers={"Authorization": f"Bearer {token}"})


def test_a_token_of_the_command_connects(site: Site) -> None:
    token = site.manage("bus", "token", "--agent", "cli", "--ttl", "1h", "--scope", "publish").strip()
    with RawClient(site.web[0].socket) as client:
        client.call("connect", token=token)
        assert client.call("rpc", method="bus.whoami", data={})["data"]["agent_id"] == "cli"
        client.call("publish", channel="lab:cli", data={"at": time.time()})


@pytest.mark.parametrize("code", [*ErrorCode, *UnsubscribeCode, *DisconnectCode])
def test_every_code_is_explained(code: int) -> None:
    assert re.search(rf"^\| {int(code)} \| \w+", DOCUMENT, re.M), f"{code!r} is not in docs/protocol.md"
