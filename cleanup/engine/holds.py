"""Holds: what stays whatever a rule says, be it still in its place or already in the trash.

A hold is a pattern, or a list of exact paths: restoring leaves one of the second kind, so that the next run
does not take at once what a person has just brought back. Nothing here touches the disk or reads the clock.
"""

import zlib
from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.names import Patterns, patterns

#: What a hold of exact paths is called where a pattern would be named.
RESTORED = "restored"


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody's wish that matching files stay."""

    pattern: str = ""  #: empty: exact paths alone
    until: datetime | None = None  #: None: until it is released
    paths: frozenset[str] = frozenset()  #: escaped; these very files, besides what the pattern matches


class Holds:
    """The holds that count at one moment, asked path by path."""

    def __init__(self, holds: Sequence[Hold], *, now: datetime | None = None) -> None:
        """Compile `holds`; those that are over at `now` do not count.

        Raises:
            PolicyInvalid: a pattern cannot be understood.
        """
        counting = [hold for hold in holds if now is None or hold.until is None or hold.until > now]
        self._patterns: Patterns = patterns(
            tuple(hold.pattern for hold in counting if hold.pattern), subtree=True
        )
        self._paths = [hold.paths for hold in counting if hold.paths]

    def match(self, path: str) -> str | None:
        """Return what holds the escaped `path` (a pattern, or the word for exact paths), or None."""
        if any(path in paths for paths in self._paths):
            return RESTORED
        return self._patterns.match(path)


def pack_paths(paths: Iterable[str]) -> bytes:
    """Pack escaped paths for storage."""
    return zlib.compress("\n".join(sorted(set(paths))).encode(), 1)


def unpack_paths(data: bytes) -> frozenset[str]:
    """Unpack what `pack_paths` packed.

    Raises:
        PolicyInvalid: not such a list.
    """
    try:
        text = zlib.decompress(data).decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise PolicyInvalid(f"the paths of a hold cannot be read: {error}") from error
    return frozenset(text.split("\n")) if text else frozenset()
