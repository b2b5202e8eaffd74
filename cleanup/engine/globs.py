"""Patterns as glob(7) and fnmatch(3) have them, over bytes: `*`, `?` and sets stay within one name.

A leading dot has to be typed, a backslash takes the meaning from what follows, and one byte is one character
whatever the locale. Braces are alternatives for `expansions` alone: `is_match` takes them as they stand.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

__all__ = ["expansions", "has_magic", "is_match"]

_CLASSES = {
    b"alnum": b"0-9A-Za-z", b"alpha": b"A-Za-z", b"blank": b" \\t", b"cntrl": b"\\x00-\\x1f\\x7f",
    b"digit": b"0-9", b"graph": b"!-~", b"lower": b"a-z", b"print": b" -~", b"punct": b"!-/:-@\\[-`{-~",
    b"space": b" \\t-\\r",     b"upper": b"A-Z", b"xdigit": b"0-9A-Fa-f",
}  # fmt: skip
_CLASS = re.compile(rb"\[:([a-z]+):\]")


def has_magic(pattern: bytes) -> bool:
    """Whether the pattern can fit anything but itself."""
    return any(char in pattern for char in (b"*", b"?", b"[", b"\\"))


def is_match(pattern: bytes, path: bytes) -> bool:
    """Whether `path` fits the whole of `pattern`."""
    return _compiled(pattern).fullmatch(path) is not None


@lru_cache(maxsize=1_024)
def _compiled(pattern: bytes) -> "re.Pattern[bytes]":
    out, at, starts = [], 0, True
    while at < len(pattern):
        piece, at, is_wild = _piece(pattern, at)
        # At the start of a name nothing but a dot itself stands for a dot.
        out.append(rb"(?!\.)" + piece if is_wild and starts else piece)
        starts = piece == b"/"
    return re.compile(b"".join(out), re.DOTALL)


def _piece(pattern: bytes, at: int) -> tuple[bytes, int, bool]:
    """Translate what stands at `at`: its regular expression, where it ends, whether it is wild."""
    char = pattern[at : at + 1]
    if char == b"*":
        return rb"[^/]*", at + 1, True
    if char == b"?":
        return rb"[^/]", at + 1, True
    if char == b"[" and (found := _set(pattern, at)) is not None:
        return found[0], found[1], True
    if char == b"\\" and at + 1 < len(pattern):
        return re.escape(pattern[at + 1 : at + 2]), at + 2, False
    return re.escape(char), at + 1, False


def _set(pattern: bytes, at: int) -> tuple[bytes, int] | None:
    """Translate the set that opens at `at`; None where it does not close, or holds a slash."""
    at += 1
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    members: list[bytes] = []
    first = True
    while at < len(pattern):
        char = pattern[at : at + 1]
        if char == b"]" and not first:
            inside = b"".join(members)
            if not inside:
                return (rb"[^/]" if negated else rb"(?!)"), at + 1
            return (rb"[^/%b]" % inside if negated else rb"(?!/)[%b]" % inside), at + 1
        if char == b"/":
            return None
        member, at = _member(pattern, at)
        members.append(member)
        first = False
    return None


def _member(pattern: bytes, at: int) -> tuple[bytes, int]:
    if (found := _CLASS.match(pattern, at)) and found[1] in _CLASSES:
        return _CLASSES[found[1]], found.end()
    low, at = _char(pattern, at)
    if pattern[at : at + 1] == b"-" and pattern[at + 1 : at + 2] not in (b"]", b""):
        high, at = _char(pattern, at + 1)
        # A range that runs backwards holds nothing.
        return (b"%b-%b" % (_literal(low), _literal(high)) if low <= high else b""), at
    return _literal(low), at


def _char(pattern: bytes, at: int) -> tuple[bytes, int]:
    if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
        at += 1
    return pattern[at : at + 1], at + 1


def _literal(char: bytes) -> bytes:
    return b"\\x%02x" % char[0]


def expansions(pattern: bytes) -> Iterator[bytes]:
    """Yield the pattern once for every choice that its braces leave."""
    opened = pattern.find(b"{")
    closed = _closing(pattern, opened) if opened >= 0 else -1
    if closed < 0:
        yield pattern
        return
    head, tail = pattern[:opened], pattern[closed + 1 :]
    for choice in _choices(pattern[opened + 1 : closed]):
        yield from expansions(head + choice + tail)


def _closing(pattern: bytes, opened: int) -> int:
    depth = 0
    for at in range(opened, len(pattern)):
        depth += {ord("{"): 1, ord("}"): -1}.get(pattern[at], 0)
        if depth == 0:
            return at
    return -1


def _choices(inside: bytes) -> Iterator[bytes]:
    depth, start = 0, 0
    for at, char in enumerate(inside):
        depth += {ord("{"): 1, ord("}"): -1}.get(char, 0)
        if char == ord(",") and depth == 0:
            yield inside[start:at]
            start = at + 1
    yield inside[start:]
