"""The quick way to read a companion says what the strict one says, whatever stands in it."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cleanup.engine.expiry import read_expiry

#: White space behind the object changes nothing, but what is so long is read in the strict way.
LONG = b" " * 5000

SEEDS = [
    b'{"task_id": "x", "expires_at": "2020-01-01T00:00:00+00:00", "size": 7}',
    b'{"expires_at":"2020-01-01 00:00:00","a":null,"b":true,"c":1.5e3,"a":"q"}',
    b'{"a":1,"a":2,"expires_at":"2020-01-01T00:00:00Z"}',
    b'{"expires_at":"2020-01-01T00:00:00Z","expires_at":"2030-01-01T00:00:00Z"}',
    b'{"a":-0,"b":123456789012345678901234567890,"c":1e400,"d":NaN,"expires_at":"2020-01-01T00:00:00Z"}',
]
LETTERS = b'{}[]",:\\ \t\n\r\x00\x01\x0b\x1f\x7f\xff0123456789eE+-.nulltrfasNIyZT'


def mangled(seed: int) -> bytes:
    """One of the above with a few letters changed, added or left out."""
    draw = random.Random(seed)
    data = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randint(0, 4)):
        at = draw.randrange(len(data) + 1)
        letter = bytes([draw.choice(LETTERS)])
        data[at : at + draw.choice([0, 1, 1])] = draw.choice([letter, letter, b""])
    return bytes(data)


@settings(max_examples=1_000)
@given(st.integers(0, 2**32))
def test_both_ways_of_reading_a_companion_agree(seed: int) -> None:
    data = mangled(seed)
    quick, strict = read_expiry(data), read_expiry(data + LONG)
    assert quick.expires_at == strict.expires_at, data
    assert (quick.error is None) == (strict.error is None), data


def test_the_usual_companion_is_read_in_both_ways() -> None:
    assert read_expiry(SEEDS[0]).expires_at == read_expiry(SEEDS[0] + LONG).expires_at
    assert read_expiry(SEEDS[0]).expires_at is not None
