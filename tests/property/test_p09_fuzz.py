"""No input crashes anything: seeded nonsense through the codec and session, and through the sockets.

`TEST_SEED=<seed>` has the conversation again that a failure names.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import pytest

from bus.doors.consumers import ClientSocket
from bus.doors.plain import AgentSocket
from bus.fanout.hub import Hub
from bus.protocol.errors import BadRequest
from bus.protocol.limits import strict_json
from tests.property.fuzz import Fuzzer
from tests.property.sockets import Gone, Talk, token
from tests.unit.bus_protocol.test_vectors import Driver

DEEP = bool(os.environ.get("TEST_DEEP"))
PURE = 900_000 if DEEP else 15_000
GATE = 60_000 if DEEP else 2_000
SOCKET = 60_000 if DEEP else 1_500
#: Messages of one conversation: its session begins anew, for its rate would be used up.
TURN = 200
SCOPES = ("publish", "publish:agent", "publish:task", "publish:broadcast")


def seeds(count: int) -> range:
    given = os.environ.get("TEST_SEED")
    return range(int(given), int(given) + 1) if given else range(count)


@pytest.mark.sqlite_only
@pytest.mark.timeout(3_600 if DEEP else 400)
def test_every_frame_is_answered_in_words_of_the_protocol():
    for seed in seeds(PURE // TURN):
        fuzzer, driver = Fuzzer(seed), Driver()
        driver.exchange('{"id":1,"connect":{}}')
        for number in range(TURN):
            frame = fuzzer.frame()
            about = f"TEST_SEED={seed}, message {number}: {frame!r}"
            try:
                said = driver.exchange(frame)
            except Exception as error:
                raise AssertionError(about) from error
            for line in said.split("\n") if said else []:
                assert set(json.loads(line)) & {"id", "push"}, about
            if driver.session.is_closed:
                driver = Driver()
                driver.exchange('{"id":1,"connect":{}}')


@pytest.mark.sqlite_only
def test_the_gate_says_yes_or_why_not():
    verdicts = set()
    for seed in seeds(GATE // TURN):
        fuzzer = Fuzzer(seed)
        for _ in range(TURN):
            raw = fuzzer.chance.choice([fuzzer.plain, fuzzer.body, fuzzer.frame])()
            try:
                strict_json(raw)
                verdicts.add("yes")
            except BadRequest as refusal:
                verdicts.add("no" if refusal.message else "no word")
    assert verdicts == {"yes", "no"}


async def converse(talk: Any, next_frame: Any, question: str, answer: str, count: int) -> set[int]:
    """Send so many messages, on as many connections as it takes; after each there is an answer or a close.

    Returns the codes of the closes.
    """
    sent, codes = 0, set()
    while sent < count:
        async with talk() as client:
            try:
                while sent < count:
                    client.send(next_frame())
                    sent += 1
                    client.send(question)
                    while answer not in json.dumps(await client.line()):
                        """Answers and pushes of what came before."""
            except Gone as gone:
                codes.add(gone.code)
    return codes


class Connected(Talk):
    """A client of the Centrifugo protocol that has said who it is."""

    def __init__(self, seed: int) -> None:
        super().__init__(ClientSocket.as_asgi())
        self._seed = seed

    async def __aenter__(self) -> Talk:
        await super().__aenter__()
        await self.call("connect", token=token(f"fuzz{self._seed}", *SCOPES))
        return self


def said_nothing(caplog: pytest.LogCaptureFixture) -> None:
    wrong = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not wrong, wrong[:3]


@pytest.mark.django_db(transaction=True)
@pytest.mark.sqlite_only
@pytest.mark.timeout(3_600 if DEEP else 400)
async def test_a_socket_answers_whatever_it_is_sent(own_hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    for seed in seeds(3):
        fuzzer = Fuzzer(f"socket {seed}", broken=0.1)
        ping = '{"id":77777,"ping":{}}'
        codes = await converse(lambda seed=seed: Connected(seed), fuzzer.frame, ping, "77777", SOCKET // 3)
        said_nothing(caplog)
        assert codes <= {3005, 3013, 3500, 3501, 3502}


@pytest.mark.django_db(transaction=True)
@pytest.mark.sqlite_only
@pytest.mark.timeout(3_600 if DEEP else 400)
async def test_a_plain_socket_stays_open_whatever_it_is_sent(
    own_hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in seeds(2):
        fuzzer = Fuzzer(f"plain {seed}", broken=0.3)
        headers = {"Authorization": f"Bearer {token(f'fuzz{seed}', *SCOPES)}"}
        connections = []

        def talk(seed: int = seed, headers: Any = headers, connections: list[int] = connections) -> Talk:
            connections.append(seed)
            path = f"/ws/agents/fuzz{seed}/"
            return Talk(AgentSocket.as_asgi(), path, headers=headers, kwargs={"agent_id": f"fuzz{seed}"})

        codes = await converse(talk, fuzzer.plain, '{"type":"ping"}', '"pong"', SOCKET // 3)
        said_nothing(caplog)
        assert (codes, len(connections)) == (set(), 1)


def test_the_fuzzer_says_the_same_again_and_something_else_besides():
    first, again = ([fuzzer.frame() for _ in range(50)] for fuzzer in (Fuzzer(1), Fuzzer(1)))
    assert first == again != [Fuzzer(2).frame() for _ in range(50)]
