"""`manage.py cleanup areas marks`: from which share of its disk on an area is cleared, and down to which."""

from __future__ import annotations

from django.db import transaction

from cleanup import operations
from cleanup.management.output import Answer
from cleanup.management.verbs import Options, actor
from cleanup.operations.watermarks import set_marks


def areas_marks(options: Options) -> Answer:
    area, dry = operations.find_area(options["name"]), options["dry_run"]
    with transaction.atomic():
        set_marks(area, high=options["high"], low=options["low"], actor=actor())
        transaction.set_rollback(dry)
    data = {"area": area.name, "high": area.high_watermark, "low": area.low_watermark}
    line = f"Above {area.high_watermark} % of its disk, {area.name} is cleared to {area.low_watermark} %."
    if dry:
        return Answer(data={**data, "dry_run": True}, lines=["Dry run.", line])
    return Answer(data=data, lines=[line])
