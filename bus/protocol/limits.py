"""What may come in: the one gate for all JSON, and rates.

`strict_json` stands before every door (socket, HTTP, command line); `check_value` says the same of a Python
value that is about to be published. Both databases store what passes, so they must not disagree about it
later: PostgreSQL refuses NUL and lone surrogates, JSON has no NaN, and readers differ about repeated keys
and huge integers. `TokenBucket` decides about rates; the clock is an argument.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

import msgspec

from bus.protocol.errors import BadRequest

MAX_BYTES = 262_144
MAX_DEPTH = 32

#: Integers outside of these do not survive in readers with 64 bits.
MIN_INT = -(2**63)
MAX_INT = 2**63 - 1

_decode = msgspec.json.Decoder().decode
_decode_lines = msgspec.json.Decoder().decode_lines
_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines

#: For `bytes.translate`: digits become zeros, opening brackets braces, and all else but line ends blanks.
_SHAPE = bytes.maketrans(b"123456789[", b"000000000{").translate(
    bytes(code if code in b"0{\n" else ord(" ") for code in range(256))
)
#: The least that an integer outside of 64 bits needs.
_LONG_NUMBER = b"0" * 19


def strict_json(raw: bytes | str, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Decode one JSON value, or say why it is refused.

    Refused: more than `max_bytes`, nested deeper than `max_depth`, NaN or Infinity, NUL, a lone surrogate,
    bytes that are no UTF-8, a repeated key in an object, an integer outside of 64 signed bits.

    Raises:
        BadRequest: with the reason.
    """
    data = _as_bytes(raw)
    if len(data) > max_bytes:
        raise BadRequest(f"more than {max_bytes} bytes")
    try:
        value = _decode(data)
    except RecursionError:
        raise BadRequest(f"nested deeper than {max_depth}") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadRequest(f"not JSON: {error}"[:200]) from None
    if not _is_plainly_sound(data, value, max_depth):
        check_value(value, max_depth)
        json.loads(data, object_pairs_hook=_refuse_repeated_keys)
    return value


def _is_plainly_sound(data: bytes, value: Any, max_depth: int) -> bool:
    """Tell from the bytes alone that nothing is to be refused; most texts show it, in a third of the time.

    Decoding has refused what is no JSON or no UTF-8, and numbers that no float holds. NUL and surrogates
    need a `\\u`, deep nesting as many brackets, a large integer 19 digits; and a repeated key was dropped
    with its quotes, so that they are fewer in the value's own JSON.
    """
    shape = data.translate(_SHAPE)
    return (
        b"\\u" not in data
        and shape.count(b"{") <= max_depth
        and _LONG_NUMBER not in shape
        and ((again := _encode(value)) == data or again.count(b'"') == data.count(b'"'))
    )


def sound_lines(data: bytes, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> list[Any] | None:
    """Decode JSON values, one a line, if a look at all together shows that `strict_json` would take each.

    That is in half of the time, if they are written as most clients write them: without blanks. None: take
    them one by one.
    """
    try:
        values = _decode_lines(data)
        again = _encode_lines(values)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    # Written the same again, so no key was dropped; for the rest see `_is_plainly_sound`.
    if again[:-1] != data or b"\\u" in data:
        return None
    shape = data.translate(_SHAPE)
    lines = shape.split(b"\n")
    is_sound = _LONG_NUMBER not in shape and all(
        len(line) <= max_bytes and line.count(b"{") <= max_depth for line in lines
    )
    return values if is_sound else None


def _as_bytes(raw: bytes | str) -> bytes:
    if isinstance(raw, bytes):
        return raw
    try:
        return raw.encode()
    except UnicodeEncodeError:
        raise BadRequest("a lone surrogate is no text") from None


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise BadRequest("an object has a key twice")


def check_value(value: Any, max_depth: int = MAX_DEPTH) -> None:
    """Check a Python value against the rules of `strict_json`.

    Raises:
        BadRequest: JSON, or one of the databases, cannot hold it.
    """
    # Every event passes here, so all is decided in one loop, and all texts together at the end.
    texts: list[str] = []
    depth = 0
    level = [value]
    while level:
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                texts.append(item)
            elif kind is int:
                if not MIN_INT <= item <= MAX_INT:
                    raise BadRequest("an integer has more than 64 bits")
            elif kind is float:
                if not isfinite(item):
                    raise BadRequest("NaN and Infinity are not JSON")
            elif kind in _CONTAINERS and depth < max_depth:
                if kind is dict:
                    texts += item
                    item = item.values()
                below += item
            elif item is not None and kind is not bool:
                raise BadRequest(_why_refused(kind, max_depth))
        level = below
        depth += 1
    _check_texts(texts)


_CONTAINERS = frozenset({dict, list, tuple})
_ONLY_TEXT = {str}


def _why_refused(kind: type, max_depth: int) -> str:
    if kind in _CONTAINERS:
        return f"nested deeper than {max_depth}"
    return f"{kind.__name__} is no JSON type"


def _check_texts(texts: list[str]) -> None:
    """Check all strings and keys of a value."""
    if not texts:
        return
    if set(map(type, texts)) != _ONLY_TEXT:
        raise BadRequest("a key of an object is a string")
    text = "".join(texts)
    if "\0" in text:
        raise BadRequest("a NUL character cannot be stored")
    if not text.isascii():
        _as_bytes(text)


class TokenBucket:
    """A rate with a burst: `rate` tokens a second, at most `burst` saved up. Not for several threads.

    Time is what the caller says it is (seconds, any origin); a clock that goes backwards gives no tokens.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, *, rate: float, burst: float, now: float) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError("a bucket needs a rate above 0 and a burst of at least 1")
        self.rate = rate
        self.burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float, tokens: float = 1.0) -> float:
        """Take `tokens` and return 0.0, or take none and return the seconds until they will be there."""
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens >= tokens:
            self._tokens -= tokens
            return 0.0
        return (tokens - self._tokens) / self.rate
