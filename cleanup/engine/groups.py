"""Which things go when they are seen together: the newest of each group stay, the first in order go.

`select` stands between the walk and the plan. It judges every candidate by its policy and yields, as items of
a plan, what may go as far as rule and holds are concerned; whoever listens is told of everything else. What
it yields does not depend on the order in which a directory lists its names. Memory: of `keep_newest` what
stays, of `watermark` what goes, of bundles the directory at hand, or all members where a pattern makes them.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from cleanup.engine.bundles import OnKept, Thing, keep_all, things
from cleanup.engine.candidates import Candidate, Stat, Verdict
from cleanup.engine.holds import Hold, Holds
from cleanup.engine.items import Member, PlanItem
from cleanup.engine.names import escape, key_in, keyed
from cleanup.engine.policy import AgeLimit, Policy, judge_all, task_id_of
from cleanup.engine.reasons import Reason

__all__ = ["Goal", "OnKept", "group_of", "select"]


def select(
    policy: Policy,
    candidates: Iterable[Candidate],
    *,
    now: datetime,
    holds: Sequence[Hold] = (),
    on_kept: OnKept,
    needed: int = 0,
) -> Iterator[PlanItem]:
    """Yield an item for everything that may go as far as rule and holds are concerned.

    Args:
        policy: validated; not over rows.
        candidates: read once, in the order of the walk: what is below one directory stands together.
        now: with a zone.
        holds: what must stay although a rule would let it go.
        on_kept: told of each candidate that stays.
        needed: bytes that the rule ``watermark`` has to free; other rules ignore it. With verifiers all that
            may go is yielded, the first first, since it depends on their answers how far one has to go:
            `Goal` says when to stop.

    Raises:
        ValueError: `now` has no zone, or the policy is about rows.
        TreeChanged: a directory was met twice, and directories are bundles.
    """
    if policy.rule == "rows":
        raise ValueError(f"policy {policy.name!r} is about rows, not about files")
    held = Holds(holds, now=now) if holds else None
    if policy.alone:
        return _each(policy, candidates, now=now, held=held, on_kept=on_kept)
    return _Comparison(policy, AgeLimit(policy, now=now), held, on_kept).items(candidates, needed)


class Goal:
    """How many bytes a plan still has to free: a watermark wants so many, any other rule all it can get."""

    def __init__(self, policy: Policy, needed: int) -> None:
        """Start with all that is `needed`."""
        self._left = needed if policy.rule == "watermark" else None

    @property
    def reached(self) -> bool:
        """Whether nothing more has to go."""
        return self._left is not None and self._left <= 0

    def take(self, size: int) -> None:
        """Count something that goes."""
        if self._left is not None:
            self._left -= size


# Rules that look at one file at a time


def _each(
    policy: Policy, candidates: Iterable[Candidate], *, now: datetime, held: Holds | None, on_kept: OnKept
) -> Iterator[PlanItem]:
    judged = judge_all(policy, now=now)
    for candidate in candidates:
        verdict = judged(candidate)
        if verdict.action == "keep":
            on_kept(candidate.path, verdict.reason, verdict.detail, candidate.stat.size)
            continue
        hold = None if held is None else _hold(held, verdict.members)
        if hold is None:
            yield _file_item(policy, candidate, verdict)
        else:
            on_kept(candidate.path, Reason.HELD, hold[1], candidate.stat.size)


def _hold(held: Holds, paths: Iterable[bytes]) -> tuple[bytes, str] | None:
    """Return the first of `paths` that is held, and what holds it."""
    return next(((path, hold) for path in paths if (hold := held.match(escape(path))) is not None), None)


def _file_item(policy: Policy, candidate: Candidate, verdict: Verdict) -> PlanItem:
    """Return a file, or a result with its metadata, as an item."""
    path, stat, companion = candidate.path, candidate.stat, candidate.companion
    size, task_id = stat.size, task_id_of(policy, path)
    members: tuple[Member, ...] = (_member(path, stat),)
    if companion is not None and len(verdict.members) > 1:
        members, size = (*members, _member(companion.path, companion.stat)), size + companion.stat.size
    return PlanItem(path, members, size, verdict.reason, verdict.detail, task_id)


def _member(path: bytes, stat: Stat) -> Member:
    return Member(path, stat.device, stat.inode, stat.size, stat.mtime_ns)


# Rules that compare


class _Comparison:
    """Applies a rule to things that are seen together."""

    def __init__(self, policy: Policy, limit: AgeLimit, held: Holds | None, on_kept: OnKept) -> None:
        self.policy, self.limit, self.held, self.on_kept = policy, limit, held, on_kept

    def items(self, candidates: Iterable[Candidate], needed: int) -> Iterator[PlanItem]:
        """Yield what may go."""
        found = things(self.policy, candidates, self.on_kept)
        if self.policy.rule == "keep_newest":
            return self.named(self.unheld(self.old(self.beyond_newest(found))), Reason.BEYOND_KEEP)
        going = self.unheld(self.old(found))
        if self.policy.rule == "watermark":
            return self.named(self.first(going, needed), Reason.SPACE_NEEDED)
        return self.named(going, Reason.OLDER_THAN_AGE)

    def keep(self, thing: Thing, reason: Reason, detail: str = "") -> None:
        keep_all(thing, reason, detail, self.on_kept)

    def old(self, found: Iterable[Thing]) -> Iterator[Thing]:
        """Yield the things whose newest member is old enough."""
        for thing in found:
            young = self.limit.keeps(thing.newest, sure=thing.unsure is None)
            if young is None:
                yield thing
            else:
                unknown = young is Reason.UNKNOWN_TIMESTAMP and thing.unsure is not None
                self.keep(thing, young, thing.about(thing.unsure or b"" if unknown else thing.newest_path))

    def unheld(self, found: Iterable[Thing]) -> Iterator[Thing]:
        """Yield the things of which no member is held."""
        for thing in found:
            hold = None if self.held is None else _hold(self.held, [member.path for member in thing.members])
            if hold is None:
                yield thing
            else:
                self.keep(thing, Reason.HELD, thing.about(*hold))

    def beyond_newest(self, found: Iterable[Thing]) -> Iterator[Thing]:
        """Yield what has at least `keep` newer ones in its group; of equal stamps the last name is newest."""
        groups: dict[str, list[tuple[int, bytes, Thing]]] = {}
        for thing in found:
            group = group_of(self.policy, thing)
            if thing.newest is None or thing.unsure is not None:
                self.keep(thing, Reason.UNKNOWN_TIMESTAMP, thing.about(thing.unsure or b""))
            elif group is None:
                self.keep(thing, Reason.NO_KEY)
            else:
                newest = groups.setdefault(group, [])
                # Counted twice, a file would push another one out of the group.
                if any(thing.same_as(other) for _, _, other in newest):
                    continue
                heapq.heappush(newest, (thing.newest, thing.path, thing))
                if len(newest) > (self.policy.keep or 1):
                    yield heapq.heappop(newest)[2]
        for group, newest in groups.items():
            for _, _, thing in newest:
                self.keep(thing, Reason.AMONG_NEWEST, f"group {group or '.'}")

    def first(self, found: Iterable[Thing], needed: int) -> Iterator[Thing]:
        """Yield the first in order until `needed` bytes are reached, and not one more."""
        waiting: list[_Ranked] = []
        total = 0
        for thing in found:
            heapq.heappush(waiting, _Ranked(self.rank(thing), thing))
            total += thing.size
            while waiting and not self.policy.verifiers and total - waiting[0].thing.size >= needed:
                last = heapq.heappop(waiting).thing
                total -= last.size
                self.keep(last, Reason.NOT_NEEDED)
        for ranked in sorted(waiting, reverse=True):
            yield ranked.thing

    def rank(self, thing: Thing) -> tuple[int, int, bytes]:
        """Return where a thing stands in the policy's order: the oldest, or the largest, is the least."""
        stamp = thing.newest or 0
        return (stamp, 0, thing.path) if self.policy.order_by == "age" else (-thing.size, stamp, thing.path)

    def named(self, found: Iterable[Thing], reason: Reason) -> Iterator[PlanItem]:
        """Yield things as items of a plan."""
        for thing in found:
            ids = {task_id_of(self.policy, member.path) for member in thing.members} - {None}
            if len(ids) > 1 and self.policy.verifiers:
                self.keep(thing, Reason.UNVERIFIED, "its members are of different tasks")
                continue
            task_id = next(iter(ids)) if len(ids) == 1 else None
            detail = "" if thing.name is None else f"bundle {escape(thing.name)}"
            yield PlanItem(thing.path, tuple(thing.members), thing.size, reason, detail, task_id)


class _Ranked:
    """A thing in a heap whose top is the last in order."""

    __slots__ = ("rank", "thing")

    def __init__(self, rank: tuple[int, int, bytes], thing: Thing) -> None:
        self.rank, self.thing = rank, thing

    def __lt__(self, other: "_Ranked") -> bool:
        return self.rank > other.rank


def group_of(policy: Policy, thing: Thing) -> str | None:
    """Return the group of `keep_newest` to which a thing belongs, or None if the pattern gives none.

    A directory that is a bundle is known by its own path, any other thing by that of its first member.
    """
    directory = thing.name is not None and policy.bundle_pattern is None
    path = thing.name if directory and thing.name is not None else thing.path
    if policy.group_pattern is None:
        return escape(path.rpartition(b"/")[0])
    return key_in(keyed(policy.group_pattern, "group_pattern"), escape(path)) or None
