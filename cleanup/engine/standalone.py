"""The engine alone: plans and runs by a TOML file, without a database and without a site.

A run opens its area, locks it, finishes what an earlier process left half done, plans, measures the brakes,
moves the files batch by batch and writes every step into the audit file. Nothing else is remembered: what is
in the trash, and until when, is in the trash's own manifests. Emptying the trash is in
`cleanup.engine.emptying`.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import uuid4

import msgspec

from cleanup.engine.area import AreaHandle, marker_uuid, open_area, register_area
from cleanup.engine.clearing import OWN, in_trash, purge_area
from cleanup.engine.configuration import AreaEntry, Configuration, PolicyEntry
from cleanup.engine.errors import AreaRefused, EngineError
from cleanup.engine.journal import Journal, Step
from cleanup.engine.plan import BrakeHit, Plan, PlanItem, brakes, build_plan
from cleanup.engine.policy import Policy, policy_to_json
from cleanup.engine.scan import Skips, walk
from cleanup.engine.settling import settle_open
from cleanup.engine.trash import Header, Moved, move, prepare, trash_ids

__all__ = ["DONE", "REFUSED", "SOME_SKIPPED", "Refused", "Report", "Standalone"]

DONE, SOME_SKIPPED, REFUSED = 0, 1, 2

#: Files moved between two entries of the audit.
BATCH = 1000

#: Candidates between two words about the progress.
_BEAT = 2000

#: Told what is done, how much of it, and of how much if that is known.
OnProgress = Callable[[str, int, int | None], None]


class Refused(EngineError):
    """The command does not apply."""

    code = "refused"


class Report(msgspec.Struct, kw_only=True):
    """What a command has to say."""

    data: dict[str, Any]
    lines: list[str] = []
    code: int = DONE


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A plan, what it is above, and everything that stays, the skipped among it."""

    plan: Plan
    hits: list[BrakeHit]
    kept: dict[str, int]


class Standalone:
    """Carries out commands, one configuration at one moment."""

    def __init__(
        self, config: Configuration, *, now: datetime, actor: str, on_progress: OnProgress | None = None
    ) -> None:
        """Take a configuration; the folder of the audit is made by the first command that acts."""
        self.config, self.now = config, now
        self.journal = Journal(config.audit_file, actor=actor, run=f"{OWN}{uuid4()}", now=now)
        self.on_progress: OnProgress = on_progress or _unwatched

    # Areas

    def entry(self, name: str) -> AreaEntry:
        """Return what the configuration says about an area."""
        if name not in self.config.areas:
            raise Refused(f"there is no area {name!r}")
        return self.config.areas[name]

    def opened(self, name: str) -> AreaHandle:
        """Open an area.

        Raises:
            AreaRefused: it is not, or no longer, the directory that was registered.
        """
        entry = self.entry(name)
        uuid = entry.uuid or marker_uuid(entry.path)
        if uuid is None:
            raise AreaRefused(
                "marker_missing",
                f"{entry.path} has no marker: is its disk mounted? A new area is made by: register {name}",
            )
        return open_area(entry.path, uuid=uuid, forbidden=self.config.forbidden)

    @contextmanager
    def acting(self, name: str) -> Iterator[AreaHandle]:
        """Open and lock an area, and finish what was left half done there.

        Raises:
            AreaBusy: another process acts in it.
        """
        self._make_state()
        with self.opened(name) as area, area.lock():
            for batch in self.journal.open_batches(area.uuid):
                steps = settle_open(area, batch)
                self.journal.settle(batch.verb, batch.batch, steps, area=area.uuid, policy=batch.policy)
            yield area

    def _make_state(self) -> None:
        try:
            self.config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(f"{self.config.state} cannot be made: {error.strerror}") from error

    def register(self, names: Sequence[str], *, dry_run: bool = False) -> Report:
        """Write the markers of areas, after all checks of the place."""
        done = {}
        for name in names or list(self.config.areas):
            entry = self.entry(name)
            known = marker_uuid(entry.path)
            if not dry_run and known is None:
                self._make_state()
                uuid = entry.uuid or str(uuid4())
                registered = register_area(entry.path, uuid, forbidden=self.config.forbidden)
                self.journal.note("area_added", area=registered.uuid, name=name, directory=entry.path)
                known = registered.uuid
            done[name] = known
        lines = [f"Area {name}: {uuid or 'would be registered'}." for name, uuid in done.items()]
        return Report(data={"areas": done, "dry_run": dry_run}, lines=lines)

    # Plans

    def policy(self, name: str) -> PolicyEntry:
        """Return a policy by its name."""
        if name not in self.config.policies:
            raise Refused(f"there is no policy {name!r}")
        return self.config.policies[name]

    def plan(self, name: str, *, limit: int | None = None) -> Report:
        """Say what a policy would do now; touches nothing."""
        entry = self.policy(name)
        with self.opened(entry.area) as area:
            planned = self._planned(area, entry)
        items = planned.plan.items[:limit]
        data = {
            **_plan_data(planned),
            "plan": planned.plan.digest,
            "items": [_item_data(item) for item in items],
            "errors": [{"path": path, "detail": detail} for path, detail in planned.plan.errors],
        }
        lines = [f"{item.reason}  {item.bytes:>12}  {item.shown}" for item in items]
        return Report(data=data, lines=[*lines, *_plan_lines(planned)])

    def _planned(self, area: AreaHandle, entry: PolicyEntry) -> Planned:
        policy, skips = entry.policy, Skips()
        candidates = self._told(walk(area, policy=policy, on_skip=skips))
        plan = build_plan(
            policy,
            candidates,
            now=self.now,
            area_uuid=area.uuid,
            holds=self.config.holds_of(entry.area),
            needed=self._needed(area, entry) if policy.rule == "watermark" else 0,
        )
        kept = dict(plan.kept)
        for reason, count in skips.counts.items():
            kept[str(reason)] = kept.get(str(reason), 0) + count
        history = self.journal.history(area.uuid, policy.name)
        hits = brakes(plan, policy, total_files=plan.scanned, history=history)
        return Planned(plan=plan, hits=hits, kept=kept)

    def _told(self, candidates: Iterator[Any]) -> Iterator[Any]:
        for count, candidate in enumerate(candidates):
            if count % _BEAT == 0:
                self.on_progress("planning", count, None)
            yield candidate

    def _needed(self, area: AreaHandle, entry: PolicyEntry) -> int:
        """Return the bytes that are to go: down to the low mark, less what is on its way out already."""
        marks, figures = self.config.areas[entry.area], os.fstatvfs(area.fd)
        total = figures.f_blocks * figures.f_frsize
        used = total - figures.f_bavail * figures.f_frsize
        if used * 100 <= marks.high_watermark * total:
            return 0
        coming = self._coming(area, self.now + entry.policy.grace_period)
        return max(used - marks.low_watermark * total // 100 - coming, 0)

    def _coming(self, area: AreaHandle, by: datetime) -> int:
        """Return the bytes in the trash that are purged no later than what is trashed now."""
        coming = (items for one, items in in_trash(area, on_bad=_ignored) if one.purge_after <= by)
        return sum(item.bytes for items in coming for item in items)

    # Runs

    def run(self, names: Sequence[str], *, approve: int | None = None, dry_run: bool = False) -> Report:
        """Carry policies out, all that are not off unless some are named; the worst of their codes counts.

        Args:
            names: of policies.
            approve: the number of files of the plan of the one policy named, to let it go above its brakes.
            dry_run: end with the plan, as mode ``report`` does.
        """
        if approve is not None and len(names) != 1:
            raise Refused("--approve is for one policy, which is to be named")
        off = [name for name in names if self.policy(name).policy.mode == "off"]
        if off:
            raise Refused(f"policy {off[0]!r} is off")
        chosen = names or [name for name, one in self.config.policies.items() if one.policy.mode != "off"]
        reports = [self._run_safely(name, approve, dry_run=dry_run) for name in chosen]
        return Report(
            data={"runs": [report.data for report in reports], "dry_run": dry_run},
            lines=[line for report in reports for line in report.lines],
            code=max((report.code for report in reports), default=DONE),
        )

    def _run_safely(self, name: str, approve: int | None, *, dry_run: bool) -> Report:
        """Carry one policy out; a refusal is its own and leaves the others alone."""
        try:
            return self._run(name, approve, dry_run=dry_run)
        except EngineError as error:
            data = {"policy": name, "state": "refused", "error": error.code, "message": str(error)}
        except OSError as error:
            data = {"policy": name, "state": "failed", "error": "io_error", "message": str(error)}
        return Report(data=data, lines=[f"{name}: {data['message']}"], code=REFUSED)

    def _run(self, name: str, approve: int | None, *, dry_run: bool) -> Report:
        entry = self.policy(name)
        if dry_run or entry.policy.mode == "report":
            with self.opened(entry.area) as area:
                planned = self._planned(area, entry)
            data = {"policy": name, "state": "reported", **_plan_data(planned)}
            return Report(data=data, lines=[f"{name}: reported.", *_plan_lines(planned)])
        with self.acting(entry.area) as area:
            if entry.policy.rule == "watermark":
                # The trash first: what is due there frees space at once, and without anything new going.
                holds = self.config.holds_of(entry.area)
                purge_area(area, self.journal, now=self.now, holds=holds)
            planned = self._planned(area, entry)
            if refusal := _unapproved(planned, name, approve):
                state = "awaiting_approval" if planned.hits else "refused"
                data = {"policy": name, "state": state, "message": refusal, **_plan_data(planned)}
                return Report(data=data, lines=[f"{name}: {refusal}", *_plan_lines(planned)], code=REFUSED)
            return self._carry_out(area, entry.policy, planned, approve)

    def _carry_out(self, area: AreaHandle, policy: Policy, planned: Planned, approve: int | None) -> Report:
        items, counts, trashed = planned.plan.items, dict[str, int](), [0, 0]
        if planned.hits:
            evidence = {"files": approve, "digest": planned.plan.digest}
            self.journal.note("approved", area=area.uuid, policy=policy.name, **evidence)
        for start in range(0, len(items), BATCH):
            self.on_progress(policy.name, start, len(items))
            batch = items[start : start + BATCH]
            for item, moved in zip(batch, self._move(area, policy, batch), strict=True):
                counts[moved.outcome] = counts.get(moved.outcome, 0) + 1
                if moved.outcome == "trashed":
                    trashed = [trashed[0] + len(item.members), trashed[1] + item.bytes]
        self.journal.note(
            "run_done", area=area.uuid, policy=policy.name, files=trashed[0], digest=planned.plan.digest
        )
        skipped = sum(counts.values()) - counts.get("trashed", 0)
        data = {"policy": policy.name, "state": "done", "trashed": trashed[0], "bytes": trashed[1],
                "skipped": skipped, "outcomes": counts, "kept": planned.kept}  # fmt: skip
        line = f"{policy.name}: {trashed[0]} files, {trashed[1]} bytes trashed; {skipped} skipped."
        return Report(data=data, lines=[line], code=SOME_SKIPPED if skipped else DONE)

    def _move(self, area: AreaHandle, policy: Policy, items: Sequence[PlanItem]) -> list[Moved]:
        ids = trash_ids(uuid4(), len(items), day=self.now.date())
        batch = ids[0].rpartition("/")[0]
        wanted = [(trash_id, item.shown, item.bytes) for trash_id, item in zip(ids, items, strict=True)]
        self.journal.begin("trash", batch, wanted, area=area.uuid, policy=policy.name)
        header = Header(
            policy=policy.name,
            policy_version=hashlib.sha256(policy_to_json(policy).encode()).hexdigest()[:16],
            run=self.journal.run,
            trashed_at=self.now,
            purge_after=self.now + policy.grace_period,
        )
        moved = move(area, prepare(area, items, ids=ids, header=header))
        steps = [_step(item, one) for item, one in zip(items, moved, strict=True)]
        self.journal.settle("trash", batch, steps, area=area.uuid, policy=policy.name)
        return moved


def _ignored(batch: str, why: str) -> None:
    """A manifest that cannot be read: its files count for nothing here, and `list` names them."""


def _unwatched(what: str, done: int, total: int | None) -> None:
    """Nobody wants to know."""


def _step(item: PlanItem, moved: Moved) -> Step:
    return Step(
        action=moved.outcome,
        item=moved.trash_id,
        path=item.shown,
        size=item.bytes,
        reason=str(item.reason),
        detail=moved.detail,
    )


def _unapproved(planned: Planned, name: str, approve: int | None) -> str:
    """Return why a plan may not be carried out; nothing if it may."""
    files = planned.plan.files
    if approve is not None and approve != files:
        return f"the plan has {files} files, not {approve}"
    if planned.hits and approve is None:
        return f"above its brakes; to let it go ahead: run {name} --approve {files}"
    return ""


def _item_data(item: PlanItem) -> dict[str, Any]:
    return {"path": item.shown, "size": item.bytes, "reason": str(item.reason), "detail": item.detail}


def _plan_data(planned: Planned) -> dict[str, Any]:
    hits = [{"brake": hit.brake, "limit": hit.limit, "value": hit.value} for hit in planned.hits]
    return {"files": planned.plan.files, "bytes": planned.plan.bytes, "kept": planned.kept, "brakes": hits}


def _plan_lines(planned: Planned) -> list[str]:
    lines = [f"{planned.plan.files} files, {planned.plan.bytes} bytes would be trashed."]
    lines += [f"kept: {count} {reason}" for reason, count in planned.kept.items()]
    return lines + [f"above its brake: {hit.brake} is {hit.limit}, found {hit.value}" for hit in planned.hits]
