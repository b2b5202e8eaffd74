"""Events before they are stored: allowed, checked, encoded.

Every door makes a `Draft` here, whether it has one event or many, and hands it to `bus.publishing`. Drafting
touches no database and waits for nobody. An event is encoded once; the same bytes are stored and sent.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypedDict

import msgspec

from bus.access import permissions, rates
from bus.access.permissions import SERVER, Identity
from bus.conf import TopicOptions, conf
from bus.log import NewEvent
from bus.protocol.errors import BadRequest, LimitExceeded
from bus.protocol.frames import ClientInfo
from bus.protocol.limits import MAX_DEPTH, check_value

#: How a task can end; the final event is `task.<status>`.
END_STATUSES = ("completed", "failed", "cancelled")

#: An event of this type begins a topic anew if that has ended: a task started again under its old id.
STARTED = "task.started"

_to_json = msgspec.json.Encoder().encode
#: Ids for events to come. Drawn by the block: a system call for each would hand the interpreter to another
#: thread in the middle of every publish.
_ids: list[str] = []
_IDS_AT_ONCE = 512
#: Topics whose rules a publisher remembers.
_REMEMBERED = 1_000


class Draft(NamedTuple):
    """An event that may be published, and the rule of its topic."""

    event: NewEvent
    rule: TopicOptions

    @property
    def is_logged(self) -> bool:
        """Whether it goes into the log, or only to those who are there."""
        return self.rule.delivery != "ephemeral"


class Publisher:
    """Somebody who publishes: what is the same for many of its events, made once.

    Rights are looked up once for each topic. Whoever keeps a publisher makes a new one when the identity
    changes; a change of the settings is noticed here.

    Args:
        by: who it is, for the rules, the rates and the log.
        info: who it is, as subscribers are told.
    """

    __slots__ = ("_rules", "_settings", "by", "info", "name")

    def __init__(self, by: Identity = SERVER, info: ClientInfo | None = None) -> None:
        self.by = by
        self.name = by.name
        self.info = None if info is None else _to_json(info)
        self._rules: dict[str, TopicOptions] = {}
        self._settings = conf()

    def may_publish(self, topic: str) -> TopicOptions:
        """Return the rule of a topic. Raises what `bus.access.permissions.check` does."""
        if self._settings is not conf() or len(self._rules) > _REMEMBERED:
            self._rules, self._settings = {}, conf()
        rule = self._rules.get(topic)
        if rule is None:
            rule = self._rules[topic] = permissions.check(self.by, "publish", topic)
        return rule


class _EventObject(msgspec.Struct):
    event_type: str
    timestamp: datetime | str
    run_id: str | None
    session_id: str | None
    data: Any


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
    #: Both of these, by one who publishes often.
    publisher: Publisher
    #: All of it has passed `bus.protocol.limits.strict_json` just now, so it is not checked again.
    is_checked: bool


def draft(
    topic: str,
    event_type: str,
    data: Any,
    key: str | None,
    options: Options,
    *,
    end_status: str | None = None,
) -> Draft:
    """Draft an event. Arguments are those of `bus.publishing.publish`.

    Raises:
        BadRequest: a name or value that cannot be.
        LimitExceeded: the event is too large.
        UnknownTopic: there is no rule for the topic.
        PermissionDenied: who publishes may not do it there.
    """
    payload = encode_event(
        event_type,
        data,
        run_id=options.get("run_id"),
        session_id=options.get("session_id"),
        is_checked=options.get("is_checked", False),
    )
    return _draft(topic, event_type, payload, key, options, end_status=end_status)


def draft_verbatim(topic: str, data: Any, key: str | None, options: Options) -> Draft:
    """Draft an event whose whole payload is `data`. Raises what `draft` does."""
    event_type = data.get("event_type") if isinstance(data, dict) else None
    payload = _encode(data if options.get("is_checked") else _plain(data))
    return _draft(topic, event_type if isinstance(event_type, str) else "", payload, key, options)


def draft_end(topic: str, status: str, data: Any, key: str | None, options: Options) -> Draft:
    """Draft the final event of a topic. Raises what `draft` does."""
    if status not in END_STATUSES:
        raise BadRequest(f"a topic ends as {', '.join(END_STATUSES)}, not {status!r}")
    tagged: Options = {**options, "tags": {**(options.get("tags") or {}), "end": status}}
    said = {"status": status} if data is None else data
    return draft(topic, f"task.{status}", said, key, tagged, end_status=status)


def encode_event(
    event_type: str,
    data: Any,
    *,
    run_id: str | None = None,
    session_id: str | None = None,
    now: datetime | None = None,
    is_checked: bool = False,
) -> bytes:
    """Return the event object as it is stored and sent. `is_checked`: see `Options`.

    Raises:
        BadRequest: JSON, or one of the databases, cannot hold it.
        LimitExceeded: it is too large.
    """
    if not event_type:
        raise BadRequest("an event has a type")
    if not is_checked:
        data = _checked(event_type, run_id, session_id, data)
    moment = datetime.now(UTC) if now is None else now.astimezone(UTC)
    # msgspec writes a time in a tenth of the time, but without a fraction where that is zero.
    timestamp = moment if moment.microsecond else f"{moment:%Y-%m-%dT%H:%M:%S}.000000Z"
    return _encode(_EventObject(event_type, timestamp, run_id, session_id, data))


def _checked(event_type: str, run_id: str | None, session_id: str | None, data: Any) -> Any:
    try:
        # All at once, for it is nearly always right; else one after the other, to say what is wrong.
        check_value((event_type, run_id, session_id, data), MAX_DEPTH + 1)
    except BadRequest:
        check_value((event_type, run_id, session_id))
        return _plain(data)
    return data


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


def _draft(
    topic: str,
    event_type: str,
    payload: bytes,
    key: str | None,
    options: Options,
    *,
    end_status: str | None = None,
) -> Draft:
    # The one place that every publish passes, whatever its door.
    publisher = options.get("publisher") or _publisher_of(options)
    rule = publisher.may_publish(topic)
    rates.spend(publisher.by)
    event = NewEvent(
        topic=topic,
        event_type=event_type,
        payload=payload,
        tags=_encode_tags(options.get("tags")),
        info=publisher.info,
        key=key,
        publisher=publisher.name,
        end_status=end_status,
        restarts=event_type == STARTED,
    )
    return Draft(event, rule)


def _publisher_of(options: Options) -> Publisher:
    by, info = options.get("by", SERVER), options.get("info")
    return _ourselves() if by is SERVER and info is None else Publisher(by, info)


@lru_cache(maxsize=1)
def _ourselves() -> Publisher:
    return Publisher()


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


def _after_fork() -> None:
    """Forget the ids in a forked child: they are the parent's."""
    _ids.clear()


os.register_at_fork(after_in_child=_after_fork)
