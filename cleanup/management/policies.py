"""Verbs on policies and what they would do: `plan`, drafts, CSV, `set`, `history`, `revert`, previews.

What a form of the console posts, `FIELD=VALUE` says here: a list is given one entry a time, an empty value
empties the field.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from cleanup import operations
from cleanup.engine.ages import parse_age
from cleanup.management.output import Answer, size, table
from cleanup.management.verbs import Options, actor, policy_answer, rolled_back
from cleanup.models import PolicyPreview, RetentionPolicy
from cleanup.operations import OperationRefused, Preview
from cleanup.operations.policies import check_policy
from cleanup.operations.previews import cancel_preview, find_preview
from cleanup.operations.surveys import kind_of, survey
from cleanup.operations.tables import csv_parts
from cleanup.operations.versions import FIELDS, changes_between, put_back, with_fields
from cleanup.stores.previews import Seen
from cleanup.stores.sql import database_now

_LISTS = ("include", "exclude", "verifiers")
_NUMBERS = ("max_files", "max_bytes", "max_percent", "max_median_factor", "max_unknown_percent", "keep")
_MAY_BE_EMPTY = ("keep", "floor", "area")
_SAID = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


def plan(options: Options) -> Answer:
    policy = operations.find_policy(options["policy"])
    if not options["set"]:
        return _planned(policy, options)
    draft = with_fields(policy, _fields(options["set"]))
    check_policy(draft)
    answer = _planned(draft, options)
    saved = operations.preview(policy, limit=0)
    files, total = answer.data["files"] - saved.files, answer.data["bytes"] - saved.bytes
    line = f"{files:+,} files, {'-' if total < 0 else '+'}{size(abs(total))} against the saved version."
    data = {**answer.data, "saved": {"files": saved.files, "bytes": saved.bytes}}
    return Answer(data=data, lines=[*answer.lines, line])


def _planned(policy: RetentionPolicy, options: Options) -> Answer:
    if options["csv"]:
        return _as_csv(policy, options["csv"])
    return _plan_answer(operations.preview(policy, limit=options["limit"]))


def _plan_answer(found: Preview) -> Answer:
    items = [{"path": one.path, "size": one.size, "reason": one.reason} for one in found.items]
    data = {
        "plan": found.digest,
        "files": found.files,
        "bytes": found.bytes,
        "items": items,
        "kept": found.kept,
    }
    if found.brakes:
        data["brakes"] = found.brakes
    if found.facts:
        data["facts"] = found.facts
    if found.errors:
        data["errors"] = [{"path": one.path, "detail": one.detail} for one in found.errors]
    lines = [f"{one.reason}  {one.size:>12}  {one.path}" for one in found.items]
    lines.append(f"{found.files} files, {size(found.bytes)} would be trashed.")
    lines += [f"kept: {number} {reason}" for reason, number in found.kept.items()]
    return Answer(data=data, lines=[*lines, *_brake_lines(found.brakes)])


def _brake_lines(brakes: Iterable[dict[str, Any]]) -> list[str]:
    return [f"above its brake: {hit['brake']} is {hit['limit']}, found {hit['value']}" for hit in brakes]


class _CsvFile:
    """Takes what a survey hands over, and writes it at once."""

    def __init__(self, out: TextIO, policy: RetentionPolicy) -> None:
        self.out, self.policy = out, policy
        out.writelines(csv_parts((), policy))

    def __call__(self, kind: str, reason: str, files: list[Seen]) -> None:
        named = ((kind, reason, one) for one in files)
        self.out.writelines(csv_parts(named, self.policy, header=False))


def _as_csv(policy: RetentionPolicy, path: Path) -> Answer:
    """Write every file with its verdict, those that stay as well."""
    try:
        with path.open("w", encoding="utf-8", newline="") as out:
            result = survey(policy, _CsvFile(out, policy), now=database_now()).result
    except OSError as error:
        raise OperationRefused(f"{path} cannot be written: {error.strerror or error}") from error
    kept = {reason: files for kind, reason, files, _ in result["reasons"] if kind == kind_of(reason)}
    goes = result["goes"]
    data = {"plan": result["digest"], "files": goes["files"], "bytes": goes["bytes"], "kept": kept}
    data |= {"csv": str(path), "listed": result["listed"], "brakes": result["brakes"]}
    lines = [
        f"{goes['files']} files, {size(goes['bytes'])} would be trashed.",
        f"{result['listed']} files, each with its reason, are in {path}.",
    ]
    return Answer(data=data, lines=[*lines, *_brake_lines(result["brakes"])])


# Saving


@rolled_back
def policies_set(options: Options) -> Answer:
    policy = with_fields(operations.find_policy(options["name"]), _fields(options["fields"]))
    operations.save_policy(policy, actor())
    return policy_answer(policy, f"Policy {policy.name} is saved, in mode {policy.mode}.")


@rolled_back
def policies_revert(options: Options) -> Answer:
    policy = operations.find_policy(options["name"])
    put_back(policy, options["version"], actor())
    line = f"Policy {policy.name} says again what version {options['version']} said. Its mode is as it was."
    return policy_answer(operations.find_policy(policy.name), line)


def policies_history(options: Options) -> Answer:
    policy = operations.find_policy(options["name"])
    data, lines, before = list[dict[str, Any]](), list[str](), None
    for version in policy.versions.order_by("number"):
        changes = changes_between(
            None if before is None else before.document,
            version,
            old_schedule="" if before is None else before.schedule,
            old_catch_up="" if before is None else before.catch_up,
        )
        said = {one.field: {"old": one.old, "new": one.new} for one in changes}
        at = version.created_at.isoformat()
        data.append({"version": version.number, "at": at, "by": version.created_by, "changes": said})
        lines.append(f"{version.number}  {at[:19]}Z  {version.created_by}")
        lines += [f"    {one.field}: {one.old} -> {one.new}" for one in changes]
        before = version
    return Answer(data={"policy": policy.name, "versions": data}, lines=lines)


def _fields(assignments: Iterable[str]) -> dict[str, Any]:
    """`FIELD=VALUE` as fields of a policy.

    Raises:
        OperationRefused: no such field, or a value that it cannot have.
    """
    given: dict[str, list[str]] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or (name != "area" and (name not in FIELDS or name == "area_id")):
            known = ", ".join("area" if one == "area_id" else one for one in FIELDS)
            raise OperationRefused(f"{text!r} is not FIELD=VALUE; the fields are {known}")
        given.setdefault(name, []).append(value)
    values = {name: _value(name, texts) for name, texts in given.items()}
    return {"area_id" if name == "area" else name: value for name, value in values.items()}


def _value(name: str, texts: list[str]) -> Any:
    if name in _LISTS:
        return [_entry(name, text) for text in texts if text]
    if len(texts) > 1:
        raise OperationRefused(f"{name} has one value")
    text = texts[0]
    if not text and name in _MAY_BE_EMPTY:
        return None
    try:
        return _single(name, text)
    except (ValueError, KeyError) as error:
        raise OperationRefused(f"{name}: {text!r} is not understood") from error


def _single(name: str, text: str) -> Any:
    if name in _NUMBERS:
        return int(text)
    if name in ("grace_period", "floor"):
        parse_age(text)
    if name == "skip_in_use":
        return _SAID[text.lower()]
    if name == "row_filter":
        return json.loads(text or "{}")
    return operations.find_area(text).pk if name == "area" else text


def _entry(name: str, text: str) -> Any:
    """One verifier may be a JSON object; everything else is text."""
    if name != "verifiers" or not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise OperationRefused(f"a verifier is not JSON: {error}") from error


# Previews


def previews_list(_: Options) -> Answer:
    rows = list(PolicyPreview.objects.order_by("-created_at")[:200])
    data = [
        {
            "preview": str(row.pk), "policy": row.name, "state": row.state, "by": row.actor,
            "at": row.created_at.isoformat(), "saved": row.draft is None, **row.result.get("goes", {}),
        }
        for row in rows
    ]  # fmt: skip
    shown = [[str(row.pk), row.name, row.state, row.actor, row.created_at.isoformat()[:19]] for row in rows]
    return Answer(
        data={"previews": data}, lines=table(shown, header=["PREVIEW", "POLICY", "STATE", "BY", "AT"])
    )


@rolled_back
def previews_cancel(options: Options) -> Answer:
    ended = cancel_preview(find_preview(options["preview"]))
    over = ended.state == "stopped"
    line = f"Preview {ended.pk} {'is ended' if over else 'ends within moments'}."
    return Answer(data={"preview": str(ended.pk), "state": ended.state}, lines=[line])
