"""The verb `explain` of `manage.py cleanup`: one path, and all that is known about it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from cleanup import operations
from cleanup.management.output import Answer, size
from cleanup.operations.explanations import Explanation, HoldExplained, PolicyExplained, TrashExplained

Options = dict[str, Any]

#: Members of a bundle that are listed for people.
_LISTED = 10

_MARK = {True: "+", False: "-", None: " "}


def explain(options: Options) -> Answer:
    area = operations.find_area(options["area"]) if options["area"] else None
    found = operations.explain(options["path"], area=area)
    return Answer(data=_plain(asdict(found)), lines=_lines(found))


def _plain(value: Any) -> Any:
    """Times as text, so that JSON can hold them."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.isoformat() if isinstance(value, datetime) else value


def _lines(found: Explanation) -> list[str]:
    lines = [f"{found.path}: {found.kind}" + (f", {size(found.size)}" if found.kind == "file" else "")]
    if found.area is not None:
        lines.append(f"In area {found.area}.")
    lines += found.notes
    if found.registry is not None:
        lines.append(_registered(found.registry))
    lines += [_held(one) for one in found.holds]
    for one in found.policies:
        lines += ["", *_policy(one)]
    for went in found.trash:
        lines += ["", *_trash(went)]
    return lines


def _registered(row: dict[str, Any]) -> str:
    gone = f", gone since {row['deleted_at'].isoformat()}" if row["deleted_at"] else ""
    by, task = row["uploader"] or "unknown", row["task_id"] or "none"
    return f"Registered {row['created_at'].isoformat()} by {by}, task {task}{gone}."


def _held(one: HoldExplained) -> str:
    until = one.until.isoformat() if one.until else "it is released"
    return f"HELD until {until} by hold {one.hold} ({one.pattern}) of {one.created_by}: {one.reason}"


def _policy(one: PolicyExplained) -> list[str]:
    verdict = "WOULD GO" if one.goes else "stays"
    why = f"{one.reason} ({one.meaning})" + (f": {one.detail}" if one.detail else "")
    lines = [f"Policy {one.policy} (rule {one.rule}, mode {one.mode}): {verdict}: {why}"]
    lines += [f"  {_MARK[each.holds]} {each.name}: {each.value}" for each in one.conditions]
    if len(one.members) > 1:
        more = f" and {len(one.members) - _LISTED} more" if len(one.members) > _LISTED else ""
        lines.append(f"    together: {', '.join(one.members[:_LISTED])}{more}")
    if one.eligible_from is not None:
        lines.append(f"    eligible from {one.eligible_from.isoformat()}")
    if one.next_run_at is not None:
        lines.append(f"    next run at {one.next_run_at.isoformat()}")
    return lines + [f"  ! {obstacle}" for obstacle in one.obstacles]


def _trash(one: TrashExplained) -> list[str]:
    since = f" since {one.trashed_at.isoformat()}" if one.trashed_at else ""
    lines = [f"Item {one.item}: {one.state}{since}, {one.reason}" + (f": {one.detail}" if one.detail else "")]
    if one.restorable_until is not None:
        lines.append(f"    can be brought back until {one.restorable_until.isoformat()} at least")
    if one.command:
        lines.append(f"    {one.command}")
    return lines
