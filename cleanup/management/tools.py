"""The verb of `manage.py cleanup` that stays: daemon, which keeps one directory of cached results clean."""

from __future__ import annotations

import asyncio
from typing import Any

from cleanup.conf import conf
from cleanup.engine.daemon import ResultCleanupDaemon, serve
from cleanup.engine.expiry import zone_from_name
from cleanup.management.output import DONE, SOME_SKIPPED, Answer, size
from cleanup.management.verbs import Options
from cleanup.operations.outcomes import OperationRefused


def daemon(options: Options) -> Answer:
    """Carry out daemon: until SIGTERM or SIGINT, or once."""
    cleaner = _cleaner(options)
    if options["dry_run"]:
        stats = cleaner.preview()
        line = f"{stats['expired_count']} results, {size(stats['expired_bytes'])} would be removed."
    elif options["once"]:
        stats = asyncio.run(cleaner._cleanup_expired())
        line = f"{stats['deleted_count']} results removed, {size(stats['freed_bytes'])} freed."
    else:
        stats = asyncio.run(serve(cleaner))
        line = f"{stats['total_deleted']} results removed in {stats['total_cleanups']} cleanups."
    errors = stats.get("errors", stats.get("total_errors", 0))
    lines = [line, *([f"{errors} errors; the log names them"] if errors else [])]
    return Answer(data=stats, lines=lines, code=SOME_SKIPPED if errors else DONE)


def _cleaner(options: Options) -> ResultCleanupDaemon:
    given: dict[str, Any] = {"cache_dir": options["directory"]} if options["directory"] else {}
    try:
        return ResultCleanupDaemon(
            check_interval=options["interval"].total_seconds(),
            metrics_url=options["metrics_url"] or None,
            naive_timezone=zone_from_name(conf().naive_timezone),
            **given,
        )
    except ValueError as error:
        raise OperationRefused(str(error)) from error
