"""Every frame of docs/protocol.md, sent to a real server and compared with what comes back.

A value `<like this>` stands for anything, and for the same thing each time; `"...": "..."` allows more
fields.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import jwt
import pytest

from bus.doors.plain import FRAMES_IN, FRAMES_OUT
from bus.doors.remote import METHODS
from bus.protocol.errors import DisconnectCode, ErrorCode, UnsubscribeCode
from bus.protocol.frames import Command
from tests.e2e.clients import RawClient
from tests.harness import ROOT, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

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
        if found := re.fullmatch(r"subscription token of (\w+) for (\S+)", name):
            claims = {"sub": found[1], "channel": found[2], "exp": int(time.time()) + 600}
            return jwt.encode(claims, self.site.secret, algorithm="HS256")
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
    got = httpx.request(method, url, content=replay.filled(body), headers=headers, timeout=60)
    status, wanted = answer.split(" ", 1)
    assert got.status_code == int(status), got.text
    replay.check(json.loads(wanted), got.json(), call)


def converse(replay: Replay, kind: str, words: list[str], lines: list[str]) -> None:
    """One conversation; a push and the answer that it belongs to may come in either order."""
    with ExitStack() as stack:
        clients: dict[str, RawClient] = {}
        for turn in turns(lines):
            waiting = list(turn)
            while waiting:
                line = waiting.pop(0)
                speaker, said = line.split(" ", 1)
                number = speaker[1:]  # empty for the first connection
                if number not in clients:
                    clients[number] = stack.enter_context(open_socket(replay, kind, words))
                if speaker[0] == "C":
                    clients[number].send(replay.filled(said))
                elif said.startswith("close "):
                    _, code, reason = said.split(" ", 2)
                    assert clients[number].ending()[1:] == (int(code), reason)
                else:
                    receive_one(replay, clients[number], speaker, [line, *waiting], waiting)


def receive_one(
    replay: Replay, client: RawClient, speaker: str, expected: list[str], waiting: list[str]
) -> None:
    """Read one message and strike the line that it is."""
    got = client.receive()
    messages = [line for line in expected if line.startswith(f"{speaker} {{")]
    same = [line for line in messages if kind_of(json.loads(line.split(" ", 1)[1])) == kind_of(got)]
    assert same, f"{got} came instead of {expected[0]}"
    replay.check(json.loads(same[0].split(" ", 1)[1]), got, same[0])
    waiting[:] = expected
    waiting.remove(same[0])


def kind_of(message: dict[str, Any]) -> Any:
    """What tells the messages of one turn apart."""
    return message.get("id", message.get("event_type", "push"))


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


COMMANDS = [name for name in Command.__struct_fields__ if name != "id"]


@pytest.mark.parametrize("name", [*METHODS.names, *COMMANDS])
def test_every_command_and_method_is_in_a_table_with_who_may(name: str) -> None:
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("| `") and f"`{name}`" in line]
    assert rows, f"{name} is in no table of docs/protocol.md"
    assert all(cell.strip() for cell in rows[0].split("|")[-2:-1]), rows


@pytest.mark.parametrize("method", sorted(METHODS.names))
def test_every_argument_of_a_method_is_named(method: str) -> None:
    (row,) = [line for line in DOCUMENT.splitlines() if line.startswith(f"| `{method}` ")]
    kind = METHODS.arguments_of(method)
    for argument in getattr(kind, "__struct_fields__", ()):
        assert f"`{argument}`" in row.split("|")[2], f"{argument} of {method}"


@pytest.mark.parametrize("kind", FRAMES_IN)
def test_every_plain_frame_in_is_explained(kind: str) -> None:
    assert f'| `{{"type":"{kind}"' in DOCUMENT


@pytest.mark.parametrize("kind", FRAMES_OUT)
def test_every_plain_frame_out_is_explained(kind: str) -> None:
    assert re.search(rf"^\| `{kind}` \| \w+", DOCUMENT, re.M)
