"""P19: SIGKILL at every rename, unlink, fsync, write and mkdir: after one recovery nothing is lost or stuck.

A tracer kills the process at its nth call of one kind, for every n in turn, while it trashes, restores and
purges; and the operations are interrupted at every step of theirs, so that rows, disk, manifests and audit
are compared. Which words the tables of recovery must hold is proven in
`tests.property.test_p19_state_table`.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from cleanup import operations
from cleanup.engine import faults
from cleanup.engine.shelf import scan_trash
from cleanup.models import AuditEntry, CleanupItem, CleanupRun, PlanBatch
from cleanup.operations import areas, schedule
from cleanup.stores.leases import WORKING_STATES
from cleanup.stores.plans import OPEN
from tests.property.test_engine_crashes import check, plant
from tests.retention import ANNA, DAY, Staging
from tests.unit.cleanup_engine import crasher
from tests.unit.cleanup_engine.crasher import COMMAND, LIMIT, ROOT, Crasher, job

VERBS = ("run", "restore", "purge")

#: More calls of a kind than a verb makes on the garden of `plant`.
ROOM = {"fsync": 15}


needs_tracer = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace (apt-get install strace)"
)


def tracing(jobs: Path, call: str, fault: str) -> list[int]:
    """Carry out the jobs, each in a process whose `call` meets `fault`; return how each ended."""
    tracer = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{fault}"]
    done = subprocess.run(
        [*tracer, *COMMAND, str(jobs)], cwd=ROOT, capture_output=True, text=True, timeout=480, check=False
    )
    if done.returncode:
        pytest.skip(f"this sandbox lets nobody trace: {done.stderr.strip()[-200:]}")
    return list(json.loads(jobs.read_text()))


@needs_tracer
@pytest.mark.timeout(600)
@pytest.mark.sqlite_only
@pytest.mark.parametrize("call", sorted(crasher.CALLS))
def test_a_kill_at_every_call_of_a_kind_loses_nothing_and_leaves_nothing_stuck(
    tmp_path: Path, call: str
) -> None:
    cases, lines = [], []
    with Crasher() as before:
        for verb in VERBS:
            for at in range(1, ROOM.get(call, 12)):
                place = tmp_path / f"{verb}{at}"
                garden, contents = plant(place)
                rows = tmp_path / f"{verb}{at}.rows"
                if verb != "run":
                    assert before.crash(garden, rows, "run", "") == 0
                cases.append((garden, rows, contents, verb))
                lines.append(job(garden, rows, verb, call=call, at=at))
    (tmp_path / "jobs").write_text("\n".join(lines))
    codes = tracing(tmp_path / "jobs", call, f"signal=SIGKILL:when={LIMIT}")
    for garden, rows, contents, verb in cases:
        if rows.exists():
            check(garden, rows, contents, verb)
    for verb in VERBS:
        ends = [code for code, case in zip(codes, cases, strict=True) if case[3] == verb]
        kills = ends.count(-signal.SIGKILL)
        # Every n in turn: killed at each of its calls, and then got through.
        assert ends == [-signal.SIGKILL] * kills + [0] * (len(ends) - kills)
        assert ends[-1] == 0
    assert -signal.SIGKILL in codes


class Interrupted(BaseException):
    """As if the process had died: nothing that handles errors sees it."""


@contextmanager
def interrupted(step: int) -> Iterator[list[str]]:
    """Leave everything as it is at the `step`th crash point; the list then holds its name."""
    reached: list[str] = []

    class Dying(faults.Armed):
        def passed(self, name: str) -> None:
            self.left -= 1
            if not self.left:
                reached.append(name)
                raise Interrupted(name)

    faults._armed = Dying(f"*:{step}:kill")
    try:
        with suppress(Interrupted):
            yield reached
    finally:
        faults._armed = None


def begin(staging: Staging, verb: str, run: CleanupRun) -> None:
    if verb == "run":
        operations.execute(run.pk)
    elif verb == "restore":
        operations.restore(staging.items(), actor=ANNA)
    else:
        operations.purge_due(now=datetime.now(UTC) + DAY, area=staging.area)


def recover(staging: Staging, run: CleanupRun, *, resume: bool) -> None:
    """Whoever comes next: a worker that goes on with the run, or only the clock after somebody stopped it."""
    if CleanupRun.objects.get(pk=run.pk).state in WORKING_STATES:
        if resume:
            operations.execute(run.pk)
        else:
            operations.stop(run, actor=ANNA)
    schedule.recover_all()
    assert schedule.recover_all(with_adoption=True) == 0


def agree(staging: Staging, names: set[str]) -> None:
    """Rows, disk, manifests and audit say the same, and nothing is open."""
    unfinished = CleanupItem.objects.filter(state__in=["intent", "purge_intent", "restoring"])
    assert [*PlanBatch.objects.filter(OPEN), *unfinished] == []
    rows = list(CleanupItem.objects.filter(area=staging.area))
    by_state = {state: [row for row in rows if row.state == state] for state in {row.state for row in rows}}
    assert set(by_state) <= {"trashed", "restored", "purged"}
    in_trash = by_state.get("trashed", [])
    assert staging.in_trash() == sum(len(row.members) for row in in_trash)
    purged = {member["path"] for row in by_state.get("purged", []) for member in row.members}
    trashed = {member["path"] for row in in_trash for member in row.members}
    assert staging.files() == names - purged - trashed
    with areas.opened(staging.area) as handle:
        manifests = list(scan_trash(handle, on_bad=lambda batch, why: pytest.fail(why)))
    listed = {item.id for manifest in manifests for item in manifest.items}
    assert {row.trash_id for row in in_trash} <= listed
    for action, found in by_state.items():
        told = AuditEntry.objects.filter(area=staging.area.name, action=action).values_list("item", flat=True)
        assert sorted(told) == sorted(str(row.pk) for row in found)


@pytest.mark.django_db
@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", VERBS)
def test_an_end_at_every_step_of_an_operation_leaves_rows_disk_manifests_and_audit_in_agreement(
    tmp_path: Path, settings: Any, verb: str
) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "BATCH_SIZE": 2}
    # Where each statement is a round trip, every third step will do.
    for step in range(1, 300, 3 if connection.vendor == "postgresql" else 1):
        staging = Staging(tmp_path, f"area{step}")
        names = staging.fill(4)
        policy = staging.policy(f"old{step}", grace_period=timedelta(0))
        run = operations.start_run(policy, ANNA)
        if verb != "run":
            operations.execute(run.pk)
        with interrupted(step) as reached:
            begin(staging, verb, run)
        if not reached:
            break
        recover(staging, run, resume=step % 2 == 0)
        agree(staging, names)
    assert step > 8
    assert operations.verify_audit().sound
