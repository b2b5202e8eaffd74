"""Cursors: how far each consumer has acknowledged each topic.

An ack is cumulative: everything up to and with its offset is done. It is idempotent and never moves a
cursor back; one for a former life of the topic (another epoch) is ignored, one beyond the top is refused.
`aack` collects the acks of many sockets into one statement. A consumer's lag is the top of the topic less
its cursor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from django.db import connection, transaction
from django.utils import timezone

from bus.conf import conf
from bus.log.dialect import dialect_of
from bus.log.threads import in_thread
from bus.models import Cursor, Topic
from bus.protocol.errors import BadRequest, BusError, NotAvailable, UnknownTopic, UnrecoverablePosition
from bus.protocol.positions import Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """A consumer says that it has done everything up to `offset`."""

    consumer: str
    topic: str
    offset: int
    #: The epoch in which the offset counts; empty: whichever the topic has now.
    epoch: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorState:
    """Where a consumer stands."""

    consumer: str
    topic: str
    epoch: str
    #: The last acknowledged offset; 0 before the first.
    offset: int
    #: Events after it.
    lag: int


# One statement for all. The condition keeps a cursor from moving back, whatever order acks arrive in.
_UPSERT = (
    'INSERT INTO bus_cursor (consumer, topic_id, "offset", acked_at) VALUES {values} '
    'ON CONFLICT (consumer, topic_id) DO UPDATE SET "offset" = excluded."offset", '
    'acked_at = excluded.acked_at WHERE excluded."offset" > bus_cursor."offset"'
)


def ack(consumer: str, topic: str, offset: int, *, epoch: str = "") -> CursorState:
    """Move the cursor of `consumer` to `offset`, unless it is further already; return where it stands.

    Raises:
        UnknownTopic: there is no such topic.
        UnrecoverablePosition: `epoch` is not the topic's any more.
        BadRequest: the offset is beyond the top, or negative.
        NotAvailable: the log is volatile and keeps no cursors.
    """
    (result,) = ack_all([Ack(consumer=consumer, topic=topic, offset=offset, epoch=epoch)])
    if isinstance(result, BusError):
        raise result
    return result


def ack_all(acks: Sequence[Ack]) -> list[CursorState | BusError]:
    """Move many cursors in one statement; return for each where it stands, or why it was refused."""
    _require_cursors()
    with transaction.atomic():
        topics = {row.name: row for row in Topic.objects.filter(name__in={ack.topic for ack in acks})}
        verdicts = [_verdict(ack, topics.get(ack.topic)) for ack in acks]
        sound = [ack for ack, refusal in zip(acks, verdicts, strict=True) if refusal is None]
        _store(sound, topics)
        offsets = _offsets(sound, topics)
    return [
        refusal or _state(ack.consumer, topics[ack.topic], offsets[ack.consumer, ack.topic])
        for ack, refusal in zip(acks, verdicts, strict=True)
    ]


def _verdict(ack: Ack, topic: Topic | None) -> BusError | None:
    if topic is None:
        return UnknownTopic()
    if ack.epoch not in ("", topic.epoch):
        return UnrecoverablePosition("the topic began anew")
    if not 0 <= ack.offset <= topic.last_offset:
        return BadRequest(f"the offset must lie between 0 and {topic.last_offset}")
    if not 0 < len(ack.consumer) <= 200:
        return BadRequest("the name of a consumer has 1 to 200 characters")
    return None


def _store(acks: Iterable[Ack], topics: dict[str, Topic]) -> None:
    furthest: dict[tuple[str, int], int] = {}
    for item in acks:
        place = (item.consumer, topics[item.topic].pk)
        furthest[place] = max(item.offset, furthest.get(place, 0))
    if not furthest:
        return
    moment = dialect_of(connection).to_column(timezone.now())
    # In order, so that two processes never wait for each other's rows.
    rows = [(*place, offset, moment) for place, offset in sorted(furthest.items())]
    values = ", ".join(["(%s, %s, %s, %s)"] * len(rows))
    with connection.cursor() as cursor:
        cursor.execute(_UPSERT.format(values=values), [value for row in rows for value in row])


def _offsets(acks: Iterable[Ack], topics: dict[str, Topic]) -> dict[tuple[str, str], int]:
    names = {topic.pk: name for name, topic in topics.items()}
    found = Cursor.objects.filter(
        consumer__in={ack.consumer for ack in acks}, topic_id__in=names
    ).values_list("consumer", "topic_id", "offset")
    return {(consumer, names[topic_id]): offset for consumer, topic_id, offset in found}


def cursor_of(consumer: str, topic: str) -> CursorState | None:
    """Return where a consumer stands, or None if there is no such topic. Without an ack it stands at 0."""
    _require_cursors()
    row = Topic.objects.filter(name=topic).first()
    if row is None:
        return None
    found = Cursor.objects.filter(consumer=consumer, topic=row).first()
    return _state(consumer, row, found.offset if found else 0)


def position(consumer: str, topic: str) -> Position | None:
    """Return the position from which a consumer goes on reading, or None if there is no such topic.

    It never lies before what was trimmed: events that are gone were not acknowledged, but cannot be had.
    """
    _require_cursors()
    row = Topic.objects.filter(name=topic).first()
    if row is None:
        return None
    found = Cursor.objects.filter(consumer=consumer, topic=row).first()
    return Position(epoch=row.epoch, offset=max(found.offset if found else 0, row.first_offset - 1))


def cursors(topic: str) -> list[CursorState]:
    """Return all cursors of a topic, the furthest behind first."""
    _require_cursors()
    found = Cursor.objects.filter(topic__name=topic).select_related("topic").order_by("offset", "consumer")
    return [_state(cursor.consumer, cursor.topic, cursor.offset) for cursor in found]


def _state(consumer: str, topic: Topic, offset: int) -> CursorState:
    return CursorState(
        consumer=consumer,
        topic=topic.name,
        epoch=topic.epoch,
        offset=offset,
        lag=topic.last_offset - offset,
    )


def _require_cursors() -> None:
    if conf().volatile:
        raise NotAvailable("a volatile log keeps no cursors")


class _Collector:
    """The acks of one event loop: while one statement runs, the next ones gather."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Ack, asyncio.Future[CursorState]]] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, item: Ack) -> asyncio.Future[CursorState]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[CursorState] = loop.create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = loop.create_task(self._flush())
        return future

    async def _flush(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting, []
                for (_, future), result in zip(taken, await _ack_all(taken), strict=True):
                    _resolve(future, result)
        finally:
            self._task = None


async def _ack_all(
    taken: list[tuple[Ack, asyncio.Future[CursorState]]],
) -> list[CursorState | BusError | Exception]:
    try:
        return [*await in_thread(ack_all, [item for item, _ in taken])]
    except Exception as error:  # noqa: BLE001  each who waits is told; the collector goes on
        return [error] * len(taken)


def _resolve(future: asyncio.Future[CursorState], result: CursorState | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


_collectors: WeakKeyDictionary[asyncio.AbstractEventLoop, _Collector] = WeakKeyDictionary()


async def aack(consumer: str, topic: str, offset: int, *, epoch: str = "") -> CursorState:
    """Like `ack`, together with what other coroutines acknowledge at the same time."""
    loop = asyncio.get_running_loop()
    collector = _collectors.setdefault(loop, _Collector())
    return await collector.add(Ack(consumer=consumer, topic=topic, offset=offset, epoch=epoch))
