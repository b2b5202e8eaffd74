"""`manage.py bus`: what it prints, and with which code it refuses."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import CommandError, call_command

from bus import publishing, retention
from bus.log import NewEvent
from bus.log.current import event_log
from bus.log.database import DatabaseEventLog
from bus.log.memory import MemoryEventLog
from bus.log.threads import close
from bus.tokens import read_connection_token

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _ended_threads():
    yield
    close()


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("bus", *arguments, stdout=out)
    return out.getvalue()


def lines(*arguments: str) -> list[dict]:
    return [json.loads(line) for line in run(*arguments).splitlines()]


def fill(topic: str, count: int) -> None:
    for number in range(count):
        publishing.publish(topic, "output", {"n": number})


def test_a_token_is_printed_and_nothing_else():
    token = run(
        "token", "--agent", "a7", "--ttl", "30m", "--scope", "publish:task", "--scope", "publish:agent"
    )
    assert token == token.strip() + "\n"
    proof = read_connection_token(token.strip())
    assert (proof.identity.agent_id, proof.identity.user_id) == ("a7", "agent:a7")
    assert proof.identity.scopes == {"publish:task", "publish:agent"}
    assert proof.expires_at is not None
    assert timedelta(minutes=29) < proof.expires_at - datetime.now(UTC) <= timedelta(minutes=30)


@pytest.mark.parametrize(
    "arguments",
    [
        ("token",),
        ("token", "--agent", "a b"),
        ("publish", "task:1", "output", "{oops"),
        ("publish", "task:1", "output", '{"a":1,"a":2}'),
        ("publish", "no topic", "output", "{}"),
        ("trim", "--max-events", "3"),
        ("tail", "no topic"),
    ],
)
def test_what_cannot_be_is_refused_with_code_2(arguments):
    with pytest.raises(CommandError) as refused:
        run(*arguments)
    assert refused.value.returncode == 2


def test_publishing_prints_the_place_and_a_repeated_key_the_first_one():
    (first,) = lines("publish", "task:1", "output", '{"n":1}', "--key", "k")
    (again,) = lines("publish", "task:1", "output", '{"n":2}', "--key", "k")
    assert set(first) == {"topic", "epoch", "offset", "id", "duplicate"}
    assert (first["topic"], first["offset"], first["duplicate"]) == ("task:1", 1, False)
    assert again == {**first, "duplicate": True}
    assert json.loads(event_log().read("task:1", limit=1).events[0].payload)["data"] == {"n": 1}


def test_publishing_reads_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO('{"n": 7}'))
    run("publish", "task:1", "output", "-")
    assert json.loads(event_log().read("task:1", limit=1).events[0].payload)["data"] == {"n": 7}


def test_topics_are_listed_by_pattern():
    fill("task:1", 2)
    fill("broadcast", 1)
    publishing.end("task:1")
    (task,) = lines("topics", "task:*")
    assert (task["topic"], task["first_offset"], task["last_offset"]) == ("task:1", 1, 3)
    assert task["ended_at"]
    assert [found["topic"] for found in lines("topics")] == ["broadcast", "task:1"]


def test_tail_prints_the_newest_events_as_plain_json():
    fill("task:1", 15)
    found = lines("tail", "task:1", "-n", "3")
    assert [(event["offset"], event["data"]["n"]) for event in found] == [(13, 12), (14, 13), (15, 14)]
    assert [event["offset"] for event in lines("tail", "task:1", "--since", "14")] == [15]
    assert lines("tail", "task:none") == []


def test_tail_from_a_trimmed_place_says_so():
    fill("task:1", 10)
    event_log().trim("task:1", max_age=None, max_events=2)
    with pytest.raises(CommandError, match="9 to 10"):
        run("tail", "task:1", "--since", "3")


def test_trimming_one_topic_by_figures():
    fill("task:1", 10)
    assert lines("trim", "task:1", "--max-events", "4") == [{"topic": "task:1", "trimmed": 6}]
    assert event_log().read("task:1", limit=1).first_offset == 7


def test_trimming_by_the_rules_leaves_the_young_and_few(settings):
    settings.BUS = {**settings.BUS, "TOPICS": [{"pattern": "task:*", "history_size": 3}]}
    fill("task:1", 5)
    fill("broadcast", 5)
    assert lines("trim") == [{"topic": "task:1", "trimmed": 2}]
    assert lines("trim") == []


@pytest.mark.parametrize("kind", [MemoryEventLog, DatabaseEventLog])
def test_an_ended_topic_of_which_nothing_is_left_is_removed(kind):
    now = datetime(2026, 3, 1, tzinfo=UTC)
    log = kind(clock=lambda: now)
    event = NewEvent(topic="task:1", event_type="output", payload=b"{}")
    over = NewEvent(topic="task:2", event_type="output", payload=b"{}", end_status="completed")
    log.append([event, over])
    assert retention.trim_all(log) == {}
    now += timedelta(days=8)
    assert retention.trim_all(log) == {"task:1": 1, "task:2": 1}
    assert log.names() == ["task:1"]


def test_disconnecting_an_agent_that_is_not_there_is_code_1():
    with pytest.raises(CommandError) as refused:
        run("disconnect", "nobody")
    assert refused.value.returncode == 1
    assert run("connections") == ""
