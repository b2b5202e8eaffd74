"""What was seen on disk, as values, and what is said about it.

The walk makes a `Candidate` of everything that a policy may have to decide about, and the policy answers with
a `Verdict`. Neither knows where the other comes from: what is decided depends on these values alone.
"""

from datetime import datetime
from typing import Literal

import msgspec

from cleanup.engine.reasons import Reason

Kind = Literal["file", "dir", "symlink", "other"]


class Stat(msgspec.Struct, frozen=True, gc=False):
    """What the file system said about one name, without following a link."""

    kind: Kind
    device: int
    inode: int
    nlink: int
    size: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    btime_ns: int | None  #: birth; None where the file system, or the scan, did not ask
    mode: int
    uid: int
    gid: int


#: Of what could not be looked at.
NOTHING = Stat("other", 0, 0, 0, 0, 0, 0, 0, None, 0, 0, 0)


class Companion(msgspec.Struct, frozen=True):
    """The metadata file beside a result."""

    path: bytes  #: relative to the area
    stat: Stat
    expires_at: datetime | None = None  #: without a zone it is read in the policy's `naive_timezone`
    error: str | None = None  #: why there is no usable `expires_at`


class Candidate(msgspec.Struct, frozen=True):
    """One thing found below an area.

    A walk for bundles also yields what no policy may touch, and directories whose stamps count: a bundle must
    know of everything that stands in it. `barred` says why such a thing stays.
    """

    path: bytes  #: relative to the area
    stat: Stat
    companion: Companion | None = None
    barred: Reason | None = None  #: of a `stat.kind` that is not ``file``
    detail: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """What is to become of a candidate, and why."""

    action: Literal["trash", "keep"]
    reason: Reason
    members: tuple[bytes, ...] = ()  #: what goes together, in the order of going; empty when kept
    detail: str = ""
