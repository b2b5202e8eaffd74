"""The verb `measure`: what areas hold, counted now and kept for the pages of the console."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from cleanup import operations
from cleanup.management.output import DONE, SOME_SKIPPED, Answer, size, table
from cleanup.models import AreaUsage, StagingArea
from cleanup.operations import measuring
from cleanup.stores.sql import database_now

#: A person who asks for it may wait longer than the clock's tick.
_PATIENCE = timedelta(hours=1)

_COLUMNS = ("live", "eligible", "held", "trash")


def measure(options: dict[str, Any]) -> Answer:
    names, now = options["area"], database_now()
    areas = [operations.find_area(names)] if names else [*StagingArea.objects.filter(enabled=True)]
    rows = [_measured(area, now) for area in areas]
    lines = table(
        [
            [row["area"], *(f"{row[name][0]:,} files, {size(row[name][1])}" for name in _COLUMNS)]
            for row in rows
        ],
        header=["area", *_COLUMNS],
    )
    trouble = [f"{row['area']}: {row['message']}" for row in rows if row["message"]]
    return Answer(data={"areas": rows}, lines=[*lines, *trouble], code=SOME_SKIPPED if trouble else DONE)


def _measured(area: StagingArea, now: Any) -> dict[str, Any]:
    measuring.measure_trash(area, now=now)
    row: AreaUsage = measuring.measure_area(area, now=now, limit=_PATIENCE)
    figures = {name: [getattr(row, f"{name}_files"), getattr(row, f"{name}_bytes")] for name in _COLUMNS}
    at = None if row.measured_at is None else row.measured_at.isoformat()
    return {"area": area.name, "measured_at": at, "seconds": row.seconds, "message": row.message, **figures}
