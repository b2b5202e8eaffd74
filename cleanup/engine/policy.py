"""What may go, and why: a policy, a candidate, a verdict.

`judge` looks at one candidate under one policy at one moment and says *trash* or *keep*, with the reason; the
rules that compare candidates with one another are in `cleanup.engine.groups`, on top of what is here. There
is no other place where that is decided, for a preview as for a run. It touches no disk and reads no clock:
what was seen on disk arrives as a `Candidate`, the time as `now`. Whatever is in doubt (an unknown time
stamp, a companion that does not parse, a second hard link) is kept.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cleanup.engine.ages import format_age, parse_age
from cleanup.engine.candidates import Candidate, Companion, Kind, Stat, Verdict
from cleanup.engine.documents import policy_from_json, policy_to_json
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.expiry import companion_name, moment
from cleanup.engine.names import escape, is_below, is_internal, key_in, patterns, task_pattern, unescape
from cleanup.engine.reasons import Reason
from cleanup.engine.terms import DIRECTORY_LETTERS, Mode, Policy, Rule, canonical_filter

__all__ = [
    "AgeLimit",
    "Candidate",
    "Companion",
    "Kind",
    "Mode",
    "Policy",
    "Reason",
    "Rule",
    "Stat",
    "Verdict",
    "barrier",
    "canonical_filter",
    "escape",
    "format_age",
    "judge",
    "judge_all",
    "judge_row",
    "parse_age",
    "policy_from_json",
    "policy_to_json",
    "stamp_of",
    "task_id_of",
    "unescape",
]

Judge = Callable[[Candidate], Verdict]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)

#: What a rule that judges by age calls it.
_TOO_OLD = {"age": Reason.OLDER_THAN_AGE, "orphan": Reason.ORPHANED}


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
        ValueError: `now` has no zone, or the policy compares candidates with one another.
    """
    return judge_all(policy, now=now)(candidate)


def judge_all(policy: Policy, *, now: datetime) -> Judge:
    """Return `judge` for many candidates: what depends on policy and moment alone is done once.

    Raises:
        ValueError: as `judge`.
    """
    limit = AgeLimit(policy, now=now)
    if not policy.alone:
        raise ValueError(f"policy {policy.name!r} compares files with one another: none is judged alone")
    barred = barrier(policy)
    decide = _judge_expiry(policy, now) if policy.rule == "expires_at" else _judge_age(policy, limit)

    def judged(candidate: Candidate) -> Verdict:
        return barred(candidate) or decide(candidate)

    return judged


def barrier(policy: Policy) -> Callable[[Candidate], Verdict | None]:
    """Return what every rule has in common: says why a candidate stays, or None to let the rule decide."""
    included = patterns(policy.include).match if policy.include else None
    excluded = patterns(policy.exclude, subtree=True).match if policy.exclude else None
    hard_links = policy.allow_hardlinks

    def bar(candidate: Candidate) -> Verdict | None:
        path, stat = candidate.path, candidate.stat
        if stat.kind != "file":
            return _keep(candidate.barred or Reason.NOT_A_FILE, candidate.detail)
        if not is_below(path):
            return _KEEP[Reason.OUTSIDE]
        if is_internal(path):
            return _KEEP[Reason.INTERNAL]
        if included is not None and included(escape(path)) is None:
            return _KEEP[Reason.NOT_INCLUDED]
        if excluded is not None and (pattern := excluded(escape(path))) is not None:
            return _keep(Reason.EXCLUDED, pattern)
        if stat.nlink > 1 and not hard_links:
            return _KEEP[Reason.HARD_LINKED]
        return None

    return bar


class AgeLimit:
    """A moment and the cut-off that a policy's age gives it, in nanoseconds since 1970."""

    def __init__(self, policy: Policy, *, now: datetime) -> None:
        """Take the moment `now`.

        Raises:
            ValueError: `now` has no zone.
        """
        if now.tzinfo is None:
            raise ValueError("now needs a time zone")
        self.now_ns = (now - _EPOCH) // _US * 1000
        #: None: whatever is not of the future is old enough.
        self.cutoff_ns = None if policy.age is None else self.now_ns - policy.age // _US * 1000

    def keeps(self, stamp: int | None, *, sure: bool = True) -> Reason | None:
        """Return why something with the newest known `stamp` is not old enough, or None if it is.

        Args:
            stamp: of the selected stamps the newest that is known; None if none is.
            sure: all selected stamps are known.
        """
        if stamp is not None and stamp > self.now_ns:
            return Reason.FUTURE_TIMESTAMP
        if stamp is not None and self.cutoff_ns is not None and stamp >= self.cutoff_ns:
            return Reason.YOUNGER_THAN_AGE
        return None if stamp is not None and sure else Reason.UNKNOWN_TIMESTAMP


def stamp_of(age_by: frozenset[str], stat: Stat) -> tuple[int | None, bool]:
    """Return the newest of the selected stamps that are known, and whether all of them are.

    Upper-case letters are about directories, lower-case ones about everything else. Nothing selected for this
    kind of thing: None, and sure.
    """
    directory = stat.kind == "dir"
    letters = [letter for letter in age_by if (letter in DIRECTORY_LETTERS) == directory]
    stamps = [_stamp(letter.lower(), stat) for letter in letters]
    known = [stamp for stamp in stamps if stamp is not None]
    return max(known, default=None), len(known) == len(stamps)


def _stamp(letter: str, stat: Stat) -> int | None:
    if letter == "m":
        return stat.mtime_ns
    if letter == "c":
        return stat.ctime_ns
    return stat.atime_ns if letter == "a" else stat.btime_ns


def _judge_age(policy: Policy, limit: AgeLimit) -> Judge:
    age_by, why = policy.age_by, _TOO_OLD[policy.rule]
    if policy.age is None or limit.cutoff_ns is None:
        raise PolicyInvalid(f"rule {policy.rule} needs an age")
    cutoff, by_mtime = limit.cutoff_ns, age_by == frozenset("m")

    def decide(candidate: Candidate) -> Verdict:
        if by_mtime and candidate.stat.mtime_ns < cutoff:
            return Verdict("trash", why, (candidate.path,))
        stamp, sure = stamp_of(age_by, candidate.stat)
        young = limit.keeps(stamp, sure=sure)
        return Verdict("trash", why, (candidate.path,)) if young is None else _KEEP[young]

    return decide


def _judge_expiry(policy: Policy, now: datetime) -> Judge:
    def decide(candidate: Candidate) -> Verdict:
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

    return decide


def _companion_problem(policy: Policy, companion: Companion, expected: bytes) -> str | None:
    if companion.path != expected:
        return "belongs to another result"
    if companion.stat.kind != "file":
        return companion.error or "not a regular file"
    if companion.stat.nlink > 1 and not policy.allow_hardlinks:
        return "hard-linked"
    return companion.error


def judge_row(policy: Policy, name: bytes, stamp: datetime | None, *, now: datetime) -> Verdict:
    """Decide about one row of a policy over rows.

    Args:
        policy: of the rule ``rows``.
        name: of the row, as the plan will name it.
        stamp: its `stamp_field`, with a zone; None if it is empty.
        now: with a zone.

    Raises:
        ValueError: `now` or `stamp` has no zone, or the policy is about files.
    """
    if policy.rule != "rows":
        raise ValueError(f"policy {policy.name!r} is about files")
    if stamp is not None and stamp.tzinfo is None:
        raise ValueError("a stamp needs a time zone")
    young = AgeLimit(policy, now=now).keeps(None if stamp is None else (stamp - _EPOCH) // _US * 1000)
    return Verdict("trash", Reason.OLDER_THAN_AGE, (name,)) if young is None else _KEEP[young]


def task_id_of(policy: Policy, path: bytes) -> str | None:
    """Return the task id that `policy.task_id_pattern` finds in the escaped `path`, if any."""
    if policy.task_id_pattern is None:
        return None
    return key_in(task_pattern(policy.task_id_pattern), escape(path), "task_id")
