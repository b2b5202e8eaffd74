"""What the verbs of operators take: see `bus.management.operators`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from datetime import timedelta

from bus.drafts import END_STATUSES
from bus.management.durations import duration, whole


def _message(parser: ArgumentParser) -> None:
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("--agent", default="", help="agent id: the event waits in its inbox if it is away")
    whom.add_argument("--client", default="", help="the one connection of this id; nothing is stored")
    whom.add_argument("--user", default="", help="all connections of a user; nothing is stored")
    parser.add_argument("event_type")
    parser.add_argument("data", help="JSON; - reads standard input")
    parser.add_argument("--key", help="with --agent: idempotency key")


def _agents(parser: ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="such as crawler-*")
    parser.add_argument("--online", action="store_true", help="only those that are connected")
    parser.add_argument("--limit", type=whole, help="at most so many, those seen last first")


def _skip(parser: ArgumentParser) -> None:
    parser.add_argument("agent", help="agent id")
    _reason(parser)


def _replay(parser: ArgumentParser) -> None:
    parser.add_argument("topic")
    parser.add_argument("--from", dest="first", type=whole, required=True, help="first offset")
    parser.add_argument("--to", dest="last", type=whole, required=True, help="last offset")
    parser.add_argument("--agent", required=True, help="whose inbox gets the copies")
    _reason(parser)


def _end(parser: ArgumentParser) -> None:
    parser.add_argument("topic", help="such as task:7")
    parser.add_argument("--status", choices=END_STATUSES, default="failed", help="default: %(default)s")
    _reason(parser)


def _tasks(parser: ArgumentParser) -> None:
    parser.add_argument("--silent", action="store_true", help="only those whose worker gives no sign of life")


def _cursors(parser: ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", default="")
    parser.add_argument("--consumer", default="", help="of this consumer only")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--set", type=whole, metavar="OFFSET", help="set it, forward or back")
    change.add_argument("--forget", action="store_true", help="forget it")
    _reason(parser, is_required=False)


def _keys(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", default="list", choices=("list", "add", "rotate", "rights", "revoke")
    )
    parser.add_argument("name", nargs="?", default="", help="name of the key")
    parser.add_argument("--agent", default="", help="add: the agent it acts as")
    parser.add_argument(
        "--scope", action="append", default=[], help="add, rights: such as publish:task; repeatable"
    )
    parser.add_argument(
        "--only", action="append", default=[], help="add, rights: pattern of reachable topics; repeatable"
    )
    parser.add_argument(
        "--ttl", type=duration, help="add, rights: good for so long; else until it is revoked"
    )
    parser.add_argument(
        "--overlap",
        type=duration,
        default=timedelta(days=1),
        help="rotate: the former key stays good for so long; 0s: it is revoked (default: 1d)",
    )


def _reason(parser: ArgumentParser, *, is_required: bool = True) -> None:
    parser.add_argument("--reason", required=is_required, default="", help="why, for the audit")


VERBS: dict[str, tuple[str, Callable[[ArgumentParser], None]]] = {
    "message": ("send an event to an agent, or an object to connections", _message),
    "agents": ("list the agents, and what waits for each", _agents),
    "skip": ("acknowledge all that waits in an agent's inbox", _skip),
    "replay": ("put copies of a range of events into an agent's inbox", _replay),
    "cursors": ("list cursors; set or forget one", _cursors),
    "tasks": ("list the jobs under way", _tasks),
    "end": ("end a task", _end),
    "keys": ("list API keys; add, rotate, change or revoke one", _keys),
}
