"""From a policy to a plan: walk, judge, ask. One code path for a preview, a dry run and a run that acts.

Where the candidates come from depends on the rule: a walk of the area, for `orphan` what was seen twice
without a row, for `rows` the rows of a model. A `watermark` plans as much as its disk is too full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

from cleanup.conf import conf
from cleanup.engine.area import AreaHandle
from cleanup.engine.names import escape
from cleanup.engine.packing import Counting, Tally
from cleanup.engine.plan import BrakeHit, OnKept, Plan, PlanItem, Store, brakes, build_plan
from cleanup.engine.policy import Candidate, Policy
from cleanup.engine.reasons import Reason
from cleanup.engine.scan import Skips, walk
from cleanup.engine.sieve import Sieve, sieve_for
from cleanup.models import CleanupRun, RetentionPolicy, RunState, StagingArea
from cleanup.operations.areas import active_holds, opened
from cleanup.operations.orphans import confirmed
from cleanup.operations.outcomes import Preview, PreviewFile
from cleanup.operations.policies import engine_policy
from cleanup.operations.rows import plan_rows
from cleanup.operations.watermarks import Relief, to_plan, told
from cleanup.stores.sql import chunks, database_now
from cleanup.verifiers import asking

#: Runs whose size makes up a policy's habit.
_HISTORY = 30

#: Candidates between two looks at the clock of whoever waits for the plan.
_BEAT = 2_000

Beat = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, and what was met on the way that is no part of it."""

    plan: Plan
    brakes: list[BrakeHit]
    #: Reason -> number of what stays, the skipped things of the walk among them.
    kept: dict[str, int]
    kept_items: list[PreviewFile] = field(default_factory=list)
    #: What the rule found besides, for `CleanupRun.facts`.
    facts: dict[str, Any] = field(default_factory=dict)


def make_plan(
    policy: Policy,
    handle: AreaHandle,
    area_id: int,
    *,
    now: datetime,
    policy_id: int | None,
    limit: int = 0,
    beat: Beat | None = None,
    store: Store | None = None,
    relief: Relief | None = None,
    on_kept: OnKept | None = None,
    survey: bool = False,
) -> Planned:
    """Plan what `policy` would do in an open area at `now`.

    Args:
        policy: validated.
        handle: of the area.
        area_id: of its row, for the holds.
        now: against which everything is judged.
        policy_id: of its row, for the habit that one brake compares with; None for one that was never saved.
        limit: how many of the files that stay are listed.
        beat: called every few thousand candidates with their number; what it raises ends the planning.
        store: takes the items while they are found; without it the plan holds them.
        relief: what purging the trash of an area that is too full has come to; None: nothing was purged.
        on_kept: told of everything that stays, unless a sieve has only counted it.
        survey: for people who only look: every file is told of, and no answer of a verifier is counted.

    Raises:
        PolicyInvalid: the policy cannot be obeyed.
        OperationRefused: the rule cannot be trusted here: above a fifth of the area are orphans.
        VerifierFailed: a canary was not answered as it must be.
        EngineError: see `build_plan`.
    """
    skips, kept_items = _Skipped(on_kept), _Examples(limit, on_kept)
    sieve = None if survey else sieve_for(policy, now=now, show=limit)
    if sieve is not None:
        sieve.on_count = beat
    candidates, files = _candidates(policy, handle, area_id, now=now, skips=skips, beat=beat, sieve=sieve)
    relief = _relief(policy, area_id, relief, now=now)
    # Of those who only look, none beats but a survey.
    counted = beat is not None and not survey
    with asking(policy.verifiers, policy=policy.name, area=handle, counted=counted) as ask:
        plan = build_plan(
            policy,
            candidates if beat is None else _beating(candidates, beat),
            now=now,
            area_uuid=handle.uuid,
            holds=active_holds(area_id, now=now),
            ask=ask if policy.verifiers else None,
            on_kept=kept_items,
            expires_in=conf().plan_lifetime,
            store=store,
            needed=0 if relief is None else relief.short,
            sieve=sieve,
        )
    kept = dict(plan.kept)
    for reason, count in skips.counts.items():
        kept[str(reason)] = kept.get(str(reason), 0) + count
    for path, reason, detail in skips.examples:
        kept_items.list(path, reason, detail)
    hits = brakes(plan, policy, total_files=files(plan), history=_history(policy_id))
    facts = {} if relief is None else _told(relief, area_id, plan)
    if ask.doubts:
        facts["doubts"] = dict(ask.doubts)
    return Planned(plan=plan, brakes=hits, kept=kept, kept_items=kept_items.found, facts=facts)


def make_row_plan(
    policy: Policy,
    *,
    now: datetime,
    policy_id: int | None,
    beat: Beat | None = None,
    store: Store | None = None,
) -> Planned:
    """Plan which rows of a model `policy` would soft-delete at `now`; arguments as for `make_plan`."""
    plan = plan_rows(policy, now=now, store=store, beat=beat)
    hits = brakes(plan, policy, total_files=plan.scanned, history=_history(policy_id))
    return Planned(plan=plan, brakes=hits, kept=dict(plan.kept))


def _candidates(
    policy: Policy,
    handle: AreaHandle,
    area_id: int,
    *,
    now: datetime,
    skips: Skips,
    beat: Beat | None,
    sieve: Sieve | None,
) -> tuple[Iterable[Candidate], Callable[[Plan], int]]:
    """What is judged, and, once that is done, of how many files a brake takes its share."""
    if policy.rule != "orphan":
        return walk(handle, policy=policy, on_skip=skips, sieve=sieve), lambda plan: plan.scanned
    found = confirmed(handle, area_id, policy, now=now, on_skip=skips, beat=beat)
    return found, lambda _: found.files


def _relief(policy: Policy, area_id: int, relief: Relief | None, *, now: datetime) -> Relief | None:
    """Set `short` to what a plan has to free besides what the trash gives back; None: not by this rule."""
    if policy.rule != "watermark":
        return None
    return to_plan(StagingArea.objects.get(pk=area_id), policy, now=now, relief=relief)


def _told(relief: Relief, area_id: int, plan: Plan) -> dict[str, Any]:
    area = StagingArea.objects.get(pk=area_id)
    return told(relief, area, planned=plan.bytes, kept=plan.kept_bytes, now=plan.created_at).facts()


class _Examples:
    """Keeps the first files that stay, and passes all of them on."""

    def __init__(self, limit: int, on_kept: OnKept | None) -> None:
        self.limit, self.found, self.on_kept = limit, list[PreviewFile](), on_kept

    def __call__(self, path: bytes, reason: Reason, detail: str, size: int) -> None:
        self.list(path, reason, detail, size)
        if self.on_kept is not None:
            self.on_kept(path, reason, detail, size)

    def list(self, path: bytes, reason: Reason, detail: str, size: int = 0) -> None:
        if len(self.found) < self.limit:
            self.found.append(PreviewFile(path=escape(path), size=size, reason=str(reason), detail=detail))


class _Skipped(Skips):
    """Counts what the walk skips, and passes it on."""

    def __init__(self, on_kept: OnKept | None) -> None:
        super().__init__()
        self.on_kept = on_kept

    def __call__(self, path: bytes, reason: Reason, detail: str) -> None:
        super().__call__(path, reason, detail)
        if self.on_kept is not None:
            self.on_kept(path, reason, detail, 0)


def _beating(candidates: Iterable[Candidate], beat: Beat) -> Iterator[Candidate]:
    for count, candidate in enumerate(candidates):
        if count % _BEAT == 0:
            beat(count)
        yield candidate


def _history(policy_id: int | None) -> list[int]:
    """Files that earlier runs of the policy have trashed, oldest first."""
    if policy_id is None:
        return []
    done = CleanupRun.objects.filter(
        policy_version__policy_id=policy_id, state__in=[RunState.DONE, RunState.FAILED], dry_run=False
    )
    return list(done.order_by("-created_at").values_list("trashed", flat=True)[:_HISTORY])[::-1]


def brakes_json(hits: Iterable[BrakeHit]) -> list[dict[str, object]]:
    """Brakes as rows and JSON hold them."""
    return [{"brake": hit.brake, "limit": hit.limit, "value": hit.value} for hit in hits]


def files_of(items: Iterable[PlanItem]) -> Iterator[PreviewFile]:
    """Yield every file of plan items: a result with its metadata gives two."""
    for item in items:
        for member in item.members:
            yield PreviewFile(
                path=escape(member.path), size=member.size, reason=str(item.reason), detail=item.detail
            )


class _Listed:
    """Takes the items of a plan, counts them and keeps the first files."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.found = limit, list[PreviewFile]()

    def __call__(self, items: Iterable[PlanItem]) -> Tally:
        counting = Counting()
        for batch in chunks(items):
            counting.add(batch)
            wanted = None if self.limit is None else self.limit - len(self.found)
            self.found += islice(files_of(batch), wanted)
        return counting.tally()


def preview(policy: RetentionPolicy, *, limit: int | None = 200, now: datetime | None = None) -> Preview:
    """Say what a policy, saved or not, would do now. Touches nothing and writes nothing.

    Args:
        policy: with its area.
        limit: how many files are listed of each kind; None lists all that would go.
        now: the database's time unless given.

    Raises:
        AreaRefused: the area cannot be cleaned.
        PolicyInvalid: the policy could not be obeyed.
    """
    listed = _Listed(limit)
    planned = _previewed(policy, listed, now=now or database_now(), limit=200 if limit is None else limit)
    plan = planned.plan
    return Preview(
        files=plan.files,
        bytes=plan.bytes,
        items=listed.found,
        kept=planned.kept,
        kept_items=planned.kept_items,
        brakes=brakes_json(planned.brakes),
        errors=[
            PreviewFile(path=path, size=0, reason=Reason.BAD_COMPANION, detail=detail)
            for path, detail in plan.errors[:limit]
        ],
        scanned=plan.scanned,
        digest=plan.digest,
        facts=planned.facts,
    )


def _previewed(policy: RetentionPolicy, listed: Store, *, now: datetime, limit: int) -> Planned:
    rules = engine_policy(policy)
    if rules.rule == "rows":
        return make_row_plan(rules, now=now, policy_id=policy.pk, store=listed)
    with opened(policy.tree()) as handle:
        return make_plan(
            rules, handle, policy.tree().pk, now=now, policy_id=policy.pk, limit=limit, store=listed
        )
