"""Figures within one process: durable publishing, and replay, on the configured database.

Events go to a topic of their own, `bench:…`, which is removed afterwards. The baseline is what the database
does with the same rows, inserted in the same way, when nothing is around it; it alternates with ours so that
both meet the same disk.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

from django.db import connection, transaction
from django.utils import timezone

from bus import publishing
from bus.bench.report import Budget, Figure
from bus.fanout.feeds import Form, encode
from bus.layer import LiveEvent
from bus.log import NewEvent
from bus.log.current import event_log
from bus.log.dialect import dialect_of
from bus.models import Event, Topic
from bus.protocol import frames
from bus.protocol.positions import Position

IN_FLIGHT = 256
#: Alternations of a baseline with ours.
ROUNDS = 5
REPLAYED = 10_000
_PAGE = 1_000
_DATA = {
    "status": "running",
    "step": "embed",
    "done": 17,
    "total": 200,
    "unit": "chunks",
    "message": "x" * 40,
}


@contextmanager
def bench_topic(area: str = "bench") -> Iterator[str]:
    """Give a topic that is removed when the block ends."""
    topic = f"{area}:{secrets.token_hex(6)}"
    try:
        yield topic
    finally:
        event_log().remove(topic)


def _measured(work: Callable[[], int]) -> tuple[float, float]:
    """Return events per second and CPU microseconds per event."""
    cpu, started = time.process_time(), time.perf_counter()
    events = work()
    took, used = time.perf_counter() - started, time.process_time() - cpu
    return events / took, 1e6 * used / events


def _medians(pairs: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "events/s": median(rate for rate, _ in pairs),
        "CPU us an event": median(cpu for _, cpu in pairs),
    }


def _publish_budget() -> Budget:
    return Budget("events/s", 60_000 if connection.vendor == "postgresql" else 100_000)


def publish(seconds: float) -> Figure:
    """Measure durable publishing with many in flight, beside the bare database."""
    figure = Figure(
        name="publish",
        title=f"Durable publish in process, {IN_FLIGHT} in flight, {connection.vendor}",
        compared="events/s",
        more_is_better=True,
        base="bare database",
    )
    each = seconds / ROUNDS
    with bench_topic() as topic:
        ways: dict[str, Callable[[], int]] = {
            "bare database": lambda: _bare(topic, each),
            "log writer": lambda: asyncio.run(_in_flight(_writer(topic), each)),
            "apublish": lambda: asyncio.run(_in_flight(_apublish(topic), each)),
        }
        for work in ways.values():
            work()  # the first time is for caches and connections
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, work in ways.items():
                found[name].append(_measured(work))
        for name, pairs in found.items():
            figure.add(name, _medians(pairs), *([_publish_budget()] if name == "apublish" else []))
    publishing.stop_writer()
    return figure


def _bare(topic: str, seconds: float) -> int:
    """Insert the same rows in transactions of as many, the way the log does; return how many."""
    state = event_log().open(topic)
    row_id = Topic.objects.values_list("pk", flat=True).get(name=topic)
    dialect, now, event = dialect_of(connection), timezone.now(), _progress(topic)
    offset, until = state.last_offset, time.perf_counter() + seconds
    while offset == state.last_offset or time.perf_counter() < until:
        rows = [(row_id, offset + number, event) for number in range(1, IN_FLIGHT + 1)]
        offset += IN_FLIGHT
        with transaction.atomic():
            with connection.cursor() as cursor:
                dialect.insert(cursor, rows, now)
            Topic.objects.filter(pk=row_id).update(last_offset=offset)
    return offset - state.last_offset


def _progress(topic: str) -> NewEvent:
    return NewEvent(
        topic=topic,
        event_type="task.progress",
        payload=publishing.encode_event("task.progress", _DATA),
        tags=b'{"id":"0123456789abcdef"}',
        publisher="server",
    )


def _writer(topic: str) -> Callable[[], Awaitable[object]]:
    event = _progress(topic)
    return lambda: publishing.writer().asubmit(event)


def _apublish(topic: str) -> Callable[[], Awaitable[object]]:
    return lambda: publishing.apublish(topic, "task.progress", _DATA)


async def _in_flight(publish_one: Callable[[], Awaitable[object]], seconds: float) -> int:
    """Publish from as many tasks as may be in flight, each its next when the last is committed."""
    until = time.perf_counter() + seconds

    async def publisher() -> int:
        done = 0
        while not done or time.perf_counter() < until:
            await publish_one()
            done += 1
        return done

    return sum(await asyncio.gather(*(publisher() for _ in range(IN_FLIGHT))))


def replay(seconds: float) -> Figure:
    """Measure reading a topic from its beginning into frames, beside one ORM row a frame."""
    figure = Figure(
        name="replay",
        title=f"Replay of {REPLAYED:,} events into frames, {connection.vendor}",
        compared="events/s",
        more_is_better=True,
        base="one ORM row a frame",
    )
    each = seconds / ROUNDS / 2
    with bench_topic() as topic:
        for start in range(0, REPLAYED, _PAGE):
            event_log().append([_progress(topic)] * min(_PAGE, REPLAYED - start))
        ways = {"one ORM row a frame": _replay_by_row, "the log, page by page": _replay_by_page}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, work in ways.items():
                found[name].append(_measured(partial(_repeat, work, topic, each)))
    for name, pairs in found.items():
        is_ours = name == "the log, page by page"
        figure.add(name, _medians(pairs), *([Budget("events/s", 300_000)] if is_ours else []))
    return figure


def _repeat(work: Callable[[str], int], topic: str, seconds: float) -> int:
    done, until = 0, time.perf_counter() + seconds
    while not done or time.perf_counter() < until:
        done += work(topic)
    return done


def _replay_by_row(topic: str) -> int:
    count = 0
    for row in Event.objects.filter(topic__name=topic).order_by("offset").iterator():
        publication = frames.publication(row.offset, row.payload.encode(), row.tags.encode(), None)
        count += bool(frames.push_publication(topic, publication))
    return count


def _replay_by_page(topic: str) -> int:
    at = Position(epoch="", offset=0)
    while page := event_log().read(topic, at, limit=_PAGE).events:
        live = [LiveEvent(e.offset, e.event_type, e.payload, e.tags, e.info) for e in page]
        encode(Form.CENTRIFUGO, topic, page[0].epoch, live).wire  # noqa: B018  (it is made when asked for)
        at = Position(epoch=page[0].epoch, offset=page[-1].offset)
    return at.offset
