"""What the words after `manage.py cleanup` may be. The verbs themselves are in `verbs`."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.policy import parse_age
from cleanup.models import CatchUp, JobState, Mode, OrderBy, Rule, Unit, UploadState


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


def past(text: str) -> datetime:
    """An ISO 8601 time, in UTC if it names no zone, or an age before now."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(UTC) - age(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def lookups(text: str) -> dict[str, Any]:
    """Field lookups, as a JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentTypeError(f"{text!r} is not JSON") from error
    if not isinstance(found, dict):
        raise ArgumentTypeError(f"{text!r} is not a JSON object")
    return found


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
    measure = _verb(verbs, "measure", "count what areas hold, and keep it for the console")
    measure.add_argument("--area", metavar="AREA", help="this one alone; default all that are enabled")
    _explain(verbs)
    _verifiers(_group(verbs, "verifiers", "those whom policies ask"))
    _audit(_group(verbs, "audit", "who did what"))
    _orphans(verbs)
    _uploads(verbs, _group(verbs, "uploads", "files on their way in"))
    _files(_group(verbs, "files", "staged files"))
    _sources(_group(verbs, "sources", "addresses that are asked for news"))
    _results(_group(verbs, "results", "results of tasks that expire"))
    _pipeline(_group(verbs, "pipeline", "staged files on their way to text, chunks and points"))
    _bench(verbs)
    _systemd(verbs)
    _daemon(verbs)
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
    for name, text in (
        ("enable", "let policies act in an area again"),
        ("disable", "nothing is trashed there or purged by time; everything can be restored"),
        ("remove", "let go a disabled area whose trash is empty; no file goes"),
    ):
        _verb(what, name, text, dry_run=True).add_argument("name")
    marks = _verb(what, "marks", "set the watermarks of an area", dry_run=True)
    marks.add_argument("name")
    marks.add_argument("high", type=count, metavar="HIGH", help="percent of its disk: above it it is cleared")
    marks.add_argument("low", type=count, metavar="LOW", help="percent of its disk: down to here")
    protect = _verb(what, "protect", "two persons approve what is above a brake", dry_run=True)
    protect.add_argument("name")
    protect.add_argument("--off", action="store_true", help="one person approves")
    move = _verb(what, "move", "say that an area's directory is elsewhere now", dry_run=True)
    move.add_argument("name")
    move.add_argument("path")


def _policies(what: Any) -> None:
    add = _verb(what, "add", "make a policy; it reports until its mode is enforce", dry_run=True)
    add.add_argument("name")
    add.add_argument("--area", help="required but for rule rows")
    add.add_argument("--rule", choices=Rule.values, default=Rule.AGE)
    add.add_argument("--age", default="", metavar="AGE", help="such as 2d or 1h30m")
    add.add_argument(
        "--age-by", default="m", metavar="abcm", help="which time stamps must all be older; ABCM: of bundles"
    )
    add.add_argument("--grace", type=age, dest="grace_period", metavar="AGE", help="in the trash; default 7d")
    add.add_argument("--schedule", metavar="TEXT", help="such as 6h, or '30 2 * * *'; default 6h")
    add.add_argument("--catch-up", choices=CatchUp.values, help="with runs that were missed; default once")
    add.add_argument("--mode", choices=Mode.values, default=Mode.REPORT)
    add.add_argument("--include", action="append", default=[], metavar="GLOB")
    add.add_argument("--exclude", action="append", default=[], metavar="GLOB")
    add.add_argument("--verifier", action="append", default=[], metavar="SPEC", help="such as redis_task")
    add.add_argument("--task-id-pattern", default="", metavar="REGEX", help="where a path names its task")
    add.add_argument("--skip-in-use", action="store_true", help="leave files that are open somewhere")
    brakes = ("max-files", "max-bytes", "max-percent", "max-median-factor")
    for name in brakes:
        add.add_argument(f"--{name}", type=count, metavar="N", help="above it a person must approve")
    add.add_argument("--max-unknown-percent", type=count, metavar="N", help="above it a run is refused")
    _rule_fields(add)
    _verb(what, "list", "all policies")
    _verb(what, "verifiers", "whom a policy can ask before a file goes, with all options")
    mode = _verb(what, "mode", "turn a policy off, to report or to enforce", dry_run=True)
    mode.add_argument("name")
    mode.add_argument("mode", choices=Mode.values)
    change = _verb(what, "set", "change fields of a policy: a new version", dry_run=True)
    change.add_argument("name")
    change.add_argument("fields", nargs="+", metavar="FIELD=VALUE", help="as of the form; a list: one a time")
    _verb(what, "history", "every version of a policy: who, when, what changed").add_argument("name")
    revert = _verb(what, "revert", "put an old version back; area, name and mode stay", dry_run=True)
    revert.add_argument("name")
    revert.add_argument("--version", type=count, required=True, metavar="N", help="of the history")


def _rule_fields(add: ArgumentParser) -> None:
    """What only some rules look at."""
    add.add_argument("--unit", choices=Unit.values, help="what goes or stays as a whole; default file")
    add.add_argument("--bundle-pattern", metavar="REGEX", help="its group key makes the bundles")
    add.add_argument("--keep", type=count, metavar="N", help="keep_newest: how many of each group stay")
    add.add_argument("--group-pattern", metavar="REGEX", help="keep_newest: its group key makes the groups")
    add.add_argument("--order-by", choices=OrderBy.values, help="watermark: what goes first; default age")
    add.add_argument("--floor", type=age, metavar="AGE", help="in the trash even when the disk is full")
    add.add_argument("--model", metavar="APP.MODEL", help="rows: of a soft-delete model")
    add.add_argument("--stamp-field", metavar="FIELD", help="rows: whose age counts; default created_at")
    add.add_argument("--row-filter", type=lookups, metavar="JSON", help='rows: such as {"state": "done"}')


def _runs(verbs: Any) -> None:
    plan = _verb(verbs, "plan", "what a policy would do now; touches nothing")
    plan.add_argument("policy")
    plan.add_argument("--limit", type=count, metavar="N", help="list at most N files")
    plan.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="as it would be with this, unsaved"
    )
    plan.add_argument("--csv", type=Path, metavar="FILE", help="write every file with its reason there")
    _previews(_group(verbs, "previews", "what a worker said, or is to say, that policies would do"))
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


def _previews(what: Any) -> None:
    _verb(what, "list", "the previews of the last day")
    _verb(what, "cancel", "end one that waits or is under way", dry_run=True).add_argument("preview")


def _trash(verbs: Any) -> None:
    restore = _verb(verbs, "restore", "bring files back from the trash", dry_run=True)
    which = restore.add_mutually_exclusive_group(required=True)
    which.add_argument("--area")
    which.add_argument("--item", action="append", metavar="ID")
    which.add_argument("--rows", metavar="APP.MODEL", help="rows of a soft-delete model instead")
    restore.add_argument("--pk", action="append", metavar="KEY", help="with --rows, only this one")
    restore.add_argument("--path", metavar="GLOB", help="of the area, only what matches")
    restore.add_argument("--to", metavar="PATH", help="another name below the area, for one item")
    restore.add_argument("--rename", default="", metavar="TEXT", help="added to the names that are taken")
    _found_by(restore)
    retire = _verb(verbs, "retire", "soft-delete rows; no file is touched", dry_run=True)
    retire.add_argument("--rows", metavar="APP.MODEL", required=True, help="of this soft-delete model")
    retire.add_argument("--pk", action="append", metavar="KEY", required=True, help="this one; repeatable")
    retire.add_argument("--reason", required=True, help="why, for the audit")
    extend = _verb(verbs, "extend", "keep files in the trash for longer", dry_run=True)
    which = extend.add_mutually_exclusive_group(required=True)
    which.add_argument("--area")
    which.add_argument("--item", action="append", metavar="ID")
    extend.add_argument("--path", metavar="GLOB", help="of the area, only what matches")
    extend.add_argument("--by", type=age, required=True, metavar="AGE", help="added to what was promised")
    _found_by(extend)
    purge = _verb(verbs, "purge", "remove from the trash for good", dry_run=True)
    which = purge.add_mutually_exclusive_group(required=True)
    which.add_argument("--due", action="store_true", help="whose grace period is over")
    which.add_argument("--now", action="store_true", help="before that; needs --area and --reason")
    purge.add_argument("--area")
    purge.add_argument("--path", metavar="GLOB", help="with --now, only what matches")
    purge.add_argument("--reason", default="")
    _found_by(purge)
    manifest = _verb(verbs, "manifest", "what the trash itself says of one item, and whether its row agrees")
    manifest.add_argument("item", metavar="ID", help="id of the item")
    what = _group(verbs, "orders", "what a worker does to all that a filter finds in the trash")
    _verb(what, "list", "the newest orders, and how far they are")
    for name, text in (
        ("stop", "end an order after the batch at hand; what is done stays done"),
        ("run", "go on with an order here and now, for those without a worker"),
    ):
        _verb(what, name, text, dry_run=True).add_argument("order", metavar="ID")


def _found_by(parser: ArgumentParser) -> None:
    """What besides area and path finds files in the trash."""
    parser.add_argument("--policy", metavar="NAME", help="only what it has trashed")
    parser.add_argument("--run", metavar="ID", help="only what it has trashed")
    parser.add_argument("--why", metavar="REASON", help="only what was trashed for it: older_than_age")
    parser.add_argument("--queue", action="store_true", help="have a worker do it")


def _holds(verbs: Any) -> None:
    hold = _verb(verbs, "hold", "keep matching files from the trash and from being purged", dry_run=True)
    hold.add_argument("area")
    hold.add_argument("pattern")
    hold.add_argument("--reason", required=True)
    hold.add_argument("--until", type=moment, metavar="TIME", help="ISO 8601, or an age from now on")
    _verb(verbs, "release", "end a hold", dry_run=True).add_argument("hold", type=count)


def _explain(verbs: Any) -> None:
    text = "why a file is still there, when it will go, or where it went"
    explain = _verb(verbs, "explain", text)
    explain.add_argument("path", metavar="PATH", help="absolute, or below --area; escaped or not")
    explain.add_argument("--area", help="that the path is below")


def _verifiers(what: Any) -> None:
    _verb(what, "list", "the verifiers of all policies, and how they were found last")
    test = _verb(what, "test", "ask the canaries of verifiers; 0 sound, 1 not, 2 refused")
    which = test.add_mutually_exclusive_group(required=True)
    which.add_argument("verifier", nargs="?", metavar="SPEC", help="one that a policy asks")
    which.add_argument("--all", action="store_true", help="every one that a policy asks")
    test.add_argument("--task", default="", metavar="ID", help="ask about this task too")
    test.add_argument("--path", default="", metavar="PATH", help="ask about this file too; absolute")


def _audit(what: Any) -> None:
    verify = _verb(what, "verify", "read the whole audit; 0 sound, 1 tampered, 2 could not check")
    verify.add_argument("--segments", type=Path, metavar="DIR", help="where exported segments are")
    verify.add_argument("--segment", type=Path, metavar="FILE", help="check this segment alone")
    verify.add_argument("--log", type=Path, metavar="FILE", help="another copy of the checkpoints' file")
    verify.add_argument("--keys", type=Path, metavar="FILE", help="another copy of the public keys")
    entries = _verb(what, "list", "the newest entries")
    entries.add_argument("--limit", type=count, default=50, metavar="N")
    entries.add_argument("--action")
    entries.add_argument("--path", metavar="PATH", help="of one file, escaped")
    entries.add_argument("--actor", metavar="NAME", help="by this person, or by the system under this name")
    entries.add_argument("--area", metavar="NAME")
    entries.add_argument("--run", metavar="ID")
    entries.add_argument("--item", metavar="ID", help="of one file in the trash")
    entries.add_argument("--since", type=past, metavar="TIME", help="ISO 8601, or an age")
    entries.add_argument("--until", type=past, metavar="TIME", help="ISO 8601, or an age: before it")
    entries.add_argument("--scan", action="store_true", help="look at every entry: a clock was set by much")
    entries.add_argument("--jsonl", type=Path, metavar="FILE", help="write all of them there, as hashed")
    seal = _verb(what, "checkpoint", "seal what is not sealed yet", dry_run=True)
    seal.add_argument("--rebuild", action="store_true", help="make the file outside anew, when it was lost")
    export = _verb(what, "export", "write sealed stretches as segments", dry_run=True)
    export.add_argument("folder", type=Path, metavar="DIR")
    export.add_argument("--up-to", type=count, metavar="SEQ", help="only stretches that end by this entry")
    export.add_argument("--before", type=past, metavar="TIME", help="ISO 8601, or an age: sealed before it")
    export.add_argument("--again", action="store_true", help="also what was exported before")
    prune = _verb(what, "prune", "remove exported entries older than CLEANUP['AUDIT_KEEP']", dry_run=True)
    prune.add_argument("folder", type=Path, metavar="DIR", help="where their segments are")
    _verb(what, "prove", "what shows that one entry is sealed").add_argument("seq", type=count)
    keys = _verb(what, "keys", "the public keys", dry_run=True)
    keys.add_argument("--renew", action="store_true", help="retire the key that signs for a new one")


def _orphans(verbs: Any) -> None:
    orphans = _verb(verbs, "orphans", "files without a row, rows without a file, as last seen", dry_run=True)
    orphans.add_argument("area", nargs="?")
    orphans.add_argument("--scan", action="store_true", help="look now, and keep what is seen as a sighting")
    orphans.add_argument("--queue", action="store_true", help="have a worker look at the area")
    orphans.add_argument(
        "--register", metavar="GLOB", help="make rows of the files that were seen without one"
    )
    orphans.add_argument("--limit", type=count, default=20, metavar="N", help="list the first N of each kind")


def _uploads(verbs: Any, what: Any) -> None:
    listed = _verb(what, "list", "uploads, the newest first")
    listed.add_argument("--state", choices=UploadState.values, help="only these")
    listed.add_argument("--limit", type=count, default=50, metavar="N", help="at most N; default 50")
    terminate = _verb(what, "terminate", "give anybody's upload up; its bytes go", dry_run=True)
    terminate.add_argument("id", metavar="ID")
    _verb(what, "expire", "end those that got no byte in time, go on with what was interrupted", dry_run=True)
    stage = _verb(verbs, "stage", "copy a file of this host into an area, with its row", dry_run=True)
    stage.add_argument("area", metavar="AREA")
    stage.add_argument("file", metavar="FILE")
    stage.add_argument("--name", default="", help="what it is called; default its own name")
    stage.add_argument("--task-id", default="", metavar="TASK", help="what it is for")


def _files(what: Any) -> None:
    get = _verb(what, "get", "copy a staged file out of its area; nothing is overwritten")
    get.add_argument("key", type=count, metavar="N", help="key of its row")
    get.add_argument("--to", type=Path, required=True, metavar="FILE", help="where the copy goes")


def _results(what: Any) -> None:
    listed = _verb(what, "list", "the results in an area")
    listed.add_argument("area")
    listed.add_argument("--limit", type=count, default=100, metavar="N", help="the first N; default 100")
    show = _verb(what, "show", "one result, and a page of its entries")
    show.add_argument("area")
    show.add_argument("task")
    show.add_argument("--page", type=count, default=1, metavar="N", help="default 1")
    show.add_argument("--size", type=count, default=20, metavar="N", help="entries of a page; default 20")


def _pipeline(what: Any) -> None:
    run = _verb(what, "run", "take staged files through the pipeline", dry_run=True)
    run.add_argument("what_to_run", metavar="FILE", help="its key, or an area: what was never queued there")
    run.add_argument("--queue", action="store_true", help="hand it to the worker")
    listed = _verb(what, "list", "the jobs of the pipeline, the newest first")
    listed.add_argument("--state", choices=JobState.values, help="only these")
    listed.add_argument("--limit", type=count, default=50, metavar="N", help="at most N; default 50")


def _sources(what: Any) -> None:
    listed = _verb(what, "list", "all sources, when each is due, and what is wrong with it")
    listed.add_argument("--removed", action="store_true", help="also those that were removed")
    add = _verb(what, "add", "have an address asked for news", dry_run=True)
    add.add_argument("name")
    add.add_argument("url")
    add.add_argument("--area", required=True, help="where what is new becomes a file")
    add.add_argument("--interval", type=age, metavar="AGE", help="between two looks; default 1d")
    change = _verb(what, "change", "ask another address, or at another interval", dry_run=True)
    change.add_argument("name")
    change.add_argument("--url", help="asked from now on")
    change.add_argument("--interval", type=age, metavar="AGE", help="between two looks")
    refresh = _verb(
        what, "refresh", "ask now; 0 new or unchanged, 1 failed or another is at it", dry_run=True
    )
    refresh.add_argument("name", nargs="?")
    refresh.add_argument("--due", action="store_true", help="all that are due")
    refresh.add_argument("--queue", action="store_true", help="have a worker do it")
    for name, text in (
        ("enable", "ask a source again"),
        ("disable", "ask a source no more"),
        ("remove", "soft-delete a source; its files stay"),
        ("restore", "bring a removed source back"),
    ):
        _verb(what, name, text, dry_run=True).add_argument("name")


def _bench(verbs: Any) -> None:
    bench = _verb(verbs, "bench", "measure the engine beside other programs; takes minutes")
    bench.add_argument("figure", nargs="*", help="some of them; default all")
    bench.add_argument("--quick", action="store_true", help="few files: to see that it works")
    bench.add_argument(
        "--on", metavar="FOLDER", help="the file system to measure on; default the temporary one"
    )
    bench.add_argument("--file", metavar="FILE", help="write the tables to it as JSON")


def _systemd(verbs: Any) -> None:
    taken = _verb(verbs, "import-tmpfiles", "make policies of the ages in tmpfiles.d lines", dry_run=True)
    taken.add_argument("files", nargs="+", metavar="FILE")
    taken.add_argument("--prefix", action="append", default=[], metavar="PATH", help="only paths below it")
    taken.add_argument("--update", action="store_true", help="change policies that say something else")
    given = _verb(verbs, "export-systemd", "write a timer, a service and tmpfiles.d lines", dry_run=True)
    given.add_argument("directory", metavar="DIR")


def _daemon(verbs: Any) -> None:
    daemon = _verb(verbs, "daemon", "remove expired results, until it is ended", dry_run=True)
    daemon.add_argument("directory", nargs="?", metavar="DIR", help="default ~/.omnimemory/cached_results")
    daemon.add_argument(
        "--interval", type=age, default=timedelta(hours=6), metavar="AGE", help="between cleanups; default 6h"
    )
    daemon.add_argument("--metrics-url", default="", metavar="URL", help="each cleanup is reported to it")
    daemon.add_argument("--once", action="store_true", help="clean once and end")
