"""The event log in SQL: SQLite or PostgreSQL, with raw statements over Django's connection.

The row of a topic is the lock of the topic: it is taken before offsets are given and held until the commit,
so commit order is offset order and a reader never sees 3 before 2. (A sequence gives no such promise.) A
batch over several topics locks them in the order of their ids. Where `transaction.atomic()` is open,
`append` is part of it: events and business data are committed together or not at all, and until then nobody
else sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError, InterfaceError, connections, transaction
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from bus.faults import fault
from bus.log import Appended, NewEvent, Page, StoredEvent, TopicState, event_id, refusals
from bus.log.batch import Batch, TopicRow, new_epoch
from bus.log.dialect import Dialect, dialect_of
from bus.protocol.errors import BusError, LogUnavailable
from bus.protocol.positions import Position
from bus.protocol.topics import check_topic

_SELECT_TOPICS = (
    "SELECT id, name, epoch, first_offset, last_offset, ended_at, end_status FROM bus_topic WHERE name IN "
)
_INSERT_TOPIC = (
    "INSERT INTO bus_topic (name, epoch, first_offset, last_offset, created_at, updated_at, end_status) "
    "VALUES (%s, %s, 1, 0, %s, %s, '') ON CONFLICT (name) DO NOTHING"
)
_UPDATE_TOPIC = (
    "UPDATE bus_topic SET epoch = %s, first_offset = %s, last_offset = %s, ended_at = %s, end_status = %s, "
    "updated_at = %s WHERE id = %s"
)
_SELECT_UNUSED = "SELECT id FROM bus_topic WHERE last_offset = 0 AND updated_at < %s ORDER BY id LIMIT %s"
#: Above every offset.
_TOP = 2**62
#: Names in one statement: SQLite allows 32,766 parameters.
_NAMES = 5_000


class DatabaseEventLog:
    """See `bus.log.EventLog`. Uses the calling thread's connection.

    Args:
        using: alias of the database.
        clock: gives the time, with a zone.
    """

    def __init__(self, using: str = "default", clock: Callable[[], datetime] = timezone.now) -> None:
        self._using = using
        self._clock = clock

    def append(self, events: Sequence[NewEvent]) -> list[Appended]:
        """Store all events, or raise and store none."""
        with self._transaction() as (cursor, dialect):
            places = []
            for result in self._append(cursor, dialect, events):
                if isinstance(result, BusError):
                    raise result
                places.append(result)
        fault("log.after_commit")
        return places

    def append_each(self, events: Sequence[NewEvent]) -> list[Appended | BusError]:
        """Store what can be stored."""
        with self._transaction() as (cursor, dialect):
            results = self._append(cursor, dialect, events)
        fault("log.after_commit")
        return results

    def _append(
        self, cursor: CursorWrapper, dialect: Dialect, events: Sequence[NewEvent]
    ) -> list[Appended | BusError]:
        verdicts = refusals(events)
        sound = [event for event, refusal in zip(events, verdicts, strict=True) if refusal is None]
        if not sound:
            return [refusal for refusal in verdicts if refusal is not None]
        now = self._clock()
        topics = _lock_topics(cursor, dialect, {event.topic for event in sound}, now)
        batch = Batch(topics, _known_keys(cursor, dialect, topics, sound), now)
        results = [refusal or batch.take(event) for event, refusal in zip(events, verdicts, strict=True)]
        _write(cursor, dialect, list(topics.values()), now)
        return results

    def read(self, topic: str, since: Position | None = None, *, limit: int, reverse: bool = False) -> Page:
        """Return events after `since`, or before it in reverse."""
        epoch = since.epoch if since else ""
        bound = since.offset if since else (_TOP if reverse else 0)
        with self._cursor() as (cursor, dialect):
            wanted: dict[str, str | int] = {
                "name": topic,
                "epoch": epoch,
                "bound": bound,
                "limit": max(limit, 1),
            }
            cursor.execute(dialect.read_back if reverse else dialect.read, wanted)
            rows = cursor.fetchall()
        if not rows:
            return Page(epoch="", first_offset=0, last_offset=0, events=[])
        events = [_stored(topic, row, dialect) for row in rows[: max(limit, 0)] if row[3] is not None]
        return Page(epoch=rows[0][0], first_offset=rows[0][1], last_offset=rows[0][2], events=events)

    def states(self, topics: Collection[str]) -> dict[str, TopicState]:
        """Return the state of those topics that exist."""
        if not topics:
            return {}
        wanted = list(topics)
        rows: list[TopicRow] = []
        with self._cursor() as (cursor, dialect):
            for start in range(0, len(wanted), _NAMES):
                rows += _select_topics(cursor, dialect, wanted[start : start + _NAMES])
        return {row.name: _state(row) for row in rows}

    def open(self, topic: str) -> TopicState:
        """Return the state of a topic, made if missing. Writes, and so locks, only then."""
        check_topic(topic)
        if found := self.states([topic]).get(topic):
            return found
        with self._transaction() as (cursor, dialect):
            row = _lock_topics(cursor, dialect, {topic}, self._clock())[topic]
        return _state(row)

    def names(self, after: str = "", *, limit: int = 1000) -> list[str]:
        """Return names of topics in order."""
        with self._cursor() as (cursor, _):
            cursor.execute(
                "SELECT name FROM bus_topic WHERE name > %s ORDER BY name LIMIT %s", [after, limit]
            )
            return [name for (name,) in cursor.fetchall()]

    def trim(
        self,
        topic: str,
        *,
        max_age: timedelta | None,
        max_events: int | None,
        up_to: Position | None = None,
        batch: int = 1000,
    ) -> int:
        """Forget old events, `batch` in a transaction."""
        trimmed = 0
        while went := self._trim_batch(topic, max_age, max_events, up_to, batch):
            trimmed += went
        return trimmed

    def _trim_batch(
        self,
        topic: str,
        max_age: timedelta | None,
        max_events: int | None,
        up_to: Position | None,
        batch: int,
    ) -> int:
        with self._transaction() as (cursor, dialect):
            rows = _select_topics(cursor, dialect, [topic], lock=True)
            if not rows:
                return 0
            row = rows[0]
            end = min(row.first_offset + batch, row.last_offset + 1)
            first = row.first_offset
            if max_age is not None:
                oldest = dialect.to_column(self._clock() - max_age)
                first = max(first, _first_since(cursor, row.id, end, oldest))
            if max_events is not None:
                first = max(first, min(end, row.last_offset - max_events + 1))
            if up_to is not None and up_to.is_in(row.epoch):
                first = max(first, min(end, up_to.offset + 1))
            if first > row.first_offset:
                cursor.execute('DELETE FROM bus_event WHERE topic_id = %s AND "offset" < %s', [row.id, first])
                fault("log.after_trim")
                cursor.execute("UPDATE bus_topic SET first_offset = %s WHERE id = %s", [first, row.id])
        return first - row.first_offset

    def renew(self, topics: Collection[str]) -> None:
        """Note that these topics are being read. Locks their rows in the order of their ids."""
        wanted = list(topics)
        for start in range(0, len(wanted), _NAMES):
            with self._transaction() as (cursor, dialect):
                moment = dialect.to_column(self._clock())
                rows = _select_topics(cursor, dialect, wanted[start : start + _NAMES], lock=True)
                unused = [(moment, row.id) for row in rows if not row.last_offset]
                cursor.executemany("UPDATE bus_topic SET updated_at = %s WHERE id = %s", unused)

    def forget_unused(self, idle: timedelta, *, batch: int = 1000) -> int:
        """Forget topics that nobody has written to, `batch` in a transaction."""
        forgotten = 0
        while went := self._forget_batch(idle, batch):
            forgotten += went
        return forgotten

    def _forget_batch(self, idle: timedelta, batch: int) -> int:
        with self._transaction() as (cursor, dialect):
            oldest = dialect.to_column(self._clock() - idle)
            cursor.execute(f"{_SELECT_UNUSED}{dialect.lock}", [oldest, batch])
            unused = cursor.fetchall()
            for (topic_id,) in unused:
                _delete_contents(cursor, topic_id)
                cursor.execute("DELETE FROM bus_topic WHERE id = %s", [topic_id])
        return len(unused)

    def remove(self, topic: str) -> bool:
        """Forget a topic, its events and cursors."""
        with self._transaction() as (cursor, dialect):
            rows = _select_topics(cursor, dialect, [topic], lock=True)
            for row in rows:
                _delete_contents(cursor, row.id)
                cursor.execute("DELETE FROM bus_topic WHERE id = %s", [row.id])
                fault("log.after_remove")
        return bool(rows)

    @contextmanager
    def _transaction(self) -> Iterator[tuple[CursorWrapper, Dialect]]:
        """Open a transaction (within an open one, a savepoint), and say in our words when it fails."""
        with _as_unavailable(), transaction.atomic(using=self._using), self._open() as opened:
            yield opened

    @contextmanager
    def _cursor(self) -> Iterator[tuple[CursorWrapper, Dialect]]:
        with _as_unavailable(), self._open() as opened:
            yield opened

    @contextmanager
    def _open(self) -> Iterator[tuple[CursorWrapper, Dialect]]:
        connection = connections[self._using]
        with connection.cursor() as cursor:
            yield cursor, dialect_of(connection)


@contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        raise LogUnavailable(f"the database failed: {type(error).__name__}") from error


def _state(row: TopicRow) -> TopicState:
    return TopicState(
        topic=row.name,
        epoch=row.epoch,
        first_offset=row.first_offset,
        last_offset=row.last_offset,
        ended_at=row.ended_at,
    )


def _select_topics(
    cursor: CursorWrapper, dialect: Dialect, names: Sequence[str], *, lock: bool = False
) -> list[TopicRow]:
    marks = ", ".join(["%s"] * len(names))
    cursor.execute(f"{_SELECT_TOPICS}({marks}) ORDER BY id{dialect.lock if lock else ''}", names)
    return [
        TopicRow(
            id=row[0],
            name=row[1],
            epoch=row[2],
            first_offset=row[3],
            last_offset=row[4],
            ended_at=None if row[5] is None else dialect.from_column(row[5]),
            end_status=row[6],
        )
        for row in cursor.fetchall()
    ]


def _lock_topics(
    cursor: CursorWrapper, dialect: Dialect, names: Collection[str], now: datetime
) -> dict[str, TopicRow]:
    """Return the topics, locked, made where they were missing.

    Missing ones are made before anything is locked, in the order of their names: so two batches never wait
    for each other.
    """
    found = {row.name: row for row in _select_topics(cursor, dialect, list(names))}
    missing = set(names).difference(found)
    if not missing and not dialect.lock:
        return found
    moment = dialect.to_column(now)
    if missing:
        cursor.executemany(_INSERT_TOPIC, [(name, new_epoch(), moment, moment) for name in sorted(missing)])
    topics = {row.name: row for row in _select_topics(cursor, dialect, list(names), lock=True)}
    if len(topics) != len(names):
        raise LogUnavailable("a topic was removed at the same moment")
    return topics


def _known_keys(
    cursor: CursorWrapper, dialect: Dialect, topics: dict[str, TopicRow], events: Sequence[NewEvent]
) -> dict[tuple[str, str], Appended]:
    """Return what is stored under the keys of these events."""
    wanted = [(topics[event.topic].id, event.key) for event in events if event.key is not None]
    if not wanted:
        return {}
    marks = ", ".join(["(%s, %s)"] * len(wanted))
    cursor.execute(
        'SELECT topic_id, "key", "offset", tags, created_at FROM bus_event '  # noqa: S608
        f'WHERE (topic_id, "key") IN (VALUES {marks}) AND "key" IS NOT NULL',  # so the partial index is used
        [value for pair in wanted for value in pair],
    )
    by_id = {topic.id: topic for topic in topics.values()}
    return {
        (by_id[topic_id].name, key): Appended(
            topic=by_id[topic_id].name,
            epoch=by_id[topic_id].epoch,
            offset=offset,
            event_id=event_id(tags.encode()),
            duplicate=True,
            created_at=dialect.from_column(created_at),
        )
        for topic_id, key, offset, tags, created_at in cursor.fetchall()
    }


def _write(cursor: CursorWrapper, dialect: Dialect, topics: list[TopicRow], now: datetime) -> None:
    moment = dialect.to_column(now)
    for topic in topics:
        if topic.restarted:
            _delete_contents(cursor, topic.id)
    rows = [(topic.id, offset, event) for topic in topics for offset, event in topic.rows]
    if not rows:
        return
    fault("log.before_insert")
    dialect.insert(cursor, rows, now)
    fault("log.after_insert")
    moved = [_topic_values(topic, dialect, moment) for topic in topics if topic.rows]
    if len(moved) == 1:
        # psycopg's `executemany` opens a pipeline, which takes as long as four statements.
        cursor.execute(_UPDATE_TOPIC, moved[0])
    else:
        cursor.executemany(_UPDATE_TOPIC, moved)
    fault("log.before_commit")


def _topic_values(topic: TopicRow, dialect: Dialect, moment: Any) -> tuple[Any, ...]:
    ended_at = None if topic.ended_at is None else dialect.to_column(topic.ended_at)
    places = (topic.epoch, topic.first_offset, topic.last_offset)
    return (*places, ended_at, topic.end_status, moment, topic.id)


def _delete_contents(cursor: CursorWrapper, topic_id: int) -> None:
    cursor.execute("DELETE FROM bus_cursor WHERE topic_id = %s", [topic_id])
    cursor.execute("DELETE FROM bus_event WHERE topic_id = %s", [topic_id])


def _first_since(cursor: CursorWrapper, topic_id: int, end: int, oldest: Any) -> int:
    """Return the first offset below `end` that is not older than `oldest`, or `end`."""
    cursor.execute(
        'SELECT MIN("offset") FROM bus_event WHERE topic_id = %s AND "offset" < %s AND created_at >= %s',
        [topic_id, end, oldest],
    )
    row = cursor.fetchone()
    return end if row is None or row[0] is None else int(row[0])


def _stored(topic: str, row: Sequence[Any], dialect: Dialect) -> StoredEvent:
    return StoredEvent(
        topic=topic,
        epoch=row[0],
        offset=row[3],
        event_type=row[4],
        payload=row[5].encode(),
        tags=row[6].encode() or None,
        info=row[7].encode() or None,
        key=row[8],
        publisher=row[9],
        created_at=dialect.from_column(row[10]),
    )
