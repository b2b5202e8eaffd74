"""A policy as a JSON document: what its versions, its plans and their digests hold.

Ages are written in tmpfiles.d syntax and the zone by its name. Fields that came later than the first
documents are left out where they have their defaults, so that a document saved before they existed reads as
the same policy, and that policy writes the same document.
"""

from typing import Any

import msgspec

from cleanup.engine.ages import format_age, parse_age
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.expiry import zone_from_name, zone_name
from cleanup.engine.terms import Mode, OrderBy, Policy, Rule, Unit, canonical_filter


class _Document(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    rule: Rule
    age: str | None
    age_by: list[str]
    include: list[str]
    exclude: list[str]
    verifiers: list[str]
    grace_period: str
    mode: Mode
    max_files: int | None
    max_bytes: int | None
    max_percent: int | None
    max_median_factor: int | None
    max_unknown_percent: int | None
    task_id_pattern: str | None
    allow_hardlinks: bool
    naive_timezone: str
    unit: Unit = "file"
    bundle_pattern: str | None = None
    keep: int | None = None
    group_pattern: str | None = None
    order_by: OrderBy = "age"
    floor: str | None = None
    model: str = ""
    stamp_field: str = "created_at"
    row_filter: dict[str, Any] = {}
    skip_in_use: bool = False


#: Fields that JSON holds as they are.
_PLAIN = (
    "name", "rule", "mode", "max_files", "max_bytes", "max_percent", "max_median_factor",
    "max_unknown_percent", "task_id_pattern", "allow_hardlinks", "unit", "bundle_pattern", "keep",
    "group_pattern", "order_by", "model", "stamp_field", "skip_in_use",
)  # fmt: skip


def policy_to_json(policy: Policy) -> str:
    """Write `policy` as one line of JSON, the same for equal policies."""
    document = _Document(
        **{field: getattr(policy, field) for field in _PLAIN},
        age=None if policy.age is None else format_age(policy.age),
        age_by=sorted(policy.age_by),
        include=list(policy.include),
        exclude=list(policy.exclude),
        verifiers=list(policy.verifiers),
        grace_period=format_age(policy.grace_period),
        naive_timezone=zone_name(policy.naive_timezone),
        floor=None if policy.floor is None else format_age(policy.floor),
        row_filter=policy.row_lookups,
    )
    return msgspec.json.encode(document, order="sorted").decode()


def policy_from_json(text: str | bytes) -> Policy:
    """Read what `policy_to_json` wrote, and validate it.

    Raises:
        PolicyInvalid: not such JSON, or a policy that could not be obeyed.
    """
    try:
        document = msgspec.json.decode(text, type=_Document)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise PolicyInvalid(f"not a stored policy: {error}") from error
    policy = Policy(
        **{field: getattr(document, field) for field in _PLAIN},
        age=None if document.age is None else parse_age(document.age),
        age_by=frozenset(document.age_by),
        include=tuple(document.include),
        exclude=tuple(document.exclude),
        verifiers=tuple(document.verifiers),
        grace_period=parse_age(document.grace_period),
        naive_timezone=zone_from_name(document.naive_timezone),
        floor=None if document.floor is None else parse_age(document.floor),
        row_filter=canonical_filter(document.row_filter),
    )
    policy.validate()
    return policy
