"""Which files are taken: by the name, by the type that name and leading bytes agree on, by the size.

Pure: text and bytes come in, a `FileType` or a refusal goes out. A type is what its extension *and* its first
bytes say; a name is one component that every system can hold. Nothing is ever rewritten so that it fits: what
does not fit is refused, with words that say what was expected.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cleanup.staging.errors import BadName, BadValue, Refused, TooLarge, WrongDigest, WrongType

__all__ = [
    "HEAD",
    "NAME_BYTES",
    "BadName",
    "BadValue",
    "FileType",
    "Refused",
    "TooLarge",
    "WrongDigest",
    "WrongType",
    "check_digest",
    "check_head",
    "check_size",
    "check_task_id",
    "check_type",
    "safe_name",
    "type_of",
]

#: So much of the beginning of a file is looked at (bytes).
HEAD = 4096

#: 200 bytes: with a prefix or a suffix still below the 255 that file systems hold.
NAME_BYTES = 200

_RESERVED = ".trash"
_RESERVED_PREFIX = ".staging-"

#: Characters that turn the reading direction: a name that shows another extension than it has.
_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FORBIDDEN_KINDS = frozenset({"Cc", "Cs", "Zl", "Zp"})

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}")

Test = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileType:
    """What an extension stands for."""

    #: With its dot, in lower case.
    suffix: str
    content_type: str
    #: How such a file begins, in words that follow "begins with".
    begins: str
    #: Whether the first `HEAD` bytes of a file can be those of this type.
    fits: Test


def safe_name(name: str) -> str:
    """Return `name` if it is the name of a file and nothing else.

    Raises:
        BadName: it is empty, a path, reserved, too long, or holds what not every system can.
    """
    problem = _problem_with(name)
    if problem:
        raise BadName(f"the file name {problem}")
    return name


def _problem_with(name: str) -> str:
    if not name or name in (".", ".."):
        return "is missing"
    if "/" in name or "\\" in name:
        return "must hold no slash and no backslash"
    if any(unicodedata.category(char) in _FORBIDDEN_KINDS or char in _TURNING for char in name):
        return "must hold no control characters"
    if name != name.strip():
        return "must neither begin nor end with a space"
    if len(name.encode()) > NAME_BYTES:
        return f"must have at most {NAME_BYTES} bytes"
    if not unicodedata.is_normalized("NFC", name):
        return "must be in the Unicode form NFC"
    if name.lower() == _RESERVED or name.lower().startswith(_RESERVED_PREFIX):
        return "is reserved"
    return ""


def check_size(size: int, limit: int) -> None:
    """Refuse a file of `size` bytes if that is no size, or above `limit`.

    Raises:
        BadValue: below zero.
        TooLarge: above the limit.
    """
    if size < 0:
        raise BadValue("a file has no fewer than 0 bytes")
    if size > limit:
        raise TooLarge(f"a file has at most {limit} bytes; this one has {size}")


def check_digest(sha256: str) -> str:
    """Return a SHA-256 in lower-case hexadecimal; empty stays empty.

    Raises:
        BadValue: it is none.
    """
    found = sha256.lower()
    if found and not _SHA256.fullmatch(found):
        raise BadValue("a SHA-256 has 64 hexadecimal digits")
    return found


def check_task_id(task_id: str) -> str:
    """Return the id of a task; empty stays empty.

    Raises:
        BadValue: too long, or of other characters than ids have.
    """
    if task_id and not _TASK_ID.fullmatch(task_id):
        raise BadValue("a task has an id of at most 200 letters, digits and . _ : @ -")
    return task_id


def check_type(name: str, head: bytes, *, size: int, allowed: Sequence[str] = ()) -> FileType:
    """Return the type of a file called `name` that begins with `head`.

    Args:
        name: a safe one.
        head: its first `HEAD` bytes, or all of it if it is shorter.
        size: of the whole file.
        allowed: extensions without dot; empty = all that are known. `*` stands for all that are known, and
            one that is not known is taken by its extension alone.

    Raises:
        WrongType: not taken, or not what its name says.
    """
    kind = type_of(name, allowed=allowed)
    check_head(kind, head, size=size)
    return kind


def type_of(name: str, *, allowed: Sequence[str] = ()) -> FileType:
    """Return the type that the extension of `name` stands for, before a byte of it has come.

    Raises:
        WrongType: not taken.
    """
    suffix = _suffix(name)
    wanted = [one.lower().lstrip(".") for one in allowed] or ["*"]
    known = TYPES.get(suffix)
    if suffix and (suffix in wanted or (known is not None and "*" in wanted)):
        return known or _unknown(suffix)
    shown = f".{suffix}" if suffix else "without an extension"
    raise WrongType(f"files {shown} are not taken here; taken are {', '.join(_taken(wanted))}")


def check_head(kind: FileType, head: bytes, *, size: int) -> None:
    """Refuse a file whose first bytes are not those of its type.

    Raises:
        WrongType: with what was expected.
    """
    whole = head if size <= len(head) else _without_torn_end(head)
    if not kind.fits(whole):
        raise WrongType(f"a {kind.suffix} file begins with {kind.begins}; this one does not")


def _suffix(name: str) -> str:
    """The extension without its dot, in lower case; a name that is nothing but a dot and a word has none."""
    stem, dot, suffix = name.rpartition(".")
    return suffix.lower() if dot and stem else ""


def _taken(wanted: Sequence[str]) -> list[str]:
    named = {one for one in wanted if one != "*"}
    return sorted(named | (set(TYPES) if "*" in wanted else set()))


def _unknown(suffix: str) -> FileType:
    if not suffix.isascii() or not suffix.isalnum() or len(suffix) > 20:
        raise WrongType("an extension has at most 20 letters and digits")
    return FileType(
        suffix=f".{suffix}", content_type="application/octet-stream", begins="anything", fits=lambda _: True
    )


def _without_torn_end(head: bytes) -> bytes:
    """Drop the last character of a beginning if it was cut within."""
    for back, byte in enumerate(reversed(head[-3:]), start=1):
        if 0xC2 <= byte <= 0xF4:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return head[:-back] if back < needed else head
    return head


# How files begin


def _begins(*beginnings: bytes, at: int = 0) -> Test:
    return lambda head: head[at:].startswith(beginnings)


def _riff(form: bytes) -> Test:
    return lambda head: head[:4] == b"RIFF" and head[8:12] == form


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _first_of(characters: bytes) -> Test:
    """Text whose first character that is no blank is one of `characters`."""

    def fits(head: bytes) -> bool:
        start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return _is_text(head) and bool(start) and start in characters

    return fits


def _is_mp3(head: bytes) -> bool:
    """A tag, or a frame: eleven bits set, then a version and a layer that exist."""
    frame = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    return head.startswith(b"ID3") or (frame and head[1] & 0x18 != 0x08 and head[1] & 0x06 != 0)


_TEXT = ("text in UTF-8 without NUL", _is_text)
_JSON = ("JSON in UTF-8", _first_of(b'{["-0123456789tfn'))
_XML = ("< and text in UTF-8", _first_of(b"<"))
_ZIP = ("PK\\x03\\x04, as ZIP archives do", _begins(b"PK\x03\x04", b"PK\x05\x06"))
_MP4 = ("a box ftyp", _begins(b"ftyp", at=4))
_OFFICE = "application/vnd.openxmlformats-officedocument"

_TABLE: tuple[tuple[str, str, tuple[str, Test]], ...] = (
    ("txt", "text/plain", _TEXT),
    ("log", "text/plain", _TEXT),
    ("md", "text/markdown", _TEXT),
    ("rst", "text/x-rst", _TEXT),
    ("csv", "text/csv", _TEXT),
    ("tsv", "text/tab-separated-values", _TEXT),
    ("html", "text/html", _TEXT),
    ("htm", "text/html", _TEXT),
    ("yaml", "application/yaml", _TEXT),
    ("yml", "application/yaml", _TEXT),
    ("toml", "application/toml", _TEXT),
    ("xml", "application/xml", _XML),
    ("json", "application/json", _JSON),
    ("jsonl", "application/jsonl", _JSON),
    ("ndjson", "application/x-ndjson", _JSON),
    ("pdf", "application/pdf", ("%PDF-", _begins(b"%PDF-"))),
    ("png", "image/png", ("\\x89PNG", _begins(b"\x89PNG\r\n\x1a\n"))),
    ("jpg", "image/jpeg", ("\\xff\\xd8\\xff", _begins(b"\xff\xd8\xff"))),
    ("jpeg", "image/jpeg", ("\\xff\\xd8\\xff", _begins(b"\xff\xd8\xff"))),
    ("gif", "image/gif", ("GIF87a or GIF89a", _begins(b"GIF87a", b"GIF89a"))),
    ("webp", "image/webp", ("RIFF and WEBP", _riff(b"WEBP"))),
    ("tif", "image/tiff", ("II*\\x00 or MM\\x00*", _begins(b"II*\x00", b"MM\x00*"))),
    ("tiff", "image/tiff", ("II*\\x00 or MM\\x00*", _begins(b"II*\x00", b"MM\x00*"))),
    ("zip", "application/zip", _ZIP),
    ("docx", f"{_OFFICE}.wordprocessingml.document", _ZIP),
    ("xlsx", f"{_OFFICE}.spreadsheetml.sheet", _ZIP),
    ("pptx", f"{_OFFICE}.presentationml.presentation", _ZIP),
    ("epub", "application/epub+zip", _ZIP),
    ("tar", "application/x-tar", ("a header with ustar", _begins(b"ustar", at=257))),
    ("gz", "application/gzip", ("\\x1f\\x8b", _begins(b"\x1f\x8b"))),
    ("bz2", "application/x-bzip2", ("BZh", _begins(b"BZh"))),
    ("xz", "application/x-xz", ("\\xfd7zXZ", _begins(b"\xfd7zXZ\x00"))),
    ("zst", "application/zstd", ("\\x28\\xb5\\x2f\\xfd", _begins(b"\x28\xb5\x2f\xfd"))),
    ("lz4", "application/x-lz4", ("\\x04\\x22\\x4d\\x18", _begins(b"\x04\x22\x4d\x18"))),
    ("parquet", "application/vnd.apache.parquet", ("PAR1", _begins(b"PAR1"))),
    ("mp3", "audio/mpeg", ("ID3 or an MPEG frame", _is_mp3)),
    ("wav", "audio/wav", ("RIFF and WAVE", _riff(b"WAVE"))),
    ("ogg", "audio/ogg", ("OggS", _begins(b"OggS"))),
    ("flac", "audio/flac", ("fLaC", _begins(b"fLaC"))),
    ("mp4", "video/mp4", _MP4),
    ("m4a", "audio/mp4", _MP4),
    ("webm", "video/webm", ("\\x1a\\x45\\xdf\\xa3", _begins(b"\x1a\x45\xdf\xa3"))),
)

#: Extension without dot -> type.
TYPES: dict[str, FileType] = {
    suffix: FileType(suffix=f".{suffix}", content_type=content_type, begins=begins, fits=fits)
    for suffix, content_type, (begins, fits) in _TABLE
}
