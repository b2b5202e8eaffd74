"""The gate for JSON, and token buckets."""

from __future__ import annotations

import pytest

from bus.protocol.errors import BadRequest
from bus.protocol.limits import MAX_INT, MIN_INT, TokenBucket, check_value, strict_json

REFUSED = {
    "nothing": b"",
    "spaces": b"  ",
    "NaN": b'{"a":NaN}',
    "Infinity": b"-Infinity",
    "a number beyond floats": b"1e999",
    "an integer of 65 bits": str(MAX_INT + 1).encode(),
    "a negative integer of 65 bits": str(MIN_INT - 1).encode(),
    "an integer of 10,000 digits": b"9" * 10_000,
    "NUL": b'"a\\u0000"',
    "a NUL in a key": b'{"\\u0000":1}',
    "a raw NUL": b'"a\0"',
    "a raw line end": b'"a\nb"',
    "a lone high surrogate": b'"\\ud800"',
    "a lone low surrogate": b'"\\udc00 x"',
    "surrogates the wrong way round": b'"\\udc00\\ud800"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "no UTF-8": b'"\xff"',
    "an overlong NUL": b'"\xc0\x80"',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a key twice": b'{"a":1,"a":1}',
    "a key twice, deep inside": b'[{"x":{"a":1,"b":{},"a":2}}]',
    "a key twice beside an escaped colon": b'{"a":1,"a":"\\u003a"}',
    "a key twice, once escaped": b'{"a":1,"\\u0061":2}',
    "a key twice with colons in what is dropped": b'{"a":"::","a":":"}',
    "a key twice with quotes in what is dropped": b'{"a":"\\"\\"","a":"\\""}',
    "an empty key twice": b'{"":1, "":1}',
    "an integer of 65 bits, deep inside": b'{"a":[1.5,{"b":18446744073709551615}]}',
    "two values": b"{}{}",
    "a trailing comma": b"[1,]",
    "a comment": b"/**/1",
    "33 levels": b"[" * 33 + b"]" * 33,
    "33 levels of objects": b'{"a":' * 33 + b"1" + b"}" * 33,
    "more levels than any stack": b"[" * 200_000,
    "more than the bytes allowed": b'"' + b"x" * 262_144 + b'"',
}
TAKEN = {
    "an object": (b'{"a":[1,2.5,null,true,"x"]}', {"a": [1, 2.5, None, True, "x"]}),
    "spaces around": (b" [ ] ", []),
    "the largest integer": (str(MAX_INT).encode(), MAX_INT),
    "the smallest integer": (str(MIN_INT).encode(), MIN_INT),
    "a pair of surrogates": (b'"\\ud83d\\ude00"', "😀"),
    "the same key in other objects": (b'{"a":{"a":1},"b":{"a":2}}', {"a": {"a": 1}, "b": {"a": 2}}),
    "colons in strings": (b'{"a:b":"::","c":[":"]}', {"a:b": "::", "c": [":"]}),
    "an escaped colon": (b'{"a":"\\u003a"}', {"a": ":"}),
    "an escaped backslash before u0000": (b'"\\\\u0000"', "\\u0000"),
    "20 digits that are no integer": (b'["12345678901234567890", 0.12345678901234567890]', None),
    "a time in ns": (b'{"at":1795337702113204000}', {"at": 1795337702113204000}),
    "40 lists beside each other": (b"[" + b",".join([b"[{}]"] * 40) + b"]", [[{}]] * 40),
    "40 brackets in a text": (b'"' + b"[{" * 20 + b'"', "[{" * 20),
    "quotes and slashes that are escaped": (b'{"a\\"":"\\/\\"\\t"}', {'a"': '/"\t'}),
    "32 levels": (b"[" * 32 + b"]" * 32, None),
    "a scalar in 32 levels": (b"[" * 32 + b"1" + b"]" * 32, None),
    "all the bytes allowed": (b'"' + b"x" * 262_142 + b'"', "x" * 262_142),
    "DEL and line separators": ('"\x7f\u2028"'.encode(), "\x7f\u2028"),
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_what_must_not_come_in_is_refused(raw):
    with pytest.raises(BadRequest):
        strict_json(raw)


@pytest.mark.parametrize(("raw", "value"), TAKEN.values(), ids=TAKEN)
def test_what_may_come_in_is_decoded(raw, value):
    found = strict_json(raw)
    assert found == value or value is None


def test_text_is_taken_as_bytes_are():
    assert strict_json('{"ü":1}') == {"ü": 1}
    with pytest.raises(BadRequest):
        strict_json('"\ud800"')


def test_a_refusal_says_why_in_a_line():
    with pytest.raises(BadRequest, match="a key twice") as caught:
        strict_json(b'{"a":1,"a":2}')
    assert caught.value.code == 107
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), "\ud800", "\0", 2**63, {1: 2}, {"a": {3}}, b"x", [object()], {("a",): 1}],
)
def test_a_python_value_that_json_cannot_hold_is_refused(value):
    with pytest.raises(BadRequest):
        check_value(value)


def test_a_value_that_contains_itself_is_refused():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(BadRequest):
        check_value(loop)


def test_a_bucket_gives_its_burst_and_then_its_rate():
    bucket = TokenBucket(rate=2.0, burst=3, now=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(0.5) == 0.0
    assert bucket.take(0.5) == 0.5


def test_a_bucket_saves_no_more_than_its_burst():
    bucket = TokenBucket(rate=100.0, burst=2, now=0.0)
    assert [bucket.take(1000.0) for _ in range(3)] == [0.0, 0.0, 0.01]


def test_a_clock_that_goes_back_gives_no_tokens():
    bucket = TokenBucket(rate=1.0, burst=1, now=100.0)
    assert bucket.take(100.0) == 0.0
    assert bucket.take(50.0) == 1.0
    assert bucket.take(51.0) == 0.0


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_bucket_that_could_never_give_is_a_mistake(rate, burst):
    with pytest.raises(ValueError, match="bucket"):
        TokenBucket(rate=rate, burst=burst, now=0.0)
