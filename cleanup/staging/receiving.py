"""One part as it comes in: to the disk at once, and never more than may come.

It is acknowledged, in the row, when it is synced; and the last one only if the whole is what was announced.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from cleanup.conf import conf
from cleanup.models import UploadState
from cleanup.staging import limits
from cleanup.staging.counting import BYTES
from cleanup.staging.errors import BadValue, ChecksumMismatch, TooLarge, WrongDigest
from cleanup.staging.holding import LEASE, Hold
from cleanup.staging.parts import Part
from cleanup.stores.sql import database_now

#: Algorithms of a part's checksum.
ALGORITHMS = ("sha1", "sha256")

#: An algorithm and the digest, in bytes, that a part must have.
Checksum = tuple[str, bytes]


class Receiver:
    """Takes the bytes of one part of an upload that is held."""

    def __init__(self, part: Part, hold: Hold, checksum: Checksum | None) -> None:
        self.part, self.hold, self.checksum = part, hold, checksum
        #: Whether all that was taken is on its way to the disk, and ours.
        self.is_sound = True
        self._running = hashlib.new(checksum[0], usedforsecurity=False) if checksum else None
        self._left = min(conf().upload_part_size, hold.upload.size - part.start)

    def take(self, chunk: bytes) -> None:
        """Write some bytes.

        Raises:
            TooLarge: more than a part may have, or than the upload has.
            StagingError: the lease was lost.
            OSError: they could not be written.
        """
        self.is_sound = False
        if len(chunk) > self._left:
            raise self._too_large()
        self._left -= len(chunk)
        self.part.write(chunk)
        if self._running is not None:
            self._running.update(chunk)
        self.hold.keep()
        self.is_sound = True

    def _too_large(self) -> TooLarge:
        upload = self.hold.upload
        if upload.size - self.part.start <= conf().upload_part_size:
            return TooLarge(f"the upload has {upload.size} bytes, and this part goes beyond them")
        return TooLarge(f"a part has at most {conf().upload_part_size} bytes")

    def finish(self) -> None:
        """Acknowledge what came, if it is what was sent.

        Raises:
            ChecksumMismatch: it is not; nothing of it is kept.
            WrongType: the file is not what its name says.
        """
        if not self._is_as_sent():
            self.is_sound = False
            raise ChecksumMismatch("the part did not arrive as it was sent; send it again")
        self._acknowledge()

    def _is_as_sent(self) -> bool:
        if self.checksum is None or self._running is None:
            return True
        return hmac.compare_digest(self._running.digest(), self.checksum[1])

    def give_up(self) -> None:
        """The part was cut, or refused: keep what came whole, else what was there before."""
        if self.is_sound and self.checksum is None:
            self._acknowledge()
        else:
            self.part.take_back()

    def _acknowledge(self) -> None:
        """Have it on the disk, and then say so in the row."""
        part, upload = self.part, self.hold.upload
        count = part.offset - part.start
        if not count and upload.size:
            return
        self.is_sound = False
        self._check_type()
        part.sync()
        now = database_now()
        changes: dict[str, Any] = {
            "offset": part.offset,
            "changed_at": now,
            "expires_at": now + conf().upload_lifetime,
        }
        if part.offset == upload.size:
            changes |= {"state": UploadState.FINISHING, "sha256": self._digest()}
        self.hold.change(lease_until=now + LEASE, **changes)
        part.acknowledged()
        BYTES.inc(count)

    def _check_type(self) -> None:
        """Refuse the file as soon as its beginning is there, not after the last of its bytes."""
        upload, part = self.hold.upload, self.part
        if part.start < min(limits.HEAD, upload.size) <= part.offset:
            limits.check_type(upload.name, part.head(), size=upload.size, allowed=conf().upload_types)

    def _digest(self) -> str:
        found, expected = self.part.digest(), self.hold.upload.sha256
        if expected and found != expected:
            raise WrongDigest(f"the file has the SHA-256 {found}, not {expected}")
        return found


def check_checksum(checksum: Checksum | None) -> None:
    """Refuse a checksum that nobody can compare.

    Raises:
        BadValue: of another algorithm, or of another length than its digests have.
    """
    if checksum is None:
        return
    algorithm, digest = checksum
    if algorithm not in ALGORITHMS:
        raise BadValue(f"a checksum is one of {', '.join(ALGORITHMS)}")
    if len(digest) != hashlib.new(algorithm, usedforsecurity=False).digest_size:
        raise BadValue(f"that is no {algorithm} checksum")
