"""The figures are true: what a server counts, and what is read from rows."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone
from prometheus_client import CollectorRegistry, generate_latest

from bus import acks, runs
from bus.connections import leases
from bus.connections.leases import Details
from bus.metrics import SiteCollector
from bus.models import RunningTask, ServerInstance
from bus.publishing import publish
from tests.e2e.clients import RawClient
from tests.harness import Site
from tests.servers import wait_until


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(SiteCollector())
    return registry


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


@pytest.mark.django_db
def test_connections_are_counted_from_rows_by_transport(registry: CollectorRegistry) -> None:
    for number, transport in enumerate(("centrifugo", "centrifugo", "plain")):
        details = Details(client_id=str(number), transport=transport, connected_at=timezone.now())
        leases.enter(details, "server-1")
    assert value(registry, "active_websocket_connections") == 3
    assert value(registry, "bus_active_connections", transport="centrifugo") == 2
    assert value(registry, "bus_active_connections", transport="sse") == 0
    assert value(registry, "bus_servers") == 1
    ServerInstance.objects.update(layer_up=True)
    assert value(registry, "bus_layer_up", server="server-1") == 1


@pytest.mark.django_db
def test_the_offline_queue_counts_what_no_agent_has_acknowledged(registry: CollectorRegistry) -> None:
    for number in range(5):
        publish("agent:a", "agent.message", number)
    publish("agent:b", "agent.message", 1)
    publish("lab:1", "output", 1)
    acks.ack("a", "agent:a", 3)
    acks.ack("somebody", "agent:a", 5)
    assert value(registry, "bus_offline_queue_events") == 3


@pytest.mark.django_db
def test_an_empty_site_has_zeros_and_no_errors(registry: CollectorRegistry) -> None:
    assert b"active_websocket_connections 0.0" in generate_latest(registry)


@pytest.mark.django_db
def test_what_dead_servers_held_is_not_counted_as_live(registry: CollectorRegistry) -> None:
    leases.enter(Details(client_id="1", connected_at=timezone.now()), "server-1")
    ServerInstance.objects.update(lease_until=timezone.now())
    assert value(registry, "active_websocket_connections") == 0
    assert value(registry, "bus_servers") == 0
    assert value(registry, "bus_layer_up", server="server-1") is None


@pytest.mark.django_db
def test_lag_running_jobs_and_volatility_are_read_from_the_site(
    registry: CollectorRegistry, settings: Any
) -> None:
    for number in range(9):
        publish("lab:1", "output", number)
    acks.ack("a", "lab:1", 9)
    acks.ack("b", "lab:1", 2)
    assert value(registry, "bus_cursor_lag_events") == 7
    runs.take("task:1")
    runs.take("task:2")
    RunningTask.objects.filter(topic="task:2").update(lease_until=timezone.now())
    assert value(registry, "bus_running_tasks", lease="held") == 1
    assert value(registry, "bus_running_tasks", lease="over") == 1
    assert value(registry, "bus_volatile") == 0
    settings.BUS = {**settings.BUS, "VOLATILE": True}
    assert value(registry, "bus_volatile") == 1


def test_a_server_exports_what_it_counts(site: Site) -> None:
    import httpx

    def figures() -> dict[str, float]:
        text = httpx.get(f"{site.web[0].url}/metrics", timeout=60).text
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(number) for name, number in lines}

    with RawClient(site.web[0].socket) as client:
        client.call("connect", token=site.token("m", "publish"), data={"agent_id": "m"})
        client.call("subscribe", channel="figures:1")
        for number in range(3):
            client.call("publish", channel="figures:1", data=number)
        found = figures()
        assert found["active_websocket_connections"] == 1
        assert found['bus_events_published_total{area="figures"}'] == 3
        assert found['bus_connections_total{transport="centrifugo"}'] == 1
        assert found["bus_ack_latency_seconds_count"] == 3
        wait_until(lambda: figures()['bus_deliveries_total{outcome="sent"}'] >= 3, what="the deliveries")
    wait_until(
        lambda: figures()['bus_disconnections_total{code="1000"}'] == 1, what="the end of the connection"
    )
