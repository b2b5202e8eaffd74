"""What `explain` answers, as values: a path, the area that holds it, and what every policy makes of it.

Admin shows them and the command prints them; nothing here looks at a disk or a database.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One thing that a policy looks at, with the value that was found."""

    name: str
    value: str
    #: True: in favour of going; False: it keeps; None: for information.
    holds: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyExplained:
    """What one policy makes of a path."""

    policy: str
    rule: str
    mode: str
    #: The path would go, as far as rule, holds and verifiers are concerned.
    goes: bool
    #: Why it would go, or why it stays: a stable word, its meaning, and what it rests on.
    reason: str
    meaning: str
    detail: str = ""
    conditions: list[Condition] = field(default_factory=list)
    #: What goes or stays together with it, escaped.
    members: list[str] = field(default_factory=list)
    #: When the rule itself would let it go, if only time stands in between.
    eligible_from: datetime | None = None
    next_run_at: datetime | None = None
    #: One sentence each: what would stop it although the rule lets it go.
    obstacles: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldExplained:
    """A hold that keeps the path."""

    hold: int
    pattern: str
    until: datetime | None
    reason: str
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashExplained:
    """The path's way through the trash, once."""

    item: str
    state: str
    reason: str
    detail: str
    trashed_at: datetime | None
    #: Until when it can be restored for sure; None if it is not in the trash.
    restorable_until: datetime | None
    #: The command that brings it back; empty if nothing can.
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All that is known about a path."""

    #: Absolute, escaped.
    path: str
    #: None: in no area, so nothing here will ever touch it.
    area: str | None = None
    #: Below the area, escaped.
    below: str = ""
    #: `file`, `dir`, `symlink`, `other`, `absent`, or `unknown`: the area cannot be opened.
    kind: str = "absent"
    size: int = 0
    holds: list[HoldExplained] = field(default_factory=list)
    policies: list[PolicyExplained] = field(default_factory=list)
    #: Its row in the registry of staged files.
    registry: dict[str, Any] | None = None
    trash: list[TrashExplained] = field(default_factory=list)
    #: One sentence each.
    notes: list[str] = field(default_factory=list)
