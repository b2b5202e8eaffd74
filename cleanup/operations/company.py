"""Whether what was planned because of its company still has that company, hours later.

A file by itself is known again by its identity when it is moved. A bundle is not: one file that came into it
since the plan makes it young again; nor is a group, of which the newest may have gone since. So before a
slice moves anything, what the rule compares is looked at once more, as of the moment of the plan, and what it
would not choose again in the same shape stays, as changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

import msgspec

from cleanup.engine.area import AreaHandle
from cleanup.engine.candidates import Candidate
from cleanup.engine.groups import select
from cleanup.engine.plan import PlanItem
from cleanup.engine.policy import Policy
from cleanup.engine.scan import Skips, walk

Still = Callable[[PlanItem], bool]

#: Candidates between two beats.
_BEAT = 2_000


def still_together(
    handle: AreaHandle, policy: Policy, moment: datetime, *, beat: Callable[[], object]
) -> Still | None:
    """Return what tells whether an item would be chosen again; None if items do not depend on one another.

    Args:
        handle: of the area, which is walked once.
        policy: of the plan.
        moment: of the plan; what came later counts as of the future.
        beat: called now and then; what it raises ends the look.

    Raises:
        TreeChanged: bundles could not be told apart.
    """
    if policy.unit == "file" and policy.rule != "keep_newest":
        return None
    # Verifiers are asked elsewhere, and how much a watermark needs is not asked again.
    rule = "age" if policy.rule == "watermark" else policy.rule
    bare = msgspec.structs.replace(policy, rule=rule, verifiers=())
    candidates = _beating(walk(handle, policy=bare, on_skip=Skips()), beat)
    # Hashes, not items: of a million files these are some 60 MB.
    chosen = {
        hash(item.members)
        for item in select(bare, candidates, now=moment, on_kept=lambda *_: None)
    }  # fmt: skip
    return lambda item: hash(item.members) in chosen


def _beating(candidates: Iterable[Candidate], beat: Callable[[], object]) -> Iterator[Candidate]:
    for count, candidate in enumerate(candidates):
        if count % _BEAT == 0:
            beat()
        yield candidate
