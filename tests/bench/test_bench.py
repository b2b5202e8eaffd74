"""The benchmark itself: that it measures what it says, leaves nothing behind, and never fails by time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from bus.bench.figures import FIGURES
from bus.bench.load import Client, Load, Spec, frame
from bus.bench.report import Budget, Figure
from bus.bench.serve import raised
from bus.bench.tongues import MARK, tongue
from bus.conf import BusSettings
from tests.harness import Site

PLAIN = {"path": "/"}


class Wire:
    """What a client has written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


def client_of(kind: str, options: dict, counted, load: Load, *, reads: bool = True) -> Client:
    return Client(tongue(kind, options), reads=reads, counted=counted, failed=load.fail)


def connected(client: Client) -> Wire:
    """Greet a client of the plain protocol as its server does."""
    wire = Wire()
    client.connection_made(wire)
    client.data_received(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    client.data_received(b"\x81\x07wel")
    assert not client.ready.done()
    client.data_received(b"come")
    assert client.ready.done()
    return wire


async def test_a_mark_that_is_cut_in_two_is_counted_once():
    counted: list[int] = []
    load = Load(Spec(port=0, kind="plain", options=PLAIN))
    client = client_of("plain", PLAIN, lambda _, count: counted.append(count), load)
    connected(client)
    stream = (b"." + MARK) * 5
    for start in range(0, len(stream), 3):
        client.data_received(stream[start : start + 3])
    assert sum(counted) == 5


async def test_a_publish_that_is_refused_ends_the_run_with_an_error():
    options = {"topic": "bench:1", "token": "t"}
    load = Load(Spec(port=0, kind="bus", options=options, publishers=1, seconds=60))
    publisher = client_of("bus", options, load._answered, load, reads=False)
    load.publishers = [publisher]
    publisher.connection_made(Wire())
    publisher.data_received(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    publisher.data_received(b'{"id":1,"connect":{}}')
    running = asyncio.create_task(load.run())
    await asyncio.sleep(0)
    publisher.data_received(b'{"id":11,"error":{"code":103,"message":"permission denied"}}')
    with pytest.raises(ConnectionError, match="permission denied"):
        await running


async def test_a_server_that_hangs_up_ends_the_run_with_an_error():
    load = Load(Spec(port=0, kind="plain", options=PLAIN))
    reader = client_of("plain", PLAIN, load._delivered, load)
    connected(reader)
    reader.connection_lost(None)
    with pytest.raises(ConnectionError, match="closed"):
        await load.over


async def test_a_server_that_is_no_websocket_is_reported():
    load = Load(Spec(port=0, kind="plain", options=PLAIN))
    client = client_of("plain", PLAIN, load._delivered, load)
    client.connection_made(Wire())
    client.data_received(b"HTTP/1.1 404 Not Found\r\n\r\n")
    with pytest.raises(ConnectionError, match="404"):
        await client.ready


async def test_in_lockstep_the_next_publish_waits_for_every_reader():
    load = Load(Spec(port=0, kind="plain", options=PLAIN, lockstep=True, seconds=60))
    load.readers = [client_of("plain", PLAIN, load._delivered, load) for _ in range(2)]
    publisher = client_of("plain", PLAIN, load._answered, load, reads=False)
    load.publishers = [publisher]
    for client in (*load.readers, publisher):
        connected(client)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(0)
    load.readers[0].data_received(MARK)
    publisher.data_received(b"acknowledged")
    assert publisher.sent == 1
    load.readers[1].data_received(MARK)
    assert (publisher.sent, len(load.latencies)) == (2, 1)
    running.cancel()


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_a_frame_says_how_long_it_is(size):
    head = frame(b"x" * size, binary=False)[: -size or None]
    assert head[0] == 0x81
    short = head[1] & 0x7F
    assert head[-4:] == bytes(4)
    assert {126: int.from_bytes(head[2:4]), 127: int.from_bytes(head[2:10])}.get(short, short) == size


def test_a_ratio_of_two_is_twice_as_good_whichever_way_is_better():
    rates = Figure(name="f", title="t", compared="rate", more_is_better=True, base="b")
    costs = Figure(name="f", title="t", compared="cost", base="b")
    for figure, column in ((rates, "rate"), (costs, "cost")):
        figure.add("b", {column: 10.0})
        figure.absent("c", "not installed")
    rates.add("a", {"rate": 20.0})
    costs.add("a", {"cost": 5.0})
    for figure in (rates, costs):
        assert [figure.ratio(row) for row in figure.rows] == [1.0, None, 2.0]


def test_a_budget_is_met_or_says_what_it_wants():
    figure = Figure(name="f", title="t", compared="rate")
    least, most = Budget("rate", 100_000), Budget("p99 ms", 20, at_most=True)
    for values in ({"rate": 100_000, "p99 ms": 20}, {"rate": 99_999, "p99 ms": 2}, {"rate": 1, "p99 ms": 21}):
        figure.add("bus", values, least, most)
    figure.add("alone", {"rate": 1.0}, least)
    figure.add("peer", {"rate": 1.0})
    figure.absent("gone", "not installed")
    assert [row.verdict for row in figure.rows] == [
        "rate met; p99 ms met",
        "rate not met: at least 100,000; p99 ms met",
        "rate not met: at least 100,000; p99 ms not met: at most 20.00",
        "not met: at least 100,000",
        "",
        "",
    ]
    assert "not met" in figure.as_json()["rows"][1]["verdict"]


async def test_a_load_with_a_rate_publishes_on_whatever_the_answers():
    load = Load(Spec(port=0, kind="plain", options=PLAIN, publishers=1, seconds=0.2, rate=500))
    reader = client_of("plain", PLAIN, load._delivered, load)
    publisher = client_of("plain", PLAIN, load._answered, load, reads=False)
    load.readers, load.publishers = [reader], [publisher]
    for client in (reader, publisher):
        connected(client)
    running = asyncio.create_task(load.run())
    while not publisher.sent:
        await asyncio.sleep(0)
    reader.data_received(MARK)
    while time.perf_counter() < load.until + 0.05 or publisher.sent < 2:
        await asyncio.sleep(0.01)
    assert publisher.sent <= 100
    left = publisher.sent - 1
    reader.data_received(MARK * left)
    assert not running.done()
    publisher.data_received(b"acknowledged" * publisher.sent)
    found = await running
    assert found["published"] == found["delivered"] == left + 1
    assert found["p99_ms"] > found["p50_ms"] / 2 > 0


def test_a_figure_that_does_not_exist_is_refused():
    with pytest.raises(CommandError, match="publish, replay") as refused:
        call_command("bus", "bench", "velocity", stdout=StringIO())
    assert refused.value.returncode == 2


def test_every_figure_is_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    assert [name for name in FIGURES if f"`{name}`" not in text] == []


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site(web=0).start()
    yield made
    made.stop()


@pytest.mark.e2e
def test_a_run_measures_real_servers_and_leaves_the_log_as_it_was(site, tmp_path):
    file = tmp_path / "bench.json"
    figures = ("publish", "replay", "joined")
    printed = site.manage(
        "bus", "bench", *figures, "--seconds", "0.3", "--json", str(file), "--node-modules", str(tmp_path)
    )
    said = json.loads(file.read_text())
    assert [figure["name"] for figure in said["figures"]] == list(figures)
    values = {row["what"]: row["values"] for figure in said["figures"] for row in figure["rows"]}
    for what in ("bare database", "log writer", "apublish", "the log, page by page", "bus, stored"):
        assert values[what], printed
        assert min(values[what].values()) > 0
    assert site.sql("SELECT name FROM bus_topic WHERE name LIKE %s", "bench%") == []
    assert site.sql("SELECT count(*) FROM bus_event") == [(0,)]


def test_a_server_of_the_benchmark_keeps_every_setting_but_the_limits(settings):
    site = {"BUS": settings.BUS, "CHANNEL_LAYERS": settings.CHANNEL_LAYERS, "DATABASES": settings.DATABASES}
    found = raised(site, secret="s", has_layer=True)
    assert (found["CHANNEL_LAYERS"], found["DATABASES"]) == (site["CHANNEL_LAYERS"], site["DATABASES"])
    changed = {name for name, value in found["BUS"].items() if site["BUS"].get(name) != value}
    assert changed == {
        "MAX_CONNECTIONS",
        "MAX_CONNECTIONS_PER_USER",
        "CONNECT_RATE",
        "CONNECT_BURST",
        "COMMAND_RATE",
        "COMMAND_BURST",
        "PUBLISH_RATE",
        "PUBLISH_BURST",
        "TOKEN_SECRET",
        "TOPICS",
    }
    BusSettings(**{name.lower(): value for name, value in found["BUS"].items()})
