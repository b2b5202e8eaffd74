"""The verbs of cleanup, each with an actor: what admin, API, commands and tasks call.

Every change is checked, done and audited in one transaction. The modules follow the life of a file: `areas`
and `policies` say what is governed, `planning` and `execution` carry a run out (`moving` is one batch of it,
`residue` its last look), `restoring` and `purging` empty the trash to one side or the other, `recovery`
finishes what a crash interrupted, `schedule` is what has to happen by the clock.
"""

from __future__ import annotations

from cleanup.engine.audit import ChainReport
from cleanup.operations.area_changes import move_area, remove_area, set_enabled
from cleanup.operations.areas import add_area, find_area, hold, release
from cleanup.operations.auditing import verify_audit
from cleanup.operations.execution import Progress, execute
from cleanup.operations.explaining import explain
from cleanup.operations.outcomes import (
    Conflict,
    NotFound,
    OperationRefused,
    Preview,
    PreviewFile,
    PurgeReport,
    RestoreReport,
    RunActive,
)
from cleanup.operations.planning import preview
from cleanup.operations.policies import add_policy, ensure_demo_areas, find_policy, save_policy, set_mode
from cleanup.operations.purging import extend_grace, purge_due, purge_now
from cleanup.operations.restoring import queue_restore, restore
from cleanup.operations.runs import approve, find_run, queue_run, reject, resume, start_run, stop
from cleanup.operations.verifying import (
    Tested,
    check_verifier,
    check_verifiers,
    failed_checks,
    verifiers_in_use,
)
from cleanup.stores import Actor

__all__ = [
    "Actor",
    "ChainReport",
    "Conflict",
    "NotFound",
    "OperationRefused",
    "Preview",
    "PreviewFile",
    "Progress",
    "PurgeReport",
    "RestoreReport",
    "RunActive",
    "Tested",
    "add_area",
    "add_policy",
    "approve",
    "check_verifier",
    "check_verifiers",
    "ensure_demo_areas",
    "execute",
    "explain",
    "extend_grace",
    "failed_checks",
    "find_area",
    "find_policy",
    "find_run",
    "hold",
    "move_area",
    "preview",
    "purge_due",
    "purge_now",
    "queue_restore",
    "queue_run",
    "reject",
    "release",
    "remove_area",
    "restore",
    "resume",
    "save_policy",
    "set_enabled",
    "set_mode",
    "start_run",
    "stop",
    "verifiers_in_use",
    "verify_audit",
]
