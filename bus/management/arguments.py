"""The verbs of `manage.py bus` and what each takes."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from django.utils import timezone

from bus.doors.starts import moment
from bus.management import operator_arguments
from bus.management.durations import duration, whole
from bus.models import Transport
from bus.protocol.errors import BadRequest, DisconnectCode


def since(text: str) -> int | datetime:
    """Return the offset `120`, or the time that `10m` (ago) or an ISO 8601 text means."""
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    if re.fullmatch(r"\d{1,6}[smhd]", text):
        return timezone.now() - duration(text)
    try:
        return moment(text)
    except BadRequest:
        raise ArgumentTypeError(
            f"{text!r} is no offset, no duration such as 10m, and no time such as 2026-11-22T09:00:00Z"
        ) from None


def close_code(text: str) -> int:
    """Return a close code that the protocol leaves to us."""
    if not re.fullmatch(r"[34][0-9]{3}", text):
        raise ArgumentTypeError(f"{text!r} is no close code: 3000 to 4999")
    return int(text)


def declare(parser: ArgumentParser) -> None:
    """Declare all verbs."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (words, add) in _VERBS.items():
        verb = verbs.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        add(verb)
        if name not in ("token", "bench"):
            verb.add_argument("--json", action="store_true", help="one JSON object a line, nothing else")


def _token(parser: ArgumentParser) -> None:
    parser.add_argument("--agent", default="", help="agent that the connection is")
    parser.add_argument("--user", default="", help="user id, `sub` of the token")
    parser.add_argument("--ttl", type=duration, default=timedelta(hours=1), help="such as 90s, 30m, 1h, 7d")
    parser.add_argument("--scope", action="append", default=[], help="such as publish:task; repeatable")
    parser.add_argument("--channel", action="append", default=[], help="topic to be subscribed; repeatable")
    parser.add_argument("--only", action="append", default=[], help="pattern of reachable topics; repeatable")
    parser.add_argument(
        "--subscribe", metavar="TOPIC", default="", help="a subscription token for this topic instead"
    )
    parser.add_argument(
        "--revoke",
        action="store_true",
        help="take back all tokens that the agent or user has, or the one --id",
    )
    parser.add_argument(
        "--accept", action="store_true", help="instead: let tokens count again that were revoked"
    )
    parser.add_argument("--id", default="", help="`jti` of the one token to revoke or accept")
    parser.add_argument(
        "--keep", type=duration, default=None, help="remember it so long: the longest life of a token"
    )
    parser.add_argument("--note", default="", help="why it is revoked, for people")


def _publish(parser: ArgumentParser) -> None:
    parser.add_argument("topic")
    parser.add_argument("event_type")
    parser.add_argument("data", help="JSON; - reads standard input")
    parser.add_argument("--lines", action="store_true", help="with -: one event for each line of input")
    parser.add_argument(
        "--key", help="idempotency key; with --lines its beginning, the line's number follows"
    )
    parser.add_argument("--run", help="run id of the event")
    parser.add_argument("--reason", default="", help="why; with it the act is in the audit, in your name")


def _topics(parser: ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="such as task:*")
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--open", action="store_true", help="only those that have not ended")
    state.add_argument("--ended", action="store_true", help="only those that have")
    parser.add_argument("--cursors", action="store_true", help="who reads them, and the lag of each")
    parser.add_argument("--limit", type=whole, help="at most so many")


def _tail(parser: ArgumentParser) -> None:
    parser.add_argument("topic", nargs="+", help="topics or patterns such as task:*")
    parser.add_argument("-n", "--lines", type=whole, default=10, help="how many of the newest of each")
    parser.add_argument(
        "--since", type=since, help="instead: after this offset, or time (10m, 2026-11-22T09:00:00Z)"
    )
    parser.add_argument("--type", default="*", help="only event types of this pattern, such as task.*")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")


def _trim(parser: ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", help="all topics by default")
    parser.add_argument("--max-age", type=duration, help="forget what is older")
    parser.add_argument("--max-events", type=whole, help="keep this many")
    parser.add_argument("--up-to", type=whole, metavar="OFFSET", help="of one topic: forget up to this event")
    parser.add_argument("--reason", default="", help="why, for the audit")


def _connections(parser: ArgumentParser) -> None:
    parser.add_argument("--agent", default="", help="of this agent only")
    parser.add_argument("--user", default="", help="of this user only")
    parser.add_argument("--server", default="", help="of this server process only")
    parser.add_argument("--topic", default="", help="only those subscribed to it")
    parser.add_argument("--transport", choices=Transport.values, help="only those attached in this way")


def _disconnect(parser: ArgumentParser) -> None:
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("agent", nargs="?", default="", help="agent id")
    who.add_argument("--user", default="", help="all connections of a user")
    who.add_argument("--client", default="", help="the one connection of this id")
    parser.add_argument(
        "--code",
        type=close_code,
        default=int(DisconnectCode.FORCED),
        help="close code; 3000-3499 and 4000-4499 let the client come back (default: %(default)s, for good)",
    )
    parser.add_argument("--reason", default=DisconnectCode.FORCED.reason, help="told to the client")


def _bench(parser: ArgumentParser) -> None:
    parser.add_argument(
        "figures", nargs="*", metavar="figure", help="publish, replay, delivery, joined, socket, idle"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="time for one measurement")
    parser.add_argument(
        "--node-modules", type=Path, default=Path("node_modules"), help="npm's ws and socket.io"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")


_VERBS: dict[str, tuple[str, Callable[[ArgumentParser], None]]] = {
    "token": ("print a connection or subscription token and nothing else; or take tokens back", _token),
    "publish": ("publish events and print their places in the log", _publish),
    "topics": ("list the topics of the log", _topics),
    "tail": ("print the newest events of topics, and with --follow those to come", _tail),
    "trim": ("forget old events: by the rules, or by the figures given for one topic", _trim),
    "connections": ("list the live connections of all processes", _connections),
    "disconnect": ("close connections, on whichever server they are", _disconnect),
    **operator_arguments.VERBS,
    "bench": ("measure the bus beside other servers and print tables", _bench),
}
NAMES = tuple(_VERBS)
