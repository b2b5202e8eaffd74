"""The verbs of `manage.py cleanup` that look on and tick: report, tick."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db.models import Count, Sum

from cleanup import operations
from cleanup.conf import conf
from cleanup.management.output import DONE, SOME_SKIPPED, Answer, size, table
from cleanup.models import (
    CleanupItem,
    CleanupRun,
    CleanupTotal,
    ItemState,
    StagingArea,
)
from cleanup.operations import auditing, orders, previews, schedule, usage
from cleanup.operations.purging import count_due
from cleanup.staging import uploads
from cleanup.stores.sql import database_now

Options = dict[str, Any]


def report(_: Options) -> Answer:
    in_trash = CleanupItem.objects.filter(state=ItemState.TRASHED).order_by().values("area")
    trash = {row["area"]: row for row in in_trash.annotate(items=Count("pk"), total=Sum("size"))}
    rows, none = list(StagingArea.objects.all()), {"items": 0, "total": 0}
    disks, coming = usage.disks(rows), usage.forecasts(database_now())
    areas = [
        {
            "area": area.name, "path": area.path,
            "trash_items": trash.get(area.pk, none)["items"],
            "trash_bytes": trash.get(area.pk, none)["total"],
            "used_bytes": disks[area.pk].used if area.pk in disks else None,
            "total_bytes": disks[area.pk].total if area.pk in disks else None,
            "high_watermark": area.high_watermark, "low_watermark": area.low_watermark,
            "forecast_full_seconds": coming.get(area.pk),
        }
        for area in rows
    ]  # fmt: skip
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
        [row["area"], _used(row), _forecast(row), row["trash_items"], size(row["trash_bytes"]), row["path"]]
        for row in data["areas"]
    ]
    runs = [[row["at"][:19], row["policy"], row["state"], row["trashed"], row["run"]] for row in data["runs"]]
    totals = [
        [row["area"], row["policy"] or "-", row["files_trashed"], row["files_restored"], row["files_purged"],
         size(row["bytes_purged"])]
        for row in data["totals"]
    ]  # fmt: skip
    return [
        *table(areas, header=["AREA", "DISK USED", "FULL IN", "IN TRASH", "BYTES", "PATH"]),
        "",
        *table(totals, header=["AREA", "POLICY", "TRASHED", "RESTORED", "PURGED", "FREED"]),
        "",
        *table(runs, header=["RUN AT", "POLICY", "STATE", "TRASHED", "ID"]),
    ]


def _used(row: dict[str, Any]) -> str:
    if not row["total_bytes"]:
        return "unknown"
    return f"{size(row['used_bytes'])}, {100 * row['used_bytes'] // row['total_bytes']} %"


def _forecast(row: dict[str, Any]) -> str:
    seconds = row["forecast_full_seconds"]
    if seconds is None:
        return "-"
    return f"{seconds / 86_400:.1f} d" if seconds >= 86_400 else f"{seconds / 3_600:.1f} h"


def tick(options: Options) -> Answer:
    now = database_now()
    if options["dry_run"]:
        return _would_tick(now)
    done = schedule.tick(now)
    # A worker looks through the trash when it starts; where there is none, nobody else would.
    done.recovered += schedule.recover_all(with_adoption=True)
    schedule.run_inline(done, operations.execute)
    for order_id in orders.abandoned_orders(now):
        orders.carry_out_order(order_id)
    previews.tend_previews(now)
    expired, finished = uploads.expire(now), uploads.recover(now)
    purged = operations.purge_due()
    tended = auditing.tend(conf().slice_length)
    data = {
        "started": [str(run) for run in done.started], "resumed": [str(run) for run in done.reaped],
        "expired": done.expired, "recovered": done.recovered, "rows_purged": done.rows_purged,
        "purged": purged.purged, "bytes": purged.bytes, "sealed": tended.sealed,
        "uploads_expired": expired, "uploads_recovered": finished,
    }  # fmt: skip
    lines = [f"{name}: {len(value) if isinstance(value, list) else value}" for name, value in data.items()]
    return Answer(data=data, lines=lines, code=SOME_SKIPPED if purged.errors else DONE)


def _would_tick(now: datetime) -> Answer:
    policies = [policy.name for policy in schedule.due_policies(now)]
    abandoned = [str(run) for run in schedule.abandoned(now)]
    data = {"policies": policies, "resumed": abandoned, "purge_items": len(count_due()), "dry_run": True}
    lines = [f"due: {name}" for name in policies] + [f"without a worker: {run}" for run in abandoned]
    return Answer(data=data, lines=[*lines, f"items to be purged: {data['purge_items']}"])
