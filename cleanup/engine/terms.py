"""The terms of a policy: which fields it has, what each means, and which combinations make no sense.

A policy is a value; every change is another version. `validate` refuses what could not be obeyed, and also
what would mislead: a field that is set and that the rule does not look at. It says everything at once.
"""

import json
from collections.abc import Iterator
from datetime import UTC, timedelta, tzinfo
from typing import Any, Literal

import msgspec

from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.expiry import zone_name
from cleanup.engine.names import Patterns, keyed, task_pattern

Rule = Literal["age", "expires_at", "orphan", "watermark", "keep_newest", "rows"]
Unit = Literal["file", "bundle"]
OrderBy = Literal["age", "size"]
Mode = Literal["off", "report", "enforce"]

#: Letters of `age_by` that are about directories.
DIRECTORY_LETTERS = frozenset("ABCM")

#: Rules that judge by time stamps of files, and among them those that know bundles.
_BY_STAMPS = ("age", "orphan", "watermark", "keep_newest")
_WITH_BUNDLES = ("age", "watermark", "keep_newest")

#: Field -> the rules that look at it; set under another rule it would mislead.
_MEANT_FOR: dict[str, tuple[str, ...]] = {
    "unit": _WITH_BUNDLES,
    "keep": ("keep_newest",),
    "group_pattern": ("keep_newest",),
    "order_by": ("watermark",),
    "model": ("rows",),
    "stamp_field": ("rows",),
    "row_filter": ("rows",),
}

#: Fields that are about files, so that a policy over rows may not set them.
_ABOUT_FILES = (
    "include",
    "exclude",
    "verifiers",
    "floor",
    "task_id_pattern",
    "allow_hardlinks",
    "skip_in_use",
)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """One rule for one area, or for the rows of one model."""

    name: str
    rule: Rule
    #: How old what goes must be at least. Required by age, orphan and rows; watermark and keep_newest heed it
    #: if it is given.
    age: timedelta | None = None
    #: Which stamps must all be older: a(ccess) b(irth) c(hange) m(odification), and A B C M of the
    #: directories of a bundle. The default is m alone, since a backup renews a and a chown renews c.
    age_by: frozenset[str] = frozenset("m")
    include: tuple[str, ...] = ()  #: nothing given: everything
    exclude: tuple[str, ...] = ()  #: wins over include, and protects what lies below a matched directory
    unit: Unit = "file"  #: bundle: what belongs together goes together, when its newest member may go
    #: A regex over the escaped path; its group ``key``, else its first group, names the bundle. None: each
    #: directory right below the area is a bundle, and a file right below the area is one by itself.
    bundle_pattern: str | None = None
    keep: int | None = None  #: keep_newest: how many of each group stay
    #: A regex as `bundle_pattern`, for the groups of keep_newest. None: each directory is a group.
    group_pattern: str | None = None
    order_by: OrderBy = "age"  #: watermark: the oldest first, or the largest
    #: How long the trash can be restored even when the disk is full. None: for all of `grace_period`.
    floor: timedelta | None = None
    model: str = ""  #: rows: ``app_label.Model``
    stamp_field: str = "created_at"  #: rows: the field whose age counts
    row_filter: str = "{}"  #: rows: field lookups that a row must satisfy, as a canonical JSON object
    verifiers: tuple[str, ...] = ()  #: all must say PASS
    grace_period: timedelta = timedelta(days=7)  #: how long the trash can be restored
    mode: Mode = "report"
    max_files: int | None = 50_000
    max_bytes: int | None = 100 * 10**9
    max_percent: int | None = 50  #: of the files in the area
    max_median_factor: int | None = 10  #: times the median of the last 30 runs, from the 5th run on
    max_unknown_percent: int | None = 5  #: of what the verifiers were asked
    #: A regex over the escaped path; its group ``task_id``, else its first group, is the task's id.
    task_id_pattern: str | None = None
    allow_hardlinks: bool = False
    skip_in_use: bool = False  #: leave what another process has open
    naive_timezone: tzinfo = UTC  #: of an `expires_at` that names no zone

    @property
    def row_lookups(self) -> dict[str, Any]:
        """The lookups of `row_filter`."""
        return _lookups(self.row_filter)

    @property
    def alone(self) -> bool:
        """Whether each candidate can be judged by itself, without having seen the others."""
        return self.unit == "file" and self.rule in ("age", "expires_at", "orphan")

    def validate(self) -> None:
        """Refuse what could not be obeyed.

        Raises:
            PolicyInvalid: with every complaint, in one message.
        """
        complaints = list(_complaints(self))
        if complaints:
            raise PolicyInvalid(f"policy {self.name!r}: " + "; ".join(complaints))


def canonical_filter(lookups: Any) -> str:
    """Write the lookups of a policy over rows as `Policy.row_filter` holds them.

    Raises:
        PolicyInvalid: not an object that JSON can hold.
    """
    try:
        text = json.dumps(lookups, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise PolicyInvalid(f"row_filter cannot be written as JSON: {error}") from error
    _lookups(text)
    return text


def _lookups(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise PolicyInvalid(f"row_filter is not an object of field lookups: {error}") from error


_DEFAULTS = Policy(name="default", rule="age")


def _complaints(policy: Policy) -> Iterator[str]:
    if not policy.name.strip():
        yield "a name is missing"
    yield from _rule_complaints(policy)
    yield from _stray_complaints(policy)
    if policy.mode not in ("off", "report", "enforce"):
        yield f"unknown mode {policy.mode!r}"
    if policy.grace_period < timedelta(0):
        yield "grace_period is negative"
    if policy.floor is not None and not timedelta(0) <= policy.floor <= policy.grace_period:
        yield "floor is between zero and grace_period"
    yield from _limit_complaints(policy)
    yield from _pattern_complaints(policy)


def _rule_complaints(policy: Policy) -> Iterator[str]:
    if policy.rule not in (*_BY_STAMPS, "expires_at", "rows"):
        yield f"unknown rule {policy.rule!r}"
        return
    if policy.age is None and policy.rule in ("age", "orphan", "rows"):
        yield f"rule {policy.rule} needs an age"
    if policy.age is not None and policy.age < timedelta(0):
        yield "age is negative"
    if policy.rule in _BY_STAMPS:
        yield from _stamp_complaints(policy)
    if policy.rule == "keep_newest" and (policy.keep is None or policy.keep < 1):
        yield "rule keep_newest needs keep, one or more: how many of each group stay"
    if policy.rule == "rows":
        yield from _row_complaints(policy)
    if policy.unit not in ("file", "bundle"):
        yield f"unknown unit {policy.unit!r}"
    if policy.order_by not in ("age", "size"):
        yield f"unknown order_by {policy.order_by!r}"


def _stamp_complaints(policy: Policy) -> Iterator[str]:
    if not policy.age_by or not policy.age_by <= frozenset("abcm") | DIRECTORY_LETTERS:
        yield "age_by is one or more of a b c m, and A B C M for directories"
    elif policy.age_by & DIRECTORY_LETTERS and (policy.unit != "bundle" or policy.bundle_pattern is not None):
        yield "age_by has A B C M only where a directory is a bundle"


def _row_complaints(policy: Policy) -> Iterator[str]:
    app, _, model = policy.model.partition(".")
    if not (app.isidentifier() and model.isidentifier()):
        yield "rule rows needs a model, written app_label.Model"
    if not policy.stamp_field.isidentifier():
        yield "stamp_field is the name of a field"
    try:
        _lookups(policy.row_filter)
    except PolicyInvalid as error:
        yield str(error)
    for field in _ABOUT_FILES:
        if getattr(policy, field) != getattr(_DEFAULTS, field):
            yield f"{field} is about files, and rule rows is not"


def _stray_complaints(policy: Policy) -> Iterator[str]:
    for field, rules in _MEANT_FOR.items():
        if policy.rule not in rules and getattr(policy, field) != getattr(_DEFAULTS, field):
            yield f"{field} means nothing to rule {policy.rule}, only to {', '.join(rules)}"
    if policy.bundle_pattern is not None and policy.unit != "bundle":
        yield "bundle_pattern means nothing unless unit is bundle"


def _limit_complaints(policy: Policy) -> Iterator[str]:
    for field in ("max_files", "max_bytes", "max_percent", "max_median_factor", "max_unknown_percent"):
        limit: int | None = getattr(policy, field)
        if limit is not None and limit < 0:
            yield f"{field} is negative"
        if limit is not None and field.endswith("percent") and limit > 100:
            yield f"{field} is above 100"


def _pattern_complaints(policy: Policy) -> Iterator[str]:
    for field in ("include", "exclude"):
        try:
            Patterns(getattr(policy, field))
        except PolicyInvalid as error:
            yield f"{field}: {error}"
    for field in ("bundle_pattern", "group_pattern"):
        try:
            if getattr(policy, field) is not None:
                keyed(getattr(policy, field), field)
        except PolicyInvalid as error:
            yield str(error)
    try:
        if policy.task_id_pattern is not None:
            task_pattern(policy.task_id_pattern)
        zone_name(policy.naive_timezone)
    except PolicyInvalid as error:
        yield str(error)
