"""What the headers of tus say: numbers, metadata, checksums. Pure: text in, values or a refusal out."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime

from cleanup.staging.errors import BadValue, TooLarge

#: Extensions of the protocol that are spoken here.
EXTENSIONS = "creation,creation-with-upload,expiration,checksum,termination"
#: With which the sum of a part can be told, and how many bytes it has.
ALGORITHMS = {"sha1": hashlib.sha1(usedforsecurity=False).digest_size, "sha256": hashlib.sha256().digest_size}
#: Characters and pairs of the metadata of one upload.
METADATA, PAIRS = 4_096, 32

_NUMBER = re.compile(r"[0-9]+")
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,100}")
#: Above this nothing is a number of bytes: PostgreSQL's BIGINT has 19 digits.
_DIGITS = 18


def number_of(headers: Mapping[str, str], name: str) -> int:
    """Return a header as a number of bytes.

    Raises:
        BadValue: it is missing, repeated, or no number.
        TooLarge: nothing has so many bytes.
    """
    text = headers.get(name, "")
    if not _NUMBER.fullmatch(text):
        raise BadValue(f"{name} must be a whole number of bytes")
    if len(text) > _DIGITS:
        raise TooLarge(f"{name} is beyond any file")
    return int(text)


def metadata_of(text: str) -> dict[str, str]:
    """Return the pairs of an Upload-Metadata.

    Raises:
        BadValue: it is not a list of keys with base64 of UTF-8, is too long, or says something twice.
    """
    if len(text) > METADATA:
        raise BadValue(f"Upload-Metadata has at most {METADATA} characters")
    pairs = [pair.strip(" ") for pair in text.split(",")] if text.strip(" ") else []
    if len(pairs) > PAIRS:
        raise BadValue(f"Upload-Metadata has at most {PAIRS} pairs")
    found: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition(" ")
        if not _KEY.fullmatch(key) or key in found:
            raise BadValue("Upload-Metadata must be pairs of a key, which is there once, and a value")
        found[key] = _text_of(key, value)
    return found


def _text_of(key: str, value: str) -> str:
    try:
        text = base64.b64decode(value.encode("ascii"), validate=True).decode("utf-8")
    except (ValueError, binascii.Error) as error:
        raise BadValue(f"Upload-Metadata: the value of {key} must be base64 of UTF-8") from error
    if "\0" in text:  # PostgreSQL holds none, not even in what it only compares
        raise BadValue(f"Upload-Metadata: the value of {key} must hold no NUL")
    return text


def checksum_of(text: str) -> tuple[str, bytes]:
    """Return algorithm and sum of an Upload-Checksum.

    Raises:
        BadValue: another algorithm, or no such sum.
    """
    algorithm, _, given = text.partition(" ")
    if algorithm not in ALGORITHMS:
        raise BadValue(f"Upload-Checksum: the algorithm is one of {', '.join(ALGORITHMS)}")
    try:
        found = base64.b64decode(given.encode("ascii"), validate=True)
    except (ValueError, binascii.Error):
        found = b""
    if len(found) != ALGORITHMS[algorithm]:
        raise BadValue(f"Upload-Checksum: not a sum of {algorithm} in base64")
    return algorithm, found


def date_of(moment: datetime) -> str:
    """Return a moment as HTTP writes it."""
    return format_datetime(moment.astimezone(UTC), usegmt=True)
