"""The states of one planned file, the moves between them, and what to do after a crash.

The table is the contract between the rows of whoever keeps them and what is found on disk. A row moves by
compare-and-set along `TRANSITIONS` and no other way. After a crash `recover` compares the row's state with
what `cleanup.engine.trash.observe` saw, and says how to go on; it is total: every combination has one answer,
and any that ought to be impossible is answered by ERROR, which touches nothing.
"""

from datetime import UTC, datetime, timedelta
from enum import StrEnum

import msgspec


class ItemState(StrEnum):
    """Where one planned file is in its life."""

    PLANNED = "planned"  #: in an approved plan, untouched
    INTENT = "intent"  #: about to be moved; the disk may be ahead of the row
    TRASHED = "trashed"  #: in the trash, can be restored
    PURGE_INTENT = "purge_intent"  #: about to be removed for good
    PURGED = "purged"  #: gone for good
    RESTORING = "restoring"  #: on its way back
    RESTORED = "restored"  #: back in the area
    SKIPPED = "skipped"  #: stayed, for a stated reason
    HELD = "held"  #: stayed because of a hold
    CHANGED = "changed"  #: stayed because it was no longer the planned file
    VANISHED = "vanished"  #: gone before the engine came
    LOST = "lost"  #: should be in the trash and is not: an alarm
    ERROR = "error"  #: stopped by something unexpected; the reason is kept beside it


_S = ItemState

#: From each state, where a row may go next.
TRANSITIONS: dict[ItemState, frozenset[ItemState]] = {
    _S.PLANNED: frozenset({_S.INTENT, _S.SKIPPED, _S.HELD, _S.CHANGED, _S.VANISHED, _S.ERROR}),
    _S.INTENT: frozenset({_S.TRASHED, _S.PLANNED, _S.SKIPPED, _S.HELD, _S.CHANGED, _S.VANISHED, _S.ERROR}),
    _S.TRASHED: frozenset({_S.PURGE_INTENT, _S.RESTORING, _S.LOST, _S.ERROR}),
    _S.PURGE_INTENT: frozenset({_S.PURGED, _S.LOST, _S.ERROR}),
    _S.RESTORING: frozenset({_S.RESTORED, _S.TRASHED, _S.LOST, _S.ERROR}),
    # Found again: somebody put it back into the trash, or a snapshot was mounted.
    _S.LOST: frozenset({_S.TRASHED, _S.ERROR}),
    # An error may leave bytes in the trash; they can be brought back, never purged by time.
    _S.ERROR: frozenset({_S.RESTORING}),
    _S.PURGED: frozenset(),
    _S.RESTORED: frozenset(),
    _S.SKIPPED: frozenset(),
    _S.HELD: frozenset(),
    _S.CHANGED: frozenset(),
    _S.VANISHED: frozenset(),
}


def can_move(old: ItemState, new: ItemState) -> bool:
    """Whether a row in state `old` may be set to `new`."""
    return new in TRANSITIONS[old]


def purge_after(now: datetime, grace_period: timedelta, *, promised: datetime | None = None) -> datetime:
    """Return when a file may be purged, in UTC; a grace that was promised before is never shortened.

    Raises:
        ValueError: `now` has no zone.
    """
    if now.tzinfo is None:
        raise ValueError("now needs a time zone")
    # In a zone with summer time a day may have 23 hours: seven days are counted as 168 hours all the same.
    due = now.astimezone(UTC) + grace_period
    return due if promised is None else max(due, promised)


class Source(StrEnum):
    """What stands under the original names of an item's members."""

    SAME = "same"  #: every member, by inode
    PART = "part"  #: some members; the other names are free
    OTHER = "other"  #: another file has taken at least one name
    GONE = "gone"  #: nothing


class InTrash(StrEnum):
    """What the trash holds of an item."""

    WHOLE = "whole"  #: every member, by inode, size and time
    PART = "part"  #: some members, all of them right
    OTHER = "other"  #: a file that is not the one that was planned
    NO = "no"  #: nothing


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen on disk of one item."""

    source: Source
    trash: InTrash


class Decision(StrEnum):
    """What to do about one row after a crash."""

    NOTHING = "nothing"  #: row and disk agree
    RETRY = "retry"  #: call `move` again (it goes on where it stopped), or release the row if nothing moved
    FINISH = "finish"  #: set trashed
    VANISHED = "vanished"  #: set vanished
    CHANGED = "changed"  #: set changed
    LOST = "lost"  #: set lost and raise the alarm
    RESTORE_ON = "restore_on"  #: call `restore` again
    RESTORED = "restored"  #: set restored
    PURGE_ON = "purge_on"  #: call `purge` again
    PURGED = "purged"  #: set purged
    ADOPT = "adopt"  #: make the row from the manifest, as trashed
    ADOPT_ERROR = (
        "adopt_error"  #: make the row from the manifest, as error: it can be restored, never purged by time
    )
    ERROR = "error"  #: set error, touch nothing


def recover(state: ItemState | None, seen: Observation) -> Decision:
    """Decide how to go on with a row in `state` (None: there is no row) after `seen`."""
    if state is None:
        return _ADOPTION[seen.trash]
    if state is ItemState.INTENT:
        return _INTENT[seen.trash][seen.source]
    if state is ItemState.RESTORING:
        return _RESTORING[seen.trash][seen.source]
    if state in _BY_TRASH:
        return _BY_TRASH[state][seen.trash]
    return Decision.NOTHING if seen.trash is InTrash.NO else Decision.ERROR


_D = Decision

_ADOPTION = {
    InTrash.WHOLE: _D.ADOPT,
    InTrash.PART: _D.ADOPT_ERROR,
    InTrash.OTHER: _D.ADOPT_ERROR,
    InTrash.NO: _D.NOTHING,  # the manifest of an emptied batch; `tidy` removes it
}

#: While moving. RETRY is right wherever `move` itself knows how to finish or to put back. The same file at
#: its place and in the trash at once cannot come from a rename.
_INTENT: dict[InTrash, dict[Source, Decision]] = {
    InTrash.NO: {
        Source.SAME: _D.RETRY,
        Source.PART: _D.RETRY,
        Source.OTHER: _D.CHANGED,
        Source.GONE: _D.VANISHED,
    },
    InTrash.WHOLE: {
        Source.SAME: _D.ERROR,
        Source.PART: _D.ERROR,
        Source.OTHER: _D.FINISH,  # a restore will report the conflict
        Source.GONE: _D.FINISH,
    },
    InTrash.PART: dict.fromkeys(Source, _D.RETRY) | {Source.SAME: _D.ERROR},
    InTrash.OTHER: dict.fromkeys(Source, _D.RETRY),  # the crash came before putting back
}

_RESTORING: dict[InTrash, dict[Source, Decision]] = {
    InTrash.NO: {
        Source.SAME: _D.RESTORED,
        Source.PART: _D.ERROR,  # a part came back, and is gone again
        Source.OTHER: _D.LOST,
        Source.GONE: _D.LOST,
    },
    InTrash.WHOLE: dict.fromkeys(Source, _D.RESTORE_ON),
    InTrash.PART: dict.fromkeys(Source, _D.RESTORE_ON),
    InTrash.OTHER: dict.fromkeys(Source, _D.ERROR),
}

_BY_TRASH: dict[ItemState, dict[InTrash, Decision]] = {
    _S.TRASHED: {
        InTrash.WHOLE: _D.NOTHING,
        InTrash.PART: _D.ERROR,
        InTrash.OTHER: _D.ERROR,
        InTrash.NO: _D.LOST,
    },
    _S.PURGE_INTENT: {
        InTrash.WHOLE: _D.PURGE_ON,
        InTrash.PART: _D.PURGE_ON,
        InTrash.OTHER: _D.ERROR,
        InTrash.NO: _D.PURGED,
    },
    _S.LOST: {
        InTrash.WHOLE: _D.FINISH,
        InTrash.PART: _D.ERROR,
        InTrash.OTHER: _D.ERROR,
        InTrash.NO: _D.NOTHING,
    },
    _S.ERROR: dict.fromkeys(InTrash, _D.NOTHING),
}
