"""Errors of the retention engine.

    EngineError                     code, retryable
    ├── AreaRefused                 the directory may not be cleaned (``reason`` says why)
    ├── AreaBusy                    another process is acting on the area; later it may go
    ├── PolicyInvalid               a rule, an age, a pattern or a figure makes no sense
    ├── PlanStale                   the plan is past its expiry; make a new one
    ├── PlanTampered                the stored plan is not the one that was approved
    ├── TrashConflict               a batch with this id is already in the trash
    ├── ManifestInvalid             a manifest in the trash cannot be read; its files stay
    ├── VerifierFailed              a verifier cannot be trusted (its canary gave the wrong answer)
    ├── RunStopped                  somebody asked the run to stop
    ├── TreeChanged                 directories moved so fast that the walk cannot tell bundles apart
    ├── AuditInvalid                an audit record cannot be sealed, or the log cannot be continued
    └── AuditUnavailable            a key or a file that the audit needs cannot be read

One file's trouble is an outcome in a report and never an exception: an exception means that going on is
unsafe. ``code`` is stable, and meant for programs; the message is meant for people; ``retryable`` tells a
scheduler whether the same call may succeed later without anybody changing anything.
"""

from typing import ClassVar


class EngineError(Exception):
    """Everything this library raises on purpose."""

    code: ClassVar[str] = "engine_error"
    retryable: ClassVar[bool] = False


class AreaRefused(EngineError):
    """The directory is not, or is no longer, an area that may be cleaned."""

    code = "area_refused"

    def __init__(self, reason: str, message: str) -> None:
        """Keep `reason`, a stable word such as ``symlink`` or ``marker_missing``, beside the sentence."""
        super().__init__(message)
        #: One word for programs: ``root``, ``home``, ``system``, ``symlink``, ``marker_missing`` …
        self.reason = reason

    def __reduce__(self) -> tuple[type["AreaRefused"], tuple[str, str]]:
        """Survive pickling, which would otherwise call the constructor with one argument."""
        return type(self), (self.reason, str(self))


class AreaBusy(EngineError):
    """Another process holds the lock of the area."""

    code = "area_busy"
    retryable = True


class PolicyInvalid(EngineError):
    """A policy, or a part of one, that could not be obeyed."""

    code = "policy_invalid"


class PlanStale(EngineError):
    """The plan is older than its expiry."""

    code = "plan_stale"


class PlanTampered(EngineError):
    """What is stored is not what was planned."""

    code = "plan_tampered"


class TrashConflict(EngineError):
    """The trash already holds a batch of this id."""

    code = "trash_conflict"


class ManifestInvalid(EngineError):
    """The manifest of a batch is missing, torn or not ours."""

    code = "manifest_invalid"


class VerifierFailed(EngineError):
    """A verifier answered its canary wrongly, so none of its answers counts."""

    code = "verifier_failed"
    retryable = True


class RunStopped(EngineError):
    """The run was told to stop between two steps."""

    code = "run_stopped"


class TreeChanged(EngineError):
    """The walk met a directory twice, so nobody can say which files belong together."""

    code = "tree_changed"
    retryable = True


class AuditInvalid(EngineError):
    """The record holds what cannot be hashed the same way twice, or the log's tail is not ours."""

    code = "audit_invalid"


class AuditUnavailable(EngineError):
    """The audit cannot be checked or sealed here and now: its key, its keys or its file are out of reach."""

    code = "audit_unavailable"
    retryable = True
