"""What a policy does, and why a file goes or stays, in sentences for people.

Forms, previews and commands say the same words, taken from the policy as it is at hand, saved or not. Nothing
is looked up, and a policy that could not be obeyed is described as far as it goes.
"""

from __future__ import annotations

from cleanup.engine.ages import format_age
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.reasons import Reason
from cleanup.models import Mode, OrderBy, RetentionPolicy, Rule, Unit
from cleanup.operations.duetimes import parse_schedule
from cleanup.verifiers import describe

_MEANINGS = {str(reason): reason.meaning for reason in Reason}

_STAMPS = {"a": "opened", "b": "made", "c": "changed in any way", "m": "written to"}


def policy_in_words(policy: RetentionPolicy) -> str:
    """What a policy will do, in a few sentences."""
    return " ".join(filter(None, [_does(policy), _later(policy), _waits(policy), _mode(policy)]))


def reason_in_words(reason: str, policy: RetentionPolicy) -> str:
    """A reason in a few words, with the age that it is about."""
    if reason == Reason.OLDER_THAN_AGE and policy.age:
        return f"older than {policy.age}"
    if reason == Reason.YOUNGER_THAN_AGE and policy.age:
        return f"not older than {policy.age}"
    return reason.replace("_", " ")


def meaning_of(reason: str) -> str:
    """What a reason means; empty if it is none of the engine's."""
    return _MEANINGS.get(reason, "")


def _does(policy: RetentionPolicy) -> str:
    what = f"{_when(policy)}, {_what(policy)}{_matching(policy)}"
    if policy.rule == Rule.ROWS:
        return f"{what} are soft-deleted."
    return f"{what} go to the trash{_asked(policy)}."


def _when(policy: RetentionPolicy) -> str:
    try:
        return parse_schedule(policy.schedule).words()
    except PolicyInvalid:
        return "At times that are not understood yet"


def _what(policy: RetentionPolicy) -> str:
    thing, older = _things(policy), _older(policy)
    area = f" in {policy.area.name}" if policy.area else " in an area that is not chosen yet"
    said = {
        Rule.AGE: f"{thing}{area} {older or 'of an age that is not given yet'}",
        Rule.EXPIRES_AT: f"results{area} whose metadata says that they have expired",
        Rule.ORPHAN: f"{thing}{area} that no row knows, seen twice and {older or 'of any age'}",
        Rule.WATERMARK: f"{thing}{area}{_and(older)}, {_first(policy)}, as many as it takes to bring its "
        "disk from above the high mark down to the low one",
        Rule.KEEP_NEWEST: f"all {thing}{area} but the newest {policy.keep or '…'} of each {_group(policy)}"
        f"{_and(older)}",
        Rule.ROWS: f"rows of {policy.model or 'a model that is not chosen yet'} whose {policy.stamp_field} "
        f"is {older or 'of any age'}",
    }
    return said.get(Rule(policy.rule), thing) if policy.rule in Rule.values else thing


def _things(policy: RetentionPolicy) -> str:
    if policy.unit != Unit.BUNDLE:
        return "files"
    return "bundles of files" if policy.bundle_pattern else "whole directories"


def _older(policy: RetentionPolicy) -> str:
    if not policy.age:
        return ""
    if policy.age_by in ("", "m") or policy.rule == Rule.ROWS:
        return f"older than {policy.age}"
    stamps = " and ".join(_STAMPS[one] for one in policy.age_by if one in _STAMPS)
    return f"not {stamps or 'changed'} for {policy.age}"


def _and(older: str) -> str:
    return f" that are {older}" if older else ""


def _first(policy: RetentionPolicy) -> str:
    return "the largest first" if policy.order_by == OrderBy.SIZE else "the oldest first"


def _group(policy: RetentionPolicy) -> str:
    return "group" if policy.group_pattern else "directory"


def _matching(policy: RetentionPolicy) -> str:
    include, exclude = _list(policy.include), _list(policy.exclude)
    wanted = f" that match {' or '.join(include)}" if include else ""
    return f"{wanted}{', ' if wanted else ' '}but not {' or '.join(exclude)}" if exclude else wanted


def _list(values: object) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list) else []


def _asked(policy: RetentionPolicy) -> str:
    names = [describe(one).partition(":")[0] for one in policy.verifiers or []]
    said = f" if {' and '.join(names)} say{'s' if len(names) == 1 else ''} so" if names else ""
    return f"{said}, unless another process has them open" if policy.skip_in_use else said


def _later(policy: RetentionPolicy) -> str:
    grace = policy.grace_period
    kept = f"They can be restored for {format_age(grace)}" if grace else "They cannot be restored for long"
    if policy.floor is not None and policy.floor < grace:
        kept = f"{kept}, or at least {format_age(policy.floor)} when the disk is full"
    return f"{kept}; after that they are purged."


def _waits(policy: RetentionPolicy) -> str:
    return (
        f"A plan of more than {policy.max_files:,} files, {policy.max_bytes / 10**9:,g} GB or "
        f"{policy.max_percent} % of the area waits for a person."
        if None not in (policy.max_files, policy.max_bytes, policy.max_percent)
        else ""
    )


def _mode(policy: RetentionPolicy) -> str:
    return {
        Mode.OFF: "It is off: none of this happens.",
        Mode.REPORT: "It only reports: runs end with the plan, and no file moves until its mode is enforce.",
    }.get(Mode(policy.mode), "") if policy.mode in Mode.values else ""  # fmt: skip
