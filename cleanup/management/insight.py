"""The verbs of `manage.py cleanup` that look on, prove and tick: report, audit, tick."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import DatabaseError
from django.db.models import Count, Sum

from cleanup import operations
from cleanup.management.output import DONE, REFUSED, SOME_SKIPPED, Answer, size, table
from cleanup.models import (
    AuditEntry,
    CleanupItem,
    CleanupRun,
    CleanupTotal,
    ItemState,
    RetentionPolicy,
    StagingArea,
)
from cleanup.operations import schedule
from cleanup.operations.purging import count_due
from cleanup.stores.sql import database_now

Options = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def report(_: Options) -> Answer:
    in_trash = CleanupItem.objects.filter(state=ItemState.TRASHED).order_by().values("area")
    trash = {row["area"]: row for row in in_trash.annotate(items=Count("pk"), total=Sum("size"))}
    areas = []
    for area in StagingArea.objects.all():
        row = trash.get(area.pk, {"items": 0, "total": 0})
        areas.append(
            {"area": area.name, "path": area.path, "trash_items": row["items"], "trash_bytes": row["total"]}
        )
    totals = list(CleanupTotal.objects.order_by("area", "policy").values(
        "area", "policy", "files_trashed", "bytes_trashed", "files_purged", "bytes_purged", "files_restored"
    ))  # fmt: skip
    runs = [_run_line(run) for run in CleanupRun.objects.select_related("policy_version__policy")[:10]]
    items = dict(CleanupItem.objects.order_by().values_list("state").annotate(Count("pk")))
    data = {"areas": areas, "totals": totals, "items": items, "runs": runs}
    return Answer(data=data, lines=_report_lines(data))


def _run_line(run: CleanupRun) -> dict[str, Any]:
    names = ("state", "planned_files", "trashed", "skipped", "errors", "residue")
    found = {name: getattr(run, name) for name in names}
    return {
        "run": str(run.pk),
        "policy": run.policy_version.policy.name,
        "at": run.created_at.isoformat(),
        **found,
    }


def _report_lines(data: dict[str, Any]) -> list[str]:
    areas = [
        [row["area"], row["trash_items"], size(row["trash_bytes"]), row["path"]] for row in data["areas"]
    ]
    runs = [[row["at"][:19], row["policy"], row["state"], row["trashed"], row["run"]] for row in data["runs"]]
    totals = [
        [row["area"], row["policy"] or "-", row["files_trashed"], row["files_restored"], row["files_purged"],
         size(row["bytes_purged"])]
        for row in data["totals"]
    ]  # fmt: skip
    return [
        *table(areas, header=["AREA", "IN TRASH", "BYTES", "PATH"]),
        "",
        *table(totals, header=["AREA", "POLICY", "TRASHED", "RESTORED", "PURGED", "FREED"]),
        "",
        *table(runs, header=["RUN AT", "POLICY", "STATE", "TRASHED", "ID"]),
    ]


def audit_verify(_: Options) -> Answer:
    try:
        found = operations.verify_audit()
    except DatabaseError as error:
        message = f"the audit could not be read: {error}".strip()
        return Answer(data={"sound": None, "error": message}, lines=[message], code=REFUSED)
    data: dict[str, Any] = {"sound": found.sound, "entries": found.entries}
    if found.sound:
        return Answer(data=data, lines=[f"Sound: {found.entries} entries."], code=DONE)
    data |= {"first_bad_seq": found.first_bad_seq, "kind": found.kind}
    line = f"TAMPERED: the first bad entry is {found.first_bad_seq} ({found.kind})."
    return Answer(data=data, lines=[line], code=SOME_SKIPPED)


def audit_list(options: Options) -> Answer:
    entries = AuditEntry.objects.order_by("-seq")
    if options["action"]:
        entries = entries.filter(action=options["action"])
    if options["path"]:
        entries = entries.filter(path=options["path"])
    names = ("seq", "actor", "action", "area", "path", "size", "reason", "run", "item", "policy_version")
    rows = [
        {"at": (_EPOCH + timedelta(microseconds=entry.at_us)).isoformat()}
        | {name: getattr(entry, name) for name in names}
        for entry in entries[: options["limit"]]
    ]
    shown = [
        [row["seq"], row["at"][:19], row["actor"], row["action"], row["area"], row["path"]] for row in rows
    ]
    lines = table(shown, header=["SEQ", "AT", "WHO", "WHAT", "AREA", "PATH"])
    return Answer(data={"entries": rows}, lines=lines)


def tick(options: Options) -> Answer:
    now = database_now()
    if options["dry_run"]:
        return _would_tick(now)
    done = schedule.tick(now)
    schedule.run_inline(done, operations.execute)
    purged = operations.purge_due()
    data = {
        "started": [str(run) for run in done.started], "resumed": [str(run) for run in done.reaped],
        "expired": done.expired, "recovered": done.recovered, "rows_purged": done.rows_purged,
        "purged": purged.purged, "bytes": purged.bytes,
    }  # fmt: skip
    lines = [f"{name}: {len(value) if isinstance(value, list) else value}" for name, value in data.items()]
    return Answer(data=data, lines=lines, code=SOME_SKIPPED if purged.errors else DONE)


def _would_tick(now: datetime) -> Answer:
    due = RetentionPolicy.objects.filter(next_due_at__lte=now, area__enabled=True).exclude(mode="off")
    policies, abandoned = [row.name for row in due], [str(run) for run in schedule.abandoned(now)]
    data = {"policies": policies, "resumed": abandoned, "purge_items": len(count_due()), "dry_run": True}
    lines = [f"due: {name}" for name in policies] + [f"without a worker: {run}" for run in abandoned]
    return Answer(data=data, lines=[*lines, f"items to be purged: {data['purge_items']}"])
