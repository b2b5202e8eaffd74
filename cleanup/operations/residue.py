"""What a run has left over: files that it should have moved and that are still there for no reason.

A run that reports success while its files stay is worse than one that fails, so the area is walked once more
and judged against the moment of the plan; where one file alone does not show whether it may go, each planned
one is looked for. What the run met and left for a reason (held, skipped, changed) does not count; what came
into the area after the plan does not either.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cleanup.engine.area import AreaHandle
from cleanup.engine.items import Member
from cleanup.engine.names import escape
from cleanup.engine.observe import Directories
from cleanup.engine.policy import Candidate, Policy, judge_all
from cleanup.engine.scan import Skips, walk
from cleanup.engine.sieve import sieve_for
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
    if policy.verifiers or not policy.alone or policy.rule == "orphan":
        return _planned_left(run, handle, moment, explained, beat)
    eligible = _eligible(run, policy, moment, explained)
    sieve, residue = sieve_for(policy, now=moment), 0
    if sieve is not None:
        sieve.on_count = beat
    for count, candidate in enumerate(walk(handle, policy=policy, on_skip=Skips(), sieve=sieve)):
        if count % _BEAT == 0:
            beat(count)
        if candidate.stat.kind == "file" and _was_there(candidate.stat.ctime_ns, moment):
            residue += eligible(candidate)
    return residue


def _planned_left(
    run: CleanupRun, handle: AreaHandle, moment: datetime, explained: set[str], beat: Beat
) -> int:
    """Count the planned files that are still there, and nothing says why.

    They are looked up one by one, in the order of the plan: a list of all their names would not fit into
    memory, and the walk would see all the others too.
    """
    residue = 0
    with Directories(handle) as directories:
        for count, item in enumerate(planned(run)):
            if count % _BEAT == 0:
                beat(count)
            if item.shown not in explained:
                residue += sum(_is_left(directories, member, moment) for member in item.members)
    return residue


def _is_left(directories: Directories, member: Member, moment: datetime) -> bool:
    try:
        found = directories.stat(member.path)
    except OSError:
        return False  # a directory that cannot be read now: a walk would not have met the file either
    return found is not None and found.st_ino == member.inode and _was_there(found.st_ctime_ns, moment)


def _eligible(
    run: CleanupRun, policy: Policy, moment: datetime, explained: set[str]
) -> Callable[[Candidate], int]:
    """Count the files that go with one that was eligible at `moment`, and that nothing keeps."""
    judged, holds = judge_all(policy, now=moment), active_holds(run.tree().pk, now=moment)

    def count(candidate: Candidate) -> int:
        verdict = judged(candidate)
        if verdict.action == "keep" or escape(candidate.path) in explained:
            return 0
        held = held_by(holds, [escape(member) for member in verdict.members])
        return 0 if held is not None else len(verdict.members)

    return count


def _was_there(ctime_ns: int, moment: datetime) -> bool:
    """Whether nothing has touched the inode since `moment`: a file moved in later has a newer ctime."""
    return ctime_ns <= (moment - _EPOCH) // _US * 1000
