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
    colons = check_value(value, max_depth)
    # Where nothing is written as \u, the value has all colons of the text, unless a key was dropped.
    if b"\\u" in data or colons != data.count(b":"):
        json.loads(data, object_pairs_hook=_refuse_repeated_keys)
    return value


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


def check_value(value: Any, max_depth: int = MAX_DEPTH) -> int:
    """Check a Python value against the rules of `strict_json`; return how many colons its JSON will have.

    Raises:
        BadRequest: JSON, or one of the databases, cannot hold it.
    """
    # Every event passes here, so all is decided in one loop, and all texts together at the end.
    texts: list[str] = []
    colons = depth = 0
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
                    colons += len(item)
                    texts += item
                    item = item.values()
                below += item
            elif item is not None and kind is not bool:
                raise BadRequest(_why_refused(kind, max_depth))
        level = below
        depth += 1
    return colons + _check_texts(texts)


_CONTAINERS = frozenset({dict, list, tuple})
_ONLY_TEXT = {str}


def _why_refused(kind: type, max_depth: int) -> str:
    if kind in _CONTAINERS:
        return f"nested deeper than {max_depth}"
    return f"{kind.__name__} is no JSON type"


def _check_texts(texts: list[str]) -> int:
    """Check all strings and keys of a value; return how many colons are in them."""
    if not texts:
        return 0
    if set(map(type, texts)) != _ONLY_TEXT:
        raise BadRequest("a key of an object is a string")
    text = "".join(texts)
    if "\0" in text:
        raise BadRequest("a NUL character cannot be stored")
    if not text.isascii():
        _as_bytes(text)
    return text.count(":")


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
