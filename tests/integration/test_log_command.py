"""`manage.py bus`: what it prints, and with which code it refuses."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from bus import acks, publishing, retention
from bus.access.tokens import read_connection_token
from bus.log import NewEvent
from bus.log.current import event_log
from bus.log.database import DatabaseEventLog
from bus.log.memory import MemoryEventLog
from bus.log.threads import close
from bus.management.arguments import NAMES
from bus.management.tail import NAMES_EVERY, Tail
from bus.models import ServerInstance, TokenRevocation
from tests.integration import console_rows

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
    return [json.loads(line) for line in run(*arguments, "--json").splitlines()]


def code_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    return int(end.value.code or 0)


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
        ("publish", "task:1", "output", "{}", "--lines"),
        ("token", "--subscribe", "no topic", "--user", "u"),
        ("token", "--revoke"),
        ("token", "--revoke", "--user", "u", "--agent", "a"),
        ("disconnect",),
        ("disconnect", "a", "--user", "b"),
        ("disconnect", "a", "--code", "1000"),
        ("topics", "--open", "--ended"),
        ("tail", "task:1", "--since", "soon"),
        ("trim", "task:1", "--max-events", "-1"),
    ],
)
def test_what_cannot_be_is_refused_with_code_2(arguments):
    with pytest.raises(CommandError) as refused:
        run(*arguments)
    # What the parser refuses has the code 2 of the parser itself, on a command line.
    assert refused.value.returncode == 2 or "Error:" in str(refused.value)


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


def test_tail_starts_at_a_time(monkeypatch):
    fill("task:1", 3)
    moment = event_log().read("task:1", limit=3).events[1].created_at
    found = lines("tail", "task:1", "--since", moment.isoformat())
    assert [event["offset"] for event in found] == [3]
    assert [event["offset"] for event in lines("tail", "task:1", "--since", "10m")] == [1, 2, 3]


def test_tail_of_several_topics_is_in_the_order_of_time_and_can_be_narrowed():
    fill("task:1", 1)
    fill("lab:1", 1)
    publishing.publish("task:1", "task.progress", {"n": 5})
    publishing.publish("other:1", "output", {"n": 6})
    found = lines("tail", "task:*", "lab:1")
    assert [(event["topic"], event["offset"]) for event in found] == [
        ("task:1", 1),
        ("lab:1", 1),
        ("task:1", 2),
    ]
    assert [event["data"]["n"] for event in lines("tail", "task:*", "lab:1", "--type", "task.*")] == [5]
    text = run("tail", "task:*", "lab:1").splitlines()
    assert text[2].endswith('Z task:1 #2 task.progress {"n":5}')


def test_a_tail_that_goes_on_sees_new_events_new_topics_and_a_topic_begun_anew():
    fill("task:1", 3)
    reader = Tail(["task:*"], since=None, lines=1, event_type="*")

    def seen():
        return [(event.topic, event.offset) for event in reader.look()]

    assert seen() == [("task:1", 3)]
    publishing.publish("task:1", "output", 1)
    fill("task:2", 2)
    found = [place for _ in range(NAMES_EVERY) for place in seen()]
    assert found == [("task:1", 4), ("task:2", 1), ("task:2", 2)]
    publishing.end("task:1")
    publishing.publish("task:1", "task.started")
    publishing.publish("task:1", "output", 2)
    assert seen() == [("task:1", 1), ("task:1", 2)]
    assert seen() == []


def test_tail_from_a_trimmed_place_says_so():
    fill("task:1", 10)
    event_log().trim("task:1", max_age=None, max_events=2)
    with pytest.raises(CommandError, match="9 to 10"):
        run("tail", "task:1", "--since", "3")


def test_many_events_are_published_from_lines_and_a_bad_one_is_skipped(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO('{"n": 1}\n\n{"n": NaN}\n{"n": 3}\n'))
    assert code_of("publish", "lab:1", "output", "-", "--lines", "--key", "import") == 1
    assert "line 3: " in capsys.readouterr().err
    events = event_log().read("lab:1", limit=9).events
    assert [(json.loads(event.payload)["data"]["n"], event.key) for event in events] == [
        (1, "import:1"),
        (3, "import:4"),
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO('{"n": 1}\n'))
    assert run("publish", "lab:1", "output", "-", "--lines", "--key", "import").startswith(
        "lab:1 #1, which was"
    )


def test_topics_are_narrowed_and_their_cursors_listed():
    fill("lab:1", 3)
    fill("lab:2", 1)
    publishing.end("lab:2")
    acks.ack("a7", "lab:1", 1)
    assert [row["topic"] for row in lines("topics", "--open")] == ["lab:1"]
    assert [row["topic"] for row in lines("topics", "--ended")] == ["lab:2"]
    assert [row["topic"] for row in lines("topics", "--limit", "1")] == ["lab:1"]
    ((row),) = lines("topics", "--cursors")
    assert (row["topic"], row["consumer"], row["offset"], row["lag"]) == ("lab:1", "a7", 1, 2)
    assert run("topics", "no:*") == "no such topic\n"
    assert run("topics", "lab:*").splitlines()[0].split() == [
        "TOPIC",
        "FIRST",
        "OFFSET",
        "LAST",
        "OFFSET",
        "ENDED",
        "AT",
    ]


def test_the_columns_for_people_stand_below_each_other():
    fill("lab:1", 3)
    fill("lab:a-longer-name", 1)
    head, *rows = run("topics").splitlines()
    assert {row[head.index("FIRST")] for row in rows} == {"1"}


def test_connections_are_those_of_living_servers_and_are_narrowed():
    console_rows.connection("a1", user_id="u1", topics=["lab:1"])
    console_rows.connection("a2", transport="plain")
    gone = console_rows.connection("a3")
    gone.server_instance = ServerInstance.objects.create(
        name="dead", hostname="h", pid=1, started_at=timezone.now(), lease_until=timezone.now()
    )
    gone.save()

    def agents(*options: str) -> list[str]:
        return [row["agent"] for row in lines("connections", *options)]

    assert agents() == ["a1", "a2"]
    assert agents("--transport", "plain") == ["a2"]
    assert agents("--topic", "lab:1") == agents("--user", "u1") == agents("--agent", "a1") == ["a1"]
    assert agents("--server", "web-2") == []
    assert "a1" in run("connections")


def test_disconnecting_notes_the_code_and_reason_for_the_server():
    row = console_rows.connection("a1", user_id="u1")
    assert row.client_id in run(
        "disconnect", "--user", "u1", "--code", "3011", "--reason", "please come again"
    )
    row.refresh_from_db()
    assert (row.close_code, row.close_reason) == (3011, "please come again")


def test_tokens_are_taken_back_by_command():
    run("token", "--revoke", "--agent", "a7", "--keep", "1h", "--note", "lost laptop")
    row = TokenRevocation.objects.get()
    assert (row.agent_id, row.note) == ("a7", "lost laptop")
    assert row.expires_at is not None


def test_a_subscription_token_opens_its_topic():
    token = run("token", "--user", "u1", "--subscribe", "private:1").strip()
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["sub"], claims["channel"]) == ("u1", "private:1")


def test_every_verb_says_what_it_does(capsys):
    for verb in NAMES:
        with pytest.raises(SystemExit) as end:
            run(verb, "--help")
        assert end.value.code == 0
        assert f"bus {verb}" in capsys.readouterr().out


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


def test_what_is_not_there_is_code_1(capsys):
    assert code_of("disconnect", "nobody") == 1
    assert code_of("trim", "lab:none", "--max-events", "1") == 1
    assert "not connected" in capsys.readouterr().err
    assert run("connections") == "nobody is connected\n"
    assert lines("connections") == []
