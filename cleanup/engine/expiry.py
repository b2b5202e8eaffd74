"""The companion file that says when a cached result may go.

``NAME.result.json.lz4`` is accompanied by ``NAME.metadata.json``, a small JSON object with ``expires_at`` in
ISO 8601. Reading one is strict, because a wrong reading deletes somebody's result: whatever is not plainly a
moment is an error, and an error keeps the file.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import msgspec

from cleanup.engine.errors import PolicyInvalid

RESULT_SUFFIX = b".result.json.lz4"
METADATA_SUFFIX = b".metadata.json"

#: 64 KiB: hundreds of times what a companion needs; more is not a companion.
MAX_COMPANION_BYTES = 64 * 1024


class Expiry(msgspec.Struct, frozen=True, kw_only=True):
    """What a companion says: a moment (perhaps without a zone), or why there is none."""

    expires_at: datetime | None = None
    error: str | None = None


def companion_name(name: bytes) -> bytes | None:
    """Return the metadata name for a result's name or path, or None if it is not a result's."""
    stem = name.removesuffix(RESULT_SUFFIX)
    if stem == name or not stem or stem.endswith(b"/"):
        return None
    return stem + METADATA_SUFFIX


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _read_object(data: bytes) -> dict[str, object]:
    value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


#: JSON of these is read by two parsers alike; larger numbers and other alphabets are left to the strict one.
_USUAL_BYTES = 4096

_flat = msgspec.json.Decoder(dict[str, str | float | bool | None])


def _read_flat(data: bytes) -> dict[str, str | float | bool | None] | None:
    """Read the usual companion, a flat object in ASCII; None if it is not one, or not plainly a good one.

    Without a backslash every quotation mark begins or ends a string, so as many pairs of them as there are
    keys and texts mean that no key stands there twice.
    """
    if len(data) > _USUAL_BYTES or not data.isascii() or b"\\" in data:
        return None
    try:
        found = _flat.decode(data)
    except msgspec.MsgspecError:
        return None
    texts = [*map(type, found.values())].count(str)
    return found if data.count(b'"') == 2 * (len(found) + texts) else None


def _read_moment(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError("expires_at is not text")
    if "T" not in value.upper() and " " not in value.strip():
        raise ValueError("expires_at has no time of day")
    return datetime.fromisoformat(value)


def read_expiry(data: bytes) -> Expiry:
    """Read the content of a companion file; an unusable one is an answer, not an exception."""
    if len(data) > MAX_COMPANION_BYTES:
        return Expiry(error=f"larger than {MAX_COMPANION_BYTES} bytes")
    content: Mapping[str, object] | None = _read_flat(data)
    try:
        if content is None:
            content = _read_object(data)
    except (ValueError, RecursionError) as error:
        return Expiry(error=f"not usable JSON: {_short(error)}")
    if "expires_at" not in content:
        return Expiry(error="no expires_at")
    try:
        return Expiry(expires_at=_read_moment(content["expires_at"]))
    except ValueError as error:
        return Expiry(error=f"expires_at is not an ISO 8601 time: {_short(error)}")


def _short(error: BaseException) -> str:
    return ascii(str(error))[1:-1][:120]


def moment(expires_at: datetime, naive_timezone: tzinfo) -> datetime:
    """Place `expires_at` on the time line, in UTC.

    A time without a zone is read in `naive_timezone`; where clocks are set back and it happens twice, the
    later one counts, since the earlier could delete an hour too soon.

    Raises:
        OverflowError: outside the years 1 to 9999 in UTC.
    """
    if expires_at.tzinfo is UTC:
        return expires_at
    if expires_at.tzinfo is not None:
        return expires_at.astimezone(UTC)
    placed = expires_at.replace(tzinfo=naive_timezone)
    return max(placed.replace(fold=0).astimezone(UTC), placed.replace(fold=1).astimezone(UTC))


_OFFSET = re.compile(r"([+-])([0-9]{2}):([0-9]{2})")


def zone_name(zone: tzinfo) -> str:
    """Write `zone` as text: an IANA name or an offset such as ``+02:00``.

    Raises:
        PolicyInvalid: neither a ZoneInfo with a name nor a fixed offset of whole minutes.
    """
    if isinstance(zone, ZoneInfo) and zone.key:
        return zone.key
    if isinstance(zone, timezone):
        minutes, rest = divmod(zone.utcoffset(None), timedelta(minutes=1))
        if not rest:
            sign = "-" if minutes < 0 else "+"
            return "UTC" if not minutes else f"{sign}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    raise PolicyInvalid(f"naive_timezone {zone!r} has no name")


def zone_from_name(name: str) -> tzinfo:
    """Read what `zone_name` wrote.

    Raises:
        PolicyInvalid: an unknown zone.
    """
    if name == "UTC":
        return UTC
    offset = _OFFSET.fullmatch(name)
    if offset:
        minutes = int(offset[2]) * 60 + int(offset[3])
        if minutes < 24 * 60:
            return timezone(timedelta(minutes=-minutes if offset[1] == "-" else minutes))
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:  # KeyError: ZoneInfoNotFoundError
        raise PolicyInvalid(f"unknown time zone {name!r}") from error
