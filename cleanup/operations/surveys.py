"""What a policy makes of everything that it sees, file by file, for people who only look.

A survey plans as a run does and touches nothing. Besides the plan it hands every file, with its reason, to
whoever keeps it, and counts: by reason, by age, by size, and what the verifiers said. Memory stays bounded
however large the area is. Two surveys at the same moment can be compared: that is the difference between a
draft and what is saved.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from cleanup.engine.items import Member, PlanItem
from cleanup.engine.names import escape
from cleanup.engine.packing import Counting, Tally
from cleanup.engine.policy import Policy
from cleanup.engine.reasons import Reason
from cleanup.models import RetentionPolicy
from cleanup.operations.areas import opened
from cleanup.operations.planning import Beat, Planned, brakes_json, make_plan, make_row_plan
from cleanup.operations.policies import engine_policy
from cleanup.stores.previews import Seen
from cleanup.stores.sql import chunks


class Kind(StrEnum):
    """What a survey says of a file."""

    GOES = "goes"
    STAYS = "stays"
    #: It stays as well, because nobody could tell.
    DOUBT = "doubt"


#: Reasons that mean: could not be judged.
DOUBTS = frozenset(
    (Reason.BAD_COMPANION, Reason.UNKNOWN_TIMESTAMP, Reason.UNREADABLE, Reason.UNVERIFIED, Reason.IO_ERROR)
)

#: Where the bars of the two histograms begin, and what they are called.
_H, _D = 3600, 86_400
AGES = ((0, "under 1 hour"), (_H, "1 hour to 1 day"), (_D, "1 to 7 days"), (7 * _D, "7 to 30 days"),
        (30 * _D, "30 to 90 days"), (90 * _D, "90 days to 1 year"), (365 * _D, "over 1 year"))  # fmt: skip
SIZES = ((0, "under 4 kB"), (4_000, "4 kB to 1 MB"), (10**6, "1 to 10 MB"), (10**7, "10 to 100 MB"),
         (10**8, "100 MB to 1 GB"), (10**9, "over 1 GB"))  # fmt: skip

#: Files handed over at a time.
_BATCH = 1_000

#: Files that are handed over in all; the others are only counted.
MOST_LISTED = 2_000_000

#: Keeps files of one kind and reason.
Sink = Callable[[str, str, list[Seen]], None]


def kind_of(reason: str) -> Kind:
    """What a reason to stay means."""
    return Kind.DOUBT if reason in DOUBTS else Kind.STAYS


class _Bars:
    """A histogram: files and bytes between edges."""

    def __init__(self, bands: Iterable[tuple[int, str]]) -> None:
        self.edges, self.names = zip(*bands, strict=True)
        self.files, self.bytes = [0] * len(self.edges), [0] * len(self.edges)

    def add(self, value: int, size: int) -> None:
        at = max(0, bisect_right(self.edges, value) - 1)
        self.files[at] += 1
        self.bytes[at] += size

    def shown(self) -> list[list[Any]]:
        """From the first bar with anything to the last."""
        full = [at for at, files in enumerate(self.files) if files]
        if not full:
            return []
        return [
            [self.names[at], self.files[at], self.bytes[at]] for at in range(full[0], full[-1] + 1)
        ]  # fmt: skip


@dataclass(slots=True, kw_only=True)
class _Amount:
    files: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.files += 1
        self.bytes += size


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a survey has found; `result` is what a row and JSON can hold."""

    result: dict[str, Any]
    scanned: int
    files: int
    bytes: int
    #: The same for the same set of files, whatever their order; holds in this process alone.
    fingerprint: int


@dataclass(slots=True)
class _Survey:
    """Listens to a plan that is being made."""

    sink: Sink | None
    now: datetime
    fingerprint: int = 0
    listed: int = 0
    ages: _Bars = field(default_factory=lambda: _Bars(AGES))
    sizes: _Bars = field(default_factory=lambda: _Bars(SIZES))
    amounts: dict[tuple[Kind, str], _Amount] = field(default_factory=dict)
    waiting: dict[tuple[Kind, str], list[Seen]] = field(default_factory=dict)

    def kept(self, path: bytes, reason: Reason, detail: str, size: int) -> None:
        self.note(kind_of(reason), str(reason), path, size, detail, None)

    def store(self, items: Iterable[PlanItem]) -> Tally:
        counting = Counting()
        for batch in chunks(items):
            counting.add(batch)
            for item in batch:
                said = _said(item)
                for member in item.members:
                    self.goes(item, member, said)
        return counting.tally()

    def goes(self, item: PlanItem, member: Member, said: str) -> None:
        stamp = member.mtime_ns // 10**9
        self.note(Kind.GOES, str(item.reason), member.path, member.size, said, stamp)
        self.ages.add(int(self.now.timestamp()) - stamp, member.size)
        self.sizes.add(member.size, member.size)
        self.fingerprint ^= hash(member.path)

    def note(self, kind: Kind, reason: str, path: bytes, size: int, said: str, stamp: int | None) -> None:
        self.count(kind, reason).add(size)
        if self.sink is None or self.listed >= MOST_LISTED:
            return
        self.listed += 1
        waiting = self.waiting.setdefault((kind, reason), [])
        waiting.append(Seen(escape(path), size, said, stamp))
        if len(waiting) >= _BATCH:
            self.sink(kind, reason, waiting)
            self.waiting[kind, reason] = []

    def count(self, kind: Kind, reason: str) -> _Amount:
        return self.amounts.setdefault((kind, reason), _Amount())

    def close(self) -> None:
        for (kind, reason), files in self.waiting.items():
            if files and self.sink is not None:
                self.sink(kind, reason, files)
        self.waiting.clear()

    def total(self, kind: Kind) -> dict[str, int]:
        found = [amount for (one, _), amount in self.amounts.items() if one is kind]
        return {"files": sum(one.files for one in found), "bytes": sum(one.bytes for one in found)}

    def reasons(self) -> list[list[Any]]:
        """Kind, reason, files, bytes: the most files first."""
        found = [[str(kind), reason, one.files, one.bytes] for (kind, reason), one in self.amounts.items()]
        return sorted(found, key=lambda row: (-row[2], row[1]))


def _said(item: PlanItem) -> str:
    """The detail of an item, and what each verifier said of it."""
    evidence = [f"{name.partition(':')[0]} {text}" for name, text in item.evidence.items()]
    return "; ".join(filter(None, [item.detail, *evidence]))


def survey(policy: RetentionPolicy, sink: Sink | None, *, now: datetime, beat: Beat | None = None) -> Survey:
    """Say what a policy, saved or not, would do at `now`, and hand every file to `sink`.

    Args:
        policy: with its area.
        sink: keeps batches of files; None: they are only counted.
        now: against which everything is judged.
        beat: called every few thousand files with their number; what it raises ends the survey.

    Raises:
        PolicyInvalid: the policy could not be obeyed.
        EngineError: see `make_plan`.
    """
    rules = engine_policy(policy)
    seen = _Survey(sink, now)
    planned = _planned(policy, rules, seen, now=now, beat=beat)
    seen.close()
    goes = seen.total(Kind.GOES)
    return Survey(
        result=_result(seen, planned, rules),
        scanned=planned.plan.scanned,
        files=goes["files"],
        bytes=goes["bytes"],
        fingerprint=seen.fingerprint,
    )


def _planned(
    policy: RetentionPolicy, rules: Policy, seen: _Survey, *, now: datetime, beat: Beat | None
) -> Planned:
    if rules.rule == "rows":
        planned = make_row_plan(rules, now=now, policy_id=policy.pk, beat=beat, store=seen.store)
        for reason, number in planned.kept.items():
            seen.count(kind_of(reason), reason).files += number
        return planned
    with opened(policy.tree()) as handle:
        return make_plan(
            rules, handle, policy.tree().pk, now=now, policy_id=policy.pk, beat=beat, store=seen.store,
            on_kept=seen.kept, survey=True,
        )  # fmt: skip


def _result(seen: _Survey, planned: Planned, rules: Policy) -> dict[str, Any]:
    return {
        "at": seen.now.isoformat(),
        "scanned": planned.plan.scanned,
        "digest": planned.plan.digest,
        **{str(kind): seen.total(kind) for kind in Kind},
        "reasons": seen.reasons(),
        "ages": seen.ages.shown(),
        "sizes": [] if rules.rule == "rows" else seen.sizes.shown(),
        "brakes": brakes_json(planned.brakes),
        "facts": planned.facts,
        "verifiers": _asked(seen, rules),
        "listed": seen.listed,
    }


def _asked(seen: _Survey, rules: Policy) -> dict[str, int]:
    """What the verifiers said, in files; empty if none were asked."""
    if not rules.verifiers:
        return {}
    amounts = seen.amounts
    failed = amounts.get((Kind.STAYS, str(Reason.VERIFIER_FAILED)), _Amount()).files
    unknown = amounts.get((Kind.DOUBT, str(Reason.UNVERIFIED)), _Amount()).files
    return {"passed": seen.total(Kind.GOES)["files"], "failed": failed, "unknown": unknown}
