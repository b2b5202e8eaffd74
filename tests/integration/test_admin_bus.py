"""Topics, connections and agents in the console: every change does what it says and is in the audit."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import Q
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from bus import acks, operating, pace, runs
from bus.log.current import event_log
from bus.models import (
    ActiveConnection,
    ConnectionSession,
    Cursor,
    Event,
    Presence,
    RunningTask,
    SubscriptionOrder,
    Topic,
)
from bus.protocol.errors import BadRequest, TopicEnded
from bus.publishing import publish
from tests.integration import console_rows as given
from tests.integration.bus_pages import ANNA, agent, client_of, do, last_act, list_of, page_of, said, topic

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("refusals_unlogged")]


# Topics


@pytest.mark.sqlite_only
def test_an_event_is_published_from_the_page_of_a_topic(people):
    row = topic("broadcast", 1)
    shown = do(
        people["operator"], "topic", "publish", row,
        event_type="agent.message", payload='{"text": "hello"}', key="once",
    )  # fmt: skip
    assert "Published: broadcast #2." in shown
    assert said("broadcast")[1]["data"] == {"text": "hello"}
    assert event_log().read("broadcast", limit=5).events[1].publisher == f"user:{people['operator'].pk}"
    assert last_act()[:3] == ("operator", "bus_published", "broadcast")
    again = do(
        people["operator"], "topic", "publish", row, event_type="agent.message", payload="{}", key="once"
    )
    assert "stored before with the same key" in again
    assert Topic.objects.get(pk=row.pk).last_offset == 2


@pytest.mark.sqlite_only
def test_an_event_for_a_new_topic_makes_it(people):
    shown = do(
        people["operator"], "topic", "publish_new", topic="room:lab", event_type="note", payload="[1]", key=""
    )
    assert "Published: room:lab #1." in shown


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ('{"a": 1,\n "b" 2}', "Not JSON at line 2, column 6"),
        ("NaN", "error"),
        ('"\\ud800"', "error"),
        ("[" * 20_000 + "]" * 20_000, "error"),
        ("", "This field is required"),
    ],
)
def test_what_is_no_event_is_refused_with_the_place_of_the_error(people, payload, words):
    row = topic("broadcast", 1)
    shown = do(people["operator"], "topic", "publish", row, event_type="x", payload=payload, key="")
    assert words in shown
    assert Topic.objects.get(pk=row.pk).last_offset == 1


@pytest.mark.sqlite_only
def test_the_rule_of_a_topic_holds_for_people_in_the_console_too(people):
    row = topic("cleanup:audit", 1)
    before = row.last_offset
    shown = do(people["admin"], "topic", "publish", row, event_type="forged", payload="{}", key="")
    assert "permission denied" in shown
    assert Topic.objects.get(pk=row.pk).last_offset == before


@pytest.mark.sqlite_only
def test_a_topic_is_trimmed_up_to_an_offset_and_keeps_what_comes_meanwhile(people):
    row = topic("broadcast", 5)
    shown = do(people["operator"], "topic", "trim", row, up_to="3", max_age="", reason="a leak")
    assert "Forgotten: 3 events of broadcast." in shown
    row.refresh_from_db()
    assert (row.first_offset, row.last_offset) == (4, 5)
    assert last_act() == ("operator", "bus_trimmed", "broadcast", "a leak")


def test_a_topic_is_trimmed_by_age(people):
    row = topic("broadcast", 3)
    Event.objects.filter(topic=row, offset__lte=2).update(created_at=timezone.now() - timedelta(days=2))
    assert "2 events" in do(people["operator"], "topic", "trim", row, up_to="", max_age="1d", reason="old")
    assert Event.objects.filter(topic=row).count() == 1


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"up_to": "", "max_age": ""}, "one of the two"),
        ({"up_to": "2", "max_age": "1d"}, "one of the two"),
        ({"up_to": "9", "max_age": ""}, "between 1 and 3"),
        ({"up_to": "", "max_age": "a while"}, "written 90s, 30m, 12h or 7d"),
    ],
)
def test_a_trim_that_cannot_be_is_refused_and_forgets_nothing(people, answers, words):
    row = topic("broadcast", 3)
    assert words in do(people["operator"], "topic", "trim", row, reason="r", **answers)
    assert Event.objects.filter(topic=row).count() == 3


def test_a_replay_puts_copies_into_the_inbox_in_their_order(people):
    row, reader = topic("broadcast", 5), agent(sent=1)
    shown = do(
        people["operator"], "topic", "replay", row, agent="crawler", first="2", last="4", reason="it was ill"
    )
    assert "Sent again: 3 events, now agent:crawler #2 to #4." in shown
    assert [body["data"] for body in said("agent:crawler")[1:]] == [{"number": n} for n in (2, 3, 4)]
    tags = [json.loads(event.tags) for event in event_log().read("agent:crawler", limit=9).events[1:]]
    assert [tag["replay_of"] for tag in tags] == [f"broadcast#{n}" for n in (2, 3, 4)]
    assert {tag["replay_epoch"] for tag in tags} == {row.epoch}
    assert Topic.objects.get(pk=row.pk).last_offset == 5
    assert acks.cursor_of(reader.agent_id, "broadcast").offset == 0
    assert last_act() == ("operator", "bus_replayed", "broadcast", "it was ill")


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (3, 2, "the first not behind the last"),
        (1, 9, "between 1 and 5"),
        (1, 3, "kept are 3 to 5"),
        (0, 2, "greater than or equal to 1"),
    ],
)
def test_a_replay_of_what_is_not_there_is_refused_as_a_whole(people, first, last, words):
    row = topic("broadcast", 5)
    event_log().trim("broadcast", max_age=None, max_events=3)
    shown = do(
        people["operator"], "topic", "replay", row, agent="crawler", first=first, last=last, reason="why"
    )
    assert words in shown
    assert not event_log().states(["agent:crawler"])


@pytest.mark.sqlite_only
def test_a_replay_is_bounded():
    topic("broadcast", 1)
    Topic.objects.update(last_offset=2_000)
    with pytest.raises(BadRequest, match="at most 1,000"):
        operating.replay(ANNA, "broadcast", 1, 1_001, "crawler", reason="much")


def test_a_task_is_ended_by_hand_once_and_its_lease_goes(people):
    runs.take("task:7")
    row = topic("task:7", 2)
    shown = do(people["operator"], "topic", "end", row, status="cancelled", reason="of no use")
    assert "Ended as cancelled: task:7." in shown
    row.refresh_from_db()
    assert (row.end_status, row.last_offset) == ("cancelled", 3)
    assert said("task:7")[-1]["data"]["message"] == "ended by operator: of no use"
    assert not RunningTask.objects.exists()
    assert "topic ended" in do(people["operator"], "topic", "end", row, status="failed", reason="again")
    with pytest.raises(TopicEnded):
        publish("task:7", "task.progress", {})


def test_a_topic_is_browsed_by_time(people):
    row = topic("broadcast", 120)
    then = timezone.now() - timedelta(days=3)
    Event.objects.filter(topic=row, offset__lte=60).update(created_at=then)
    asked = timezone.localtime(then + timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S")
    shown = page_of(people["viewer"], row, at=asked)
    offsets = [int(n) for n in re.findall(r'/admin/bus/event/\d+/change/">(\d+)<', shown)]
    assert offsets == list(range(60, 10, -1))
    assert "is no time" in page_of(people["viewer"], row, at="yesterday")
    assert "is no time" in page_of(people["viewer"], row, at="9999-12-31 23:59:59")


def test_the_place_of_a_moment_is_found_in_few_queries_for_many_topics():
    now = timezone.now()
    rows = [topic(f"room:{n}", 40) for n in range(4)]
    for number, row in enumerate(rows):
        Event.objects.filter(topic=row, offset__lte=10 * number).update(created_at=now - timedelta(hours=1))
    event_log().trim("room:3", max_age=None, max_events=5)
    rows = list(Topic.objects.order_by("name"))
    with CaptureQueriesContext(connection) as queries:
        found = pace.published_since(rows, now - timedelta(minutes=1))
    assert [found[row.pk] for row in rows] == [40, 30, 20, 5]
    assert len(queries) <= 7


def test_the_page_of_a_topic_says_who_reads_it_by_presence_and_by_heartbeats(people):
    there = given.connection("crawler", topics=["agent:crawler", "broadcast"])
    given.connection("other", topics=["agent:other"])
    inbox, everybody = topic("agent:crawler", 1), topic("broadcast", 1)
    Presence.objects.create(
        topic=inbox.name, client_id=there.pk, server_instance="web-1", since=timezone.now()
    )
    for row in (inbox, everybody):
        shown = page_of(people["viewer"], row)
        assert reverse("admin:bus_activeconnection_change", args=[there.pk]) in shown
        assert f"/?trace={row.name.replace(':', '%3A')}" in shown
        assert "other" not in re.search(r"x-bus-readers.*?</ul>", shown, re.S)[0]
    assert "Nobody reads this topic" in page_of(people["viewer"], topic("room:empty", 1))


# Connections and agents


@pytest.mark.sqlite_only
def test_a_message_to_a_connection_of_an_agent_waits_in_its_inbox(people):
    row = given.connection("crawler")
    shown = do(people["operator"], "activeconnection", "message", row, event_type="ask", payload='{"a": 1}')
    assert "stored for crawler" in shown
    assert said("agent:crawler")[0]["data"] == {"a": 1}
    assert last_act()[:3] == ("operator", "bus_messaged", "agent:crawler")


@pytest.mark.sqlite_only
def test_a_message_to_a_person_is_an_order_for_its_server_and_kept_nowhere(people):
    row = given.connection("", user_id="42")
    shown = do(people["operator"], "activeconnection", "message", row, event_type="ask", payload='{"a": 1}')
    assert "sent to 1 without an inbox" in shown
    order = json.loads(SubscriptionOrder.objects.get(server_instance="web-1").order)
    assert (order["kind"], order["client_id"], order["data"]["data"]) == ("message", row.pk, {"a": 1})
    assert not Topic.objects.filter(name__contains="42").exists()


@pytest.mark.sqlite_only
def test_disconnecting_an_agent_reaches_all_of_its_connections(people):
    row = given.connection("crawler")
    shown = do(people["operator"], "agent", "disconnect", agent(), reason="out of hand")
    assert "Told to close: crawler." in shown
    row.refresh_from_db()
    assert (row.close_code, row.close_reason) == (3503, "out of hand")
    assert last_act() == ("operator", "bus_disconnected", "agent:crawler", "out of hand")


@pytest.mark.sqlite_only
def test_disconnecting_an_agent_that_is_away_says_so(people):
    shown = do(people["operator"], "agent", "disconnect", agent(), reason="")
    assert "not connected, so there was nothing to close" in shown


@pytest.mark.sqlite_only
def test_a_reason_that_no_close_frame_can_carry_is_refused():
    given.connection("crawler")
    with pytest.raises(BadRequest, match="at most 120 bytes"):
        operating.disconnect(ANNA, Q(agent_id="crawler"), reason="é" * 100)
    assert ActiveConnection.objects.get().close_code is None


def test_skipping_acknowledges_what_waits_and_keeps_the_events(people):
    row = agent(sent=3)
    assert acks.offline_depths(["crawler"]) == {"crawler": 3}
    shown = do(people["operator"], "agent", "skip", row, reason="stale orders")
    assert "Nothing waits any more for crawler." in shown
    assert acks.offline_depths(["crawler"]) == {"crawler": 0}
    assert len(said("agent:crawler")) == 3
    assert last_act() == ("operator", "bus_inbox_skipped", "agent:crawler", "stale orders")


@pytest.mark.sqlite_only
def test_the_page_of_an_agent_tells_connection_cursors_and_history(people):
    row, link = agent(sent=2), given.connection("crawler")
    acks.ack("crawler", "agent:crawler", 1)
    ConnectionSession.objects.create(
        client_id="former", agent_id="crawler", server_instance="web-0", transport="plain",
        connected_at=timezone.now() - timedelta(hours=2), disconnected_at=timezone.now(), reason="lost",
    )  # fmt: skip
    shown = page_of(people["viewer"], row)
    assert reverse("admin:bus_activeconnection_change", args=[link.pk]) in shown
    assert reverse("admin:bus_cursor_change", args=[Cursor.objects.get().pk]) in shown
    assert "web-0" in shown
    assert "lost" in shown


def test_agents_are_chosen_by_whether_they_are_there(people):
    agent("here")
    agent("gone")
    given.connection("here")
    online, away = (list_of(people["viewer"], "agent", now=now) for now in ("online", "away"))
    assert ("here" in online, "gone" in re.sub(r"<script.*?</script>", "", online, flags=re.S)) == (
        True,
        False,
    )
    assert ">gone<" in away
    assert ">here<" not in away


def test_the_list_of_connections_tells_the_lag_of_each_in_few_queries(people):
    for number in range(20):
        given.connection(f"a{number}", topics=["broadcast"])
    topic("broadcast", 9)
    acks.ack("a7", "broadcast", 4)
    client = client_of(people["viewer"])
    with CaptureQueriesContext(connection) as queries:
        shown = client.get(reverse("admin:bus_activeconnection_changelist")).content.decode()
    assert "5 events" in shown
    assert "not acknowledged, of broadcast" in shown
    assert len(queries) < 12


@pytest.mark.sqlite_only
def test_a_connection_that_is_not_heard_of_is_marked_and_found(people):
    now = timezone.now()
    given.connection("awake")
    given.connection("asleep", last_heartbeat=now - timedelta(minutes=2))
    assert list_of(people["viewer"], "activeconnection").count(">frozen<") >= 1
    found = list_of(people["viewer"], "activeconnection", standing="frozen")
    assert ">asleep<" in found
    assert ">awake<" not in found


@pytest.mark.sqlite_only
def test_the_page_of_a_connection_tells_topics_cursors_and_history(people):
    row = given.connection("crawler", topics=["agent:crawler", "broadcast", "task:unknown"])
    topic("broadcast", 3)
    acks.ack("crawler", "broadcast", 1)
    shown = page_of(people["viewer"], row)
    assert reverse("admin:bus_topic_change", args=[Topic.objects.get(name="broadcast").pk]) in shown
    assert "task:unknown" in shown
    assert '<span class="x-badge x-warn">2</span>' in shown
    assert "No session is remembered" in shown


@pytest.mark.sqlite_only
def test_who_is_told_to_close_is_offered_nothing_more(people):
    row = given.connection("crawler", close_code=3503)
    shown = page_of(people["operator"], row)
    assert "told to close" in shown
    assert "/do/disconnect/" not in shown
