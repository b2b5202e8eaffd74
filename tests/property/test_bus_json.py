"""The one gate for JSON: what passes is stored by every database and read back byte for byte.

Run on SQLite and on PostgreSQL the verdicts are the same, for they are the gate's alone: a database that
refused what has passed would show here as an error of its own.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.log import NewEvent
from bus.log.database import DatabaseEventLog
from bus.log.memory import MemoryEventLog
from bus.protocol.errors import BadRequest, BusError
from bus.protocol.limits import MAX_BYTES, MAX_DEPTH, strict_json
from bus.publishing import encode_event
from tests.property.fuzz import Fuzzer
from tests.property.test_bus_positions import values

pytestmark = pytest.mark.django_db(transaction=True)

EXAMPLES = 2_000 if os.environ.get("TEST_DEEP") else 40
TOPIC = "json:1"

#: Texts that one reader or the other stumbles over.
TEXTS: dict[str, str] = {
    "NaN": "NaN",
    "an infinite number": "[-Infinity]",
    "a number beyond doubles": "1e999",
    "a number too small for doubles": "1e-999",
    "the largest integer": str(2**63 - 1),
    "one more": str(2**63),
    "the smallest integer": str(-(2**63)),
    "one less": str(-(2**63) - 1),
    "an integer of a thousand digits": "1" * 1_000,
    "a whole number as a float": "1.0",
    "minus zero": "-0",
    "minus zero as a float": "-0.0",
    "a leading zero": "01",
    "a NUL": '"\\u0000"',
    "a NUL as a key": '{"\\u0000":1}',
    "a raw NUL": '"\0"',
    "a raw line end in a string": '"\n"',
    "a lone high surrogate": '"\\ud800"',
    "a lone low surrogate": '"\\udc00x"',
    "surrogates the wrong way round": '"\\udc00\\ud800"',
    "a pair of surrogates": '"\\ud83d\\ude00"',
    "noncharacters": '"\\uffff\\ufffe"',
    "a byte order mark inside": '"\\ufeff"',
    "an escaped backslash before a u": '"\\\\u0000"',
    "a key twice": '{"a":1,"a":1}',
    "a key twice in disguise": '{"a":1,"\\u0061":2}',
    "a key twice far down": '[{"b":[{"a":1,"c":{},"a":2}]}]',
    "the deepest nesting": "[" * 32 + "]" * 32,
    "one deeper": "[" * 33 + "]" * 33,
    "deep beyond recursion": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 33 + "1" + "}" * 33,
    "an empty key": '{"":{"":[]}}',
    "nothing": "",
    "two values": "1 2",
    "a comment": "1 // one",
    "single quotes": "{'a':1}",
    "a trailing comma": "[1,]",
    "white space around": " \n\t[ 1 ]\r\n ",
    "a string of the largest size": '"' + "x" * (MAX_BYTES - 2) + '"',
    "one byte more": '"' + "x" * (MAX_BYTES - 1) + '"',
}
PASSES = {
    "a number too small for doubles",
    "the largest integer",
    "the smallest integer",
    "a whole number as a float",
    "minus zero",
    "minus zero as a float",
    "a pair of surrogates",
    "noncharacters",
    "a byte order mark inside",
    "an escaped backslash before a u",
    "the deepest nesting",
    "an empty key",
    "white space around",
    "a string of the largest size",
}


def verdict(raw: str | bytes) -> bool:
    try:
        strict_json(raw)
    except BadRequest:
        return False
    return True


def kept(log: Any, payloads: list[bytes]) -> list[bytes]:
    """Store payloads, a few alone and all together, and read them back."""
    log.remove(TOPIC)
    events = [NewEvent(topic=TOPIC, event_type="output", payload=payload) for payload in payloads]
    for event in events[:2]:
        log.append([event])
    log.append(events[2:])
    return [stored.payload for stored in log.read(TOPIC, limit=len(payloads) + 1).events]


@pytest.mark.parametrize(("name", "text"), TEXTS.items(), ids=TEXTS)
def test_a_text_that_readers_disagree_about_has_one_verdict(name: str, text: str) -> None:
    assert verdict(text) is (name in PASSES)
    assert verdict(text.encode()) is (name in PASSES)
    payload = text.encode()
    if name in PASSES:
        assert (
            kept(DatabaseEventLog(), [payload] * 3) == kept(MemoryEventLog(), [payload] * 3) == [payload] * 3
        )


@given(st.lists(values, min_size=1, max_size=30), st.booleans())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_what_passes_the_gate_is_read_back_byte_for_byte(given_values: list[Any], ascii_only: bool) -> None:
    texts = [
        json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass") for value in given_values
    ]
    payloads = [text for text in texts if verdict(text)]
    assert kept(DatabaseEventLog(), payloads) == payloads


def test_what_publishing_makes_of_any_value_is_stored_or_refused_by_all() -> None:
    """An event is made of a value, or refused in our words; no database has a word of its own."""
    fuzzer, payloads, refused = Fuzzer("json"), [], 0
    for _ in range(EXAMPLES * 10):
        try:
            payloads.append(encode_event("output", fuzzer.value()))
        except BusError:
            refused += 1
    assert min(refused, len(payloads)) > EXAMPLES
    assert kept(DatabaseEventLog(), payloads) == kept(MemoryEventLog(), payloads) == payloads
    # The event is one level around its data.
    assert all(strict_json(payload, max_depth=MAX_DEPTH + 1) for payload in payloads)
