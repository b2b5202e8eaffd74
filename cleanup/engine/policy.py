"""What may go, and why: a policy, a candidate, a verdict.

`judge` looks at one candidate under one policy at one moment and says *trash* or *keep*, with the reason. It
is the only place where that is decided, for a preview as for a run. It touches no disk and reads no clock:
what was seen on disk arrives as a `Candidate`, the time as `now`. Whatever is in doubt (an unknown time
stamp, a companion that does not parse, a second hard link) is kept.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal

import msgspec

from cleanup.engine.ages import format_age, parse_age
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.expiry import companion_name, moment, zone_from_name, zone_name
from cleanup.engine.names import Patterns, escape, is_below, is_internal, patterns, task_pattern, unescape
from cleanup.engine.reasons import Reason

__all__ = [
    "Candidate",
    "Companion",
    "Policy",
    "Reason",
    "Stat",
    "Verdict",
    "escape",
    "format_age",
    "judge",
    "parse_age",
    "policy_from_json",
    "policy_to_json",
    "task_id_of",
    "unescape",
]

Kind = Literal["file", "dir", "symlink", "other"]
Rule = Literal["age", "expires_at"]
Mode = Literal["off", "report", "enforce"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)


class Stat(msgspec.Struct, frozen=True, gc=False):
    """What the file system said about one name, without following a link."""

    kind: Kind
    device: int
    inode: int
    nlink: int
    size: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    btime_ns: int | None  #: birth; None where the file system, or the scan, did not ask
    mode: int
    uid: int
    gid: int


class Companion(msgspec.Struct, frozen=True):
    """The metadata file beside a result."""

    path: bytes  #: relative to the area
    stat: Stat
    expires_at: datetime | None = None  #: without a zone it is read in the policy's `naive_timezone`
    error: str | None = None  #: why there is no usable `expires_at`


class Candidate(msgspec.Struct, frozen=True):
    """One thing found below an area."""

    path: bytes  #: relative to the area
    stat: Stat
    companion: Companion | None = None


class Verdict(msgspec.Struct, frozen=True):
    """What is to become of a candidate, and why."""

    action: Literal["trash", "keep"]
    reason: Reason
    members: tuple[bytes, ...] = ()  #: what goes together, in the order of going; empty when kept
    detail: str = ""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """One rule for one area. A value: every change is another version."""

    name: str
    rule: Rule  #: orphan, watermark, keep_newest and rows are to follow, each with its own judge
    age: timedelta | None = None
    #: Which stamps must all be older: a(ccess) b(irth) c(hange) m(odification). The default is m alone, since
    #: a backup renews a and a chown renews c.
    age_by: frozenset[str] = frozenset("m")
    include: tuple[str, ...] = ()  #: nothing given: everything
    exclude: tuple[str, ...] = ()  #: wins over include, and protects what lies below a matched directory
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
    naive_timezone: tzinfo = UTC  #: of an `expires_at` that names no zone

    def validate(self) -> None:
        """Refuse what could not be obeyed.

        Raises:
            PolicyInvalid: with every complaint, in one message.
        """
        complaints = list(_complaints(self))
        if complaints:
            raise PolicyInvalid(f"policy {self.name!r}: " + "; ".join(complaints))


def _complaints(policy: Policy) -> Iterator[str]:
    if not policy.name.strip():
        yield "a name is missing"
    if policy.rule == "age":
        yield from _age_complaints(policy)
    elif policy.rule != "expires_at":
        yield f"unknown rule {policy.rule!r}"
    if policy.mode not in ("off", "report", "enforce"):
        yield f"unknown mode {policy.mode!r}"
    if policy.grace_period < timedelta(0):
        yield "grace_period is negative"
    yield from _limit_complaints(policy)
    yield from _pattern_complaints(policy)


def _age_complaints(policy: Policy) -> Iterator[str]:
    if policy.age is None:
        yield "rule age needs an age"
    elif policy.age < timedelta(0):
        yield "age is negative"
    if not policy.age_by or not policy.age_by <= frozenset("abcm"):
        yield "age_by is one or more of a b c m"


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
    try:
        if policy.task_id_pattern is not None:
            task_pattern(policy.task_id_pattern)
        zone_name(policy.naive_timezone)
    except PolicyInvalid as error:
        yield str(error)


def _keep(reason: Reason, detail: str = "") -> Verdict:
    return Verdict("keep", reason, (), detail)


_KEEP = {reason: _keep(reason) for reason in Reason}


def judge(policy: Policy, candidate: Candidate, *, now: datetime) -> Verdict:
    """Decide about one candidate.

    A result and its metadata are one bundle: `Verdict.members` names both, the result first, because a result
    whose metadata is gone would never be cleaned again, while metadata without a result does no harm.

    Args:
        policy: assumed to have passed `Policy.validate`.
        candidate: as `cleanup.engine.scan.walk` found it.
        now: with a zone.

    Raises:
        ValueError: `now` has no zone.
    """
    if now.tzinfo is None:
        raise ValueError("now needs a time zone")
    barred = _bar(policy, candidate)
    if barred is not None:
        return barred
    if policy.rule == "age":
        return _judge_age(policy, candidate, now)
    return _judge_expiry(policy, candidate, now)


def _bar(policy: Policy, candidate: Candidate) -> Verdict | None:
    """Apply what every rule has in common; None lets the rule decide."""
    path, stat = candidate.path, candidate.stat
    if stat.kind != "file":
        return _KEEP[Reason.NOT_A_FILE]
    if not is_below(path):
        return _KEEP[Reason.OUTSIDE]
    if is_internal(path):
        return _KEEP[Reason.INTERNAL]
    if policy.include or policy.exclude:
        text = escape(path)
        if policy.include and patterns(policy.include).match(text) is None:
            return _KEEP[Reason.NOT_INCLUDED]
        excluding = patterns(policy.exclude, subtree=True).match(text)
        if excluding is not None:
            return _keep(Reason.EXCLUDED, excluding)
    if stat.nlink > 1 and not policy.allow_hardlinks:
        return _KEEP[Reason.HARD_LINKED]
    return None


def _judge_age(policy: Policy, candidate: Candidate, now: datetime) -> Verdict:
    if policy.age is None:
        raise PolicyInvalid("rule age needs an age")
    now_ns = (now - _EPOCH) // _US * 1000
    cutoff_ns = now_ns - policy.age // _US * 1000
    stamps = _stamps(policy.age_by, candidate.stat)
    known = [stamp for stamp in stamps if stamp is not None]
    if known and max(known) > now_ns:
        return _KEEP[Reason.FUTURE_TIMESTAMP]
    if any(stamp >= cutoff_ns for stamp in known):
        return _KEEP[Reason.YOUNGER_THAN_AGE]
    if not known or len(known) < len(stamps):
        return _KEEP[Reason.UNKNOWN_TIMESTAMP]
    return Verdict("trash", Reason.OLDER_THAN_AGE, (candidate.path,))


def _stamps(age_by: frozenset[str], stat: Stat) -> list[int | None]:
    by_letter = {"a": stat.atime_ns, "b": stat.btime_ns, "c": stat.ctime_ns, "m": stat.mtime_ns}
    return [by_letter[letter] for letter in age_by]


def _judge_expiry(policy: Policy, candidate: Candidate, now: datetime) -> Verdict:
    expected, companion = companion_name(candidate.path), candidate.companion
    if expected is None:
        return _keep(Reason.NOT_INCLUDED, "not a *.result.json.lz4")
    if companion is None:
        return _KEEP[Reason.NO_COMPANION]
    problem = _companion_problem(policy, companion, expected)
    if problem or companion.expires_at is None:
        return _keep(Reason.BAD_COMPANION, problem or companion.error or "no expires_at")
    try:
        expires_at = moment(companion.expires_at, policy.naive_timezone)
    except OverflowError:
        return _keep(Reason.BAD_COMPANION, "expires_at is out of range")
    if now <= expires_at:
        return _KEEP[Reason.NOT_EXPIRED]
    return Verdict("trash", Reason.EXPIRED, (candidate.path, companion.path), expires_at.isoformat())


def _companion_problem(policy: Policy, companion: Companion, expected: bytes) -> str | None:
    if companion.path != expected:
        return "belongs to another result"
    if companion.stat.kind != "file":
        return "not a regular file"
    if companion.stat.nlink > 1 and not policy.allow_hardlinks:
        return "hard-linked"
    return companion.error


def task_id_of(policy: Policy, path: bytes) -> str | None:
    """Return the task id that `policy.task_id_pattern` finds in the escaped `path`, if any."""
    if policy.task_id_pattern is None:
        return None
    pattern = task_pattern(policy.task_id_pattern)
    match = pattern.search(escape(path))
    if match is None:
        return None
    return match["task_id"] if "task_id" in pattern.groupindex else match[1]


class _StoredPolicy(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A policy as JSON: ages in tmpfiles.d syntax, the zone by its name."""

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


#: Fields that JSON holds as they are.
_PLAIN = (
    "name", "rule", "mode", "max_files", "max_bytes", "max_percent", "max_median_factor",
    "max_unknown_percent", "task_id_pattern", "allow_hardlinks",
)  # fmt: skip


def policy_to_json(policy: Policy) -> str:
    """Write `policy` as one line of JSON, the same for equal policies."""
    stored = _StoredPolicy(
        **{field: getattr(policy, field) for field in _PLAIN},
        age=None if policy.age is None else format_age(policy.age),
        age_by=sorted(policy.age_by),
        include=list(policy.include),
        exclude=list(policy.exclude),
        verifiers=list(policy.verifiers),
        grace_period=format_age(policy.grace_period),
        naive_timezone=zone_name(policy.naive_timezone),
    )
    return msgspec.json.encode(stored, order="sorted").decode()


def policy_from_json(text: str | bytes) -> Policy:
    """Read what `policy_to_json` wrote, and validate it.

    Raises:
        PolicyInvalid: not such JSON, or a policy that could not be obeyed.
    """
    try:
        stored = msgspec.json.decode(text, type=_StoredPolicy)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise PolicyInvalid(f"not a stored policy: {error}") from error
    policy = Policy(
        **{field: getattr(stored, field) for field in _PLAIN},
        age=None if stored.age is None else parse_age(stored.age),
        age_by=frozenset(stored.age_by),
        include=tuple(stored.include),
        exclude=tuple(stored.exclude),
        verifiers=tuple(stored.verifiers),
        grace_period=parse_age(stored.grace_period),
        naive_timezone=zone_from_name(stored.naive_timezone),
    )
    policy.validate()
    return policy
