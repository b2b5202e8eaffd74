"""Verbs on policies. Every save makes a new version, which never changes again; runs point at a version."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Max

from cleanup.conf import conf
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.expiry import zone_from_name
from cleanup.engine.policy import Policy, canonical_filter, parse_age, policy_from_json, policy_to_json
from cleanup.models import Mode, PolicyVersion, RetentionPolicy, Rule, StagingArea
from cleanup.operations.areas import add_area
from cleanup.operations.duetimes import due_after_save, parse_schedule
from cleanup.operations.outcomes import NotFound, OperationRefused
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.items import version_label
from cleanup.stores.rows import check_rows
from cleanup.stores.sql import database_now
from cleanup.stores.waiting import ask_now
from cleanup.verifiers import TASK_ID_PATTERN, canonical

#: The areas that `up` makes: their names, and what of their policy differs from the defaults.
_DEMO: dict[str, dict[str, Any]] = {
    "incoming": {"age": "2d", "verifiers": ["redis_task"]},
    "rejected": {"age": "2d"},
    "extracted": {"age": "7d"},
    "distilled": {"age": "30d"},
    "results": {"rule": Rule.EXPIRES_AT},
}


def find_policy(name: str) -> RetentionPolicy:
    """The policy `name`, with its area.

    Raises:
        NotFound: there is none.
    """
    policy = RetentionPolicy.objects.select_related("area").filter(name=name).first()
    if policy is None:
        raise NotFound(f"there is no policy {name!r}")
    return policy


def engine_policy(row: RetentionPolicy) -> Policy:
    """What the engine makes of a policy's row, saved or not.

    Raises:
        PolicyInvalid: with every complaint that it has.
    """
    for field in ("include", "exclude", "verifiers"):
        if not isinstance(getattr(row, field), list):
            raise PolicyInvalid(f"policy {row.name!r}: {field} is a list")
    if (row.area_id is None) != (row.rule == Rule.ROWS):
        raise PolicyInvalid(f"policy {row.name!r}: rule rows is about a model, any other rule about an area")
    # Asked of rows alone: a version that was saved before must still read.
    if row.rule == Rule.EXPIRES_AT and row.age:
        raise PolicyInvalid(f"policy {row.name!r}: rule expires_at goes by the metadata, and heeds no age")
    policy = Policy(
        name=row.name,
        rule=row.rule,  # type: ignore[arg-type]  # text until `validate` has seen it
        age=parse_age(row.age) if row.age else None,
        age_by=frozenset(row.age_by),
        include=_texts(row, "include"),
        exclude=_texts(row, "exclude"),
        unit=row.unit,  # type: ignore[arg-type]
        bundle_pattern=row.bundle_pattern or None,
        keep=row.keep,
        group_pattern=row.group_pattern or None,
        order_by=row.order_by,  # type: ignore[arg-type]
        floor=row.floor,
        model=row.model,
        stamp_field=row.stamp_field or "created_at",
        row_filter=canonical_filter(row.row_filter),
        verifiers=tuple(dict.fromkeys(canonical(one) for one in row.verifiers)),
        grace_period=row.grace_period,
        mode=row.mode,  # type: ignore[arg-type]
        max_files=row.max_files,
        max_bytes=row.max_bytes,
        max_percent=row.max_percent,
        max_median_factor=row.max_median_factor,
        max_unknown_percent=row.max_unknown_percent,
        task_id_pattern=row.task_id_pattern or (TASK_ID_PATTERN if row.verifiers else None),
        skip_in_use=row.skip_in_use,
        naive_timezone=zone_from_name(conf().naive_timezone),
    )
    policy.validate()
    if policy.rule == "rows":
        check_rows(policy)
    return policy


def _texts(row: RetentionPolicy, field: str) -> tuple[str, ...]:
    values = getattr(row, field)
    if not all(isinstance(value, str) for value in values):
        raise PolicyInvalid(f"policy {row.name!r}: {field} is a list of text")
    return tuple(values)


def policy_of(version: PolicyVersion) -> Policy:
    """The policy as it was saved.

    Raises:
        PolicyInvalid: the stored document is not one.
    """
    return policy_from_json(json.dumps(version.document))


def check_policy(policy: RetentionPolicy) -> dict[str, Any]:
    """Say yes to a policy that could be saved, and return the document that its version would hold.

    Raises:
        PolicyInvalid: it could not be obeyed.
        OperationRefused: the name is taken or no name, or a field is out of range.
    """
    document: dict[str, Any] = json.loads(policy_to_json(engine_policy(policy)))
    _validate(policy)
    return document


def save_policy(policy: RetentionPolicy, actor: Actor, *, note: str = "") -> PolicyVersion:
    """Save a policy and make its next version. What is in the trash keeps the grace it was promised.

    Args:
        policy: as it is to be.
        actor: who saves it.
        note: what is to be said of it in the audit, beside a change of its mode.

    Raises:
        PolicyInvalid: it could not be obeyed.
        OperationRefused: the name is taken or no name, or a field is out of range.
    """
    document = check_policy(policy)
    now = database_now()
    with transaction.atomic():
        # Locked, for a tick may be claiming it: a due time that was read before must not come back.
        stored = RetentionPolicy.objects.select_for_update().filter(pk=policy.pk).first()
        policy.next_due_at = due_after_save(policy, stored, now)
        policy.save()
        number = (policy.versions.aggregate(last=Max("number"))["last"] or 0) + 1
        version = PolicyVersion.objects.create(
            policy=policy,
            number=number,
            document=document,
            created_by=actor.name[:150],
            schedule=policy.schedule,
            catch_up=policy.catch_up,
        )
        entry = record(
            actor, "policy_saved", now=now, area=policy.scope, policy_version=version_label(version),
            evidence=document,
            reason="; ".join(filter(None, [_turned(stored, policy), note])) or None,
        )  # fmt: skip
        DatabaseAuditSink().write([entry])
        ask_now(policy=policy)
    return version


def _turned(stored: RetentionPolicy | None, policy: RetentionPolicy) -> str | None:
    """The change of mode that a save makes: the one that decides whether files go."""
    old = "" if stored is None else stored.mode
    return None if old == policy.mode else f"mode {old or 'none'} -> {policy.mode}"


def _validate(policy: RetentionPolicy) -> None:
    parse_schedule(policy.schedule)
    try:
        policy.full_clean()
    except ValidationError as error:
        raise OperationRefused("; ".join(error.messages)) from error


def add_policy(
    name: str,
    area: StagingArea | None,
    actor: Actor,
    *,
    rule: str = Rule.AGE,
    age: str = "",
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    verifiers: Iterable[Any] = (),
    **fields: Any,
) -> RetentionPolicy:
    """Make a policy, in mode `report` unless `fields` says otherwise.

    Raises:
        PolicyInvalid: it could not be obeyed.
        OperationRefused: the name is taken.
    """
    policy = RetentionPolicy(
        name=name, area=area, rule=rule, age=age, include=_list(include), exclude=_list(exclude),
        verifiers=_list(verifiers), **fields,
    )  # fmt: skip
    save_policy(policy, actor)
    return policy


def _list(values: Iterable[Any]) -> Any:
    """A list for the row; a lone text is left as it is, for `engine_policy` to refuse."""
    return values if isinstance(values, str) else list(values)


def set_mode(policy: RetentionPolicy, mode: str, actor: Actor) -> PolicyVersion:
    """Turn a policy to `off`, `report` or `enforce`: a new version like any other change."""
    if mode not in Mode.values:
        raise OperationRefused(f"a mode is one of {', '.join(Mode.values)}, not {mode!r}")
    policy.mode = mode
    return save_policy(policy, actor)


def current_version(policy: RetentionPolicy) -> PolicyVersion:
    """The newest version of a policy.

    Raises:
        OperationRefused: it was never saved by `save_policy`.
    """
    version = policy.versions.order_by("-number").first()
    if version is None:
        raise OperationRefused(f"policy {policy.name!r} has no version: save it first")
    return version


def ensure_demo_areas(actor: Actor | None = None) -> list[StagingArea]:
    """Make the five areas and their policies that a fresh installation shows; leave alone what exists.

    The policies report only. Returns the areas that were made.
    """
    actor = actor or Actor.system("up")
    made = []
    for name, fields in _DEMO.items():
        if StagingArea.objects.filter(name=name).exists():
            continue
        folder = Path(conf().staging_root).resolve() / name
        folder.mkdir(parents=True, exist_ok=True)
        area = add_area(name, folder, actor)
        if not RetentionPolicy.objects.filter(name=name).exists():
            add_policy(name, area, actor, **fields)
        made.append(area)
    return made
