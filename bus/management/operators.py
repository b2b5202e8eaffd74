"""What operators do by `manage.py bus`: the verbs of `bus.operating`, and the lists that belong to them.

What each does, the console does by a button; the person at the shell stands in the audit as a command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone

from bus import acks, operating
from bus.conf import conf
from bus.log.current import event_log
from bus.management.output import Printer
from bus.models import ActiveConnection, Agent, ApiKey, Cursor, RunningTask, TokenRevocation
from bus.operating import Operator
from bus.protocol import topics as names
from bus.protocol.errors import BadRequest, UnknownTopic
from bus.protocol.limits import strict_json

Options = dict[str, Any]
DONE, SKIPPED = 0, 1


def message(options: Options, out: Printer) -> int:
    """Send an event to an agent's inbox, or an object to connections that have none."""
    text = sys.stdin.read() if options["data"] == "-" else options["data"]
    data = strict_json(text, conf().max_message_bytes)
    operator, kind = Operator.at_the_shell(), options["event_type"]
    if options["agent"]:
        place = operating.message_agent(operator, options["agent"], kind, data, key=options["key"])
        out.say(f"{place.topic} #{place.offset}", topic=place.topic, offset=place.offset, id=place.event_id)
        return DONE
    wanted = Q(client_id=options["client"]) if options["client"] else Q(user_id=options["user"])
    clients = operating.message_clients(operator, wanted, kind, data)
    if not clients:
        sys.stderr.write(f"{options['client'] or options['user']} is not connected\n")
        return SKIPPED
    out.say(f"sent to {', '.join(clients)}", clients=clients)
    return DONE


def agents(options: Options, out: Printer) -> int:
    """List agents."""
    rows = Agent.objects.order_by("-last_seen_at")
    live = ActiveConnection.objects.filter(server_instance__lease_until__gt=timezone.now())
    if options["online"]:
        rows = rows.filter(agent_id__in=live.values("agent_id"))
    found = (row for row in rows.iterator() if names.matches(options["pattern"], row.agent_id))
    chosen = list(islice(found, options["limit"]))
    since = dict(
        live.filter(agent_id__in=[row.agent_id for row in chosen]).values_list("agent_id", "connected_at")
    )
    waiting = acks.offline_depths([row.agent_id for row in chosen])
    table = (
        {
            "agent": row.agent_id,
            "online_since": since.get(row.agent_id),
            "waiting": waiting[row.agent_id],
            "generation": row.generation,
            "connects": row.connects,
            "last_seen": row.last_seen_at,
        }
        for row in chosen
    )
    out.table(
        table,
        ("agent", "online_since", "waiting", "generation", "connects", "last_seen"),
        empty="no such agent",
    )
    return DONE


def skip(options: Options, out: Printer) -> int:
    """Acknowledge what waits for an agent."""
    state = operating.skip_inbox(Operator.at_the_shell(), options["agent"], reason=options["reason"])
    out.say(
        f"nothing waits for {options['agent']} up to #{state.offset}",
        agent=options["agent"],
        offset=state.offset,
    )
    return DONE


def replay(options: Options, out: Printer) -> int:
    """Send a range of events to an agent again."""
    done = operating.replay(
        Operator.at_the_shell(),
        options["topic"],
        options["first"],
        options["last"],
        options["agent"],
        reason=options["reason"],
    )
    out.say(
        f"{done.count} events, now {done.inbox} #{done.first} to #{done.last}",
        topic=options["topic"],
        inbox=done.inbox,
        events=done.count,
        first=done.first,
        last=done.last,
    )
    return DONE


def end(options: Options, out: Printer) -> int:
    """End a topic."""
    place = operating.end_topic(
        Operator.at_the_shell(), options["topic"], options["status"], reason=options["reason"]
    )
    out.say(
        f"{place.topic} ended as {options['status']} with #{place.offset}",
        topic=place.topic,
        status=options["status"],
        offset=place.offset,
    )
    return DONE


def tasks(options: Options, out: Printer) -> int:
    """List the jobs under way."""
    now = timezone.now()
    rows = RunningTask.objects.order_by("-started_at")
    if options["silent"]:
        rows = rows.filter(lease_until__lt=now)
    table = (
        {
            "topic": row.topic,
            "holder": row.holder,
            "started_at": row.started_at,
            "lease_until": row.lease_until,
            "silent": row.lease_until < now,
        }
        for row in rows
    )
    out.table(table, ("topic", "holder", "started_at", "lease_until", "silent"), empty="no task is under way")
    return DONE


def cursors(options: Options, out: Printer) -> int:
    """List the cursors of a topic or a consumer; or set or forget one."""
    topic, consumer = options["topic"], options["consumer"]
    if options["set"] is None and not options["forget"]:
        out.table(_cursors(topic, consumer), _CURSOR, empty="no such cursor")
        return DONE
    if not (topic and consumer):
        raise BadRequest("which cursor? Give the topic and --consumer.")
    if options["forget"]:
        operating.forget_cursor(Operator.at_the_shell(), consumer, topic, reason=options["reason"])
        out.say(f"forgotten: {consumer} in {topic}", topic=topic, consumer=consumer, forgotten=True)
        return DONE
    state = operating.set_cursor(
        Operator.at_the_shell(), consumer, topic, options["set"], reason=options["reason"]
    )
    out.say(
        f"{consumer} stands at {topic} #{state.offset}",
        topic=topic,
        consumer=consumer,
        offset=state.offset,
        lag=state.lag,
    )
    return DONE


_CURSOR = ("topic", "consumer", "offset", "lag", "acked_at")


def _cursors(topic: str, consumer: str) -> Iterator[dict[str, Any]]:
    """Yield cursors; of a consumer alone only where they are rows, for memory knows them by topic."""
    if topic:
        if not event_log().states([names.check_topic(topic)]):
            raise UnknownTopic(f"there is no topic {topic}")
        for state in acks.cursors(topic):
            if consumer in ("", state.consumer):
                yield _cursor(topic, state.consumer, state.offset, state.lag, state.acked_at)
        return
    if not consumer:
        raise BadRequest("whose cursors? Give a topic or --consumer.")
    rows: QuerySet[Cursor] = Cursor.objects.filter(consumer=consumer).select_related("topic")
    for row in rows.order_by("topic__name"):
        lag = row.topic.last_offset - row.offset
        yield _cursor(row.topic.name, row.consumer, row.offset, lag, row.acked_at)


def _cursor(topic: str, consumer: str, offset: int, lag: int, acked_at: Any) -> dict[str, Any]:
    return {"topic": topic, "consumer": consumer, "offset": offset, "lag": lag, "acked_at": acked_at}


def keys(options: Options, out: Printer) -> int:
    """List API keys, or make, rotate, change or revoke one."""
    return _KEYS[options["action"]](options, out)


def _list_keys(options: Options, out: Printer) -> int:
    rows = ApiKey.objects.order_by("name")
    if options["name"]:
        rows = rows.filter(name=options["name"])
    out.table(
        map(_key, rows),
        ("name", "prefix", "state", "agent", "scopes", "topics", "last_used_at"),
        empty="no key",
    )
    return DONE


def _key(row: ApiKey) -> dict[str, Any]:
    is_over = row.expires_at is not None and row.expires_at <= timezone.now()
    return {
        "name": row.name,
        "prefix": row.prefix,
        "state": "revoked" if row.revoked_at else "expired" if is_over else "valid",
        "agent": row.agent_id,
        "scopes": row.scopes,
        "topics": row.topics,
        "expires_at": row.expires_at,
        "last_used_at": row.last_used_at,
    }


def _named(options: Options) -> ApiKey:
    if not options["name"]:
        raise BadRequest("which key? Give its name.")
    row = ApiKey.objects.filter(name=options["name"]).first()
    if row is None:
        raise BadRequest(f"there is no key {options['name']!r}")
    return row


def _expiry(options: Options) -> Any:
    return options["ttl"] and timezone.now() + options["ttl"]


def _make_key(options: Options, out: Printer) -> int:
    if not options["name"]:
        raise BadRequest("what is it called? Give a name.")
    if ApiKey.objects.filter(name=options["name"]).exists():
        raise BadRequest(f"there is a key {options['name']!r} already")
    row, secret = operating.make_key(
        Operator.at_the_shell(),
        options["name"],
        agent_id=options["agent"],
        scopes=options["scope"],
        topics=options["only"],
        expires_at=_expiry(options),
    )
    out.say(secret, name=row.name, key=secret)
    return DONE


def _rotate_key(options: Options, out: Printer) -> int:
    overlap = options["overlap"] or timedelta(0)
    row, secret = operating.rotate_key(Operator.at_the_shell(), _named(options), overlap=overlap)
    out.say(secret, name=row.name, key=secret)
    return DONE


def _change_key(options: Options, out: Printer) -> int:
    row = _named(options)
    operating.change_key(
        Operator.at_the_shell(),
        row,
        scopes=options["scope"],
        topics=options["only"],
        expires_at=_expiry(options),
    )
    row.refresh_from_db()
    out.say(f"changed: {row.name}", **_key(row))
    return DONE


def _revoke_key(options: Options, out: Printer) -> int:
    row = _named(options)
    operating.revoke_key(Operator.at_the_shell(), row)
    out.say(f"revoked: {row.name}", name=row.name, state="revoked")
    return DONE


_KEYS = {
    "list": _list_keys,
    "add": _make_key,
    "rotate": _rotate_key,
    "rights": _change_key,
    "revoke": _revoke_key,
}


def accept(options: Options, out: Printer) -> int:
    """Let tokens count again that were taken back: part of `token`."""
    chosen = {"token_id": options["id"], "user_id": options["user"], "agent_id": options["agent"]}
    if sum(map(bool, chosen.values())) != 1:
        raise BadRequest("whose tokens? Give one of --id, --user, --agent.")
    rows = TokenRevocation.objects.filter(**{name: text for name, text in chosen.items() if text})
    accepted = operating.accept_tokens(Operator.at_the_shell(), rows)
    if not accepted:
        sys.stderr.write("no such token was taken back\n")
        return SKIPPED
    out.say(f"accepted again: {', '.join(accepted)}")
    return DONE
