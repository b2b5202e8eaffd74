"""How many files a hold would keep: a bounded look at names that the database knows, for people who decide.

So many of the newest files in the trash of an area and so many of its staged files are compared. Where there
are more, the answer says so: it is a hint, never a promise, and reads no directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.holds import Holds, unpack_paths
from cleanup.engine.names import patterns
from cleanup.models import CleanupItem, Hold, ItemState, StagedFile, StagingArea
from cleanup.operations.areas import engine_hold

#: Names of each kind that are compared.
LOOKED_AT = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Some names of an area."""

    trashed: Sequence[str] = field(default_factory=tuple)
    staged: Sequence[str] = field(default_factory=tuple)

    @property
    def is_whole(self) -> bool:
        """Whether there are no more of either kind."""
        return len(self.trashed) < LOOKED_AT and len(self.staged) < LOOKED_AT


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """How many of the names match."""

    trashed: int
    staged: int
    is_whole: bool

    def sentence(self) -> str:
        """For people."""
        at_least = "" if self.is_whole else "at least "
        more = (
            "" if self.is_whole else f" (of the newest {LOOKED_AT:,} in the trash and {LOOKED_AT:,} staged)"
        )
        return f"{at_least}{self.trashed:,} in the trash, {self.staged:,} staged{more}"


def names_of(area: StagingArea | int) -> Names:
    """The newest names in the trash of an area, and the first of its registry."""
    in_trash = CleanupItem.objects.filter(area=area, state=ItemState.TRASHED).order_by("-trashed_at")
    staged = StagedFile.objects.filter(area=area).order_by("path")
    return Names(
        trashed=list(in_trash.values_list("path", flat=True)[:LOOKED_AT]),
        staged=list(staged.values_list("path", flat=True)[:LOOKED_AT]),
    )


def matched_by_pattern(pattern: str, names: Names) -> Matched:
    """How many names a pattern matches.

    Raises:
        PolicyInvalid: it cannot be understood.
    """
    found = patterns((pattern,), subtree=True)
    return Matched(
        trashed=sum(found.match(name) is not None for name in names.trashed),
        staged=sum(found.match(name) is not None for name in names.staged),
        is_whole=names.is_whole,
    )


def kept_by(hold: Hold, names: Names) -> str:
    """What a hold keeps right now, in words."""
    try:
        if hold.paths is not None:
            number = len(unpack_paths(bytes(hold.paths)))
            return f"{number:,} restored {'file' if number == 1 else 'files'}"
        holds = Holds([engine_hold(hold)])
    except PolicyInvalid:
        return "everything: it cannot be understood"
    trashed = sum(holds.match(name) is not None for name in names.trashed)
    staged = sum(holds.match(name) is not None for name in names.staged)
    return Matched(trashed=trashed, staged=staged, is_whole=names.is_whole).sentence()
