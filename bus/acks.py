"""Cursors in rows: how far each consumer has acknowledged each topic.

An ack is cumulative: everything up to and with its offset is done. It is idempotent and never moves a
cursor back; one for a former life of the topic (another epoch) or beyond the top is refused. `aack` collects
the acks of many sockets into one statement. A consumer's lag is the top of the topic less its cursor. Where
the log is volatile so are its cursors: they are in `bus.cursors.MemoryCursors` then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from weakref import WeakKeyDictionary

from django.db import connection, transaction
from django.utils import timezone

from bus.conf import conf
from bus.cursors import MAX_OWN_CURSORS, Ack, CursorState, MemoryCursors, no_room, refusal_of
from bus.faults import fault
from bus.log.current import event_log
from bus.log.dialect import dialect_of
from bus.log.threads import in_thread
from bus.models import Cursor, Topic
from bus.protocol.errors import BusError, LogUnavailable, UnknownTopic
from bus.protocol.positions import Position

#: Times that an ack is judged anew because its topic begins anew under its hands.
TRIES = 10

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
    """
    (result,) = ack_all([Ack(consumer=consumer, topic=topic, offset=offset, epoch=epoch)])
    if isinstance(result, BusError):
        raise result
    return result


class _BegunAnew(Exception):
    """A topic began anew between the look at it and the move of a cursor."""


def ack_all(acks: Sequence[Ack]) -> list[CursorState | BusError]:
    """Move many cursors in one statement; return for each where it stands, or why it was refused."""
    if conf().volatile:
        return _memory().ack_all(acks)
    for _ in range(TRIES):
        try:
            return _ack_all(acks)
        except _BegunAnew:
            continue  # nothing was stored: judge again, by the topic as it is now
    raise LogUnavailable("the topic begins anew again and again")


def _ack_all(acks: Sequence[Ack]) -> list[CursorState | BusError]:
    with transaction.atomic():
        topics = {row.name: row for row in Topic.objects.filter(name__in={ack.topic for ack in acks})}
        verdicts = [refusal_of(ack, topics.get(ack.topic)) for ack in acks]
        known = _places(_sound(acks, verdicts), topics)
        _limit_own(acks, verdicts, topics, known)
        sound = _sound(acks, verdicts)
        _hold({ack.topic for ack in sound if (ack.consumer, ack.topic) not in known}, topics)
        _store(sound, topics)
        places = _places(sound, topics)
        if any((ack.consumer, ack.topic) not in places for ack in sound):
            raise _BegunAnew
        fault("acks.stored")
    fault("acks.committed")
    return [
        refusal or _state(ack.consumer, topics[ack.topic], *places[ack.consumer, ack.topic])
        for ack, refusal in zip(acks, verdicts, strict=True)
    ]


def _sound(acks: Sequence[Ack], verdicts: Sequence[BusError | None]) -> list[Ack]:
    return [ack for ack, refusal in zip(acks, verdicts, strict=True) if refusal is None]


def _limit_own(
    acks: Sequence[Ack],
    verdicts: list[BusError | None],
    topics: dict[str, Topic],
    known: Iterable[tuple[str, str]],
) -> None:
    """Refuse new cursors of owners that have as many in the topic as they may."""
    known = set(known)
    room: dict[tuple[str, str], int] = {}
    for number, ack in enumerate(acks):
        if not ack.owner or verdicts[number] is not None or (ack.consumer, ack.topic) in known:
            continue
        place = (ack.owner, ack.topic)
        if place not in room:
            held = Cursor.objects.filter(topic=topics[ack.topic], consumer__startswith=f"{ack.owner}/")
            room[place] = MAX_OWN_CURSORS - held.count()
        if room[place] <= 0:
            verdicts[number] = no_room()
        else:
            known.add((ack.consumer, ack.topic))
        room[place] -= 1


def _hold(names: Collection[str], topics: dict[str, Topic]) -> None:
    """Keep topics in their present life until the commit, for a cursor that is new.

    One that is there already is a row of its own to wait at. SQLite has one writer at a time anyway.
    """
    if not names or connection.vendor != "postgresql":
        return
    ids = sorted(topics[name].pk for name in names)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, epoch FROM bus_topic WHERE id = ANY(%s) ORDER BY id FOR KEY SHARE", [ids]
        )
        found = dict(cursor.fetchall())
    if any(found.get(name) != topics[name].epoch for name in names):
        raise _BegunAnew


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


def _places(
    acks: Iterable[Ack], topics: dict[str, Topic]
) -> dict[tuple[str, str], tuple[int, datetime | None]]:
    """Return where cursors stand. Raises `_BegunAnew` if one of the topics is not in the life it was in.

    After the move this look is what makes it safe: whoever begins a topic anew takes its cursors away, so
    either that waits for our rows, or we waited for it and see it here.
    """
    known = {topic.pk: topic for topic in topics.values()}
    found = Cursor.objects.filter(
        consumer__in={ack.consumer for ack in acks}, topic_id__in=known
    ).values_list("consumer", "topic_id", "topic__epoch", "offset", "acked_at")
    places: dict[tuple[str, str], tuple[int, datetime | None]] = {}
    for consumer, topic_id, epoch, offset, at in found:
        if epoch != known[topic_id].epoch:
            raise _BegunAnew
        places[consumer, known[topic_id].name] = (offset, at)
    return places


def place(consumer: str, topic: str, offset: int) -> CursorState:
    """Set a cursor, forward or back: not an ack, but the hand of an operator.

    Raises:
        UnknownTopic: there is no such topic.
        BadRequest: the offset is beyond the top, or negative, or no consumer has such a name.
    """
    wanted = Ack(consumer=consumer, topic=topic, offset=offset)
    if conf().volatile:
        return _memory().place(wanted)
    with transaction.atomic():
        # Locked, so that it does not begin anew meanwhile.
        row = Topic.objects.select_for_update().filter(name=topic).first()
        if row is None:
            raise UnknownTopic
        if refusal := refusal_of(wanted, row):
            raise refusal
        moved, _ = Cursor.objects.update_or_create(consumer=consumer, topic=row, defaults={"offset": offset})
    return _state(consumer, row, offset, moved.acked_at)


def forget(consumer: str, topic: str) -> int | None:
    """Forget a cursor; return where it stood, or None if there was none."""
    if conf().volatile:
        return _memory().forget(consumer, topic)
    with transaction.atomic():
        found = Cursor.objects.select_for_update(of=("self",)).filter(consumer=consumer, topic__name=topic)
        row = found.first()
        if row is None:
            return None
        row.delete()
    return row.offset


def cursor_of(consumer: str, topic: str) -> CursorState | None:
    """Return where a consumer stands, or None if there is no such topic. Without an ack it stands at 0."""
    if conf().volatile:
        return _memory().cursor_of(consumer, topic)
    row = Topic.objects.filter(name=topic).first()
    if row is None:
        return None
    found = Cursor.objects.filter(consumer=consumer, topic=row).first()
    return _state(consumer, row, *((found.offset, found.acked_at) if found else (0, None)))


def position(consumer: str, topic: str) -> Position | None:
    """Return the position from which a consumer goes on reading, or None if there is no such topic.

    It never lies before what was trimmed: events that are gone were not acknowledged, but cannot be had.
    """
    if conf().volatile:
        return _memory().position(consumer, topic)
    row = Topic.objects.filter(name=topic).first()
    if row is None:
        return None
    found = Cursor.objects.filter(consumer=consumer, topic=row).first()
    return Position(epoch=row.epoch, offset=max(found.offset if found else 0, row.first_offset - 1))


def cursors(topic: str, *, limit: int | None = None) -> list[CursorState]:
    """Return the cursors of a topic, the furthest behind first: all, or so many."""
    if conf().volatile:
        return _memory().cursors(topic)[:limit]
    found = Cursor.objects.filter(topic__name=topic).select_related("topic").order_by("offset", "consumer")
    return _states(found[:limit])


def _states(found: Iterable[Cursor]) -> list[CursorState]:
    return [_state(cursor.consumer, cursor.topic, cursor.offset, cursor.acked_at) for cursor in found]


def acknowledged_by(topic: str, offset: int, *, limit: int = 50) -> list[CursorState]:
    """Return those who have acknowledged the event at `offset`, who did so last first.

    An ack covers all before it, so `acked_at` is the latest moment at which it can have been.
    """
    if not conf().volatile:
        found = Cursor.objects.filter(topic__name=topic, offset__gte=offset).select_related("topic")
        return _states(found.order_by("-acked_at", "consumer")[:limit])
    passed = [cursor for cursor in _memory().cursors(topic) if cursor.offset >= offset]
    return sorted(passed, key=lambda cursor: (cursor.acked_at is not None, cursor.acked_at), reverse=True)[
        :limit
    ]


def offline_depths(agent_ids: Collection[str]) -> dict[str, int]:
    """Return how many events wait in the inboxes of these agents: kept, and not acknowledged.

    Without what was trimmed, for that does not come any more; so it may be less than the lag. Agents without
    an inbox have 0.
    """
    inboxes = {f"agent:{agent_id}": agent_id for agent_id in agent_ids}
    states = event_log().states(inboxes)
    done = _own_cursors(inboxes)
    depths = dict.fromkeys(agent_ids, 0)
    for topic, state in states.items():
        agent_id = inboxes[topic]
        depths[agent_id] = state.last_offset - max(done.get(topic, 0), state.first_offset - 1)
    return depths


def _own_cursors(inboxes: Mapping[str, str]) -> dict[str, int]:
    """Return for each inbox the offset that its own agent has acknowledged."""
    if conf().volatile:
        found = ((topic, _memory().cursor_of(agent_id, topic)) for topic, agent_id in inboxes.items())
        return {topic: cursor.offset for topic, cursor in found if cursor is not None}
    rows = Cursor.objects.filter(topic__name__in=inboxes, consumer__in=set(inboxes.values()))
    places = rows.values_list("topic__name", "consumer", "offset")
    return {topic: offset for topic, consumer, offset in places if inboxes[topic] == consumer}


_in_memory: MemoryCursors | None = None


def _memory() -> MemoryCursors:
    """Return the cursors of the present log in memory."""
    global _in_memory
    log = event_log()
    if _in_memory is None or _in_memory.log is not log:
        _in_memory = MemoryCursors(log, timezone.now)
    return _in_memory


def _state(consumer: str, topic: Topic, offset: int, acked_at: datetime | None) -> CursorState:
    return CursorState(
        consumer=consumer,
        topic=topic.name,
        epoch=topic.epoch,
        offset=offset,
        lag=topic.last_offset - offset,
        acked_at=acked_at,
    )


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
                for (_, future), result in zip(taken, await _ack_together(taken), strict=True):
                    _resolve(future, result)
        finally:
            self._task = None


async def _ack_together(
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


async def aack(consumer: str, topic: str, offset: int, *, epoch: str = "", owner: str = "") -> CursorState:
    """Like `ack`, together with what other coroutines acknowledge at the same time.

    Raises, besides what `ack` does:
        LimitExceeded: `owner`, whose name the consumer's begins with, has as many cursors there as it may.
    """
    loop = asyncio.get_running_loop()
    collector = _collectors.setdefault(loop, _Collector())
    return await collector.add(Ack(consumer=consumer, topic=topic, offset=offset, epoch=epoch, owner=owner))
