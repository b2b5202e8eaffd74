"""`sources list`, `add`, `change`, `refresh`, `enable`, `disable`, `remove`, `restore`."""

from __future__ import annotations

from typing import Any

from cleanup import operations
from cleanup.management.output import DONE, SOME_SKIPPED, Answer, table
from cleanup.management.verbs import Options, actor, rolled_back
from cleanup.models import Source
from cleanup.operations import OperationRefused
from cleanup.staging import sources
from cleanup.stores.sql import database_now


def sources_list(options: Options) -> Answer:
    rows = list(Source.all_objects.select_related("area") if options["removed"] else _living())
    shown = [
        [row.name, row.area.name, _state(row), row.version, _moment(row.next_check_at), row.url]
        for row in rows
    ]
    lines = table(shown, header=["SOURCE", "AREA", "STATE", "VERSION", "DUE", "ADDRESS"])
    return Answer(data={"sources": [_data(row) for row in rows]}, lines=lines)


def _living() -> Any:
    return Source.objects.select_related("area")


def _state(row: Source) -> str:
    if row.deleted_at is not None:
        return "removed"
    if not row.enabled:
        return "disabled"
    return f"failed {row.failures} times: {row.last_error}" if row.failures else row.state


def _moment(moment: Any) -> str:
    return moment.isoformat(timespec="seconds") if moment else "-"


def _data(row: Source) -> dict[str, Any]:
    return {
        "source": row.name, "url": row.url, "area": row.area.name, "enabled": row.enabled, "state": row.state,
        "interval_seconds": int(row.interval.total_seconds()), "version": row.version, "sha256": row.sha256,
        "failures": row.failures, "last_error": row.last_error, "removed": row.deleted_at is not None,
        "last_checked_at": row.last_checked_at.isoformat() if row.last_checked_at else None,
        "next_check_at": row.next_check_at.isoformat() if row.next_check_at else None,
    }  # fmt: skip


def _answer(row: Source, line: str) -> Answer:
    return Answer(data=_data(row), lines=[line])


@rolled_back
def sources_add(options: Options) -> Answer:
    area = operations.find_area(options["area"])
    given = {} if options["interval"] is None else {"interval": options["interval"]}
    row = sources.add(options["name"], options["url"], area, actor(), **given)
    return _answer(row, f"Source {row.name} is {row.url}; it is asked with the next tick.")


@rolled_back
def sources_change(options: Options) -> Answer:
    if options["url"] is None and options["interval"] is None:
        raise OperationRefused("say what is to be changed: --url, --interval")
    row = sources.find(options["name"])
    sources.change(row, actor(), url=options["url"], interval=options["interval"])
    return _answer(row, f"Source {row.name} is {row.url}; it is asked with the next tick.")


@rolled_back
def sources_enable(options: Options) -> Answer:
    row = sources.set_enabled(sources.find(options["name"]), True, actor())
    return _answer(row, f"Source {row.name} is enabled: it is asked with the next tick.")


@rolled_back
def sources_disable(options: Options) -> Answer:
    row = sources.set_enabled(sources.find(options["name"]), False, actor())
    return _answer(row, f"Source {row.name} is disabled: it is asked no more.")


@rolled_back
def sources_remove(options: Options) -> Answer:
    row = sources.remove(sources.find(options["name"]), actor())
    return _answer(row, f"Source {row.name} is removed; until {_moment(row.purge_after)} it can be restored.")


@rolled_back
def sources_restore(options: Options) -> Answer:
    row = sources.restore(sources.find(options["name"], removed=True), actor())
    return _answer(row, f"Source {row.name} is back: it is asked with the next tick.")


def sources_refresh(options: Options) -> Answer:
    """Ask one source, or with `--due` all that are due; here and now, or with `--queue` by a worker."""
    if bool(options["name"]) is options["due"]:
        raise OperationRefused("name one source, or say --due")
    if options["dry_run"]:
        return _planned(options)
    if options["due"]:
        keys = list(sources.tick(database_now()))
    else:
        keys = [sources.queue(sources.find(options["name"]), actor()).pk]
    if options["queue"]:
        for key in keys:
            sources.wake(key)
        return Answer(data={"queued": len(keys)}, lines=[f"{len(keys)} sources wait for a worker."])
    return _report([(key, sources.refresh(key, actor=actor())) for key in keys])


def _planned(options: Options) -> Answer:
    if options["due"]:
        rows = list(_living().filter(enabled=True, next_check_at__lte=database_now()))
    else:
        rows = [sources.find(options["name"])]
    lines = ["Dry run.", *(f"{row.name}: {row.url} would be asked." for row in rows)]
    return Answer(data={"sources": [row.name for row in rows], "dry_run": True}, lines=lines)


def _report(done: list[tuple[int, sources.Refreshed | None]]) -> Answer:
    names = dict(Source.all_objects.filter(pk__in=[key for key, _ in done]).values_list("pk", "name"))
    data, lines, code = [], [], DONE
    for key, found in done:
        outcome = "skipped" if found is None else found.outcome
        message = "another worker is at it" if found is None else found.message
        version = 0 if found is None else found.version
        data.append({"source": names.get(key), "outcome": outcome, "version": version, "message": message})
        lines.append(f"{names.get(key)}: {outcome}, {message}")
        code = code if outcome in ("new", "unchanged") else SOME_SKIPPED
    return Answer(data={"refreshed": data}, lines=lines or ["No source is due."], code=code)
