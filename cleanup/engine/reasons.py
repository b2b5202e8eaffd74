"""Why a file went or stayed: every reason the engine gives, each with one line of meaning.

A reason is a stable word, written into plans, item rows, audit entries and metrics. Reasons of judging come
first, then those of planning and verifying, then those of the walk and of the move.
"""

from enum import StrEnum


class Reason(StrEnum):
    """A stable word with its `meaning`."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> "Reason":
        """Make the member `word`, which carries `meaning`."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        return member

    OLDER_THAN_AGE = "older_than_age", "every selected time stamp is older than the policy's age"
    EXPIRED = "expired", "the companion's expires_at has passed"
    ORPHANED = "orphaned", "no row of the registry knows the file, and it is older than the policy's age"
    SPACE_NEEDED = "space_needed", "the disk is too full, and it stands first in the policy's order"
    BEYOND_KEEP = "beyond_keep", "the group has as many newer ones as the policy keeps"

    YOUNGER_THAN_AGE = "younger_than_age", "a selected time stamp is not older than the policy's age"
    FUTURE_TIMESTAMP = "future_timestamp", "a selected time stamp lies in the future"
    UNKNOWN_TIMESTAMP = "unknown_timestamp", "a selected time stamp is not known"
    NOT_EXPIRED = "not_expired", "the companion's expires_at has not passed"
    AMONG_NEWEST = "among_newest", "one of the newest of its group, which the policy keeps"
    NOT_NEEDED = "not_needed", "enough space is free without it"
    NO_KEY = "no_key", "the policy's pattern finds no key in the path, so it belongs to no bundle or group"
    NOT_INCLUDED = "not_included", "no include pattern matches"
    EXCLUDED = "excluded", "an exclude pattern matches"
    NO_COMPANION = "no_companion", "the metadata file beside the result is missing"
    BAD_COMPANION = "bad_companion", "the metadata file does not say when the result expires"
    HARD_LINKED = "hard_linked", "another name leads to the same file, so removing this one frees nothing"
    NOT_A_FILE = "not_a_file", "not a regular file"
    OUTSIDE = "outside", "the path does not stay below the area"
    INTERNAL = "internal", "belongs to the engine itself"

    SEEN_ONCE = "seen_once", "an orphan that was not yet seen twice, far enough apart"
    RESTORED_LATELY = "restored_lately", "an orphan that somebody has just brought back from the trash"
    REGISTERED = "registered", "the registry has come to know the file since the plan was made"

    HELD = "held", "somebody put a hold on it"
    VERIFIER_FAILED = "verifier_failed", "a verifier said that it must stay"
    UNVERIFIED = "unverified", "a verifier could not tell"

    SYMLINK = "symlink", "a symbolic link; links are neither followed nor moved"
    SPECIAL = "special", "a socket, a device or a FIFO"
    MOUNT_POINT = "mount_point", "another file system is mounted here"
    NESTED_AREA = "nested_area", "the directory is an area of its own"
    UNREADABLE = "unreadable", "the system refused to read it"

    CHANGED = "changed", "no longer the file that was planned"
    VANISHED = "vanished", "gone before it could be moved"
    LOCKED = "locked", "another process holds a lock on it"
    IN_USE = "in_use", "another process has it open, or nobody can say whether one has"
    IO_ERROR = "io_error", "the system refused the step"
