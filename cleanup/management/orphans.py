"""The verbs about orphans and rows: `orphans`, `retire`, and `restore --rows`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from cleanup import operations
from cleanup.conf import conf
from cleanup.engine.errors import EngineError
from cleanup.engine.orphans import Sighting
from cleanup.management import verbs
from cleanup.management.output import DONE, SOME_SKIPPED, Answer, table
from cleanup.management.verbs import actor
from cleanup.models import StagingArea
from cleanup.operations import OperationRefused
from cleanup.operations.areas import opened
from cleanup.operations.looking import ask_look, register_files
from cleanup.operations.orphans import look, sight
from cleanup.operations.rows import count_restorable, restore_rows, retire_rows
from cleanup.stores.orphans import count, scanned, stored
from cleanup.stores.sql import database_now

Options = dict[str, Any]


def orphans(options: Options) -> Answer:
    """Tell what the last scan of each area saw; with `--scan` look now, with `--queue` have a worker look.

    Of several areas, one that cannot be looked at does not keep the others from being looked at.
    """
    if options["queue"] or options["register"] is not None:
        return _changed(options)
    if options["area"]:
        told = [_told(operations.find_area(options["area"]), options)]
    else:
        told = [_told_or_refused(area, options) for area in StagingArea.objects.filter(enabled=True)]
    data = [one for one in told if one is not None]
    lines = [line for one in data for line in _lines(one)] or ["No area was scanned for orphans yet."]
    refused = any("error" in one for one in data)
    return Answer(data={"areas": data}, lines=lines, code=SOME_SKIPPED if refused else DONE)


def _changed(options: Options) -> Answer:
    """Have a worker look at an area, or register what was seen there."""
    if not options["area"]:
        raise OperationRefused("--queue and --register are for one area: name it")
    area, dry = operations.find_area(options["area"]), options["dry_run"]
    if options["register"] is not None:
        made = register_files(area, options["register"], actor(), dry_run=dry)
        line = f"{len(made)} files of {area.name} {'would be' if dry else 'are'} registered."
        return Answer(data={"area": area.name, "registered": made, "dry_run": dry}, lines=[line, *made[:20]])
    if not dry:
        ask_look(area, actor())
    line = f"A worker {'would look' if dry else 'looks'} at {area.name}."
    return Answer(data={"area": area.name, "queued": not dry}, lines=[line])


def _told_or_refused(area: StagingArea, options: Options) -> dict[str, Any] | None:
    try:
        return _told(area, options)
    except (EngineError, OSError) as error:
        code = error.code if isinstance(error, EngineError) else "os_error"
        return {"area": area.name, "error": code, "message": str(error)}


def _told(area: StagingArea, options: Options) -> dict[str, Any] | None:
    limit = options["limit"]
    if not options["scan"]:
        return _stored(area, limit)
    now = database_now()
    with opened(area) as handle:
        if not options["dry_run"]:
            sight(handle, area, now=now, actor=actor())
            return _stored(area, limit)
        found = look(handle, area.pk, now=now)
    examples = [*_examples("file", found.without_row, limit), *_examples("row", found.without_file, limit)]
    return {
        "area": area.name,
        "seen_at": now.isoformat(),
        "files": {"orphans": found.without_row.count, "of": found.files},
        "rows": {"orphans": found.without_file.count, "of": found.rows},
        "examples": examples,
        "dry_run": True,
    }


def _stored(area: StagingArea, limit: int) -> dict[str, Any] | None:
    files, rows = scanned(area.pk, "file"), scanned(area.pk, "row")
    if files is None or rows is None:
        return None
    return {
        "area": area.name,
        "seen_at": files.seen_at.isoformat(),
        "files": {"orphans": count(area.pk, "file"), "of": files.total},
        "rows": {"orphans": count(area.pk, "row"), "of": rows.total},
        "examples": [
            *_examples("file", stored(area.pk, "file"), limit),
            *_examples("row", stored(area.pk, "row"), limit),
        ],
    }


def _examples(kind: str, sightings: Iterable[Sighting], limit: int) -> list[dict[str, str]]:
    gap = conf().orphan_sighting_gap
    return [
        {
            "kind": kind,
            "path": one.path,
            "first_seen": one.first_seen.isoformat(),
            "counts_from": (one.first_seen + gap).isoformat(),
        }
        for one in islice(sightings, limit)
    ]


def _lines(told: dict[str, Any]) -> list[str]:
    if "error" in told:
        return [f"{told['area']}: {told['message']}"]
    files, rows = told["files"], told["rows"]
    shown = [
        [one["kind"], one["first_seen"][:19], one["counts_from"][:19], one["path"]]
        for one in told["examples"]
    ]
    return [
        f"{told['area']} at {told['seen_at'][:19]}: {files['orphans']} of {files['of']} files have no row, "
        f"{rows['orphans']} of {rows['of']} rows have no file.",
        *(table(shown, header=["KIND", "SINCE", "COUNTS FROM", "PATH"]) if shown else []),
    ]


def restore(options: Options) -> Answer:
    """Bring files back from the trash, or soft-deleted rows of a model."""
    label, keys = options["rows"], options["pk"]
    if not label:
        if keys:
            raise OperationRefused("--pk needs --rows")
        return verbs.restore(options)
    if options["queue"]:
        raise OperationRefused("rows are brought back at once: --queue is for files")
    if options["dry_run"]:
        found = count_restorable(label, keys)
        planned = {"restored": 0, "rows": found, "dry_run": True}
        return Answer(data=planned, lines=[f"{found} rows of {label} would be restored."])
    report = restore_rows(label, keys, actor=actor())
    lines = [f"{report.rows} rows of {label} restored."]
    lines += [f"kept: {name} comes back with its file" for name in report.kept]
    data: dict[str, Any] = {"restored": report.rows, "kept": report.kept}
    return Answer(data=data, lines=lines, code=SOME_SKIPPED if report.kept else DONE)


def retire(options: Options) -> Answer:
    """Soft-delete rows of a model."""
    label, dry = options["rows"], options["dry_run"]
    report = retire_rows(label, options["pk"], actor=actor(), reason=options["reason"], dry_run=dry)
    lines = [f"{report.rows} rows of {label} {'would be' if dry else 'are'} soft-deleted."]
    lines += [f"kept: {name} is no living row" for name in report.kept]
    data: dict[str, Any] = {"retired": 0 if dry else report.rows, "kept": report.kept}
    data |= {"rows": report.rows, "dry_run": True} if dry else {}
    return Answer(data=data, lines=lines, code=SOME_SKIPPED if report.kept else DONE)
