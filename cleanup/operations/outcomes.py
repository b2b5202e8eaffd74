"""What the verbs answer, and how they refuse.

    EngineError
    └── OperationRefused            nothing was done; the message says why
        ├── NotFound                no area, policy, run or item of that name
        └── RunActive               the area has a run already; later it may go

Edges translate: a message in admin, an exit code of a command. One file's trouble is no exception, it stands
in the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cleanup.engine.errors import EngineError


class OperationRefused(EngineError):
    """The verb does not apply to this thing in its state, or to this person."""

    code = "refused"


class NotFound(OperationRefused):
    """There is no such thing."""

    code = "not_found"


class RunActive(OperationRefused):
    """At most one run of an area at a time."""

    code = "run_active"
    retryable = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewFile:
    """One file of a preview."""

    #: Below the area, escaped.
    path: str
    size: int
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a policy would do now. The same code as a run, and nothing is touched."""

    #: Of the whole plan; `items` holds the first of its files.
    files: int
    bytes: int
    items: list[PreviewFile]
    #: Reason -> number of files that stay.
    kept: dict[str, int]
    #: The first files that stay, each with its reason.
    kept_items: list[PreviewFile]
    #: [{"brake", "limit", "value"}] that the plan is above.
    brakes: list[dict[str, object]]
    #: Files that could not be judged well.
    errors: list[PreviewFile]
    scanned: int
    digest: str
    #: What the rule found besides, as `CleanupRun.facts` holds it.
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A file that could not be brought back, because its name is taken."""

    item: str
    path: str
    detail: str = ""


@dataclass(slots=True, kw_only=True)
class RestoreReport:
    """What a restore did. Counts are files; a result with its metadata counts two."""

    restored: int = 0
    bytes: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    #: Files that should have been in the trash and were not.
    lost: int = 0
    #: One sentence each.
    errors: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class PurgeReport:
    """What a purge did. Counts are files."""

    purged: int = 0
    bytes: int = 0
    #: Reason -> files that stay in the trash: held, verifier_failed, unverified.
    kept: dict[str, int] = field(default_factory=dict)
    #: The same in bytes.
    kept_bytes: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    #: One sentence each.
    errors: list[str] = field(default_factory=list)
    #: The slice ended before everything that is due was looked at.
    unfinished: bool = False

    def add(self, other: PurgeReport) -> None:
        """Add the counts of another part."""
        self.purged += other.purged
        self.bytes += other.bytes
        self.lost += other.lost
        self.errors += other.errors
        self.unfinished = self.unfinished or other.unfinished
        for reason, count in other.kept.items():
            self.keep(reason, count, other.kept_bytes.get(reason, 0))

    def keep(self, reason: str, files: int, size: int) -> None:
        """Count files that stay in the trash."""
        self.kept[reason] = self.kept.get(reason, 0) + files
        self.kept_bytes[reason] = self.kept_bytes.get(reason, 0) + size
