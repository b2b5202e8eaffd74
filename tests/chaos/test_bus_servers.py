"""All processes killed at once, and orders that reach any server."""

from __future__ import annotations

import pytest

from tests.e2e.clients import RawClient, StockClient
from tests.e2e.publisher import Publisher
from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_what_was_acknowledged_survives_the_death_of_every_process_at_once(site: Site) -> None:
    topic, key = "crash:all", site.api_key()
    publisher = Publisher([web.url for web in site.web], key=key, topic=topic, count=10_000)
    publisher.start()
    publisher.wait_for(200)
    for program in (*site.web, site.valkey):
        program.kill()
    publisher.stop()
    acked = [(number, ack.offset) for number, ack in enumerate(publisher.acks, 1)]
    site.valkey.start()
    for web in site.web:
        web.restart()
    with RawClient(site.web[0].socket) as client:
        client.call("connect", token=site.token("witness"))
        found = client.call("history", channel=topic, limit=-1)["publications"]
    kept = [(entry["data"]["n"], entry["offset"]) for entry in found]
    assert len(acked) >= 200
    assert kept[: len(acked)] == acked
    #: At most the one that was on its way is there without an ack.
    assert len(kept) <= len(acked) + 1


def test_an_operator_disconnects_an_agent_of_any_server(site: Site) -> None:
    with StockClient("javascript") as client:
        client.connect(site.web[1].socket, site.token("unwanted"), agent_id="unwanted")
        site.manage("bus", "disconnect", "unwanted")
        assert client.wait("disconnected")["code"] == 3503
