"""Versions of a policy, and drafts: what changed, what an old one said, how it is put back.

A draft is the fields of a policy as JSON holds them, ages in the syntax of tmpfiles.d; it is what a form or a
command says before anything is saved. An old version is read back into the same fields. Its mode and its
area are never put back: an old version must not start to act because somebody wanted its rule.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cleanup.engine.ages import format_age, parse_age
from cleanup.engine.errors import PolicyInvalid
from cleanup.models import PolicyVersion, RetentionPolicy
from cleanup.operations.outcomes import NotFound, OperationRefused
from cleanup.operations.policies import current_version, policy_of, save_policy
from cleanup.stores import Actor
from cleanup.stores.sql import field_of
from cleanup.verifiers import TASK_ID_PATTERN, describe

#: The fields that people write, in the order of the form; `area_id` is the key of the area's row.
FIELDS = (
    "name", "area_id", "mode", "rule", "age", "age_by", "include", "exclude", "skip_in_use", "unit",
    "bundle_pattern", "keep", "group_pattern", "order_by", "model", "stamp_field", "row_filter", "verifiers",
    "task_id_pattern", "grace_period", "floor", "schedule", "catch_up", "max_files", "max_bytes",
    "max_percent", "max_median_factor", "max_unknown_percent",
)  # fmt: skip

_AGES = ("grace_period", "floor")
_LISTS = ("include", "exclude", "verifiers")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """One field that one version has and another has not."""

    field: str
    old: str
    new: str


def fields_of(policy: RetentionPolicy) -> dict[str, Any]:
    """The fields of a policy, saved or not, as JSON holds them."""
    return {name: _plain(getattr(policy, name)) for name in FIELDS}


def _plain(value: Any) -> Any:
    return format_age(value) if isinstance(value, timedelta) else copy.deepcopy(value)


def with_fields(policy: RetentionPolicy | None, fields: Mapping[str, Any]) -> RetentionPolicy:
    """A policy like `policy`, or a new one, with these fields; nothing is saved.

    Raises:
        PolicyInvalid: an age is none.
    """
    made = RetentionPolicy() if policy is None else copy.copy(policy)
    for name, value in fields.items():
        if name not in FIELDS:
            raise OperationRefused(f"a policy has no field {name!r}")
        if name == "area_id" and value != made.area_id:
            made.area = None
        setattr(made, name, parse_age(value) if name in _AGES and value is not None else value)
    return made


def fields_of_version(version: PolicyVersion) -> dict[str, Any]:
    """What a version says of the rule, as fields; without name, area and mode.

    Raises:
        PolicyInvalid: the stored document is no policy.
    """
    policy = policy_of(version)
    fields: dict[str, Any] = {
        name: _plain(getattr(policy, name)) for name in FIELDS if name not in ("area_id", *_OF_ROW)
    }
    fields |= {name: list(fields[name]) for name in _LISTS}
    for name in ("bundle_pattern", "group_pattern", "task_id_pattern", "age"):
        fields[name] = fields[name] or ""
    if fields["task_id_pattern"] == TASK_ID_PATTERN:
        fields["task_id_pattern"] = ""
    fields |= {"age_by": "".join(sorted(policy.age_by)), "row_filter": policy.row_lookups}
    if version.schedule:
        fields |= {"schedule": version.schedule, "catch_up": version.catch_up}
    return {name: fields[name] for name in FIELDS if name in fields and name not in ("name", "mode")}


#: What versions hold beside the document.
_OF_ROW = ("schedule", "catch_up")


def find_version(policy: RetentionPolicy, number: int) -> PolicyVersion:
    """The version of this number.

    Raises:
        NotFound: there is none.
    """
    version = policy.versions.filter(number=number).first()
    if version is None:
        raise NotFound(f"policy {policy.name!r} has no version {number}")
    return version


def put_back(policy: RetentionPolicy, number: int, actor: Actor) -> PolicyVersion:
    """Save what an old version says as the newest one; area, name and mode stay as they are.

    Raises:
        NotFound: there is no such version.
        OperationRefused: it says what the policy says already.
        PolicyInvalid: it can no longer be obeyed.
    """
    version = find_version(policy, number)
    if version.pk == current_version(policy).pk:
        raise OperationRefused(f"version {number} is the newest already")
    fields = fields_of_version(version)
    if not changes_of(fields_of(policy), fields):
        same = f"policy {policy.name!r} says what version {number} says already"
        raise OperationRefused(f"{same}; its mode is no part of that and is set by itself")
    return save_policy(with_fields(policy, fields), actor, note=f"version {number} put back")


def changes_between(
    old: Mapping[str, Any] | None, version: PolicyVersion, *, old_schedule: str = "", old_catch_up: str = ""
) -> list[FieldChange]:
    """What a version changed; `old` is the document of the one before, None for the first."""
    if old is None:
        return []
    before = _document_fields(old, old_schedule, old_catch_up)
    after = _document_fields(version.document, version.schedule, version.catch_up)
    if not (old_schedule and version.schedule):
        before, after = [{k: v for k, v in one.items() if k not in _OF_ROW} for one in (before, after)]
    return changes_of(before, after)


def _document_fields(document: Mapping[str, Any], schedule: str, catch_up: str) -> dict[str, Any]:
    """A document as fields, without looking whether it could be obeyed today."""
    fields = {name: field_of(RetentionPolicy, name).get_default() for name in FIELDS if name != "area_id"}
    fields = {name: _plain(value) for name, value in fields.items()}
    fields |= {name: value for name, value in document.items() if name in FIELDS}
    return {**fields, "age_by": "".join(fields["age_by"]), "schedule": schedule, "catch_up": catch_up}


def changes_of(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[FieldChange]:
    """Field by field what `new` says otherwise than `old`; of fields that both have."""
    return [
        FieldChange(field=name, old=_shown(name, old[name]), new=_shown(name, new[name]))
        for name in FIELDS
        if name in old and name in new and _meant(name, old[name]) != _meant(name, new[name])
    ]


def _meant(name: str, value: Any) -> str:
    """What a field comes to: `9d` and `1w2d` are one age, and a verifier may be written in two ways."""
    if name == "verifiers" and isinstance(value, list):
        return said([describe(one) for one in value])
    return _shown(name, value)


def _shown(name: str, value: Any) -> str:
    """A field in words; an age in days and what is left, since weeks are hard to compare with them."""
    if name not in ("age", *_AGES) or not value:
        return said(value)
    try:
        age = parse_age(value)
    except PolicyInvalid:
        return str(value)
    rest = age - timedelta(days=age.days)
    days = f"{age.days}d" if age.days else ""
    return days + format_age(rest) if rest or not days else days


def said(value: Any) -> str:
    """A field in words."""
    if value in (None, "", [], {}):
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
