"""What the verbs of `manage.py bus` do. Each calls the function that the console and the API call, too.

A verb returns its exit code: 0 done, 1 there was nothing to do it to or some of it was skipped. What is
refused altogether is raised.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone

from bus import acks, operating, publishing, retention
from bus.access import tokens
from bus.conf import conf
from bus.cursors import CursorState
from bus.log import Appended, TopicState
from bus.log.current import event_log
from bus.management import operators
from bus.management.output import Printer
from bus.models import ActiveConnection
from bus.operating import Operator
from bus.protocol import topics as names
from bus.protocol.errors import BadRequest, BusError
from bus.protocol.limits import strict_json

Options = dict[str, Any]
Verb = Callable[[Options, Printer], int]

DONE, SKIPPED = 0, 1
#: Topics whose states are read at once.
PAGE = 500


def token(options: Options, out: Printer) -> int:
    """Print a token and nothing else, or revoke."""
    agent, user = options["agent"], options["user"]
    if options["revoke"]:
        return _revoke(options, out)
    if options["accept"]:
        return operators.accept(options, out)
    if agent:
        names.check_topic(f"agent:{agent}")
    elif not user:
        raise BadRequest("whose token? Give --agent or --user.")
    if topic := options["subscribe"]:
        text = tokens.issue_subscription_token(user or agent, names.check_topic(topic), ttl=options["ttl"])
    else:
        text = tokens.issue_connection_token(
            user or f"agent:{agent}",
            ttl=options["ttl"],
            agent_id=agent,
            scopes=options["scope"],
            channels=options["channel"],
            topics=options["only"],
        )
    out.say(text)
    return DONE


def _revoke(options: Options, out: Printer) -> int:
    row = operating.revoke_tokens(
        Operator.at_the_shell(),
        token_id=options["id"],
        user_id=options["user"],
        agent_id=options["agent"],
        until=options["keep"] and timezone.now() + options["keep"],
        text=options["note"],
    )
    whose = row.token_id or row.user_id or row.agent_id
    out.say(f"Revoked: {whose}. Live connections with such a token end within seconds.")
    return DONE


def publish(options: Options, out: Printer) -> int:
    """Publish one event, or one for each line; a line that is refused does not hinder the others."""
    if not options["lines"]:
        text = sys.stdin.read() if options["data"] == "-" else options["data"]
        _say_place(out, _publish(options, text, options["key"]))
        return DONE
    if options["data"] != "-":
        raise BadRequest("--lines is for standard input: give - as the data")
    refused = 0
    for number, line in enumerate(sys.stdin, 1):
        if not line.strip():
            continue
        key = f"{options['key']}:{number}" if options["key"] else None
        try:
            _say_place(out, _publish(options, line, key))
        except BusError as error:
            refused += 1
            sys.stderr.write(f"line {number}: {error}\n")
    return SKIPPED if refused else DONE


def _publish(options: Options, text: str, key: str | None) -> Appended:
    """Publish as a program does, which is traffic; or with a reason as an operator, who is audited."""
    data = strict_json(text, conf().max_message_bytes)
    what, run_id, reason = (options["topic"], options["event_type"], data), options["run"], options["reason"]
    if not reason:
        return publishing.publish(*what, key, run_id=run_id)
    return operating.publish(Operator.at_the_shell(), *what, key=key, run_id=run_id, reason=reason)


def _say_place(out: Printer, place: Appended) -> None:
    again = ", which was there already" if place.duplicate else ""
    out.say(
        f"{place.topic} #{place.offset}{again}",
        topic=place.topic,
        epoch=place.epoch,
        offset=place.offset,
        id=place.event_id,
        duplicate=place.duplicate,
    )


def topics(options: Options, out: Printer) -> int:
    """List topics, or their cursors."""
    found = islice(_states(options), options["limit"])
    if options["cursors"]:
        rows = (_cursor(state) for topic in found for state in acks.cursors(topic.topic))
        out.table(
            rows, ("topic", "consumer", "offset", "lag", "acked_at"), empty="nobody has acknowledged anything"
        )
        return DONE
    out.table(map(_topic, found), ("topic", "first_offset", "last_offset", "ended_at"), empty="no such topic")
    return DONE


def _states(options: Options) -> Iterator[TopicState]:
    log = event_log()
    wanted = (name for name in retention.all_topics(log) if names.matches(options["pattern"], name))
    while page := list(islice(wanted, PAGE)):
        states = log.states(page)
        for state in (states[name] for name in page if name in states):
            is_ended = state.ended_at is not None
            if not ((options["open"] and is_ended) or (options["ended"] and not is_ended)):
                yield state


def _topic(state: TopicState) -> dict[str, Any]:
    return {
        "topic": state.topic,
        "epoch": state.epoch,
        "first_offset": state.first_offset,
        "last_offset": state.last_offset,
        "ended_at": state.ended_at,
    }


def _cursor(state: CursorState) -> dict[str, Any]:
    return {
        "topic": state.topic,
        "consumer": state.consumer,
        "epoch": state.epoch,
        "offset": state.offset,
        "lag": state.lag,
        "acked_at": state.acked_at,
    }


def trim(options: Options, out: Printer) -> int:
    """Forget old events."""
    topic, reason = options["topic"], options["reason"]
    figures = {name: options[name] for name in ("up_to", "max_age", "max_events")}
    is_by_rules = all(figure is None for figure in figures.values())
    if topic is None and not is_by_rules:
        raise BadRequest("figures are for one topic: name it.")
    if figures["up_to"] is None and topic is not None and not event_log().states([names.check_topic(topic)]):
        sys.stderr.write(f"there is no topic {topic}\n")
        return SKIPPED
    operator = Operator.at_the_shell()
    if is_by_rules:
        trimmed = operating.trim_by_rules(operator, topic, reason=reason)
    else:
        trimmed = {topic: operating.trim(operator, topic, **figures, reason=reason)}
    for name, count in trimmed.items():
        out.say(f"{name}: {count} events forgotten", topic=name, trimmed=count)
    return DONE


def connections(options: Options, out: Printer) -> int:
    """List live connections."""
    columns = ("client", "agent", "user", "transport", "address", "server", "connected_at", "topics")
    out.table(map(_connection, _live(options)), columns, empty="nobody is connected")
    return DONE


def _live(options: Options) -> QuerySet[ActiveConnection]:
    rows = ActiveConnection.objects.filter(server_instance__lease_until__gt=timezone.now())
    fields = {
        "agent": "agent_id",
        "user": "user_id",
        "server": "server_instance",
        "transport": "transport",
    }
    chosen = Q(**{field: options[name] for name, field in fields.items() if options[name]})
    rows = rows.filter(chosen).order_by("connected_at")
    if not (topic := options["topic"]):
        return rows
    # JSON lists cannot be searched alike on both databases.
    clients = [row.pk for row in rows.only("pk", "topics") if topic in row.topics]
    return rows.filter(pk__in=clients)


def _connection(row: ActiveConnection) -> dict[str, Any]:
    return {
        "client": row.client_id,
        "agent": row.agent_id,
        "user": row.user_id,
        "server": row.server_instance_id,
        "transport": row.transport,
        "address": row.address,
        "connected_at": row.connected_at,
        "last_heartbeat": row.last_heartbeat,
        "pending_bytes": row.pending_bytes,
        "topics": row.topics,
    }


def disconnect(options: Options, out: Printer) -> int:
    """Close connections; 1 if there is none."""
    who = {"agent_id": options["agent"], "user_id": options["user"], "client_id": options["client"]}
    wanted = Q(**{field: text for field, text in who.items() if text})
    clients = operating.disconnect(
        Operator.at_the_shell(), wanted, code=options["code"], reason=options["reason"]
    )
    name = next(filter(None, who.values()))
    if not clients:
        sys.stderr.write(f"{name} is not connected\n")
        return SKIPPED
    out.say(f"told to close: {', '.join(clients)}", agent=options["agent"], clients=clients)
    return DONE


def bench(options: Options, out: Printer) -> int:
    """Measure, and print tables."""
    from bus.bench.run import run  # what it needs is of no use to the other verbs

    run(
        options["figures"],
        seconds=options["seconds"],
        node_modules=options["node_modules"],
        file=options["json"],
        stream=out.stream,
    )
    return DONE
