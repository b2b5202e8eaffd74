"""`manage.py bus VERB`: the bus by hand. Every verb calls the function that admin and API call.

Exit codes: 0 done, 1 there was nothing to do it to, 2 refused. What is asked for goes to standard output, one
JSON object a line; everything else to standard error.
"""

from __future__ import annotations

import re
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from asgiref.sync import async_to_sync
from django.core.management.base import BaseCommand, CommandError, CommandParser

from bus import publishing, retention, tokens
from bus.connections import connection_manager
from bus.log.current import event_log
from bus.models import ActiveConnection
from bus.protocol import frames, topics
from bus.protocol.errors import BusError, UnrecoverablePosition
from bus.protocol.limits import strict_json
from bus.protocol.positions import Position, is_reachable

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
#: Pause between two looks into the log with `tail --follow`; the log is the truth, so no layer is needed.
_LOOK_EVERY = timedelta(milliseconds=200)
_PAGE = 500


def duration(text: str) -> timedelta:
    """Return the duration that `90s`, `30m`, `1h` or `7d` means."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is no duration such as 90s, 30m, 1h or 7d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


class Command(BaseCommand):
    """The verbs, each a method of its name."""

    help = (
        "Look at the bus and speak on it: token, publish, topics, tail, trim, connections, disconnect, bench."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the verbs."""
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        for name in ("token", "publish", "topics", "tail", "trim", "connections", "disconnect", "bench"):
            text = (getattr(self, name).__doc__ or "").partition("\n")[0]
            declare: Callable[[ArgumentParser], None] = globals()[f"_declare_{name}"]
            declare(verbs.add_parser(name, help=text, description=text))

    def handle(self, *_: Any, **options: Any) -> None:
        """Call the verb, and turn a refusal into words and exit code 2."""
        try:
            getattr(self, options["verb"])(**options)
        except BusError as error:
            raise CommandError(str(error), returncode=2) from error
        except KeyboardInterrupt:
            self.stderr.write("stopped")

    def token(self, **options: Any) -> None:
        """Print a connection token and nothing else."""
        agent = options["agent"]
        if agent:
            topics.check_topic(f"agent:{agent}")
        elif not options["user"]:
            raise CommandError("whose token? Give --agent or --user.", returncode=2)
        self.stdout.write(
            tokens.issue_connection_token(
                options["user"] or f"agent:{agent}",
                ttl=options["ttl"],
                agent_id=agent,
                scopes=options["scope"],
                channels=options["channel"],
                topics=options["only"],
            )
        )

    def publish(self, **options: Any) -> None:
        """Publish an event and print its place in the log."""
        text = sys.stdin.read() if options["json"] == "-" else options["json"]
        place = publishing.publish(
            options["topic"], options["event_type"], strict_json(text), key=options["key"]
        )
        self._say(
            topic=place.topic,
            epoch=place.epoch,
            offset=place.offset,
            id=place.event_id,
            duplicate=place.duplicate,
        )

    def topics(self, **options: Any) -> None:
        """List the topics of the log."""
        log = event_log()
        for name in retention.all_topics(log):
            state = log.states([name]).get(name)
            if state is not None and topics.matches(options["pattern"], name):
                self._say(
                    topic=state.topic,
                    epoch=state.epoch,
                    first_offset=state.first_offset,
                    last_offset=state.last_offset,
                    ended_at=state.ended_at,
                )

    def tail(self, **options: Any) -> None:
        """Print the newest events of a topic, and with --follow those to come."""
        topic = topics.check_topic(options["topic"])
        at = self._print_from(topic, self._start(topic, options["lines"], options["since"]))
        while options["follow"]:
            time.sleep(_LOOK_EVERY.total_seconds())
            at = self._print_from(topic, at)

    def _start(self, topic: str, lines: int, since: int | None) -> Position:
        state = event_log().states([topic]).get(topic)
        if state is None:
            return Position(epoch="", offset=0)
        offset = max(state.first_offset - 1, state.last_offset - lines) if since is None else since
        return Position(epoch=state.epoch, offset=offset)

    def _print_from(self, topic: str, at: Position) -> Position:
        """Print what comes after a position and return the new one; a topic begun anew is read from 1."""
        while True:
            page = event_log().read(topic, at, limit=_PAGE)
            if page.epoch and not at.is_in(page.epoch):
                at = Position(epoch=page.epoch, offset=0)
                continue
            if page.epoch and not is_reachable(
                at, epoch=page.epoch, first_offset=page.first_offset, last_offset=page.last_offset
            ):
                raise UnrecoverablePosition(f"kept are {page.first_offset} to {page.last_offset}")
            if not page.events:
                return at
            for event in page.events:
                line = frames.plain_event(topic, event.epoch, event.offset, event.payload)
                self.stdout.write(line.decode())
            self.stdout.flush()
            at = Position(epoch=page.epoch, offset=page.events[-1].offset)

    def trim(self, **options: Any) -> None:
        """Forget old events: by the rules, or by the figures given for one topic."""
        topic, figures = options["topic"], (options["max_age"], options["max_events"])
        if topic is None and figures != (None, None):
            raise CommandError("figures are for one topic: name it.", returncode=2)
        if topic is None:
            trimmed = retention.trim_all()
        else:
            topics.check_topic(topic)
            trimmed = {topic: retention.trim(topic, max_age=figures[0], max_events=figures[1])}
        for name, count in trimmed.items():
            self._say(topic=name, trimmed=count)

    def connections(self, **options: Any) -> None:
        """List the live connections of all processes."""
        rows = ActiveConnection.objects.order_by("connected_at")
        if options["agent"]:
            rows = rows.filter(agent_id=options["agent"])
        for row in rows:
            self._say(
                client=row.client_id,
                agent=row.agent_id,
                user=row.user_id,
                server=row.server_instance_id,
                transport=row.transport,
                address=row.address,
                connected_at=row.connected_at,
                last_heartbeat=row.last_heartbeat,
                topics=row.topics,
            )

    def disconnect(self, **options: Any) -> None:
        """Disconnect an agent for good: its client does not come back by itself."""
        agent = options["agent"]
        clients = async_to_sync(connection_manager.disconnect_client)(agent_id=agent, actor="command")
        if not clients:
            raise CommandError(f"agent {agent} is not connected.", returncode=1)
        self._say(agent=agent, clients=clients)

    def bench(self, **options: Any) -> None:
        """Measure the bus beside other servers and print tables."""
        from bus.bench.run import run  # what it needs is of no use to the other verbs

        run(
            options["figures"],
            seconds=options["seconds"],
            node_modules=options["node_modules"],
            file=options["json"],
            stream=self.stdout,
        )

    def _say(self, **fields: Any) -> None:
        self.stdout.write(msgspec.json.encode(fields).decode())


def _declare_token(parser: ArgumentParser) -> None:
    parser.add_argument("--agent", default="", help="agent that the connection is")
    parser.add_argument("--user", default="", help="user id, `sub` of the token")
    parser.add_argument("--ttl", type=duration, default=timedelta(hours=1), help="such as 90s, 30m, 1h, 7d")
    parser.add_argument("--scope", action="append", default=[], help="such as publish:task; repeatable")
    parser.add_argument("--channel", action="append", default=[], help="topic to be subscribed; repeatable")
    parser.add_argument("--only", action="append", default=[], help="pattern of reachable topics; repeatable")


def _declare_publish(parser: ArgumentParser) -> None:
    parser.add_argument("topic")
    parser.add_argument("event_type")
    parser.add_argument("json", help="data of the event; - reads standard input")
    parser.add_argument("--key", help="idempotency key")


def _declare_topics(parser: ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="such as task:*")


def _declare_tail(parser: ArgumentParser) -> None:
    parser.add_argument("topic")
    parser.add_argument("-n", "--lines", type=int, default=10, help="how many of the newest")
    parser.add_argument("--since", type=int, help="start after this offset instead")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")


def _declare_trim(parser: ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", help="all topics by default")
    parser.add_argument("--max-age", type=duration, help="forget what is older")
    parser.add_argument("--max-events", type=int, help="keep this many")


def _declare_connections(parser: ArgumentParser) -> None:
    parser.add_argument("--agent", default="", help="of this agent only")


def _declare_disconnect(parser: ArgumentParser) -> None:
    parser.add_argument("agent")


def _declare_bench(parser: ArgumentParser) -> None:
    parser.add_argument(
        "figures", nargs="*", metavar="figure", help="publish, replay, delivery, joined, socket, idle"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="time for one measurement")
    parser.add_argument(
        "--node-modules", type=Path, default=Path("node_modules"), help="npm's ws and socket.io"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
