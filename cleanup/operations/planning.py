"""From a policy to a plan: walk, judge, ask. One code path for a preview, a dry run and a run that acts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from cleanup.conf import conf
from cleanup.engine.area import AreaHandle
from cleanup.engine.names import escape
from cleanup.engine.plan import BrakeHit, Plan, PlanItem, brakes, build_plan
from cleanup.engine.policy import Candidate, Policy
from cleanup.engine.reasons import Reason
from cleanup.engine.scan import Skips, walk
from cleanup.models import CleanupRun, RetentionPolicy, RunState
from cleanup.operations.areas import active_holds, opened
from cleanup.operations.outcomes import Preview, PreviewFile
from cleanup.operations.policies import engine_policy
from cleanup.stores.sql import database_now
from cleanup.verifiers import asker

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


def make_plan(
    policy: Policy,
    handle: AreaHandle,
    area_id: int,
    *,
    now: datetime,
    policy_id: int | None,
    limit: int = 0,
    beat: Beat | None = None,
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
    """
    skips, kept_items = Skips(), _Examples(limit)
    candidates = walk(handle, policy=policy, on_skip=skips)
    plan = build_plan(
        policy,
        candidates if beat is None else _beating(candidates, beat),
        now=now,
        area_uuid=handle.uuid,
        holds=active_holds(area_id, now=now),
        ask=asker(policy.verifiers) if policy.verifiers else None,
        on_kept=kept_items,
        expires_in=conf().plan_lifetime,
    )
    kept = dict(plan.kept)
    for reason, count in skips.counts.items():
        kept[str(reason)] = kept.get(str(reason), 0) + count
    for path, reason, detail in skips.examples:
        kept_items(path, reason, detail)
    hits = brakes(plan, policy, total_files=plan.scanned, history=_history(policy_id))
    return Planned(plan=plan, brakes=hits, kept=kept, kept_items=kept_items.found)


class _Examples:
    """Keeps the first files that stay."""

    def __init__(self, limit: int) -> None:
        self.limit, self.found = limit, list[PreviewFile]()

    def __call__(self, path: bytes, reason: Reason, detail: str) -> None:
        if len(self.found) < self.limit:
            self.found.append(PreviewFile(path=escape(path), size=0, reason=str(reason), detail=detail))


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
    with opened(policy.tree()) as handle:
        planned = make_plan(
            engine_policy(policy),
            handle,
            policy.tree().pk,
            now=now or database_now(),
            policy_id=policy.pk,
            limit=200 if limit is None else limit,
        )
    plan = planned.plan
    return Preview(
        files=plan.files,
        bytes=plan.bytes,
        items=list(islice(files_of(plan.items), limit)),
        kept=planned.kept,
        kept_items=planned.kept_items,
        brakes=brakes_json(planned.brakes),
        errors=[
            PreviewFile(path=path, size=0, reason=Reason.BAD_COMPANION, detail=detail)
            for path, detail in plan.errors[:limit]
        ],
        scanned=plan.scanned,
        digest=plan.digest,
    )
