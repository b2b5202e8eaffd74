"""`python -m cleanup.engine COMMAND`: the engine on a TOML file, for machines without a site.

    register | plan | run | list | restore | purge | verify     by the file that --config names
    clean FILE…                                                 lines of tmpfiles.d, as systemd cleans
    daemon [DIR]                                                expired results, every few hours

Exit codes: 0 done, 1 done but something was skipped, 2 refused or waiting for approval; `verify`: 0 sound, 1
tampered, 2 could not be checked. With `--json` standard output holds one object and nothing else.
"""

import argparse
import getpass
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cleanup.engine import emptying
from cleanup.engine.ages import parse_age
from cleanup.engine.configuration import load
from cleanup.engine.errors import EngineError, PolicyInvalid
from cleanup.engine.names import escape
from cleanup.engine.standalone import DONE, REFUSED, SOME_SKIPPED, OnProgress, Refused, Report, Standalone
from cleanup.engine.sweep import Event, Sweep
from cleanup.engine.tmpfiles import Config, read

__all__ = ["main", "parser"]

Command = Callable[[argparse.Namespace], Report]


def main(arguments: Sequence[str]) -> int:
    """Carry a command out, print its answer, and return its exit code."""
    options = parser().parse_args(arguments)
    command: Command = options.carry_out
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        report = command(options)
    except EngineError as refusal:
        report = Report(
            data={"error": refusal.code, "message": str(refusal)}, lines=[str(refusal)], code=REFUSED
        )
    except OSError as error:
        report = Report(data={"error": "io_error", "message": str(error)}, lines=[str(error)], code=REFUSED)
    except KeyboardInterrupt:
        report = Report(data={"error": "interrupted", "message": "interrupted"}, code=SOME_SKIPPED)
    if not options.json and sys.stderr.isatty():
        sys.stderr.write("\x1b[K")  # what was said about the progress
    _say(report, as_json=options.json)
    return report.code


def _say(report: Report, *, as_json: bool) -> None:
    out = sys.stdout if as_json or report.code != REFUSED else sys.stderr
    text = json.dumps(report.data) if as_json else "\n".join(report.lines)
    try:
        out.write(text + "\n" if text else "")
        out.flush()
    except BrokenPipeError:
        # Whoever read has enough; what Python still holds back must not complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """Return what reads the words of the command line."""
    made = argparse.ArgumentParser(prog="python -m cleanup.engine", description="Retention without a site.")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    _on_areas(commands)
    _on_trash(commands)
    _on_lines(commands)
    return made


def _command(
    commands: Any, name: str, text: str, carry_out: Command, *, dry_run: bool = False, config: bool = True
) -> argparse.ArgumentParser:
    found: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    found.set_defaults(carry_out=carry_out)
    found.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    if config:
        found.add_argument("--config", default="cleanup.toml", metavar="FILE", help="default cleanup.toml")
    if dry_run:
        found.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return found


def _on_areas(commands: Any) -> None:
    register = _command(commands, "register", "write the markers of new areas", _register, dry_run=True)
    register.add_argument("areas", nargs="*", metavar="AREA")
    plan = _command(commands, "plan", "what a policy would do now; touches nothing", _plan)
    plan.add_argument("policy")
    plan.add_argument("--limit", type=_count, metavar="N", help="list at most N files")
    run = _command(commands, "run", "carry policies out; default all that are not off", _run, dry_run=True)
    run.add_argument("policies", nargs="*", metavar="POLICY")
    run.add_argument("--approve", type=_count, metavar="N", help="go above the brakes: the plan's N files")


def _on_trash(commands: Any) -> None:
    listing = _command(commands, "list", "what is in the trash, and until when", _list)
    listing.add_argument("areas", nargs="*", metavar="AREA")
    listing.add_argument("--path", metavar="GLOB", help="only what matches")
    restore = _command(commands, "restore", "bring files back from the trash", _restore, dry_run=True)
    restore.add_argument("area")
    restore.add_argument("--path", metavar="GLOB", help="only what matches")
    restore.add_argument("--item", action="append", default=[], metavar="ID", help="only these")
    restore.add_argument("--to", metavar="PATH", help="another name below the area, for one item")
    purge = _command(commands, "purge", "remove from the trash what is due", _purge, dry_run=True)
    purge.add_argument("areas", nargs="*", metavar="AREA")
    purge.add_argument("--now", metavar="REASON", help="before it is due; needs an area")
    purge.add_argument("--path", metavar="GLOB", help="with --now, only what matches")
    verify = _command(commands, "verify", "read the audit file: 0 sound, 1 tampered, 2 not checked", _verify)
    verify.add_argument("--head", metavar="SEQ:HASH", help="of the last entry, as noted elsewhere")


def _on_lines(commands: Any) -> None:
    text = "clean by lines of tmpfiles.d, as systemd does: at once and for good"
    clean = _command(commands, "clean", text, _clean, dry_run=True, config=False)
    clean.add_argument("files", nargs="+", metavar="FILE")
    clean.add_argument("--prefix", action="append", default=[], metavar="PATH", help="only paths below it")
    clean.add_argument("--remove", action="store_true", help="also what lines r, R and D name, at any age")
    clean.add_argument("--boot", action="store_true", help="also lines marked !, as when a system starts")
    text = "remove expired results from a directory, until it is ended"
    daemon = _command(commands, "daemon", text, _daemon, dry_run=True, config=False)
    daemon.add_argument("directory", nargs="?", metavar="DIR", help="default ~/.omnimemory/cached_results")
    daemon.add_argument("--interval", type=_age, default=timedelta(hours=6), metavar="AGE", help="default 6h")
    daemon.add_argument("--metrics-url", metavar="URL", help="each cleanup is reported to it")
    daemon.add_argument("--once", action="store_true", help="clean once and end")


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def _age(text: str) -> timedelta:
    try:
        return parse_age(text)
    except PolicyInvalid as error:
        raise argparse.ArgumentTypeError(str(error)) from error


# On a configuration


def _alone(options: argparse.Namespace) -> Standalone:
    return Standalone(
        load(options.config), now=datetime.now(UTC), actor=_actor(), on_progress=_progress(options)
    )


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # a user id without a name, as in some containers


def _progress(options: argparse.Namespace) -> OnProgress | None:
    """Return what shows a person at a terminal how far it is."""
    if options.json or not sys.stderr.isatty():
        return None

    def show(what: str, done: int, total: int | None) -> None:
        sys.stderr.write(f"\r\x1b[K{what}: {done}{'' if total is None else f' of {total}'}\r")
        sys.stderr.flush()

    return show


def _register(options: argparse.Namespace) -> Report:
    return _alone(options).register(options.areas, dry_run=options.dry_run)


def _plan(options: argparse.Namespace) -> Report:
    return _alone(options).plan(options.policy, limit=options.limit)


def _run(options: argparse.Namespace) -> Report:
    return _alone(options).run(options.policies, approve=options.approve, dry_run=options.dry_run)


def _list(options: argparse.Namespace) -> Report:
    return emptying.listing(_alone(options), options.areas, path=options.path)


def _restore(options: argparse.Namespace) -> Report:
    return emptying.bring_back(
        _alone(options),
        options.area,
        path=options.path,
        items=options.item,
        to=options.to,
        dry_run=options.dry_run,
    )


def _purge(options: argparse.Namespace) -> Report:
    return emptying.purge(
        _alone(options), options.areas, path=options.path, early=options.now, dry_run=options.dry_run
    )


def _verify(options: argparse.Namespace) -> Report:
    head = None
    if options.head is not None:
        seq, _, digest = options.head.partition(":")
        if not seq.isdecimal() or len(digest) != 64:
            raise Refused("--head is the number and the hash of an entry, with a colon between")
        head = (int(seq), digest)
    return emptying.verify(_alone(options), head=head)


# Without one


def _clean(options: argparse.Namespace) -> Report:
    # Only this command needs to know the machine's users and places.
    from cleanup.engine.specifiers import group_id, read_files, specifiers, user_id

    text, places = read_files(options.files)
    config = read(text, boot=options.boot, specifiers=specifiers(), user_id=user_id, group_id=group_id)
    events: list[Event] = []
    prefixes = [os.fsencode(prefix).rstrip(b"/") for prefix in options.prefix]
    lines = [line for line in config.lines if not prefixes or _is_below(line.path, prefixes)]
    sweep = Sweep(lines, now_ns=time.time_ns(), dry_run=options.dry_run, on_event=events.append)
    if options.remove:
        sweep.remove()
    sweep.clean()
    return _clean_report(config, places, events, dry_run=options.dry_run)


def _is_below(path: bytes, prefixes: Sequence[bytes]) -> bool:
    return any(path == prefix or path.startswith(prefix + b"/") for prefix in prefixes)


def _clean_report(
    config: Config, places: Sequence[tuple[str, int]], events: Sequence[Event], *, dry_run: bool
) -> Report:
    troubles = [
        {"file": places[trouble.number - 1][0], "line": places[trouble.number - 1][1], "why": trouble.why}
        for trouble in config.troubles
        if trouble.is_wrong
    ]
    told = [{"action": event.action, "path": escape(event.path), "why": event.why} for event in events]
    counts = {
        action: sum(event.action == action for event in events) for action in ("removed", "kept", "failed")
    }
    lines = [f"{one['action']}: {one['path']}{': ' if one['why'] else ''}{one['why']}" for one in told]
    lines += [f"not understood: {one['file']}:{one['line']}: {one['why']}" for one in troubles]
    lines.append(f"{counts['removed']} {'would be removed' if dry_run else 'removed'}.")
    return Report(
        data={**counts, "events": told, "troubles": troubles, "dry_run": dry_run},
        lines=lines,
        code=SOME_SKIPPED if troubles or counts["failed"] else DONE,
    )


def _daemon(options: argparse.Namespace) -> Report:
    # Nothing else needs an event loop, which would double the time that a command takes to start.
    import asyncio

    from cleanup.engine.daemon import ResultCleanupDaemon, serve

    given = {"cache_dir": options.directory} if options.directory else {}
    try:
        cleaner = ResultCleanupDaemon(
            check_interval=options.interval.total_seconds(), metrics_url=options.metrics_url, **given
        )
    except ValueError as error:
        raise Refused(str(error)) from error
    if options.dry_run:
        stats = cleaner.preview()
    elif options.once:
        stats = asyncio.run(cleaner._cleanup_expired())
    else:
        stats = asyncio.run(serve(cleaner))
    errors = stats.get("errors", stats.get("total_errors", 0))
    lines = [f"{name}: {value}" for name, value in stats.items()]
    return Report(data=stats, lines=lines, code=SOME_SKIPPED if errors else DONE)
