"""Lines of tmpfiles.d become policies, and policies become lines.

A line with an age says what a policy of the rule `age` says: a directory, an age, the time stamps that count.
What systemd leaves alone because another line is about it becomes an exclude. Both ways keep a file where the
two languages differ, and whatever cannot be said is named with the reason, never dropped in silence. Two
things have no counterpart in a policy: empty directories are not removed, and nothing is done at boot. No
disk is touched here.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import product

import msgspec

from cleanup.engine.ages import format_age
from cleanup.engine.globs import escaped_regex, expansions, is_match
from cleanup.engine.names import escape, is_internal, unescape
from cleanup.engine.tmpfiles import FILE_STAMPS, Age, Line, age_in_force

__all__ = ["Draft", "Note", "lines_for", "path_line", "translate"]

#: Excludes what stands right in an area: the ``~`` of an age.
FIRST_LEVEL = r"re:\A[^/]+\Z"

#: Types whose age cleans below their path.
_CLEANING = frozenset("dDvqQCe")

#: Characters of an escape in an escaped name.
_IN_ESCAPES = frozenset("x0123456789abcdef")

#: A pattern becomes at most so many lines; each of its wild names needs one for hidden names too.
_MOST_LINES = 9


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A policy that a line asks for."""

    line: Line
    directory: bytes  #: absolute; the area
    age: timedelta
    age_by: frozenset[str]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class Note(msgspec.Struct, frozen=True):
    """What became of a line, or of a part of it, that is no policy."""

    number: int  #: of the line
    why: str
    is_honoured: bool  #: False: the line asks for something that no policy does


def translate(lines: Sequence[Line], *, prefixes: Sequence[bytes] = ()) -> tuple[list[Draft], list[Note]]:
    """Return the policies that `lines` ask for, and what is to be said about the other lines.

    Args:
        lines: as `tmpfiles.read` returned them, of all files together.
        prefixes: only lines about paths below one of these count, as if the others were not there.
    """
    counting = [line for line in lines if _is_chosen(line.path, prefixes)]
    drafts: list[Draft] = []
    notes: list[Note] = []
    for line in counting:
        if line.type in _CLEANING and line.age is not None and line.age.after is not None:
            drafts.append(_draft(line, line.age, line.age.after, counting))
            notes += _notes_of_cleaning(line)
        else:
            notes.append(_note(line, counting))
    return drafts, notes


def _is_chosen(path: bytes, prefixes: Sequence[bytes]) -> bool:
    wanted = [prefix.rstrip(b"/") for prefix in prefixes]
    return not wanted or any(path == prefix or path.startswith(prefix + b"/") for prefix in wanted)


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part]


def _draft(line: Line, age: Age, after: timedelta, lines: Sequence[Line]) -> Draft:
    directory, includes = _place(line, age)
    exclude = [FIRST_LEVEL] if age.keep_first_level and not includes else []
    for other in lines:
        if other is not line and len(_parts(other.path)) > len(_parts(line.path)):
            exclude += _exclude(other, _parts(directory), age, lines)
    return Draft(
        line=line,
        directory=directory,
        age=after,
        age_by=age.file_stamps,
        include=includes,
        exclude=tuple(dict.fromkeys(exclude)),
    )


def _place(line: Line, age: Age) -> tuple[bytes, tuple[str, ...]]:
    """Return the directory that a line cleans, and for a pattern what below its fixed part is meant."""
    parts = _parts(line.path)
    if not line.is_glob:
        return line.path, ()
    fixed: list[bytes] = []
    while len(fixed) < len(parts) and (name := _plain(parts[len(fixed)])) is not None:
        fixed.append(name)
    wild = b"/".join(parts[len(fixed) :])
    below = "[^/]+/.+" if age.keep_first_level else ".+"
    regexes = [escaped_regex(one, sure=True) for one in expansions(wild)] if wild else []
    return b"/" + b"/".join(fixed), tuple(rf"re:\A{regex}/{below}\Z" for regex in regexes)


def _plain(part: bytes) -> bytes | None:
    """Return the one name that a part of a pattern fits; None if there may be several."""
    without = re.sub(rb"\\(.)", b"", part, flags=re.DOTALL)
    if any(char in without for char in (b"*", b"?", b"[", b"{", b"\\")):
        return None
    return re.sub(rb"\\(.)", rb"\1", part, flags=re.DOTALL)


def _exclude(other: Line, area: list[bytes], age: Age, lines: Sequence[Line]) -> list[str]:
    """Return the pattern that leaves to `other` what it is about, if that can lie in the area."""
    parts = _parts(other.path)
    if len(parts) <= len(area):
        return []
    fits = is_match if other.is_glob else bytes.__eq__
    if not all(fits(one, name) for one, name in zip(parts, area, strict=False)):
        return []
    rest = parts[len(area) :]
    if is_internal(b"/".join(rest)):
        return []  # no policy ever touches it
    plain = [_plain(part) if other.is_glob else part for part in rest]
    alone = other.type == "X" and _is_cleaned_alike(other, age, lines)
    if None not in plain and not alone:
        return ["/" + _glob_quoted(escape(b"/".join(name for name in plain if name is not None)))]
    regex = escaped_regex(b"/".join(rest)) if other.is_glob else re.escape(escape(b"/".join(rest)))
    return [rf"re:\A{regex}\Z" if alone else rf"re:\A{regex}(?:/.*)?\Z"]


def _is_cleaned_alike(exception: Line, age: Age, lines: Sequence[Line]) -> bool:
    """Whether what is below an `X` goes by the very conditions of the line that it is an exception of."""
    stamps = exception.age.file_stamps if exception.age else FILE_STAMPS
    keep = exception.age is not None and exception.age.keep_first_level
    in_force = age_in_force(exception, lines)
    return stamps == age.file_stamps and not keep and in_force is not None and in_force.after == age.after


def _glob_quoted(text: str) -> str:
    """Take the meaning from the signs of a policy's pattern."""
    return re.sub(r"([*?\[])", r"[\1]", text)


def _notes_of_cleaning(line: Line) -> Iterator[Note]:
    if line.type == "D":
        yield Note(line.number, "its age is a policy now; only the cleaner empties it at boot", False)


def _note(line: Line, lines: Sequence[Line]) -> Note:
    if line.type in "rR":
        return Note(line.number, "it removes whatever the age; only the cleaner does that", False)
    if line.type in "xX":
        return _note_of_exception(line, lines)
    if line.type in _CLEANING:
        return Note(line.number, "it names no age, or infinity: nothing is cleaned", True)
    return Note(line.number, f"type {line.type} makes or adjusts files: nothing is cleaned", True)


def _note_of_exception(line: Line, lines: Sequence[Line]) -> Note:
    if line.type == "x" and line.age is not None:
        return Note(line.number, "what it names is excluded; its own age is not obeyed", False)
    aged = [other.age for other in lines if other.type in _CLEANING and other.age is not None]
    if line.type == "X" and not all(_is_cleaned_alike(line, age, lines) for age in aged):
        return Note(
            line.number,
            "what is below it is kept too, where another age or other time stamps would count",
            False,
        )
    return Note(line.number, "what it names is excluded", True)


# From policies to lines


def lines_for(
    directory: bytes, *, age: timedelta, age_by: frozenset[str], exclude: Sequence[str]
) -> list[str]:
    """Write a policy of the rule `age` as lines: one that cleans, then one for each exception.

    Raises:
        ValueError: an exclude that tmpfiles.d cannot say; the message names it.
    """
    stamps = "" if age_by == FILE_STAMPS else "".join(sorted(age_by)) + ":"
    keep = "~" if FIRST_LEVEL in exclude else ""
    lines = [path_line("e", _quoted_glob(directory), f"{keep}{stamps}{format_age(age)}")]
    for pattern in exclude:
        if pattern != FIRST_LEVEL:
            below = _as_globs(pattern)
            lines += [path_line("x", _quoted_glob(directory).rstrip(b"/") + b"/" + one) for one in below]
    return lines


def path_line(kind: str, path: bytes, age: str = "-") -> str:
    """Write one line about `path`, which is a pattern if lines of this type have one."""
    word = escape(path).replace("%", "%%")
    if word != path.decode("latin1") or re.search(r"[\s'\"#]", word):
        word = '"' + word.replace('"', r"\x22") + '"'
    return f"{kind} {word} - - - {age} -"


def _quoted_glob(path: bytes) -> bytes:
    return re.sub(rb"([*?\[\\{])", rb"\\\1", path)


def _as_globs(pattern: str) -> list[bytes]:
    """Return the patterns of tmpfiles.d that together fit what an exclude fits.

    A star of ours fits a hidden name, theirs does not: such a name needs a pattern of its own.
    """
    if (
        pattern.startswith("re:")
        or "/" not in pattern.rstrip("/")
        or pattern.endswith("/")
        or "**" in pattern
    ):
        raise ValueError(f"tmpfiles.d cannot say {pattern!r}")
    names = [_variants(part, pattern) for part in pattern.removeprefix("/").split("/")]
    found = [b"/".join(choice) for choice in product(*names)]
    if len(found) > _MOST_LINES:
        raise ValueError(f"tmpfiles.d needs too many lines for {pattern!r}")
    return found


def _variants(part: str, pattern: str) -> list[bytes]:
    pieces = re.split(r"(\*|\[[*?\[]\])", part)
    # After a star one of these may be the end of an escape, of which tmpfiles.d knows nothing.
    after_star = [text for sign, text in zip(pieces[1::2], pieces[2::2], strict=True) if sign == "*"]
    is_unsure = any(text[:1] in _IN_ESCAPES for text in after_star if text)
    if is_unsure or any(char in piece for piece in pieces[::2] for char in "?["):
        raise ValueError(f"tmpfiles.d cannot say {pattern!r}")
    glob = b"".join(_glob_piece(piece) for piece in pieces)
    if pieces[0] or len(pieces) == 1 or pieces[1] != "*":
        return [glob]
    hidden = [b"." + glob]
    return [glob, *hidden, *([glob[1:]] if glob[1:2] == b"." else [])]


def _glob_piece(piece: str) -> bytes:
    if piece == "*":
        return b"*"
    return _quoted_glob(unescape(piece[1] if len(piece) == 3 and piece[0] == "[" else piece))
