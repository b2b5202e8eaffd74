"""The dashboard's page and the state that it asks for."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from bus import runs
from bus.access.permissions import Identity
from bus.conf import conf
from bus.models import Agent, RunningTask, Topic
from bus.publishing import end, publish
from bus.views import may_read
from tests.integration.console_rows import connection

pytestmark = pytest.mark.django_db


@pytest.fixture
def staff() -> Client:
    client = Client()
    client.force_login(User.objects.create_user("anna", is_staff=True))
    return client


def state(client: Client) -> dict:
    return client.get(reverse("dashboard-state")).json()


@pytest.mark.parametrize("name", ["dashboard", "dashboard-state", "dashboard-trace"])
def test_only_staff_comes_in(name):
    url = reverse(name)
    stranger, member = Client(), Client()
    member.force_login(User.objects.create_user("ben"))
    for client in (stranger, member):
        reply = client.get(url)
        assert reply.status_code == 302
        assert reply["Location"].startswith(reverse("admin:login"))


@pytest.mark.parametrize("name", ["dashboard", "dashboard-state", "dashboard-trace"])
def test_it_only_answers_to_looking(staff, name):
    assert staff.post(reverse(name)).status_code == 405


def test_the_page_runs_under_a_strict_policy(staff):
    reply = staff.get("/")
    policy = reply["Content-Security-Policy"]
    scripts = re.search(r"script-src ([^;]+)", policy)
    assert scripts is not None
    assert "unsafe" not in scripts[1]
    page = reply.content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)", page), "no script stands in the page itself"
    assert not re.search(r"\son\w+=", page), "no handler stands in the page itself"
    assert "style=" not in page


def test_every_file_that_the_page_names_is_there(staff):
    page = staff.get("/").content.decode()
    named = re.findall(r'(?:href|src)="/static/([^"]+)"', page)
    assert len(named) >= 5
    assert [path for path in named if finders.find(path) is None] == []


def test_every_module_that_a_module_imports_is_there():
    entry = finders.find("bus/dashboard.js")
    assert entry is not None
    from pathlib import Path

    waiting, seen = [Path(entry)], set()
    while waiting:
        module = waiting.pop()
        assert module.is_file(), module
        if module in seen or "vendor" in module.parts:
            continue
        seen.add(module)
        imports = re.findall(r'from "(\.[^"]+)"', module.read_text())
        waiting += [(module.parent / name).resolve() for name in imports]
    assert len(seen) >= 8


def test_vendored_modules_are_those_that_their_readme_names():
    import hashlib
    from pathlib import Path

    readme = Path(finders.find("bus/vendor/README.md"))
    listed = re.findall(r"\| `([^`]+)` \|.*`([0-9a-f]{64})` \|", readme.read_text())
    assert len(listed) == 3
    for name, digest in listed:
        assert hashlib.sha256((readme.parent / name).read_bytes()).hexdigest() == digest, name
        assert (readme.parent / name).parent.joinpath("LICENSE").is_file()


def test_running_tasks_are_those_that_have_not_ended(staff):
    publish("task:running", "task.started", {})
    publish("task:over", "task.started", {})
    end("task:over", "completed")
    publish("task:silent", "task.started", {})
    Topic.objects.filter(name="task:silent").update(updated_at=timezone.now() - timedelta(hours=2))
    publish("broadcast", "agent.message", {})
    epoch = Topic.objects.get(name="task:running").epoch
    assert state(staff)["tasks"] == [
        {"topic": "task:running", "task_id": "running", "epoch": epoch, "silent": None}
    ]


def test_a_worker_that_renews_no_lease_is_silent(staff):
    publish("task:nightly", "task.started", {})
    runs.take("task:nightly")
    assert state(staff)["tasks"][0]["silent"] is None
    renewed = timezone.now() - timedelta(seconds=30)
    RunningTask.objects.update(lease_until=renewed + conf().task_lease)
    assert 30 <= state(staff)["tasks"][0]["silent"] < 60
    RunningTask.objects.update(lease_until=timezone.now() + timedelta(hours=1))
    assert state(staff)["tasks"][0]["silent"] is None, "it waits to be tried again"


def test_the_state_counts_what_living_servers_hold(staff):
    connection("a")
    connection("b")
    lost = connection("c").server_instance
    found = state(staff)
    assert (found["connections"], found["agents"]) == (3, 3)
    lost.lease_until = timezone.now() - timedelta(seconds=1)
    lost.save()
    found = state(staff)
    assert (found["connections"], found["agents"]) == (0, 0)


def test_topics_come_with_their_positions_and_their_page(staff):
    for number in range(3):
        publish("broadcast", "agent.message", {"n": number})
    found = state(staff)
    assert found["topic_count"] == 1
    topic = found["topics"][0]
    assert (topic["name"], topic["first_offset"], topic["last_offset"], topic["ended"]) == (
        "broadcast",
        1,
        3,
        False,
    )
    assert topic["url"] == reverse("admin:bus_topic_change", args=[Topic.objects.get().pk])


def test_the_state_stays_small_and_quick_with_many_topics(staff, django_assert_max_num_queries):
    Topic.objects.bulk_create([Topic(name=f"task:{number}", epoch="e") for number in range(500)])
    with django_assert_max_num_queries(8):
        found = state(staff)
    assert (len(found["topics"]), len(found["tasks"]), found["topic_count"]) == (50, 50, 500)


def trace(client: Client, of: str) -> dict:
    return client.get(reverse("dashboard-trace"), {"of": of}).json()


def test_a_topic_is_traced_as_itself_whether_it_was_spoken_on_or_not(staff):
    publish("broadcast", "agent.message", {})
    page = reverse("admin:bus_topic_change", args=[Topic.objects.get().pk])
    assert trace(staff, " broadcast ") == {"topics": [{"name": "broadcast", "url": page}], "refused": []}
    assert trace(staff, "room:new")["topics"] == [{"name": "room:new", "url": ""}]


@pytest.mark.parametrize("name", ["agent:crawler", "crawler"])
def test_an_agent_is_traced_with_what_its_connections_hear(staff, name):
    Agent.objects.create(agent_id="crawler", generation=1, connects=1)
    connection("crawler", topics=["agent:crawler", "broadcast", "room:1"])
    connection("other", topics=["agent:other", "room:2"])
    names = [one["name"] for one in trace(staff, name)["topics"]]
    assert names == ["agent:crawler", "broadcast", "room:1"]


def test_a_topic_called_like_an_agent_comes_first(staff):
    Agent.objects.create(agent_id="broadcast", generation=1, connects=1)
    publish("broadcast", "agent.message", {})
    assert [one["name"] for one in trace(staff, "broadcast")["topics"]] == ["broadcast"]


@pytest.mark.parametrize("name", ["two words", "", "a:b:c d", "x" * 500])
def test_what_is_no_name_is_said_in_words(staff, name):
    assert "cannot be followed" in trace(staff, name)["error"]


def test_only_what_one_may_read_is_followed():
    assert may_read(Identity(kind="user", is_staff=True, may_publish=False), "sys:stats")
    assert not may_read(Identity(kind="user"), "sys:stats")


def test_topics_are_counted_up_to_a_bound(staff, monkeypatch):
    monkeypatch.setattr("bus.views.MOST_COUNTED", 2)
    for name in ("room:1", "room:2"):
        publish(name, "agent.message", {})
    assert (state(staff)["topic_count"], state(staff)["more_topics"]) == (2, False)
    publish("room:3", "agent.message", {})
    assert (state(staff)["topic_count"], state(staff)["more_topics"]) == (2, True)
