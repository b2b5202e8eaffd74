"""The write path: allow, encode, append, tell.

`publish` stores at once and is part of an open transaction; `apublish` hands the event to the group commit
of this process; both return when it is committed (inside `atomic()`: when it will be, with the
transaction). Those who registered with `on_committed` are told afterwards, never before: what they pass on
is a hint, the log is the truth. An event is encoded here once; the same bytes are stored and sent.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from typing import Any, TypeAlias, TypedDict, Unpack

import msgspec
from django.core.signals import setting_changed
from django.db import transaction
from django.utils import timezone

from bus import permissions
from bus.conf import TopicOptions, conf
from bus.log import Appended, NewEvent, StoredEvent, event_id
from bus.log.current import event_log
from bus.log.writer import LogWriter
from bus.permissions import SERVER, Identity
from bus.protocol.errors import BadRequest, LimitExceeded
from bus.protocol.frames import ClientInfo
from bus.protocol.limits import MAX_DEPTH, check_value

logger = logging.getLogger(__name__)

#: Told of events of one topic that were committed together: one epoch, consecutive offsets. An ephemeral
#: event comes alone, with offset 0. Must return soon and must not raise.
Listener: TypeAlias = Callable[[list[StoredEvent]], None]

#: How a task can end; the final event is `task.<status>`.
END_STATUSES = ("completed", "failed", "cancelled")

#: An event of this type begins a topic anew if that has ended: a task started again under its old id.
STARTED = "task.started"

#: An event and the rule of its topic.
Ruled: TypeAlias = tuple[NewEvent, TopicOptions]

_to_json = msgspec.json.Encoder().encode
_listeners: list[Listener] = []
#: Ids for events to come. Drawn by the block: a system call for each would hand the interpreter to another
#: thread in the middle of every publish.
_ids: list[str] = []
_IDS_AT_ONCE = 512


class _EventObject(msgspec.Struct):
    event_type: str
    timestamp: datetime | str
    run_id: str | None
    session_id: str | None
    data: Any


def on_committed(listener: Listener) -> None:
    """Have `listener` told of what this process commits. A second registration does nothing."""
    if listener not in _listeners:
        _listeners.append(listener)


def off_committed(listener: Listener) -> None:
    """Take back a registration, if there is one."""
    if listener in _listeners:
        _listeners.remove(listener)


class Options(TypedDict, total=False):
    """What may be said of an event besides its type, data and key."""

    #: The run that it belongs to.
    run_id: str | None
    #: The session that it belongs to.
    session_id: str | None
    #: Strings beside the event. `key` among them names what a later event replaces in a full send queue of a
    #: `latest` topic; an `id` is added.
    tags: Mapping[str, str] | None
    #: Who publishes; checked against the rule of the topic. Our own code if absent.
    by: Identity
    #: Who publishes, as subscribers are told.
    info: ClientInfo | None


def publish(
    topic: str, event_type: str, data: Any = None, key: str | None = None, **options: Unpack[Options]
) -> Appended:
    """Publish an event and return its place in the log.

    Inside `transaction.atomic()` the event is committed with the transaction or not at all, and others hear
    of it after the commit. Not to be called from a coroutine: see `apublish`.

    Args:
        topic: `area:id`.
        event_type: such as `task.progress`; `task.started` begins an ended topic anew.
        data: anything that JSON can hold; dates, UUIDs, enums and dataclasses are written as msgspec does.
        key: idempotency key: a second event of the topic with it is not stored; it has the first one's place.
        options: see `Options`.

    Raises:
        BadRequest: a name or value that cannot be.
        LimitExceeded: the event is too large.
        UnknownTopic: there is no rule for the topic.
        PermissionDenied: `by` may not publish there.
        TopicEnded: the topic has had its final event.
        LogUnavailable: nothing was stored; the call may be repeated.
    """
    return _store(*_event(topic, event_type, data, key, options))


async def apublish(
    topic: str, event_type: str, data: Any = None, key: str | None = None, **options: Unpack[Options]
) -> Appended:
    """Like `publish`, from a coroutine: the event is committed together with others of this process.

    Raises, besides what `publish` does:
        TooManyRequests: too many events wait for the log.
    """
    return await _astore(*_event(topic, event_type, data, key, options))


async def apublish_verbatim(
    topic: str, data: Any, key: str | None = None, **options: Unpack[Options]
) -> Appended:
    """Publish any JSON value as the whole payload, as the `publish` command of stock SDKs means it.

    Its `event_type` is taken as the event's if it has one. `run_id` and `session_id` say nothing here. Raises
    what `apublish` does.
    """
    event_type = data.get("event_type") if isinstance(data, dict) else None
    payload = _encode(_plain(data))
    return await _astore(
        *_new_event(topic, event_type if isinstance(event_type, str) else "", payload, key, options)
    )


def publish_on_commit(
    topic: str, event_type: str, data: Any = None, key: str | None = None, **options: Unpack[Options]
) -> None:
    """Publish once the open transaction is committed, outside of it; without one, at once.

    A crash right after the commit may lose such an event; `publish` inside the transaction loses none. The
    event is encoded now: what is wrong with it raises here.
    """
    transaction.on_commit(partial(_store, *_event(topic, event_type, data, key, options)))


def end(
    topic: str,
    status: str = "completed",
    data: Any = None,
    key: str | None = None,
    **options: Unpack[Options],
) -> Appended:
    """Publish the final event of a topic, `task.<status>`, and end it.

    Raises, besides what `publish` does:
        BadRequest: the status is not one of `END_STATUSES`.
    """
    return _store(*_final(topic, status, data, key, options))


async def aend(
    topic: str,
    status: str = "completed",
    data: Any = None,
    key: str | None = None,
    **options: Unpack[Options],
) -> Appended:
    """Like `end`, from a coroutine."""
    return await _astore(*_final(topic, status, data, key, options))


def _final(topic: str, status: str, data: Any, key: str | None, options: Options) -> Ruled:
    if status not in END_STATUSES:
        raise BadRequest(f"a topic ends as {', '.join(END_STATUSES)}, not {status!r}")
    tagged: Options = {**options, "tags": {**(options.get("tags") or {}), "end": status}}
    said = {"status": status} if data is None else data
    return _event(topic, f"task.{status}", said, key, tagged, end_status=status)


def _event(
    topic: str,
    event_type: str,
    data: Any,
    key: str | None,
    options: Options,
    *,
    end_status: str | None = None,
) -> Ruled:
    payload = encode_event(
        event_type, data, run_id=options.get("run_id"), session_id=options.get("session_id")
    )
    return _new_event(topic, event_type, payload, key, options, end_status=end_status)


def encode_event(
    event_type: str,
    data: Any,
    *,
    run_id: str | None = None,
    session_id: str | None = None,
    now: datetime | None = None,
) -> bytes:
    """Return the event object as it is stored and sent.

    Raises:
        BadRequest: JSON, or one of the databases, cannot hold it.
        LimitExceeded: it is too large.
    """
    if not event_type:
        raise BadRequest("an event has a type")
    try:
        # All at once, for it is nearly always right; else one after the other, to say what is wrong.
        check_value((event_type, run_id, session_id, data), MAX_DEPTH + 1)
    except BadRequest:
        check_value((event_type, run_id, session_id))
        data = _plain(data)
    moment = datetime.now(UTC) if now is None else now.astimezone(UTC)
    # msgspec writes a time in a tenth of the time, but without a fraction where that is zero.
    timestamp = moment if moment.microsecond else f"{moment:%Y-%m-%dT%H:%M:%S}.000000Z"
    return _encode(_EventObject(event_type, timestamp, run_id, session_id, data))


def _plain(data: Any) -> Any:
    """Return `data` in JSON's own types, checked."""
    try:
        check_value(data)
    except BadRequest as refusal:
        try:
            data = msgspec.to_builtins(data)
        except (TypeError, ValueError, RecursionError):
            raise refusal from None
        check_value(data)
    return data


def _encode(value: Any) -> bytes:
    payload = _to_json(value)
    if len(payload) > conf().max_message_bytes:
        raise LimitExceeded(f"an event has at most {conf().max_message_bytes} bytes")
    return payload


def _new_event(
    topic: str,
    event_type: str,
    payload: bytes,
    key: str | None,
    options: Options,
    *,
    end_status: str | None = None,
) -> Ruled:
    by = options.get("by", SERVER)
    rule = permissions.check(by, "publish", topic)
    info = options.get("info")
    event = NewEvent(
        topic=topic,
        event_type=event_type,
        payload=payload,
        tags=_encode_tags(options.get("tags")),
        info=None if info is None else _to_json(info),
        key=key,
        publisher=by.name,
        end_status=end_status,
        restarts=event_type == STARTED,
    )
    return event, rule


def _encode_tags(tags: Mapping[str, str] | None) -> bytes:
    if not tags:
        return b'{"id":"%b"}' % _new_id().encode()
    if not all(isinstance(text, str) for pair in tags.items() for text in pair):
        raise BadRequest("tags are strings")
    tagged = {"id": _new_id(), **tags}
    check_value(tagged)
    return _to_json(tagged)


def _new_id() -> str:
    """Draw the id of an event: 64 random bits."""
    try:
        return _ids.pop()
    except IndexError:
        block = secrets.token_hex(8 * _IDS_AT_ONCE)
        _ids.extend([block[start : start + 16] for start in range(16, len(block), 16)])
        return block[:16]


def _store(event: NewEvent, rule: TopicOptions) -> Appended:
    if rule.delivery == "ephemeral":
        return _pass_on(event)
    (place,) = event_log().append([event])
    if not place.duplicate:
        transaction.on_commit(partial(_tell, [StoredEvent.of(event, place)]))
    return place


async def _astore(event: NewEvent, rule: TopicOptions) -> Appended:
    if rule.delivery == "ephemeral":
        return _pass_on(event)
    return await writer().asubmit(event)


def _pass_on(event: NewEvent) -> Appended:
    """Tell of an event that is not logged: it has no place, and who is not there has missed it."""
    place = Appended(
        topic=event.topic, epoch="", offset=0, event_id=event_id(event.tags), created_at=timezone.now()
    )
    _tell([StoredEvent.of(event, place)])
    return place


def _tell(stored: list[StoredEvent]) -> None:
    """Tell the listeners, one life of one topic at a time."""
    lives: dict[tuple[str, str], list[StoredEvent]] = {}
    for event in stored:
        lives.setdefault((event.topic, event.epoch), []).append(event)
    for together in lives.values():
        for listener in list(_listeners):
            try:
                listener(together)
            except Exception:
                # The event is committed, and the tick of every process will find it.
                logger.exception("a listener failed on %s", together[0].topic)


_writer: LogWriter | None = None
_writer_lock = Lock()


def writer() -> LogWriter:
    """Return the running log writer of this process."""
    global _writer
    running = _writer
    if running is not None:
        return running
    with _writer_lock:
        if _writer is None:
            options = conf()
            _writer = LogWriter(
                event_log(), on_committed=_tell, batch=options.writer_batch, queue=options.writer_queue
            )
            _writer.start()
        return _writer


def stop_writer() -> None:
    """Commit what is owed and stop the log writer, for a clean end. The next `apublish` starts another."""
    global _writer
    with _writer_lock:
        former, _writer = _writer, None
    if former is not None:
        former.stop()


def _after_fork() -> None:
    """Forget the writer in a forked child, for its thread lives in the parent alone, and the parent's ids."""
    global _writer, _writer_lock
    _writer, _writer_lock = None, Lock()
    _ids.clear()


def _on_setting(*, setting: str, **_: Any) -> None:
    if setting == "BUS":
        stop_writer()


atexit.register(stop_writer)
os.register_at_fork(after_in_child=_after_fork)
setting_changed.connect(_on_setting)
