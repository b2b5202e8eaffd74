"""Verbs on policies. Every save makes a new version, which never changes again; runs point at a version."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Max

from cleanup.conf import conf
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.expiry import zone_from_name
from cleanup.engine.policy import Policy, parse_age, policy_from_json, policy_to_json
from cleanup.models import Mode, PolicyVersion, RetentionPolicy, Rule, StagingArea
from cleanup.operations.areas import add_area
from cleanup.operations.outcomes import NotFound, OperationRefused
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.items import version_label
from cleanup.stores.sql import database_now
from cleanup.verifiers import TASK_ID_PATTERN, canonical

#: The areas that `up` makes: their names, and what of their policy differs from the defaults.
_DEMO: dict[str, dict[str, Any]] = {
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
    policy = Policy(
        name=row.name,
        rule=row.rule,  # type: ignore[arg-type]  # text until `validate` has seen it
        age=parse_age(row.age) if row.age else None,
        age_by=frozenset(row.age_by),
        include=_texts(row, "include"),
        exclude=_texts(row, "exclude"),
        verifiers=tuple(dict.fromkeys(canonical(one) for one in row.verifiers)),
        grace_period=row.grace_period,
        mode=row.mode,  # type: ignore[arg-type]
        max_files=row.max_files,
        max_bytes=row.max_bytes,
        max_percent=row.max_percent,
        task_id_pattern=row.task_id_pattern or (TASK_ID_PATTERN if row.verifiers else None),
        naive_timezone=zone_from_name(conf().naive_timezone),
    )
    policy.validate()
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


def save_policy(policy: RetentionPolicy, actor: Actor) -> PolicyVersion:
    """Save a policy and make its next version. What is in the trash keeps the grace it was promised.

    Raises:
        PolicyInvalid: it could not be obeyed.
        OperationRefused: the name is taken or no name, or a field is out of range.
    """
    document = json.loads(policy_to_json(engine_policy(policy)))
    _validate(policy)
    now = database_now()
    if policy.next_due_at is None:
        policy.next_due_at = now + policy.interval
    with transaction.atomic():
        policy.save()
        RetentionPolicy.objects.select_for_update().get(pk=policy.pk)
        number = (policy.versions.aggregate(last=Max("number"))["last"] or 0) + 1
        version = PolicyVersion.objects.create(
            policy=policy, number=number, document=document, created_by=actor.name[:150]
        )
        entry = record(
            actor, "policy_saved", now=now, area=policy.scope, policy_version=version_label(version),
            evidence=document,
        )  # fmt: skip
        DatabaseAuditSink().write([entry])
    return version


def _validate(policy: RetentionPolicy) -> None:
    if policy.interval <= timedelta(0):
        raise OperationRefused("interval must be above zero")
    try:
        policy.full_clean()
    except ValidationError as error:
        raise OperationRefused("; ".join(error.messages)) from error


def add_policy(
    name: str,
    area: StagingArea,
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
    """Make the four areas and their policies that a fresh installation shows; leave alone what exists.

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
