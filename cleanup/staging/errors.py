"""Errors of staging.

    EngineError
    └── StagingError                code, retryable
        ├── Refused                 what was sent cannot be taken; the same bytes never will be
        │   ├── BadName             a file name that is a path, or that not every system can hold
        │   ├── BadValue            a size, a hash or a task that makes no sense
        │   ├── WrongType           the extension is not allowed, or the bytes are something else
        │   ├── WrongDigest         the whole file is not what the sender said it is
        │   └── TooLarge            above the limit of one file, or of one part
        ├── StorageFull             no room on the disk, or for the database; later there may be
        ├── NotAllowed              whoever asks may not upload
        ├── WrongOffset             the part begins elsewhere than the stored bytes end
        ├── Locked                  somebody else is writing to this upload
        ├── Gone                    the upload is over
        ├── PartLost                bytes that were acknowledged are not on the disk any more
        ├── ChecksumMismatch        the part did not arrive as it was sent; it was dropped
        └── QuotaExceeded           this uploader has sent enough for now, or has too many uploads open

`code` is stable, for programs; messages are for people and name neither paths of the disk nor other people.
Besides these, verbs raise `NotFound` (no such area or upload, or somebody else's) and `OperationRefused` (the
area takes no files), and `AreaRefused` and `AreaBusy` of the engine.
"""

from __future__ import annotations

from cleanup.engine.errors import EngineError


class StagingError(EngineError):
    """Everything that staging raises on purpose."""


class Refused(StagingError, ValueError):
    """What was sent cannot be taken."""

    code = "refused"


class BadName(Refused):
    """Not the name of a file."""

    code = "bad_name"


class BadValue(Refused):
    """Not a size, a hash or a task."""

    code = "bad_value"


class WrongType(Refused):
    """Of a type that is not taken, or not of the type that its name says."""

    code = "wrong_type"


class WrongDigest(Refused):
    """Whole, and yet not what the sender said it is."""

    code = "wrong_digest"


class TooLarge(Refused):
    """More bytes than are taken."""

    code = "too_large"


class StorageFull(StagingError):
    """There is no room; nothing was acknowledged, and the same call may succeed later."""

    code = "storage_full"
    retryable = True


class NotAllowed(StagingError):
    """Whoever asks may not upload."""

    code = "not_allowed"


class WrongOffset(StagingError):
    """The part begins elsewhere than the stored bytes end."""

    code = "wrong_offset"

    def __init__(self, offset: int) -> None:
        """Keep the `offset` at which the next part begins."""
        super().__init__(f"the next part begins at byte {offset}")
        self.offset = offset


class Locked(StagingError):
    """Somebody else is writing to this upload."""

    code = "upload_locked"
    retryable = True


class Gone(StagingError):
    """The upload is over: done, refused, given up or expired."""

    code = "upload_gone"


class PartLost(StagingError):
    """Bytes that were acknowledged are not on the disk any more."""

    code = "part_lost"


class ChecksumMismatch(StagingError):
    """The part did not arrive as it was sent; it was dropped."""

    code = "checksum_mismatch"
    retryable = True


class QuotaExceeded(StagingError):
    """This uploader has sent enough for now."""

    code = "quota_exceeded"
    retryable = True

    def __init__(self, message: str, *, retry_after: int) -> None:
        """Keep after how many seconds it is worth trying again."""
        super().__init__(message)
        self.retry_after = retry_after
