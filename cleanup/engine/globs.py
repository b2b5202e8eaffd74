"""Patterns as glob(7) and fnmatch(3) have them, over bytes: `*`, `?` and sets stay within one name.

A leading dot has to be typed, a backslash takes the meaning from what follows, and one byte is one character
whatever the locale. Braces are alternatives for `expansions` alone: `is_match` takes them as they stand.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from cleanup.engine.names import escape

__all__ = ["escaped_regex", "expansions", "has_magic", "is_match"]

_CLASSES = {
    b"alnum": b"0-9A-Za-z", b"alpha": b"A-Za-z", b"blank": b" \\t", b"cntrl": b"\\x00-\\x1f\\x7f",
    b"digit": b"0-9", b"graph": b"!-~", b"lower": b"a-z", b"print": b" -~", b"punct": b"!-/:-@\\[-`{-~",
    b"space": b" \\t-\\r",     b"upper": b"A-Z", b"xdigit": b"0-9A-Fa-f",
}  # fmt: skip
_CLASS = re.compile(rb"\[:([a-z]+):\]")

#: One character of an escaped name that is no slash.
_ONE = r"\\x[0-9a-f]{2}|[^/\\]"
#: The same if it stands for one byte for certain.
_BYTE = r"\\x[0-9a-f]{2}|[^/\\\x80-\U0010ffff]"
#: Nothing, where a further byte is meant of a character that was counted already.
_MORE = r"(?<=[^\x00-\x7f])"


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


def escaped_regex(pattern: bytes, *, sure: bool = False) -> str:
    """Translate to a regular expression over paths as `names.escape` writes them.

    It fits whatever `is_match` says of the bytes, and around characters of several bytes a little more; or,
    where only what is `sure` may fit, a little less.
    """
    out, at, starts, literal = [], 0, True, b""
    while at < len(pattern):
        piece, end, is_wild = _piece(pattern, at)
        if not is_wild:
            literal += pattern[end - 1 : end]
        else:
            out += [re.escape(escape(literal)), r"(?!\.)" if starts else "", _over_text(piece, sure)]
            literal = b""
        starts, at = not is_wild and pattern[end - 1 : end] == b"/", end
    return "".join(out) + re.escape(escape(literal))


@lru_cache(maxsize=1_024)
def _over_text(piece: bytes, sure: bool) -> str:
    """Let a wild piece over bytes stand for the characters of an escaped name."""
    one = _BYTE if sure else f"{_ONE}|{_MORE}"
    if piece in (rb"[^/]*", rb"[^/]"):
        return f"(?:{_ONE})*" if piece.endswith(b"*") else f"(?:{one})"
    fits = [re.fullmatch(piece, bytes([byte]), re.DOTALL) is not None for byte in range(256)]
    if all(fits[128:]) or (any(fits[128:]) and not sure):
        other = _any_of(byte for byte in range(128) if not fits[byte])
        return f"(?:(?!{other})(?:{_BYTE}))" if sure else f"(?:(?!{other})(?:{_ONE})|{_MORE})"
    return f"(?:{_any_of(byte for byte in range(256) if fits[byte])})"


def _any_of(codes: Iterable[int]) -> str:
    return "|".join(re.escape(escape(bytes([code]))) for code in codes) or "(?!)"


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
    signs = list(_signs(pattern))
    opened = next((at for at, char in signs if char == b"{"), -1)
    closed = _closing(signs, opened) if opened >= 0 else -1
    if closed < 0:
        yield pattern
        return
    head, tail = pattern[:opened], pattern[closed + 1 :]
    for choice in _choices(pattern[opened + 1 : closed]):
        yield from expansions(head + choice + tail)


def _signs(pattern: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the braces and commas from which no backslash takes the meaning."""
    for found in re.finditer(rb"\\.|([{},])", pattern, re.DOTALL):
        if found[1] is not None:
            yield found.start(), found[1]


def _closing(signs: list[tuple[int, bytes]], opened: int) -> int:
    depth = 0
    for at, char in signs:
        if at >= opened:
            depth += {b"{": 1, b"}": -1}.get(char, 0)
            if depth == 0:
                return at
    return -1


def _choices(inside: bytes) -> Iterator[bytes]:
    depth, start = 0, 0
    for at, char in _signs(inside):
        depth += {b"{": 1, b"}": -1}.get(char, 0)
        if char == b"," and depth == 0:
            yield inside[start:at]
            start = at + 1
    yield inside[start:]
