"""Volatile mode: all works while its process lives, nothing outlives it, and it is said everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from bus.client import BusClient
from tests.e2e.clients import RawClient
from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.sqlite_only, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    started = Site(BUS_VOLATILE="true").start()
    yield started
    started.stop()


def test_it_is_said_in_the_answer_to_connect_in_the_metrics_and_by_doctor(site: Site) -> None:
    with RawClient(site.web[0].socket) as client:
        answer = client.call("connect", token=site.token("v1"), data={"agent_id": "v1"})
        assert answer["data"] == {"volatile": True}
    assert "bus_volatile 1.0" in httpx.get(f"{site.web[0].url}/metrics", timeout=60).text
    findings = json.loads(site.manage("doctor", "--json", accept=(0, 1, 2)))
    found = findings["findings"] if isinstance(findings, dict) else findings
    (log,) = [finding for finding in found if finding["name"] == "log"]
    assert log["state"] == "warning"


async def test_events_acks_and_inboxes_work_until_the_process_ends(site: Site) -> None:
    url, token = site.web[0].socket, site.token("v2", "publish", "publish:agent")
    async with BusClient(url, "v2", token) as client:
        for number in range(3):
            await client.publish("lab:v", "output", number)
            await client.publish("agent:away", "agent.message", number)
        seen = []
        async for event in client.events("lab:v", cursor="notes"):
            seen.append(event.data)
            await client.ack(event.topic, event.offset, "notes", epoch=event.epoch)
            if len(seen) == 3:
                break
        assert seen == [0, 1, 2]
        assert await client.cursor("lab:v", "notes") == 3
    async with BusClient(url, "away", site.token("away")) as client:
        async for event in client.events("agent:away"):
            assert event.data == 0
            break
    site.web[0].terminate()
    site.web[0].restart()
    async with BusClient(url, "v2", token) as client:
        assert (await client.publish("lab:v", "output", 9)).offset == 1
