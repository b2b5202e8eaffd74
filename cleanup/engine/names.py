"""File names as text, and patterns over them.

A file name is bytes: it may hold a newline, a terminal escape or half a UTF-8 sequence, and none of these
belongs in a database row, a log line or a web page. `escape` writes any name as printable text and `unescape`
gives back the very same bytes. Patterns are matched against the escaped path below the area, so what an
operator reads is what a pattern sees.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from cleanup.engine.errors import PolicyInvalid

_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")

#: One character of an escaped name that is no slash: an escape counts as one, like the byte it stands for.
_ONE = r"(?:\\x[0-9a-f]{2}|[^/\\])"


def escape(name: bytes) -> str:
    r"""Write `name` as printable text: a backslash and all that is not printable UTF-8 become ``\xNN``.

    Lower-case hex, one escape a byte. `unescape` reverses it exactly.
    """
    if name.isascii():
        text = name.decode("ascii")
        if text.isprintable() and "\\" not in text:
            return text
    else:
        text = name.decode("utf-8", "surrogateescape")
    return "".join(char if char.isprintable() and char != "\\" else _escape_char(char) for char in text)


def _escape_char(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))


def unescape(text: str) -> bytes:
    r"""Give back the bytes that `escape` wrote as `text`.

    Raises:
        PolicyInvalid: a backslash that starts no ``\xNN``, or a character that is not valid Unicode.
    """
    if "\\" not in text and text.isascii():
        return text.encode("ascii")
    pieces = _ESCAPE.split(text)
    if any("\\" in plain for plain in pieces[::2]):
        raise PolicyInvalid(r"a backslash in an escaped name must start \xNN")
    try:
        return b"".join(
            bytes([int(piece, 16)]) if odd else piece.encode()
            for odd, piece in ((index % 2, piece) for index, piece in enumerate(pieces))
        )
    except UnicodeEncodeError as error:
        raise PolicyInvalid("an escaped name holds a lone surrogate") from error


def is_internal(path: bytes) -> bool:
    """Whether `path` belongs to the engine itself: the marker, the trash, anything ``.staging-*``."""
    if b"/." not in path and not path.startswith(b"."):
        return False
    return any(part == b".trash" or part.startswith(b".staging-") for part in path.split(b"/"))


def is_below(path: bytes) -> bool:
    """Whether `path` is a plain relative path: no empty part, no ``.`` or ``..``, no NUL."""
    if not path or b"\0" in path:
        return False
    parts = path.split(b"/")
    return b"" not in parts and b"." not in parts and b".." not in parts


def _bracket(pattern: str, at: int) -> tuple[str, int]:
    """Translate the character set that opens at `at`; return the regex and where it ends."""
    end = at + 1
    if pattern[end : end + 1] in ("!", "^"):
        end += 1
    end = pattern.find("]", end + 1)
    if end < 0:
        return re.escape("["), at + 1
    inside = pattern[at + 1 : end]
    negate = inside[:1] in ("!", "^")
    body = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[1:] if negate else inside)
    return f"(?!/)[{'^' if negate else ''}{body}]", end + 1


def _translate(pattern: str) -> str:
    """Translate a glob to a regex: ``*``, ``?`` and sets stay within one name, ``**`` crosses directories."""
    out, at = [], 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**/", at) and (at == 0 or pattern[at - 1] == "/"):
            piece, at = "(?:[^/]+/)*", at + 3
        elif pattern.startswith("**", at):
            piece, at = ".*", at + 2
        elif char == "*":
            piece, at = "[^/]*", at + 1
        elif char == "?":
            piece, at = _ONE, at + 1
        elif char == "[":
            piece, at = _bracket(pattern, at)
        else:
            piece, at = re.escape(char), at + 1
        out.append(piece)
    return "".join(out)


def _source(pattern: str, *, subtree: bool) -> str:
    """Return the regex of one glob, to be tried with ``fullmatch``."""
    below = "(?:/.*)?" if subtree else ""
    if pattern.endswith("/"):
        pattern, below = pattern[:-1], "/.*"
    anywhere = "" if "/" in pattern else "(?:.*/)?"
    return f"{anywhere}{_translate(pattern.removeprefix('/'))}{below}"


class Patterns:
    r"""A set of patterns; a path matches when any of them does.

    A glob without a slash is compared with the name at any depth, a glob with one with the whole path below
    the area. ``*``, ``?`` and ``[…]`` stay within one name; ``**`` crosses directories; a trailing slash
    means all that lies below. ``re:`` starts a regular expression, found anywhere in the path unless
    anchored.
    """

    def __init__(self, patterns: Sequence[str], *, subtree: bool = False) -> None:
        """Compile `patterns`; with `subtree` a match also covers everything below the matched directory.

        Raises:
            PolicyInvalid: a pattern is empty or not a regular expression.
        """
        self._matchers = tuple((pattern, _matcher(pattern, subtree=subtree)) for pattern in patterns)

    def match(self, text: str) -> str | None:
        """Return the first pattern that matches the escaped path `text`, or None."""
        for pattern, matches in self._matchers:
            if matches(text):
                return pattern
        return None


def _matcher(pattern: str, *, subtree: bool) -> Callable[[str], object]:
    if not pattern or pattern in ("/", "re:"):
        raise PolicyInvalid("a pattern is empty")
    try:
        if pattern.startswith("re:"):
            return re.compile(pattern[3:]).search
        return re.compile(_source(pattern, subtree=subtree)).fullmatch
    except (re.error, RecursionError, OverflowError) as error:
        raise PolicyInvalid(f"pattern {pattern!r} cannot be compiled: {error}") from error


@lru_cache(maxsize=256)
def patterns(given: tuple[str, ...], *, subtree: bool = False) -> Patterns:
    """Return `given` compiled, from a cache: policies are judged against many files."""
    return Patterns(given, subtree=subtree)


@lru_cache(maxsize=256)
def keyed(source: str, field: str, group: str = "key") -> re.Pattern[str]:
    """Compile a regex whose group `group`, or first group, holds a key; `field` is what complaints call it.

    Raises:
        PolicyInvalid: not a regex, or one without a group.
    """
    try:
        pattern = re.compile(source)
    except (re.error, RecursionError, OverflowError) as error:
        raise PolicyInvalid(f"{field} cannot be compiled: {error}") from error
    if not pattern.groups:
        raise PolicyInvalid(f"{field} needs a group that holds the {group}")
    return pattern


def key_in(pattern: re.Pattern[str], text: str, group: str = "key") -> str | None:
    """Return the key that a `keyed` pattern finds in the escaped path `text`, if any."""
    match = pattern.search(text)
    if match is None:
        return None
    return match[group] if group in pattern.groupindex else match[1]


def task_pattern(source: str) -> re.Pattern[str]:
    """Compile the regex whose group ``task_id``, or first group, is a task's id.

    Raises:
        PolicyInvalid: not a regex, or one without a group.
    """
    return keyed(source, "task_id_pattern", "task_id")
