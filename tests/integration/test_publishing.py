"""The write path: what is stored, when others are told, what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import pytest
from django.contrib.auth.models import Group
from django.db import transaction

from bus import publishing
from bus.access import permissions
from bus.access.permissions import ANONYMOUS, Identity
from bus.drafts import Publisher, draft
from bus.log import StoredEvent
from bus.log.current import event_log
from bus.log.memory import MemoryEventLog
from bus.protocol.errors import BadRequest, LimitExceeded, PermissionDenied, TopicEnded, UnknownTopic
from bus.protocol.frames import ClientInfo

pytestmark = pytest.mark.django_db(transaction=True)


class Told:
    """A listener that keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[list[StoredEvent]] = []

    def __call__(self, events: list[StoredEvent]) -> None:
        self.calls.append(events)

    @property
    def places(self) -> list[tuple[str, int]]:
        return [(event.topic, event.offset) for events in self.calls for event in events]


@pytest.fixture
def told() -> Iterator[Told]:
    listener = Told()
    publishing.on_committed(listener)
    yield listener
    publishing.off_committed(listener)


@pytest.fixture(autouse=True)
def _ended_writer() -> Iterator[None]:
    yield
    publishing.stop_writer()


def stored(topic: str = "task:1") -> list[StoredEvent]:
    return event_log().read(topic, limit=100).events


def payload(event: StoredEvent) -> dict:
    return json.loads(event.payload)


def test_an_event_is_stored_as_one_object_with_utc_microseconds():
    place = publishing.publish(
        "task:1",
        "task.progress",
        {"done": 3, "total": 10},
        run_id="8f2c",
        session_id="s",
        tags={"key": "bar"},
    )
    (event,) = stored()
    found = payload(event)
    assert list(found) == ["event_type", "timestamp", "run_id", "session_id", "data"]
    assert datetime.strptime(found["timestamp"], "%Y-%m-%dT%H:%M:%S.%fZ")  # noqa: DTZ007
    assert (found["event_type"], found["run_id"], found["session_id"]) == ("task.progress", "8f2c", "s")
    assert found["data"] == {"done": 3, "total": 10}
    assert json.loads(event.tags or b"") == {"id": place.event_id, "key": "bar"}
    assert (place.topic, place.offset, place.duplicate, event.publisher) == ("task:1", 1, False, "server")


def test_a_time_in_another_zone_is_written_in_utc():
    now = datetime.fromisoformat("2026-03-01T13:00:00+01:00")
    found = json.loads(publishing.encode_event("output", None, now=now))
    assert found["timestamp"] == "2026-03-01T12:00:00.000000Z"


def test_dates_and_dataclasses_are_written_as_json_holds_them():
    @dataclass
    class Step:
        at: datetime
        run: UUID

    step = Step(at=datetime(2026, 3, 1, tzinfo=UTC), run=UUID(int=1))
    publishing.publish("task:1", "output", {"steps": [step]})
    assert payload(stored()[0])["data"] == {
        "steps": [{"at": "2026-03-01T00:00:00Z", "run": "00000000-0000-0000-0000-000000000001"}]
    }


@pytest.mark.parametrize(
    "data", [float("nan"), {"a": "\0"}, "\ud800", 2**63, {1: 2}, object(), json.loads("[" * 33 + "]" * 33)]
)
def test_data_that_cannot_be_stored_is_refused_before_anything_is(data):
    with pytest.raises(BadRequest):
        publishing.publish("task:1", "output", data)
    assert event_log().names() == []


@pytest.mark.parametrize(
    "options",
    [
        {"topic": "no topic"},
        {"event_type": ""},
        {"event_type": "\0"},
        {"key": ""},
        {"key": "k" * 201},
        {"run_id": "\ud800"},
        {"tags": {"n": 1}},
        {"tags": {"a": "\0"}},
    ],
)
def test_a_name_that_cannot_be_is_refused(options):
    with pytest.raises(BadRequest):
        publishing.publish(**{"topic": "task:1", "event_type": "output", **options})


def test_an_event_that_is_too_large_is_refused():
    with pytest.raises(LimitExceeded):
        publishing.publish("task:1", "output", "x" * 262_144)


def test_a_repeated_key_has_the_first_place_and_tells_nobody(told):
    first = publishing.publish("task:1", "output", 1, key="k")
    again = publishing.publish("task:1", "output", 2, key="k")
    assert (again.offset, again.event_id, again.duplicate) == (1, first.event_id, True)
    assert told.places == [("task:1", 1)]


def test_others_are_told_after_the_commit_and_not_before(told):
    with transaction.atomic():
        place = publishing.publish("task:1", "output", {"n": 1})
        assert place.offset == 1
        assert told.calls == []
    assert told.calls == [stored()]


def test_an_event_of_a_transaction_that_is_rolled_back_was_never_there(told):
    with transaction.atomic():
        Group.objects.create(name="g")
        publishing.publish("task:1", "output")
        transaction.set_rollback(True)
    assert told.calls == []
    assert (stored(), Group.objects.count()) == ([], 0)
    assert publishing.publish("task:1", "output").offset == 1


def test_an_inner_transaction_that_is_rolled_back_takes_its_events_with_it(told):
    with transaction.atomic():
        publishing.publish("task:1", "output", "outer")
        with transaction.atomic():
            publishing.publish("task:1", "output", "inner")
            transaction.set_rollback(True)
        publishing.publish("task:1", "output", "after")
    assert [payload(event)["data"] for event in stored()] == ["outer", "after"]
    assert told.places == [("task:1", 1), ("task:1", 2)]


def test_publishing_on_commit_waits_for_the_commit_and_refuses_at_once(told):
    with transaction.atomic():
        publishing.publish_on_commit("task:1", "output", 1, run_id="r")
        assert stored() == []
        with pytest.raises(BadRequest):
            publishing.publish_on_commit("task:1", "output", float("nan"))
    assert told.places == [("task:1", 1)]
    publishing.publish_on_commit("task:1", "output", 2)
    assert told.places == [("task:1", 1), ("task:1", 2)]


def test_a_listener_that_fails_harms_neither_the_event_nor_the_others(told, caplog):
    def broken(_: list[StoredEvent]) -> None:
        raise ZeroDivisionError

    publishing.on_committed(broken)
    try:
        publishing.publish("task:1", "output")
    finally:
        publishing.off_committed(broken)
    assert told.places == [("task:1", 1)]
    assert "listener failed" in caplog.text


def test_registering_twice_tells_once(told):
    publishing.on_committed(told)
    publishing.publish("task:1", "output")
    assert told.places == [("task:1", 1)]


def test_the_final_event_ends_the_topic():
    publishing.publish("task:1", "task.started")
    publishing.end("task:1", "failed", {"why": "disk full"})
    last = stored()[-1]
    assert (last.event_type, payload(last)["data"]) == ("task.failed", {"why": "disk full"})
    assert json.loads(last.tags or b"")["end"] == "failed"
    with pytest.raises(TopicEnded):
        publishing.publish("task:1", "task.progress")
    with pytest.raises(BadRequest):
        publishing.end("task:2", "exploded")


def test_a_task_started_again_under_its_id_begins_a_new_epoch():
    publishing.publish("task:1", "task.started")
    before = publishing.end("task:1")
    after = publishing.publish("task:1", "task.started")
    assert (after.offset, before.offset) == (1, 2)
    assert after.epoch != before.epoch
    assert len(stored()) == 1


def test_an_event_that_is_not_logged_is_passed_on_at_once(told):
    place = publishing.publish("sys:stats", "stats", {"cpu": 3})
    assert (place.offset, place.epoch) == (0, "")
    assert told.places == [("sys:stats", 0)]
    assert event_log().names() == []


def test_a_publisher_needs_the_right_and_is_named():
    agent = Identity(kind="token", agent_id="a7", scopes=frozenset({"publish:task"}))
    publishing.publish("task:1", "output", by=agent, info=ClientInfo(user="u", client="c"))
    (event,) = stored()
    assert (event.publisher, event.info) == ("agent:a7", b'{"user":"u","client":"c"}')
    for identity in (ANONYMOUS, Identity(kind="user", user_id="1")):
        with pytest.raises(PermissionDenied):
            publishing.publish("task:1", "output", by=identity)


def test_a_topic_without_a_rule_does_not_exist(monkeypatch):
    rules = permissions.topics.RuleBook([])
    monkeypatch.setattr(permissions, "_rules", lambda: rules)
    with pytest.raises(UnknownTopic):
        publishing.publish("task:without-a-rule", "output")


async def test_coroutines_publish_together_and_each_gets_its_place(told):
    places = await asyncio.gather(
        *(publishing.apublish(f"task:{number % 2}", "output", number) for number in range(40))
    )
    await asyncio.sleep(0)
    assert sorted((place.topic, place.offset) for place in places) == sorted(told.places)
    for events in told.calls:
        assert len({(event.topic, event.epoch) for event in events}) == 1
        offsets = [event.offset for event in events]
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))


async def test_a_coroutine_that_ends_a_topic_is_refused_the_next_event():
    await publishing.aend("task:1", "cancelled")
    with pytest.raises(TopicEnded):
        await publishing.apublish("task:1", "output")


async def test_a_stock_sdk_gets_back_what_it_published_byte_for_byte(told):
    by = Identity(kind="token", user_id="u", is_staff=True)
    for data in ({"my": "data"}, [1, 2], "text", {"event_type": "output", "data": 1}, {"event_type": 7}):
        await publishing.apublish_verbatim("chat:1", data, by=by)
    await asyncio.sleep(0)
    events = [event for events in told.calls for event in events]
    assert [event.payload for event in events] == [
        b'{"my":"data"}',
        b"[1,2]",
        b'"text"',
        b'{"event_type":"output","data":1}',
        b'{"event_type":7}',
    ]
    assert [event.event_type for event in events] == ["", "", "", "output", ""]


async def test_what_is_published_together_is_answered_one_by_one(told):
    await publishing.aend("task:over")
    topics = ("task:1", "sys:stats", "task:over", "task:1")
    drafts = [draft(topic, "output", number, None, {}) for number, topic in enumerate(topics)]
    first, unlogged, refused, last = await publishing.publish_together(drafts)
    assert (first.offset, unlogged.offset, last.offset) == (1, 0, 2)
    assert isinstance(refused, TopicEnded)
    await asyncio.sleep(0)
    assert sorted(told.places) == [("sys:stats", 0), ("task:1", 1), ("task:1", 2), ("task:over", 1)]


def test_a_publisher_notices_that_the_rules_have_changed(settings):
    agent = Identity(kind="token", agent_id="a7", scopes=frozenset({"publish:task"}))
    publisher = Publisher(agent)
    assert publisher.may_publish("task:1") is publisher.may_publish("task:1")
    settings.BUS = {**settings.BUS, "TOPICS": [{"pattern": "task:*", "publish": "staff"}]}
    with pytest.raises(PermissionDenied):
        publisher.may_publish("task:1")


def test_a_volatile_bus_keeps_everything_in_memory(settings, told):
    settings.BUS = {**settings.BUS, "VOLATILE": True}
    assert isinstance(event_log(), MemoryEventLog)
    publishing.publish("task:1", "output", {"n": 1})
    assert told.places == [("task:1", 1)]
    assert len(stored()) == 1
    settings.BUS = {**settings.BUS, "VOLATILE": False}
    assert stored() == []
