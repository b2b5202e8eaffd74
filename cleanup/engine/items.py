"""What a plan is made of: items, and their members with the identity they had.

An item is the smallest thing that goes or stays: a file, a result with its metadata, or a whole bundle. The
identity of each member (device, inode, size, time) is what the mover compares with what it finds, so nothing
that was exchanged since goes in its place.
"""

import msgspec

from cleanup.engine.names import escape
from cleanup.engine.reasons import Reason


class Member(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file and the identity it had when it was planned."""

    path: bytes  #: relative to the area
    device: int
    inode: int
    size: int
    mtime_ns: int


class PlanItem(msgspec.Struct, frozen=True, array_like=True):
    """One thing to trash: a file, or files that go together."""

    path: bytes  #: of the first member
    members: tuple[Member, ...]  #: in the order of going
    bytes: int  #: of all members
    reason: Reason
    detail: str = ""
    task_id: str | None = None
    evidence: dict[str, str] = {}  #: the verifiers' answers, by name

    @property
    def shown(self) -> str:
        """The path as text."""
        return escape(self.path)
