"""What a run has left over: files that it should have moved and that are still there for no reason.

A run that reports success while its files stay is worse than one that fails, so the area is walked once more
and judged against the moment of the plan. What the run met and left for a reason (held, skipped, changed)
does not count; what came into the area after the plan does not either.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cleanup.engine.area import AreaHandle
from cleanup.engine.names import escape
from cleanup.engine.policy import Candidate, Policy, judge
from cleanup.engine.scan import Skips, walk
from cleanup.engine.states import ItemState
from cleanup.models import CleanupItem, CleanupRun
from cleanup.operations.areas import active_holds, held_by
from cleanup.operations.planning import Beat
from cleanup.stores.plans import planned

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)

#: States that explain why a planned file is still there.
_EXPLAINED = (ItemState.SKIPPED, ItemState.HELD, ItemState.CHANGED, ItemState.VANISHED)

#: Candidates between two beats.
_BEAT = 2_000


def count_residue(run: CleanupRun, policy: Policy, handle: AreaHandle, *, beat: Beat) -> int:
    """Count the files that `run` should have moved and did not.

    Args:
        run: with its plan and its outcomes committed.
        policy: of the plan.
        handle: of the area.
        beat: called now and then with the number of files seen.
    """
    if run.plan_created_at is None:
        return 0
    moment = run.plan_created_at
    explained = set(CleanupItem.objects.filter(run=run, state__in=_EXPLAINED).values_list("path", flat=True))
    # A policy with verifiers leaves files of which the plan says nothing; then only planned ones count.
    expected = {item.shown for item in planned(run)} if policy.verifiers else None
    holds = active_holds(run.tree().pk, now=moment)
    residue = 0
    for count, candidate in enumerate(walk(handle, policy=policy, on_skip=Skips())):
        if count % _BEAT == 0:
            beat(count)
        verdict = judge(policy, candidate, now=moment)
        if verdict.action == "keep" or not _was_there(candidate, moment):
            continue
        path = escape(candidate.path)
        if path in explained or (expected is not None and path not in expected):
            continue
        if held_by(holds, [escape(member) for member in verdict.members]) is None:
            residue += len(verdict.members)
    return residue


def _was_there(candidate: Candidate, moment: datetime) -> bool:
    """Whether nothing has touched the inode since `moment`: a file moved in later has a newer ctime."""
    return candidate.stat.ctime_ns <= (moment - _EPOCH) // _US * 1000
