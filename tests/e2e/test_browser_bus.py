"""The bus in a real browser: an agent is disconnected and stays away, gets a message, hears an event."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.browser import Browser, site_with_people, window_of
from tests.e2e.clients import StockClient
from tests.harness import Site

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.sqlite_only,
    pytest.mark.timeout(600),
]

CONNECTIONS = "/admin/bus/activeconnection/"
#: Another page than the list that was asked, and whole.
_ANSWERED = "return !window.isOld && document.readyState === 'complete'"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with site_with_people() as site:
        yield site


@pytest.fixture(scope="module")
def window(site: Site) -> Iterator[Browser]:
    with window_of(site, "operator") as window:
        yield window


def choose_and_ask(window: Browser, agent: str, action: str) -> str:
    """Choose the row of an agent in the list, start an action, and return what the page that asks says.

    An agent that comes again meanwhile has another row: then from the beginning.
    """
    window.open(f"{CONNECTIONS}?q={agent}")
    if not window.count("#result_list tbody input.action-select"):
        return ""
    window.click("#result_list tbody input.action-select")
    window.choose("select[name=action]", action)
    window.run("window.isOld = true")
    window.click("#changelist-actions button[type=submit]")
    window.until(lambda: window.run(_ANSWERED), what="an answer")
    return window.text(".x-ask h2")


def fill(window: Browser, name: str, text: str) -> None:
    window.write(f"[name={name}]", text)


def answered(window: Browser, words: str) -> None:
    window.click(".x-ask button[type=submit]")
    window.until(lambda: words in window.text("body"), what=words)


def is_listed(window: Browser, agent: str) -> bool:
    window.open(f"{CONNECTIONS}?q={agent}")
    return window.count("#result_list tbody tr") > 0


def is_away(window: Browser, agent: str) -> bool:
    window.open(f"/admin/bus/agent/?q={agent}&now=away")
    return window.count("#result_list tbody tr") > 0


def is_read_by(window: Browser, agent: str) -> bool:
    """Whether the page of a topic, read anew, names an agent among those who read it."""
    window.driver.refresh()
    return agent in window.text(".x-bus-readers")


def inbox(agent: StockClient, name: str) -> list[Any]:
    return [entry["data"] for entry in agent.payloads(f"agent:{name}")]


def test_an_operator_disconnects_an_agent_and_it_stays_away(site: Site, window: Browser):
    with StockClient("python") as agent:
        agent.connect(site.web[0].socket, site.token("rogue"), agent_id="rogue")
        window.until(
            lambda: "Disconnect: 1 active connection?" in choose_and_ask(window, "rogue", "disconnect"),
            what="the page that asks",
        )
        fill(window, "reason", "talks too much")
        assert agent.seen("disconnected") == [], "asking does nothing yet"
        answered(window, "Told to close: rogue")
        gone = agent.wait("disconnected")
        assert gone["code"] == 3503
        assert "talks too much" in gone["reason"]
        connected = len(agent.seen("connected"))
        window.until(lambda: not is_listed(window, "rogue"), what="the row to go")
        assert len(agent.seen("connected")) == connected, "it came back"


def test_a_message_reaches_an_agent_now_and_one_that_is_away_when_it_is_back(site: Site, window: Browser):
    with StockClient("python") as agent:
        agent.connect(site.web[0].socket, site.token("here"), agent_id="here")
        window.until(
            lambda: "Message: 1 active connection?" in choose_and_ask(window, "here", "message"),
            what="the page that asks",
        )
        fill(window, "payload", '{"text": "wrong" "here"}')
        window.click(".x-ask button[type=submit]")
        window.until(
            lambda: "Not JSON at line 1, column 18" in window.text("body"), what="the place of the error"
        )
        fill(window, "payload", '{"text": "hello"}')
        answered(window, "stored for here")
        agent.wait_until(lambda: {"text": "hello"} in inbox(agent, "here"), what="the message")
    window.until(lambda: not is_listed(window, "here"), what="the row to go")
    window.until(lambda: is_away(window, "here"), what="the agent to be away")
    window.click("#result_list tbody th a, #result_list tbody td a")
    window.click(".x-bar a[href*='/do/message/']")
    fill(window, "payload", '{"text": "welcome back"}')
    answered(window, "Stored in the inbox of here")
    with StockClient("python") as agent:
        agent.connect(site.web[0].socket, site.token("here"), agent_id="here")
        agent.wait_until(lambda: {"text": "welcome back"} in inbox(agent, "here"), what="what waited")


def test_what_is_published_from_the_console_is_heard_and_then_seen_there(site: Site, window: Browser):
    said = {"text": "to all <b>of</b> you"}
    with StockClient("python") as agent:
        agent.connect(site.web[0].socket, site.token("listener"), agent_id="listener")
        agent.do("subscribe", topic="room:lab")
        agent.wait("subscribed", topic="room:lab")
        window.open("/admin/bus/topic/")
        window.click(".x-intro a[href*='/do/publish_new/']")
        fill(window, "topic", "room:lab")
        fill(window, "event_type", "note")
        fill(window, "payload", json.dumps(said))
        answered(window, "Published: room:lab #1.")
        agent.wait_until(
            lambda: [entry["data"] for entry in agent.payloads("room:lab")] == [said],
            what="the event",
        )
        window.open("/admin/bus/topic/?q=room:lab")
        window.click("#result_list tbody th a, #result_list tbody td a")
        window.until(lambda: said["text"] in window.text("#content-main"), what="the event on the page")
        window.until(lambda: is_read_by(window, "listener"), what="who reads the topic")
        assert window.complaints() == []
