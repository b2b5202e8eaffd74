"""What the words after `manage.py cleanup` may be. The verbs themselves are in `verbs`."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from datetime import UTC, datetime, timedelta
from typing import Any

from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.policy import parse_age
from cleanup.models import Mode, Rule


def age(text: str) -> timedelta:
    """An age in tmpfiles.d syntax, as an argument."""
    try:
        return parse_age(text)
    except PolicyInvalid as error:
        raise ArgumentTypeError(str(error)) from error


def moment(text: str) -> datetime:
    """An ISO 8601 time, in UTC if it names no zone, or an age from now on."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(UTC) + age(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def count(text: str) -> int:
    """A whole number that is not negative."""
    if not text.isdecimal() or len(text) > 18:
        raise ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def declare(parser: ArgumentParser) -> None:
    """Declare every verb. Two-word verbs are told apart as `areas add` is: by `verb` and `what`."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _areas(_group(verbs, "areas", "directory trees that may be cleaned"))
    _policies(_group(verbs, "policies", "what may go, and when"))
    _runs(verbs)
    _trash(verbs)
    _holds(verbs)
    _verb(verbs, "report", "what is where: areas, trash, runs, totals")
    _audit(_group(verbs, "audit", "who did what"))
    _verb(verbs, "tick", "do what is due, here and now, for those without a worker", dry_run=True)


def _group(verbs: Any, name: str, text: str) -> Any:
    parser = verbs.add_parser(name, help=text, description=text)
    return parser.add_subparsers(dest="what", required=True, metavar="WHAT")


def _verb(verbs: Any, name: str, text: str, *, dry_run: bool = False) -> ArgumentParser:
    parser: ArgumentParser = verbs.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    if dry_run:
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return parser


def _areas(what: Any) -> None:
    add = _verb(what, "add", "register a directory", dry_run=True)
    add.add_argument("name")
    add.add_argument("path")
    add.add_argument("--protected", action="store_true", help="two persons approve what is above a brake")
    _verb(what, "list", "all areas")


def _policies(what: Any) -> None:
    add = _verb(what, "add", "make a policy; it reports until its mode is enforce", dry_run=True)
    add.add_argument("name")
    add.add_argument("--area", required=True)
    add.add_argument("--rule", choices=Rule.values, default=Rule.AGE)
    add.add_argument("--age", default="", metavar="AGE", help="such as 2d or 1h30m")
    add.add_argument("--age-by", default="m", metavar="abcm", help="which time stamps must all be older")
    add.add_argument("--grace", type=age, dest="grace_period", metavar="AGE", help="in the trash; default 7d")
    add.add_argument("--interval", type=age, metavar="AGE", help="between two runs; default 6h")
    add.add_argument("--mode", choices=Mode.values, default=Mode.REPORT)
    add.add_argument("--include", action="append", default=[], metavar="GLOB")
    add.add_argument("--exclude", action="append", default=[], metavar="GLOB")
    add.add_argument("--verifier", action="append", default=[], metavar="SPEC", help="such as redis_task")
    add.add_argument("--task-id-pattern", default="", metavar="REGEX", help="where a path names its task")
    for name in ("max-files", "max-bytes", "max-percent"):
        add.add_argument(f"--{name}", type=count, metavar="N", help="above it a person must approve")
    _verb(what, "list", "all policies")
    mode = _verb(what, "mode", "turn a policy off, to report or to enforce", dry_run=True)
    mode.add_argument("name")
    mode.add_argument("mode", choices=Mode.values)


def _runs(verbs: Any) -> None:
    plan = _verb(verbs, "plan", "what a policy would do now; touches nothing")
    plan.add_argument("policy")
    plan.add_argument("--limit", type=count, metavar="N", help="list at most N files")
    run = _verb(verbs, "run", "carry a policy out", dry_run=True)
    run.add_argument("policy", nargs="?")
    run.add_argument("--resume", metavar="RUN", help="go on with a run instead")
    run.add_argument("--queue", action="store_true", help="hand it to the worker")
    approve = _verb(verbs, "approve", "let a plan above its brakes go ahead", dry_run=True)
    approve.add_argument("run")
    approve.add_argument(
        "--files", type=count, required=True, metavar="N", help="how many files the plan has"
    )
    reject = _verb(verbs, "reject", "end a run that waits for approval", dry_run=True)
    reject.add_argument("run")
    reject.add_argument("--reason", required=True)
    _verb(verbs, "stop", "end a run after the batch at hand", dry_run=True).add_argument("run")


def _trash(verbs: Any) -> None:
    restore = _verb(verbs, "restore", "bring files back from the trash", dry_run=True)
    which = restore.add_mutually_exclusive_group(required=True)
    which.add_argument("--area")
    which.add_argument("--item", action="append", metavar="ID")
    restore.add_argument("--path", metavar="GLOB", help="of the area, only what matches")
    restore.add_argument("--to", metavar="PATH", help="another name below the area, for one item")
    purge = _verb(verbs, "purge", "remove from the trash for good", dry_run=True)
    which = purge.add_mutually_exclusive_group(required=True)
    which.add_argument("--due", action="store_true", help="whose grace period is over")
    which.add_argument("--now", action="store_true", help="before that; needs --area and --reason")
    purge.add_argument("--area")
    purge.add_argument("--path", metavar="GLOB", help="with --now, only what matches")
    purge.add_argument("--reason", default="")


def _holds(verbs: Any) -> None:
    hold = _verb(verbs, "hold", "keep matching files from the trash and from being purged", dry_run=True)
    hold.add_argument("area")
    hold.add_argument("pattern")
    hold.add_argument("--reason", required=True)
    hold.add_argument("--until", type=moment, metavar="TIME", help="ISO 8601, or an age from now on")
    _verb(verbs, "release", "end a hold", dry_run=True).add_argument("hold", type=count)


def _audit(what: Any) -> None:
    _verb(what, "verify", "read the whole chain; 0 sound, 1 tampered, 2 could not check")
    entries = _verb(what, "list", "the newest entries")
    entries.add_argument("--limit", type=count, default=50, metavar="N")
    entries.add_argument("--action")
    entries.add_argument("--path", metavar="PATH", help="of one file, escaped")
