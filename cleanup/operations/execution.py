"""Carrying out a run: plan, wait for approval above a brake, move batch by batch, count what is left.

`execute` may be called by anybody at any time: it takes the run's lease or does nothing, goes on where the
rows say that it stopped, and gives the lease back at the end of its slice. The area's lock is held while
files are moved, so a worker that was paused cannot act beside the one that took its run over. Whatever ends a
run ends it with a state and a message; if the database itself fails, the lease runs out and somebody else
goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db import DatabaseError, transaction

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import AreaBusy, EngineError, PlanStale, RunStopped, VerifierFailed
from cleanup.engine.policy import Policy, policy_to_json
from cleanup.engine.reasons import Reason
from cleanup.models import CleanupRun, PlanBatch, RunState
from cleanup.operations.areas import locked, opened
from cleanup.operations.company import Still, still_together
from cleanup.operations.moving import carry_out, screen
from cleanup.operations.orphans import retire, sight
from cleanup.operations.planning import Planned, brakes_json, make_plan, make_row_plan
from cleanup.operations.policies import policy_of
from cleanup.operations.recovery import recover_area
from cleanup.operations.residue import count_residue
from cleanup.operations.rows import carry_out_rows, count_rows_left
from cleanup.operations.runs import actor_of, find_run, said_of, tell_end, write_entry
from cleanup.operations.watermarks import relieve, relieved_again, sentence
from cleanup.stores import Actor
from cleanup.stores.feed import JobFeed
from cleanup.stores.leases import LeaseLost, advance, release, take
from cleanup.stores.plans import PlanWriter, items_of, stored_plan
from cleanup.stores.quiet import collecting_later
from cleanup.stores.sql import database_now
from cleanup.verifiers import Asker, asking

logger = logging.getLogger(__name__)

#: Seconds between two renewals of the lease while a tree is walked: each is a commit.
_BEAT = 0.5

_UNKNOWN_BRAKE = "max_unknown_percent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is, in files."""

    state: str
    done: int
    #: 0 while it is not known.
    total: int
    bytes: int = 0


OnProgress = Callable[[Progress], None]


def execute(
    run_id: UUID, *, slice_length: timedelta | None = None, on_progress: OnProgress | None = None
) -> CleanupRun:
    """Carry a run out, for one slice or to its end, and return its row as it is then.

    Args:
        run_id: of a run that has work to do; of any other, or one that somebody else is carrying out, nothing
            is done.
        slice_length: give the lease back after about this long; None goes on to the end.
        on_progress: told after every step.

    Raises:
        AreaBusy: somebody else is working in the area; the run is as it was.
        django.db.DatabaseError: the lease will run out, and the run can be gone on with.
    """
    token = take(run_id, now=database_now())
    run = find_run(run_id)
    if token is None:
        return run
    deadline = None if slice_length is None else time.monotonic() + slice_length.total_seconds()
    _Execution(run, token, deadline, on_progress).run_slice()
    return find_run(run_id)


class _Execution:
    """One slice of one run under one lease."""

    def __init__(
        self, run: CleanupRun, token: int, deadline: float | None, on_progress: OnProgress | None
    ) -> None:
        self.run, self.token, self.deadline = run, token, deadline
        self.on_progress = on_progress
        self.feed = JobFeed("run", run.pk)
        self.next_beat = 0.0
        self.actor: Actor = actor_of(run)

    def run_slice(self) -> None:
        """Work until the slice or the run is over, and leave the row saying which."""
        try:
            with self.ground() as handle:
                self.work(handle, policy_of(self.run.policy_version))
        except LeaseLost as lost:
            logger.warning("%s", lost)
        except RunStopped as stopped:
            self.finish(RunState.STOPPED, str(stopped))
        except PlanStale as stale:
            self.finish(RunState.EXPIRED, str(stale))
        except AreaBusy:
            release(self.run.pk, self.token)
            raise
        except VerifierFailed as error:
            self.finish(RunState.FAILED, str(error))
        except EngineError as error:
            self.finish(RunState.REFUSED, str(error))
        except OSError as error:
            # The disk, not one file of it: full, read-only, gone.
            self.finish(RunState.FAILED, f"{type(error).__name__}: {error}")
        except DatabaseError:
            raise
        except Exception as error:
            self.finish(RunState.FAILED, f"{type(error).__name__}: {error}")
            raise
        finally:
            # Changes nothing if the run is over or the lease has passed on.
            release(self.run.pk, self.token)

    def ground(self) -> AbstractContextManager[AreaHandle | None]:
        """The open area; rows of a model have none."""
        return nullcontext() if self.run.rows_of else opened(self.run.tree())

    def work(self, handle: AreaHandle | None, policy: Policy) -> None:
        if handle is not None:
            with locked(handle):
                recover_area(handle, self.run.tree())
        self.run = find_run(self.run.pk)
        self.check_stop()
        if self.run.state in (RunState.QUEUED, RunState.PLANNING):
            self.plan(handle, policy)
        if self.run.state in (RunState.APPROVED, RunState.RUNNING):
            self.carry_out(handle, policy)

    # Planning

    def plan(self, handle: AreaHandle | None, policy: Policy) -> None:
        """Make the plan and store it; the run is then approved, or waits, or is over."""
        now = database_now()
        advance(
            self.run.pk, self.token, now=now, state=RunState.PLANNING, started_at=self.run.started_at or now
        )
        self.run.state = RunState.PLANNING
        planned = self.planned(handle, policy, now)
        with transaction.atomic():
            state = self.decide(planned)
            self.note_plan(planned, state)
        self.run = find_run(self.run.pk)
        self.tell(self.run.planned_files, final=state not in (RunState.APPROVED, RunState.AWAITING_APPROVAL))

    def planned(self, handle: AreaHandle | None, policy: Policy, now: datetime) -> Planned:
        policy_id, store = self.run.policy_version.policy_id, PlanWriter(self.run.pk, self.token)
        if handle is None:
            rows = make_row_plan(policy, now=now, policy_id=policy_id, beat=self.beat, store=store)
            return replace(rows, facts={**rows.facts, **_biggest(store)})
        area, facts = self.run.tree(), dict[str, Any]()
        if policy.rule == "orphan":
            facts = sight(handle, area, now=now, actor=self.actor, beat=self.beat).facts()
        relief = None
        if policy.rule == "watermark" and not self.run.dry_run:
            relief = relieve(area, beat=partial(self.beat, 0))
        made = make_plan(
            policy, handle, area.pk, now=now, policy_id=policy_id, beat=self.beat, store=store, relief=relief
        )
        return replace(made, facts={**facts, **made.facts, **_biggest(store)})

    def beat(self, count: int) -> None:
        """Keep the lease while a long walk goes on, and notice a stop; called more often than that is due."""
        if time.monotonic() < self.next_beat:
            return
        self.next_beat = time.monotonic() + _BEAT
        advance(self.run.pk, self.token, now=database_now())
        self.check_stop()
        self.tell(count)

    def decide(self, planned: Planned) -> RunState:
        hits = [hit.brake for hit in planned.brakes]
        if self.run.dry_run:
            return RunState.REPORTED
        if _UNKNOWN_BRAKE in hits:
            return RunState.REFUSED
        return RunState.AWAITING_APPROVAL if hits else RunState.APPROVED

    def note_plan(self, planned: Planned, state: RunState) -> None:
        plan, now = planned.plan, database_now()
        fields: dict[str, Any] = {
            "plan_digest": plan.digest,
            "plan_created_at": plan.created_at,
            "plan_expires_at": plan.expires_at,
            "planned_files": plan.files,
            "planned_bytes": plan.bytes,
            "scanned": plan.scanned,
            "kept": planned.kept,
            "brakes": brakes_json(planned.brakes),
            "facts": planned.facts,
            "message": _plan_message(planned, state)[:500],
        }
        evidence = {
            name: fields[name] for name in ("plan_digest", "planned_files", "planned_bytes", "brakes")
        }
        match state:
            case RunState.APPROVED:
                advance(self.run.pk, self.token, now=now, state=state, **fields)
                by, action = Actor.system("brakes"), "approved"
            case RunState.AWAITING_APPROVAL:
                self.leave(state=state, **fields)
                by, action = self.actor, "awaiting_approval"
            case _:
                self.leave(state=state, finished_at=now, **fields)
                tell_end(find_run(self.run.pk))
                by, action = self.actor, f"run_{state}"
        write_entry(self.run, "planned", self.actor, now=now, evidence=evidence)
        reason = fields["message"] if action.startswith("run_") else None
        write_entry(self.run, action, by, now=now, reason=reason)

    def leave(self, **changes: Any) -> None:
        """Write the last changes of this lease and give it back."""
        if not release(self.run.pk, self.token, **changes):
            raise LeaseLost(f"run {self.run.pk} has passed to another worker")

    # Carrying out

    def carry_out(self, handle: AreaHandle | None, policy: Policy) -> None:
        """Move the batches that are left; count what is left over after the last."""
        plan = stored_plan(self.run, policy_json=policy_to_json(policy))
        plan.check(now=self.started_or_now(), digest=self.run.plan_digest)
        advance(self.run.pk, self.token, now=database_now(), state=RunState.RUNNING)
        self.run.state = RunState.RUNNING
        with asking(policy.verifiers, policy=policy.name, area=handle) as ask:
            through = self.move_batches(handle, policy, ask if policy.verifiers else None)
        if through:
            self.finish_counted(handle, policy)

    def move_batches(self, handle: AreaHandle | None, policy: Policy, ask: Asker | None) -> bool:
        """Carry out the batches that are left; return whether the slice was long enough for all."""
        done = self.run.trashed + self.run.skipped + self.run.errors
        moment, still = self.run.plan_created_at, None
        if handle is not None and moment is not None:
            still = still_together(handle, policy, moment, beat=partial(self.beat, done))
        for batch in self.batches_left():
            if self.deadline is not None and time.monotonic() >= self.deadline:
                return False
            self.check_stop()
            done += self.one_batch(handle, policy, batch, ask, still)
            self.tell(done)
        return True

    def started_or_now(self) -> datetime:
        """A plan must be taken up before it expires; what has been begun in time is finished."""
        now = database_now()
        expires = self.run.plan_expires_at
        return expires if self.run.state == RunState.RUNNING and expires else now

    def batches_left(self) -> list[PlanBatch]:
        """The batches that are still to be carried out, without their bodies."""
        left = PlanBatch.objects.filter(run=self.run, settled_at__isnull=True)
        return list(left.order_by("number").defer("body"))

    @collecting_later()
    def one_batch(
        self,
        handle: AreaHandle | None,
        policy: Policy,
        batch: PlanBatch,
        ask: Asker | None,
        still: Still | None,
    ) -> int:
        items, now = items_of(batch), database_now()
        if handle is None:
            carry_out_rows(self.run, batch, items, policy=policy, token=self.token, now=now)
            return len(items)
        area = self.run.tree()
        screened = screen(
            items, area_id=area.pk, area_uuid=str(area.uuid), ask=ask, now=now, still=still
        )  # fmt: skip
        unknown, limit = screened.percent_unknown(), policy.max_unknown_percent
        if limit is not None and unknown > limit:
            said = _doubts(ask.doubts if ask is not None else {})
            raise VerifierFailed(f"stopped: verifiers could not tell about {unknown} % of a batch{said}")
        with locked(handle):
            carry_out(handle, self.run, batch, items, screened, policy=policy, token=self.token, now=now)
        return sum(len(item.members) for item in items)

    def finish_counted(self, handle: AreaHandle | None, policy: Policy) -> None:
        self.run = find_run(self.run.pk)
        if handle is None:
            residue = count_rows_left(self.run, policy)
        else:
            residue = count_residue(self.run, policy, handle, beat=self.beat)
        if handle is not None and policy.rule == "orphan":
            facts = self.run.facts | retire(self.run, handle, policy, token=self.token, beat=self.beat)
            advance(self.run.pk, self.token, now=database_now(), facts=facts)
        if handle is not None and policy.rule == "watermark":
            facts = relieved_again(self.run.facts, self.run.tree(), beat=partial(self.beat, self.run.scanned))
            advance(self.run.pk, self.token, now=database_now(), facts=facts)
            self.run.facts = facts
        advance(self.run.pk, self.token, now=database_now(), residue=residue)
        if residue:
            what = "rows" if handle is None else "files"
            self.finish(RunState.FAILED, f"{residue} {what} that should have gone are still there")
        else:
            self.finish(RunState.DONE, sentence(self.run.facts))

    # Ends

    def check_stop(self) -> None:
        if CleanupRun.objects.filter(pk=self.run.pk, stop_requested=True).exists():
            raise RunStopped("stopped on request")

    def finish(self, state: RunState, message: str) -> None:
        """End the run; if the lease was lost meanwhile, somebody else decides how it ends."""
        now = database_now()
        with transaction.atomic():
            if not release(self.run.pk, self.token, state=state, finished_at=now, message=message[:500]):
                logger.warning(
                    "run %s would have been %s, but has passed to another worker", self.run.pk, state
                )
                return
            self.run = find_run(self.run.pk)
            tell_end(self.run)
            names = ("trashed", "trashed_bytes", "skipped", "errors", "residue")
            evidence = {name: getattr(self.run, name) for name in names}
            write_entry(self.run, f"run_{state}", self.actor, now=now, reason=message, evidence=evidence)
        self.tell(self.run.planned_files, final=True)

    def tell(self, done: int, *, final: bool = False) -> None:
        """Say how far it is; the `final` word was told to the bus when the run ended."""
        said = said_of(self.run, done)
        if self.on_progress is not None:
            self.on_progress(
                Progress(state=self.run.state, done=done, total=said["total"], bytes=said["bytes"])
            )
        if not final:
            self.feed.tell(said)


def _biggest(store: PlanWriter) -> dict[str, Any]:
    """The biggest items of the plan, for whoever is asked to approve it."""
    found = [{"path": item.shown, "size": item.bytes} for item in store.biggest]
    return {"biggest": found} if found else {}


def _doubts(said: Mapping[str, str]) -> str:
    """What verifiers said that could not tell, as the end of a sentence."""
    return "".join(f"; {name}: {text}" for name, text in said.items())


def _plan_message(planned: Planned, state: RunState) -> str:
    """One sentence for a person who wonders why a run did not simply go ahead."""
    hits = ", ".join(f"{hit.brake} is {hit.limit}, the plan has {hit.value}" for hit in planned.brakes)
    if state is RunState.REFUSED:
        unknown = planned.kept.get(str(Reason.UNVERIFIED), 0)
        said = _doubts(planned.facts.get("doubts", {}))
        return f"verifiers could not tell about {unknown} files ({hits}): nothing was touched{said}"
    if state is RunState.AWAITING_APPROVAL:
        return f"above its brakes: {hits}"
    return "; ".join(filter(None, (hits, sentence(planned.facts))))
