"""The write path: draft, append, tell.

`publish` stores at once and is part of an open transaction; `apublish` hands the event to the group commit
of this process; both return when it is committed (inside `atomic()`: when it will be, with the
transaction). Those who registered with `on_committed` are told afterwards, never before: what they pass on
is a hint, the log is the truth. What may be published, and how it is encoded, is decided in `bus.drafts`.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any, TypeAlias, Unpack

from django.core.signals import setting_changed
from django.db import transaction
from django.utils import timezone

from bus.conf import conf
from bus.drafts import END_STATUSES, STARTED, Draft, Options, draft, draft_end, draft_verbatim, encode_event
from bus.faults import fault
from bus.log import Appended, NewEvent, StoredEvent, event_id
from bus.log.current import event_log
from bus.log.writer import LogWriter
from bus.protocol.errors import BusError

__all__ = [
    "END_STATUSES",
    "STARTED",
    "Options",
    "aend",
    "apublish",
    "apublish_verbatim",
    "encode_event",
    "end",
    "off_committed",
    "on_committed",
    "publish",
    "publish_on_commit",
    "publish_together",
    "publish_verbatim",
    "stop_writer",
    "writer",
]

logger = logging.getLogger(__name__)

#: Told of events of one topic that were committed together: one epoch, consecutive offsets. An ephemeral
#: event comes alone, with offset 0. Must return soon and must not raise.
Listener: TypeAlias = Callable[[list[StoredEvent]], None]

_listeners: list[Listener] = []


def on_committed(listener: Listener) -> None:
    """Have `listener` told of what this process commits. A second registration does nothing."""
    if listener not in _listeners:
        _listeners.append(listener)


def off_committed(listener: Listener) -> None:
    """Take back a registration, if there is one."""
    if listener in _listeners:
        _listeners.remove(listener)


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
    return _store(draft(topic, event_type, data, key, options))


async def apublish(
    topic: str, event_type: str, data: Any = None, key: str | None = None, **options: Unpack[Options]
) -> Appended:
    """Like `publish`, from a coroutine: the event is committed together with others of this process.

    Raises, besides what `publish` does:
        TooManyRequests: too many events wait for the log.
    """
    return await _astore(draft(topic, event_type, data, key, options))


async def apublish_verbatim(
    topic: str, data: Any, key: str | None = None, **options: Unpack[Options]
) -> Appended:
    """Publish any JSON value as the whole payload, as the `publish` command of stock SDKs means it.

    Its `event_type` is taken as the event's if it has one. `run_id` and `session_id` say nothing here. Raises
    what `apublish` does.
    """
    return await _astore(draft_verbatim(topic, data, key, options))


def publish_verbatim(topic: str, data: Any, key: str | None = None, **options: Unpack[Options]) -> Appended:
    """Like `apublish_verbatim`, as `publish` is: part of an open transaction, and not from a coroutine."""
    return _store(draft_verbatim(topic, data, key, options))


def publish_together(drafts: Sequence[Draft]) -> asyncio.Future[list[Appended | BusError]]:
    """Publish what was drafted, from the running event loop: one future, with a place or a refusal for each.

    Those that are logged go into one commit. For who has many at once: a frame of joined commands, a batch.

    Raises:
        TooManyRequests: too many events wait for the log; none of these was taken.
        LogUnavailable: the process ends; likewise.
    """
    if all(one.is_logged for one in drafts):
        return writer().asubmit_many([one.event for one in drafts])
    return asyncio.ensure_future(_publish_mixed(drafts))


async def _publish_mixed(drafts: Sequence[Draft]) -> list[Appended | BusError]:
    logged = [one.event for one in drafts if one.is_logged]
    places = iter(await writer().asubmit_many(logged) if logged else ())
    return [next(places) if one.is_logged else _pass_on(one.event) for one in drafts]


def publish_on_commit(
    topic: str, event_type: str, data: Any = None, key: str | None = None, **options: Unpack[Options]
) -> None:
    """Publish once the open transaction is committed, outside of it; without one, at once.

    A crash right after the commit may lose such an event; `publish` inside the transaction loses none. The
    event is encoded now: what is wrong with it raises here.
    """
    transaction.on_commit(partial(_store, draft(topic, event_type, data, key, options)))


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
    return _store(draft_end(topic, status, data, key, options))


async def aend(
    topic: str,
    status: str = "completed",
    data: Any = None,
    key: str | None = None,
    **options: Unpack[Options],
) -> Appended:
    """Like `end`, from a coroutine."""
    return await _astore(draft_end(topic, status, data, key, options))


def _store(drafted: Draft) -> Appended:
    event = drafted.event
    if not drafted.is_logged:
        return _pass_on(event)
    fault("publish.before_append")
    (place,) = event_log().append([event])
    fault("publish.in_transaction")
    if not place.duplicate:
        transaction.on_commit(partial(_tell, [StoredEvent.of(event, place)]))
    return place


async def _astore(drafted: Draft) -> Appended:
    if not drafted.is_logged:
        return _pass_on(drafted.event)
    return await writer().asubmit(drafted.event)


def _pass_on(event: NewEvent) -> Appended:
    """Tell of an event that is not logged: it has no place, and who is not there has missed it."""
    place = Appended(
        topic=event.topic, epoch="", offset=0, event_id=event_id(event.tags), created_at=timezone.now()
    )
    _tell([StoredEvent.of(event, place)])
    return place


def _tell(stored: list[StoredEvent]) -> None:
    """Tell the listeners, one life of one topic at a time."""
    fault("publish.before_tell")
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
    fault("publish.after_tell")


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
    """Forget the writer in a forked child, for its thread lives in the parent alone."""
    global _writer, _writer_lock
    _writer, _writer_lock = None, Lock()


def _on_setting(*, setting: str, **_: Any) -> None:
    if setting == "BUS":
        stop_writer()


atexit.register(stop_writer)
os.register_at_fork(after_in_child=_after_fork)
setting_changed.connect(_on_setting)
