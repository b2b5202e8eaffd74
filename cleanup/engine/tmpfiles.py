"""The format of tmpfiles.d: lines of text become lines that mean something.

    type path mode user group age argument        d /srv/stage/rejected 0755 root root m:2d

The rules of systemd are followed to the letter: words with quotes and C escapes, specifiers (``%t``), ages
with ``~`` and an age-by (``aM:10d``), modifiers of the type, `boot` lines, and of two lines for one path that
do not agree the first counts. A line that cannot be read is a `Trouble` with its number, and the others
count. Nothing here touches a disk: specifiers and the ids of users come from the caller.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta

import msgspec

from cleanup.engine.ages import parse_age
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.globs import is_match

__all__ = ["Config", "Line", "Trouble", "read"]

#: Types whose path is a pattern; the others name one path.
GLOB_TYPES = frozenset("wetTaAhHxXrRzZm")
PATH_TYPES = frozenset("fFdDvqQpLcbC")
#: Types that make, clean or remove what is there; any two such lines for one path must agree.
OWNING_TYPES = frozenset("fFdDvqQpLcbCwexXrR")
#: Types whose age cleans what lies below their path.
AGING_TYPES = frozenset("dDvqQCexX")
#: Types that make no sense without an argument.
_NEEDS_ARGUMENT = frozenset("wcbtTaAhH")
_MODIFIERS = frozenset("!+-=~^")

#: Every stamp for files; for directories all but c, since removing what is inside changes it.
FILE_STAMPS = frozenset("abcm")
DIRECTORY_STAMPS = frozenset("abm")

_BLANK = b" \t\n\r"
_SIMPLE_ESCAPES = {
    ord("a"): b"\a", ord("b"): b"\b", ord("f"): b"\f", ord("n"): b"\n", ord("r"): b"\r", ord("t"): b"\t",
    ord("v"): b"\v", ord("\\"): b"\\", ord('"'): b'"', ord("'"): b"'", ord("s"): b" ",
}  # fmt: skip
_CODED_ESCAPE = re.compile(rb"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})")

#: Gives the number of a user or group name, or None if there is no such name.
Resolve = Callable[[str], int | None]


class Age(msgspec.Struct, frozen=True, kw_only=True):
    """The age column: what is older than this, by all of these stamps, may go."""

    after: timedelta | None  #: None: never
    keep_first_level: bool = False  #: ``~``: what stands right below the path stays
    file_stamps: frozenset[str] = FILE_STAMPS
    directory_stamps: frozenset[str] = DIRECTORY_STAMPS


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line that was understood."""

    number: int  #: in its text, from 1
    type: str  #: one letter
    modifiers: str = ""
    path: bytes  #: absolute, specifiers expanded
    mode: str = ""
    user: str = ""
    group: str = ""
    argument: bytes = b""
    age: Age | None = None

    @property
    def is_glob(self) -> bool:
        """Whether `path` is a pattern."""
        return self.type in GLOB_TYPES

    @property
    def claims(self) -> tuple[object, ...]:
        """What must be equal in two lines that own one path."""
        return self.argument, self.user, self.group, self.mode, self.age


class Trouble(msgspec.Struct, frozen=True):
    """A line that does not count, and why."""

    number: int
    text: str  #: the line, as far as it is text
    why: str
    is_wrong: bool = True  #: False: nothing is wrong with it, it only does not count here and now


class Config(msgspec.Struct, frozen=True):
    """What a text says."""

    lines: tuple[Line, ...]
    troubles: tuple[Trouble, ...] = ()


class _Unreadable(Exception):
    """A line breaks the rules; the text says how."""


class _OnlyAtBoot(_Unreadable):
    """A line that counts at another moment."""


def read(
    text: bytes,
    *,
    boot: bool = False,
    specifiers: Mapping[str, str | None] | None = None,
    user_id: Resolve | None = None,
    group_id: Resolve | None = None,
) -> Config:
    """Read a text in the format of tmpfiles.d.

    Args:
        text: one file, or several after one another: a path belongs to the line that comes first.
        boot: whether lines marked ``!``, which are safe only while the system starts, count.
        specifiers: letter to its value; None where the value cannot be told here, which leaves the line out.
            A letter that is not a key stays as it is written.
        user_id: refuses lines of users that do not exist; without it every user is believed.
        group_id: the same for groups.
    """
    reader = _Reader(boot, specifiers or {}, user_id, group_id)
    for number, raw in enumerate(text.split(b"\n"), 1):
        stripped = raw.strip(_BLANK)
        if stripped and not stripped.startswith(b"#"):
            reader.take(number, stripped)
    return Config(tuple(reader.lines), tuple(reader.troubles))


class _Reader:
    """Takes one line after the other."""

    def __init__(
        self,
        boot: bool,
        specifiers: Mapping[str, str | None],
        user_id: Resolve | None,
        group_id: Resolve | None,
    ) -> None:
        self.boot = boot
        self.specifiers = specifiers
        self.user_id, self.group_id = user_id, group_id
        self.lines: list[Line] = []
        self.troubles: list[Trouble] = []
        self._by_path: dict[tuple[bool, bytes], list[Line]] = {}

    def take(self, number: int, raw: bytes) -> None:
        """Keep the line, or say why not."""
        try:
            line = self._line(number, raw)
            self._check_duplicate(line)
        except (_Unreadable, PolicyInvalid) as error:
            text, is_wrong = raw.decode("utf-8", "backslashreplace"), not isinstance(error, _OnlyAtBoot)
            self.troubles.append(Trouble(number, text, str(error), is_wrong))
            return
        self._by_path.setdefault((line.is_glob, line.path), []).append(line)
        self.lines.append(line)

    def _check_duplicate(self, line: Line) -> None:
        for former in self._by_path.get((line.is_glob, line.path), ()):
            both_own = former.type in OWNING_TYPES and line.type in OWNING_TYPES
            appends = all(one.type == "w" and "+" in one.modifiers for one in (former, line))
            if both_own and not appends and former.claims != line.claims:
                raise _Unreadable(f"line {former.number} is about the same path and says something else")

    def _line(self, number: int, raw: bytes) -> Line:
        words, argument = _words(raw, 6)
        if len(words) < 2:
            raise _Unreadable("a line has at least a type and a path")
        kind, path, mode, user, group, age = [*words, b"", b"", b"", b""][:6]
        letter, modifiers = _type(kind)
        if "!" in modifiers and not self.boot:
            raise _OnlyAtBoot("it counts only while the system starts")
        if letter in _NEEDS_ARGUMENT and argument in (b"", b"-"):
            raise _Unreadable(f"type {letter} needs an argument")
        self._check_owner("user", _given(user), self.user_id)
        self._check_owner("group", _given(group), self.group_id)
        return Line(
            number=number,
            type=letter,
            modifiers=modifiers,
            path=_absolute(self._expand(path)),
            mode=_mode(_given(mode)),
            argument=b"" if argument == b"-" else argument,
            user=_given(user),
            group=_given(group),
            age=_age(_given(age)),
        )

    def _check_owner(self, what: str, given: str, resolve: Resolve | None) -> None:
        name = given.removeprefix(":")
        if name and not name.isdecimal() and resolve is not None and resolve(name) is None:
            raise _Unreadable(f"there is no {what} {name!r}")

    def _expand(self, path: bytes) -> bytes:
        """Put in the values of specifiers; `%%` is a percent sign, an unknown letter stays."""
        pieces = re.split(rb"%(.)", path, flags=re.DOTALL)
        for at in range(1, len(pieces), 2):
            pieces[at] = self._value(pieces[at])
        return b"".join(pieces)

    def _value(self, letter: bytes) -> bytes:
        key = letter.decode("latin1")
        if key == "%":
            return b"%"
        if key not in self.specifiers:
            return b"%" + letter
        value = self.specifiers[key]
        if value is None:
            raise _Unreadable(f"%{key} cannot be told on this system")
        return value.encode("utf-8", "surrogateescape")


def _given(word: bytes) -> str:
    """Return a word as text; a dash is nothing."""
    return "" if word == b"-" else word.decode("utf-8", "surrogateescape")


def _type(word: bytes) -> tuple[str, str]:
    text = word.decode("utf-8", "replace")
    letter, modifiers = text[:1], text[1:]
    if letter not in GLOB_TYPES | PATH_TYPES or not letter:
        raise _Unreadable(f"unknown type {text!r}")
    if len(set(modifiers)) != len(modifiers) or not set(modifiers) <= _MODIFIERS:
        raise _Unreadable(f"unknown modifiers in {text!r}")
    return letter, modifiers


def _absolute(path: bytes) -> bytes:
    """Return the path without doubled and trailing slashes and without ``.``."""
    if not path.startswith(b"/"):
        raise _Unreadable("the path does not begin with a slash")
    if len(path) >= 4096:
        raise _Unreadable("the path is longer than 4095 bytes")
    plain = b"/" + b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))
    if plain.startswith(b"/var/run/"):
        # /var/run is the former name of /run; two lines for one path must be seen to be that.
        plain = plain.removeprefix(b"/var")
    return plain


def _mode(text: str) -> str:
    digits = text.lstrip("~:")
    if text and not (re.fullmatch("[0-7]{1,8}", digits) and int(digits, 8) <= 0o7777):
        raise _Unreadable(f"invalid mode {text!r}")
    return text


def _age(text: str) -> Age | None:
    if not text:
        return None
    keep, text = text.startswith("~"), text.removeprefix("~")
    stamps, colon, length = text.partition(":")
    files, directories = _stamps(stamps) if colon else (FILE_STAMPS, DIRECTORY_STAMPS)
    length = length if colon else text
    after = None if length.strip() == "infinity" else parse_age(length)
    return Age(after=after, keep_first_level=keep, file_stamps=files, directory_stamps=directories)


def _stamps(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the stamps of files and of directories; where none is named, those of a line without."""
    letters = frozenset(text) - frozenset(" \t\n\r")
    if not letters or not letters <= frozenset("abcmABCM"):
        raise _Unreadable(f"invalid age-by {text!r}: letters of abcm for files, ABCM for directories")
    files = frozenset(letter for letter in letters if letter.islower())
    directories = frozenset(letter.lower() for letter in letters if letter.isupper())
    return files or FILE_STAMPS, directories or DIRECTORY_STAMPS


def _words(line: bytes, most: int) -> tuple[list[bytes], bytes]:
    """Split off up to `most` words, with quotes and escapes; return them and the rest as it stands."""
    words: list[bytes] = []
    rest = line.lstrip(_BLANK)
    while rest and len(words) < most:
        word, rest = _word(rest)
        words.append(word)
        rest = rest.lstrip(_BLANK)
    return words, rest


def _word(text: bytes) -> tuple[bytes, bytes]:
    out, at, quote = bytearray(), 0, None
    while at < len(text):
        char = text[at]
        if char == ord("\\"):
            unescaped, length = _unescape(text, at + 1)
            out += unescaped
            at += 1 + length
            continue
        if quote is None and char in _BLANK:
            break
        if quote is None and char in b"'\"":
            quote = char
        elif char == quote:
            quote = None
        else:
            out.append(char)
        at += 1
    if quote is not None:
        raise _Unreadable("a quote is not closed")
    return bytes(out), text[at:]


def _unescape(text: bytes, at: int) -> tuple[bytes, int]:
    """Return what the escape whose backslash stands before `at` means, and its length without it."""
    simple = _SIMPLE_ESCAPES.get(text[at]) if at < len(text) else None
    if simple is not None:
        return simple, 1
    found = _CODED_ESCAPE.match(text, at)
    if found is None:
        raise _Unreadable("an escape is not understood")
    code, length = _code(found), found.end() - at
    if code == 0:
        raise _Unreadable("an escape stands for NUL")
    if found[1] is not None or found[4] is not None:
        if code > 255:
            raise _Unreadable("an octal escape is above 255")
        return bytes([code]), length
    try:
        return chr(code).encode(), length
    except (ValueError, UnicodeEncodeError) as error:
        raise _Unreadable("an escape names no character") from error


def _code(found: "re.Match[bytes]") -> int:
    in_hex = found[1] or found[2] or found[3]
    return int(in_hex, 16) if in_hex is not None else int(found[4], 8)


def aging_lines(config: Config) -> Iterator[Line]:
    """Yield the lines that clean something by its age."""
    for line in config.lines:
        if line.age is not None and line.age.after is not None and line.type in AGING_TYPES:
            yield line


def age_in_force(line: Line, lines: Sequence[Line]) -> Age | None:
    """Return the age by which a line cleans: an `X` has that of a directory above it, if there is one."""
    parent: Line | None = None
    if line.type == "X":
        for other in lines:
            if other.type in "dDvqQ" and _is_nearer(line.path, other.path, parent):
                parent = other
    return parent.age if parent is not None and parent.age is not None else line.age


def _is_nearer(path: bytes, directory: bytes, former: Line | None) -> bool:
    """Whether an exception for `path` has its age rather from the line of `directory` than from `former`."""
    if directory == path:
        return True
    if former is None:
        return _is_below(path, directory)
    return _is_below(directory, former.path) and is_match(path, directory)


def _is_below(path: bytes, directory: bytes) -> bool:
    """Whether `path` is `directory` or lies below it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")
