"""The verbs on areas that are in use: `areas enable`, `disable`, `move` and `remove`."""

from __future__ import annotations

from pathlib import Path

from django.db import transaction

from cleanup import operations
from cleanup.management.output import Answer
from cleanup.management.verbs import Options, actor
from cleanup.models import StagingArea
from cleanup.operations.area_changes import move_area, remove_area, set_enabled, set_protected


def areas_enable(options: Options) -> Answer:
    return _switch(options, enabled=True)


def areas_disable(options: Options) -> Answer:
    return _switch(options, enabled=False)


def _switch(options: Options, *, enabled: bool) -> Answer:
    area, dry = operations.find_area(options["name"]), options["dry_run"]
    if not dry:
        set_enabled(area, enabled, actor())
    data = {"area": area.name, "enabled": enabled}
    word = "is enabled: policies act in it again" if enabled else "is disabled: nothing in it goes"
    return _answer(data, f"Area {area.name} {word}.", dry=dry)


def areas_protect(options: Options) -> Answer:
    """Two persons approve what is above a brake; with `--off`, one."""
    area, dry, on = operations.find_area(options["name"]), options["dry_run"], not options["off"]
    if not dry:
        set_protected(area, on, actor())
    word = "two persons approve" if on else "one person approves"
    return _answer({"area": area.name, "protected": on}, f"Area {area.name}: {word}.", dry=dry)


def areas_move(options: Options) -> Answer:
    area, dry = operations.find_area(options["name"]), options["dry_run"]
    with transaction.atomic():
        move_area(area, Path(options["path"]).absolute(), actor())
        transaction.set_rollback(dry)
    return _answer(_data(area), f"Area {area.name} is now {area.path}.", dry=dry)


def areas_remove(options: Options) -> Answer:
    area, dry = operations.find_area(options["name"]), options["dry_run"]
    data = _data(area)
    remove_area(area, actor(), dry_run=dry)
    return _answer(data, f"Area {area.name} is removed; {area.path} is like any other directory.", dry=dry)


def _data(area: StagingArea) -> dict[str, object]:
    return {"area": area.name, "path": area.path, "uuid": str(area.uuid)}


def _answer(data: dict[str, object], line: str, *, dry: bool) -> Answer:
    if dry:
        return Answer(data={**data, "dry_run": True}, lines=["Dry run.", line])
    return Answer(data=data, lines=[line])
