"""The verbs of `manage.py cleanup`: each calls the operation that admin calls too, and says what came of it.

A verb takes the parsed options and returns an `Answer`. Refusals are exceptions of the engine; the command
turns them into words and an exit code. Paths are relative to their area and escaped.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db import transaction

from cleanup import operations
from cleanup.conf import conf
from cleanup.engine.places import check_place
from cleanup.management.output import DONE, REFUSED, SOME_SKIPPED, Answer, progress_bar, size, table
from cleanup.models import (
    CleanupItem,
    CleanupRun,
    Hold,
    Mode,
    OrderVerb,
    RetentionPolicy,
    RunState,
    StagingArea,
    TrashOrder,
)
from cleanup.operations import (
    Actor,
    NotFound,
    OperationRefused,
    PurgeReport,
    RestoreReport,
    orders,
    trash_filters,
)
from cleanup.operations.purging import count_due
from cleanup.stores.leases import WORKING_STATES

Options = dict[str, Any]
Verb = Callable[[Options], Answer]

#: Fields of a policy that are left as the row has them unless an option says otherwise.
_POLICY_FIELDS = (
    "grace_period", "schedule", "catch_up", "skip_in_use", "max_files", "max_bytes", "max_percent",
    "max_median_factor", "max_unknown_percent", "unit", "bundle_pattern", "keep", "group_pattern", "order_by",
    "floor", "model", "stamp_field", "row_filter",
)  # fmt: skip

#: How often a run that a worker has taken is looked at (s).
_LOOK = 0.2


def actor() -> Actor:
    """Whoever is at this shell."""
    try:
        return Actor(name=getpass.getuser(), kind="command")
    except (KeyError, OSError):
        return Actor(name="unknown", kind="command")  # a user id without a name, as in some containers


def rolled_back(verb: Verb) -> Verb:
    """With `--dry-run` do everything in a transaction and take it back: for verbs that change rows alone."""

    @wraps(verb)
    def dry(options: Options) -> Answer:
        if not options["dry_run"]:
            return verb(options)
        with transaction.atomic():
            answer = verb(options)
            transaction.set_rollback(True)
        return Answer(
            data={**answer.data, "dry_run": True}, lines=["Dry run.", *answer.lines], code=answer.code
        )

    return dry


# Areas and policies


def areas_add(options: Options) -> Answer:
    path, name = Path(options["path"]).absolute(), options["name"]
    if options["dry_run"]:
        check_place(path, forbidden=conf().forbidden_paths, permitted=[], mounts=True)
        return Answer(data={"area": name, "path": str(path), "dry_run": True}, lines=["It may."])
    area = operations.add_area(name, path, actor(), protected=options["protected"])
    data = {"area": area.name, "path": area.path, "uuid": str(area.uuid), "protected": area.protected}
    return Answer(data=data, lines=[f"Area {area.name} is {area.path}."])


def areas_list(_: Options) -> Answer:
    rows = list(StagingArea.objects.all())
    names = ("name", "path", "protected", "enabled")
    data = [{name: getattr(row, name) for name in names} | {"uuid": str(row.uuid)} for row in rows]
    lines = table([[row.name, row.path, "yes" if row.protected else "no"] for row in rows],
                  header=["AREA", "PATH", "PROTECTED"])  # fmt: skip
    return Answer(data={"areas": data}, lines=lines)


@rolled_back
def policies_add(options: Options) -> Answer:
    fields = {name: options[name] for name in _POLICY_FIELDS if options[name] is not None}
    area = operations.find_area(options["area"]) if options["area"] else None
    policy = operations.add_policy(
        options["name"], area, actor(), rule=options["rule"], age=options["age"], age_by=options["age_by"],
        include=options["include"], exclude=options["exclude"], verifiers=options["verifier"],
        task_id_pattern=options["task_id_pattern"], mode=options["mode"], **fields,
    )  # fmt: skip
    return policy_answer(policy, f"Policy {policy.name} is made, in mode {policy.mode}.")


@rolled_back
def policies_mode(options: Options) -> Answer:
    policy = operations.find_policy(options["name"])
    operations.set_mode(policy, options["mode"], actor())
    return policy_answer(policy, f"Policy {policy.name} is now in mode {policy.mode}.")


def policy_answer(policy: RetentionPolicy, line: str) -> Answer:
    number = policy.versions.count()
    data = {"policy": policy.name, "area": policy.scope, "mode": policy.mode, "version": number}
    return Answer(data=data, lines=[line])


def policies_list(_: Options) -> Answer:
    rows = list(RetentionPolicy.objects.select_related("area"))
    data = [
        {
            "name": row.name, "area": row.scope, "rule": row.rule, "age": row.age, "mode": row.mode,
            "grace_seconds": int(row.grace_period.total_seconds()), "schedule": row.schedule,
            "next_due_at": row.next_due_at.isoformat() if row.next_due_at else None,
        }
        for row in rows
    ]  # fmt: skip
    lines = table([[row.name, row.scope, row.rule, row.age or "-", row.mode] for row in rows],
                  header=["POLICY", "AREA", "RULE", "AGE", "MODE"])  # fmt: skip
    return Answer(data={"policies": data}, lines=lines)


# Plans and runs


def run(options: Options) -> Answer:
    if bool(options["policy"]) == bool(options["resume"]):
        raise OperationRefused("name a policy, or a run to resume")
    if options["resume"]:
        found = operations.find_run(options["resume"])
        return _run_answer(found) if options["dry_run"] else _carry_out(found, options)
    policy = operations.find_policy(options["policy"])
    if options["queue"]:
        return _run_answer(operations.queue_run(policy, actor=actor(), dry_run=options["dry_run"]))
    return _carry_out(operations.start_run(policy, actor(), dry_run=options["dry_run"]), options)


def _carry_out(found: CleanupRun, options: Options) -> Answer:
    """Carry a run out here, or watch whoever does until it is over."""
    with progress_bar(shown=not options["json"]) as show:
        try:
            found = operations.execute(found.pk, on_progress=show)
            while found.state in WORKING_STATES and found.lease_until is not None:
                time.sleep(_LOOK)
                found = operations.execute(found.pk, on_progress=show)
        except KeyboardInterrupt:
            found = operations.stop(operations.find_run(found.pk), actor=actor())
    return _run_answer(found)


def _run_answer(found: CleanupRun) -> Answer:
    data = {"run": str(found.pk), "state": found.state, "trashed": found.trashed, "skipped": found.skipped}
    data |= {"errors": found.errors, "residue": found.residue}
    data |= {"files": found.planned_files, "bytes": found.planned_bytes}
    if found.brakes:
        data["brakes"] = found.brakes
    if facts := {name: value for name, value in found.facts.items() if name != "biggest"}:
        data["facts"] = facts
    if found.message:
        data["message"] = found.message
    return Answer(data=data, lines=_run_lines(found), code=_run_code(found))


def _run_code(found: CleanupRun) -> int:
    if found.state in (RunState.REPORTED, RunState.QUEUED):
        return DONE
    if found.state == RunState.DONE:
        return SOME_SKIPPED if found.skipped or found.errors else DONE
    return SOME_SKIPPED if found.state == RunState.FAILED else REFUSED


def _run_lines(found: CleanupRun) -> list[str]:
    policy = found.policy_version.policy
    lines = [f"Run {found.pk}: {found.get_state_display()}."]
    if found.message:
        lines.append(found.message)
    if found.state == RunState.REPORTED:
        lines.append(f"{found.planned_files} files, {size(found.planned_bytes)} would be trashed.")
        if policy.mode == Mode.REPORT:
            lines.append(
                f"The policy only reports. To let it act: cleanup policies mode {policy.name} enforce"
            )
    elif found.state == RunState.AWAITING_APPROVAL:
        lines.append(f"To let it go ahead: cleanup approve {found.pk} --files {found.planned_files}")
    elif found.state != RunState.QUEUED:
        lines.append(f"{found.trashed} files, {size(found.trashed_bytes)} trashed; {found.skipped} skipped, "
                     f"{found.errors} errors.")  # fmt: skip
    return lines


@rolled_back
def approve(options: Options) -> Answer:
    found = operations.approve(operations.find_run(options["run"]), files=options["files"], actor=actor())
    answer = _run_answer(operations.find_run(found.pk))
    waits = found.state == RunState.AWAITING_APPROVAL
    return Answer(data=answer.data, lines=answer.lines, code=REFUSED if waits else DONE)


@rolled_back
def reject(options: Options) -> Answer:
    found = operations.reject(operations.find_run(options["run"]), reason=options["reason"], actor=actor())
    return Answer(data=_run_answer(found).data, lines=[f"Run {found.pk} is rejected."])


@rolled_back
def stop(options: Options) -> Answer:
    found = operations.stop(operations.find_run(options["run"]), actor=actor())
    over = found.state == RunState.STOPPED
    line = f"Run {found.pk} is stopped." if over else f"Run {found.pk} will stop after the batch at hand."
    return Answer(data=_run_answer(found).data, lines=[line])


# Trash


def found_by(options: Options) -> dict[str, Any]:
    """What the options find in the trash, as `operations.trash_filters` knows it."""
    names = {"area": "area", "path": "path", "policy": "policy", "run": "run", "why": "reason"}
    return {name: options[option] for option, name in names.items() if options.get(option)}


def in_trash(options: Options) -> list[UUID]:
    """The ids of what the options find in the trash, or name."""
    if options.get("item"):
        return [item_id(text) for text in options["item"]]
    wanted = found_by(options)
    is_meant = trash_filters.fits(wanted)
    rows = trash_filters.matching(wanted).order_by("trash_id").values_list("pk", "path")
    return [pk for pk, path in rows.iterator(chunk_size=10_000) if is_meant(path)]


def restore(options: Options) -> Answer:
    if _is_order(options) and not options["dry_run"]:
        return order_answer(
            orders.order(OrderVerb.RESTORE, found_by(options), actor=actor(), rename=options["rename"])
        )
    ids = in_trash(options)
    if options["dry_run"]:
        rows = CleanupItem.objects.filter(pk__in=ids[:1000])
        lines = [f"{len(ids)} items would be restored.", *(row.path for row in rows[:200])]
        return Answer(data={"restored": 0, "conflicts": [], "items": len(ids), "dry_run": True}, lines=lines)
    if options["queue"]:
        return _queue_restore(ids, options["to"])
    report = operations.restore(ids, actor=actor(), to=options["to"], rename=options["rename"])
    return _restore_answer(report)


def _is_order(options: Options) -> bool:
    """Whether a queued restore is more than the claim of files under their old names."""
    more = ("policy", "run", "why", "rename")
    return bool(options["queue"] and not options["item"] and any(options[name] for name in more))


def order_answer(made: TrashOrder) -> Answer:
    """An order, as far as it is."""
    data: dict[str, Any] = {"order": str(made.pk), "verb": made.verb, "state": made.state}
    data |= {"files": made.files, "bytes": made.bytes, "done": made.done_files, "kept": made.kept}
    if made.conflicts:
        data["conflicts"] = made.conflicts
    line = f"Order {made.pk}: {made.get_verb_display()} of {trash_filters.in_words(made.filter)}, "
    lines = [f"{line}{made.files} files, {size(made.bytes)}: {made.get_state_display()}."]
    lines += [f"kept: {number} {reason}" for reason, number in made.kept.items()]
    lines += [f"conflict: {one['path']}: {one['detail']}" for one in made.conflicts]
    return Answer(data=data, lines=lines, code=SOME_SKIPPED if made.kept else DONE)


def _queue_restore(ids: list[UUID], to: str | None) -> Answer:
    if to is not None:
        raise OperationRefused("a restore to another name is not queued")
    queued = operations.queue_restore(ids, actor=actor())
    return Answer(data={"queued": queued}, lines=[f"{queued} items will be brought back by a worker."])


def item_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise NotFound(f"{text!r} is not the id of an item") from error


def _restore_answer(report: RestoreReport) -> Answer:
    conflicts = [{"item": one.item, "path": one.path, "detail": one.detail} for one in report.conflicts]
    data: dict[str, Any] = {"restored": report.restored, "conflicts": conflicts}
    if report.lost:
        data["lost"] = report.lost
    if report.errors:
        data["errors"] = report.errors
    lines = [f"{report.restored} files, {size(report.bytes)} restored."]
    lines += [f"conflict: {one.path}: {one.detail}" for one in report.conflicts]
    lines += [f"LOST: {report.lost} files are not in the trash any more"] if report.lost else []
    lines += [f"error: {error}" for error in report.errors]
    whole = not (conflicts or report.lost or report.errors)
    return Answer(data=data, lines=lines, code=DONE if whole else SOME_SKIPPED)


def purge(options: Options) -> Answer:
    area = operations.find_area(options["area"]) if options["area"] else None
    if options["now"]:
        if area is None:
            raise OperationRefused("--now needs --area")
        if options["queue"] and not options["dry_run"]:
            wanted, why = found_by(options), options["reason"]
            return order_answer(orders.order(OrderVerb.PURGE, wanted, actor=actor(), reason=why))
        ids = in_trash(options)
        if options["dry_run"]:
            return _would_purge(list(CleanupItem.objects.filter(pk__in=ids)))
        return _purge_answer(operations.purge_now(ids, reason=options["reason"], actor=actor()))
    if options["queue"] or found_by(options).keys() - {"area", "path"}:
        raise OperationRefused("--queue, --policy, --run and --why go with --now")
    if options["dry_run"]:
        return _would_purge(count_due(area=area))
    return _purge_answer(operations.purge_due(area=area))


def _would_purge(rows: list[CleanupItem]) -> Answer:
    files, total = sum(len(row.members) for row in rows), sum(row.size for row in rows)
    line = f"{files} files, {size(total)} would be purged, unless holds or verifiers keep them."
    return Answer(data={"purged": 0, "bytes": 0, "files": files, "dry_run": True}, lines=[line])


def _purge_answer(report: PurgeReport) -> Answer:
    data: dict[str, Any] = {"purged": report.purged, "bytes": report.bytes}
    lines = [f"{report.purged} files purged, {size(report.bytes)} freed."]
    if report.kept:
        data["kept"] = report.kept
        lines += [f"kept: {number} {reason}" for reason, number in report.kept.items()]
    if report.lost:
        data["lost"] = report.lost
        lines.append(f"LOST: {report.lost} files were not in the trash any more")
    if report.errors:
        data["errors"] = report.errors
        lines += [f"error: {error}" for error in report.errors]
    whole = not (report.kept or report.lost or report.errors)
    return Answer(data=data, lines=lines, code=DONE if whole else SOME_SKIPPED)


# Holds


@rolled_back
def hold(options: Options) -> Answer:
    area = operations.find_area(options["area"])
    made = operations.hold(area, options["pattern"], options["until"], options["reason"], actor())
    until = made.until.isoformat() if made.until else None
    data = {"hold": made.pk, "area": area.name, "pattern": made.pattern, "until": until}
    return Answer(
        data=data, lines=[f"Hold {made.pk} keeps {made.pattern} in {area.name} until {until or 'released'}."]
    )


@rolled_back
def release(options: Options) -> Answer:
    held = Hold.objects.select_related("area").filter(pk=options["hold"]).first()
    if held is None:
        raise NotFound(f"there is no hold {options['hold']}")
    operations.release(held, actor())
    return Answer(data={"hold": held.pk, "released": True}, lines=[f"Hold {held.pk} is released."])
