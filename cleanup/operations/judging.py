"""What one policy makes of one path, condition by condition, for `explaining`.

The verdict is the plan's own: a rule that looks at one file is given that file, any other rule its whole
area. The conditions beside it are for people: each value that the rule looks at, and whether it speaks for
going or keeps. Verifiers are asked now, with their canaries, and their answers are not counted.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import msgspec

from cleanup.conf import conf
from cleanup.engine.area import AreaHandle
from cleanup.engine.bundles import Thing, things
from cleanup.engine.candidates import Candidate
from cleanup.engine.errors import EngineError, PolicyInvalid, VerifierFailed
from cleanup.engine.expiry import moment
from cleanup.engine.groups import group_of
from cleanup.engine.items import Member, PlanItem
from cleanup.engine.names import escape, patterns
from cleanup.engine.packing import Counting, Tally
from cleanup.engine.plan import ask_about, build_plan
from cleanup.engine.policy import AgeLimit, Policy, stamp_of, task_id_of
from cleanup.engine.reasons import Reason
from cleanup.engine.scan import find, walk
from cleanup.engine.verify import Answer, Checked
from cleanup.models import CleanupRun, Mode, RetentionPolicy, RunState, StagingArea
from cleanup.operations.areas import active_holds
from cleanup.operations.explanations import Condition, PolicyExplained
from cleanup.operations.planning import make_plan
from cleanup.operations.policies import engine_policy
from cleanup.operations.usage import disk_of
from cleanup.operations.watermarks import to_plan
from cleanup.stores.orphans import stored
from cleanup.stores.sql import chunks
from cleanup.verifiers import asking

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)

#: Reasons that time alone will end.
_IN_TIME = (Reason.YOUNGER_THAN_AGE, Reason.FUTURE_TIMESTAMP, Reason.NOT_EXPIRED, Reason.SEEN_ONCE)

#: States of the last run of a policy in which the next may meet the same trouble.
_TROUBLE = (
    RunState.AWAITING_APPROVAL,
    RunState.REFUSED,
    RunState.FAILED,
    RunState.REJECTED,
    RunState.EXPIRED,
)


#: The reason of a policy that needs a look at the whole area, where only the path was to be looked at.
NOT_JUDGED = "not_judged"


def _compares(rules: Policy) -> bool:
    return not rules.alone or rules.rule == "orphan"


def _time(ns: int) -> str:
    return (_EPOCH + timedelta(microseconds=ns // 1000)).isoformat()


class _Caught:
    """Listens to a plan that is being made, for one path."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.item: PlanItem | None = None
        self.reason, self.detail = Reason.VANISHED, ""

    def concerns(self, path: bytes) -> bool:
        """Whether `path` is the path, stands below it, or is a directory on the way to it."""
        return path in (b"", self.path) or path.startswith(self.path + b"/") or (
            self.path.startswith(path + b"/")
        )  # fmt: skip

    def kept(self, path: bytes, reason: Reason, detail: str, size: int = 0) -> None:
        if self.concerns(path):
            self.reason, self.detail = reason, detail

    def store(self, items: Iterable[PlanItem]) -> Tally:
        counting = Counting()
        for batch in chunks(items):
            counting.add(batch)
            for item in batch:
                if any(self.concerns(member.path) for member in item.members):
                    self.item = item
        return counting.tally()


class Judging:
    """One policy and one path."""

    def __init__(
        self,
        row: RetentionPolicy,
        area: StagingArea,
        handle: AreaHandle,
        path: bytes,
        now: datetime,
        *,
        thorough: bool = True,
    ) -> None:
        """Take the open area and a path below it; unless `thorough`, nothing but the path is looked at."""
        self.row, self.area, self.handle, self.path, self.now = row, area, handle, path, now
        self.thorough = thorough
        self.caught = _Caught(path)
        self.candidate: Candidate | None = None
        self.thing: Thing | None = None
        self.conditions: list[Condition] = []

    def explain(self) -> PolicyExplained:
        """Say whether the path would go now, and why or why not."""
        try:
            rules = engine_policy(self.row)
        except PolicyInvalid as error:
            return self.refused("policy_invalid", "the policy could not be obeyed", error)
        if not self.thorough and _compares(rules):
            return self.refused(NOT_JUDGED, "it compares the files of the area with one another", "")
        try:
            self.judge(msgspec.structs.replace(rules, verifiers=()))
        except EngineError as error:
            return self.refused(error.code, "the policy would be refused here", error)
        self.conditions += self.scope(rules)
        self.conditions += self.values(rules)
        checked = self.verified(rules)
        return self.answer(rules, checked)

    def refused(self, code: str, meaning: str, error: Exception | str) -> PolicyExplained:
        return PolicyExplained(
            policy=self.row.name, rule=self.row.rule, mode=self.row.mode, goes=False, reason=code,
            meaning=meaning, detail=str(error), conditions=self.conditions, obstacles=self.obstacles(),
            next_run_at=self.row.next_due_at,
        )  # fmt: skip

    def judge(self, rules: Policy) -> None:
        """Plan, listening for the path."""
        caught = self.caught
        self.candidate = find(self.handle, self.path, policy=rules, on_skip=caught.kept)
        if _compares(rules):
            make_plan(
                rules, self.handle, self.area.pk, now=self.now, policy_id=None, store=caught.store,
                on_kept=caught.kept,
            )  # fmt: skip
            return
        build_plan(
            rules, [self.candidate] if self.candidate else [], now=self.now, area_uuid=self.handle.uuid,
            holds=active_holds(self.area.pk, now=self.now), on_kept=caught.kept, store=caught.store,
        )  # fmt: skip

    def answer(self, rules: Policy, checked: Checked | None) -> PolicyExplained:
        item, reason, detail = self.caught.item, self.caught.reason, self.caught.detail
        passed = checked is None or checked.answer is Answer.PASS
        if item is not None:
            reason, detail = item.reason, item.detail
        elif reason is Reason.VANISHED and self.is_directory():
            reason, detail = Reason.NOT_A_FILE, "a directory stays; what is in it is judged by itself"
        if item is not None and checked is not None and not passed:
            reason = Reason.VERIFIER_FAILED if checked.answer is Answer.FAIL else Reason.UNVERIFIED
            detail = "; ".join(f"{name} {text}" for name, text in checked.evidence.items())
        goes = item is not None and passed
        in_time = goes or reason in _IN_TIME
        return PolicyExplained(
            policy=self.row.name, rule=self.row.rule, mode=self.row.mode, goes=goes, reason=str(reason),
            meaning=reason.meaning, detail=detail, conditions=self.conditions,
            members=[escape(member.path) for member in item.members] if item is not None else [],
            eligible_from=self.eligible_from(rules) if in_time else None, next_run_at=self.row.next_due_at,
            obstacles=self.obstacles(),
        )  # fmt: skip

    def is_directory(self) -> bool:
        try:
            os.close(self.handle.open(self.path))
        except OSError:
            return False
        return True

    # Conditions

    def note(self, name: str, value: object, holds: bool | None = None) -> Condition:
        return Condition(name=name, value=str(value), holds=holds)

    def scope(self, rules: Policy) -> Iterator[Condition]:
        """Patterns and links: what every rule looks at."""
        shown = escape(self.path)
        if rules.include:
            found = patterns(rules.include).match(shown)
            yield self.note("include", found or f"none of {', '.join(rules.include)}", found is not None)
        if rules.exclude:
            found = patterns(rules.exclude, subtree=True).match(shown)
            yield self.note("exclude", found or "none matches", found is None)
        if self.candidate is not None and self.candidate.stat.kind == "file":
            links = self.candidate.stat.nlink
            yield self.note("links", links, links == 1 or rules.allow_hardlinks)

    def values(self, rules: Policy) -> Iterator[Condition]:
        """What the rule itself looks at."""
        if rules.rule == "expires_at":
            yield from self.expiry(rules)
        else:
            yield from self.stamps(rules)
        if not rules.alone:
            yield from self.company(rules)
        if rules.rule == "orphan":
            yield from self.sightings()
        if rules.rule == "watermark":
            yield from self.fullness(rules)

    def stamps(self, rules: Policy) -> Iterator[Condition]:
        limit = AgeLimit(rules, now=self.now)
        if limit.cutoff_ns is not None:
            yield self.note("cut_off", _time(limit.cutoff_ns))
        if self.candidate is None or self.candidate.barred is not None:
            return
        for letter in sorted(rules.age_by):
            stamp, sure = stamp_of(frozenset(letter), self.candidate.stat)
            if stamp is not None or not sure:
                value = _time(stamp) if stamp is not None else "not known"
                yield self.note(f"stamp {letter}", value, limit.keeps(stamp, sure=sure) is None)

    def expiry(self, rules: Policy) -> Iterator[Condition]:
        companion = None if self.candidate is None else self.candidate.companion
        if companion is None:
            yield self.note("companion", "none", holds=False)
        elif companion.error or companion.expires_at is None:
            yield self.note("companion", f"{escape(companion.path)}: {companion.error}", holds=False)
        else:
            yield self.note("companion", escape(companion.path), holds=True)
            at = moment(companion.expires_at, rules.naive_timezone)
            yield self.note("expires_at", at.isoformat(), self.now > at)

    def company(self, rules: Policy) -> Iterator[Condition]:
        """The bundle that it belongs to, and its place in its group."""
        bare = msgspec.structs.replace(rules, verifiers=())
        groups: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        seen = walk(self.handle, policy=bare, on_skip=lambda *_: None)
        for thing in things(bare, seen, lambda *_: None):
            if any(self.caught.concerns(member.path) for member in thing.members):
                self.thing = thing
            if rules.rule == "keep_newest" and thing.newest is not None:
                groups[group_of(rules, thing) or ""].append((thing.newest, thing.path))
        thing_ = self.thing
        if thing_ is None:
            return
        if thing_.name is not None:
            yield self.note("bundle", f"{escape(thing_.name)}: {len(thing_.members)} files")
            if thing_.newest is not None:
                keeps = AgeLimit(rules, now=self.now).keeps(thing_.newest, sure=thing_.unsure is None)
                newest = f"{escape(thing_.newest_path)}: {_time(thing_.newest)}"
                yield self.note("newest", newest, keeps is None)
        if rules.rule == "keep_newest" and thing_.newest is not None:
            group = group_of(rules, thing_)
            newer = sum(one > (thing_.newest, thing_.path) for one in groups[group or ""])
            value = f"{group or '.'}: number {newer + 1} of {len(groups[group or ''])}, keep {rules.keep}"
            yield self.note("group", value, newer >= (rules.keep or 1))

    def sightings(self) -> Iterator[Condition]:
        shown = escape(self.path)
        found = next((one for one in stored(self.area.pk, "file") if one.path == shown), None)
        if found is None:
            yield self.note("sighting", "none as an orphan, at the last scan", holds=False)
        else:
            twice = found.confirmed(now=self.now, gap=conf().orphan_sighting_gap)
            yield self.note("sighting", f"first {found.first_seen.isoformat()}", twice)

    def fullness(self, rules: Policy) -> Iterator[Condition]:
        disk, wanted = disk_of(self.area), to_plan(self.area, rules, now=self.now).short
        used = f"{disk.used * 100 // max(disk.total, 1)} % used"
        marks = f"high {self.area.high_watermark} %, low {self.area.low_watermark} %"
        yield self.note("disk", f"{used}; {marks}; {wanted} bytes to free", wanted > 0)

    # Others

    def verified(self, rules: Policy) -> Checked | None:
        """Ask the verifiers about what would go with the path; None if there is none, or nothing to ask."""
        item = self.caught.item or self.as_item(rules)
        if not rules.verifiers or item is None:
            return None
        if not self.thorough:
            self.conditions.append(self.note("verifiers", "not asked yet"))
            return None
        try:
            with asking(rules.verifiers, policy=rules.name, area=self.handle, counted=False) as ask:
                checked = ask_about(ask, [item], self.handle.uuid)[0]
        except VerifierFailed as error:
            checked = Checked(Answer.UNKNOWN, {"canary": str(error)})
        for name, text in checked.evidence.items():
            self.conditions.append(self.note(f"verifier {name}", text, text.startswith(Answer.PASS)))
        return checked

    def as_item(self, rules: Policy) -> PlanItem | None:
        """The file by itself, to ask about it although the rule keeps it."""
        if self.candidate is None or self.candidate.stat.kind != "file":
            return None
        stat = self.candidate.stat
        member = Member(self.path, stat.device, stat.inode, stat.size, stat.mtime_ns)
        task_id = task_id_of(rules, self.path)
        return PlanItem(self.path, (member,), stat.size, Reason.OLDER_THAN_AGE, "", task_id)

    def eligible_from(self, rules: Policy) -> datetime | None:
        """When only time has passed: the moment from which the rule lets it go."""
        companion = None if self.candidate is None else self.candidate.companion
        if rules.rule == "expires_at":
            if companion is None or companion.expires_at is None:
                return None
            return moment(companion.expires_at, rules.naive_timezone) + _US
        newest = self.thing.newest if self.thing is not None else None
        if newest is None and self.candidate is not None:
            newest, _ = stamp_of(rules.age_by, self.candidate.stat)
        if newest is None:
            return None
        old_enough = _EPOCH + timedelta(microseconds=newest // 1000) + (rules.age or timedelta(0)) + _US
        if rules.rule != "orphan":
            return old_enough
        shown = escape(self.path)
        seen = next((one.first_seen for one in stored(self.area.pk, "file") if one.path == shown), self.now)
        return max(old_enough, seen + conf().orphan_sighting_gap)

    def obstacles(self) -> list[str]:
        """What would stop a run although the rule lets the path go."""
        found = []
        if self.row.mode != Mode.ENFORCE:
            found.append(f"The policy is in mode {self.row.mode}: it does not act.")
        if not self.area.enabled:
            found.append(f"The area {self.area.name} is disabled.")
        last = CleanupRun.objects.filter(policy_version__policy=self.row).order_by("-created_at").first()
        if last is not None and last.state in _TROUBLE:
            found.append(f"Its last run is {last.get_state_display()}: {last.message or 'no message'}.")
        return found
