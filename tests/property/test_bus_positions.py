"""Positions and the gate for JSON, against oracles that are too slow or too simple to be used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.protocol.errors import BadRequest
from bus.protocol.limits import MAX_DEPTH, MAX_INT, MIN_INT, check_value, strict_json
from bus.protocol.positions import Position, is_contiguous, is_reachable, splice


@dataclass(frozen=True)
class At:
    offset: int
    source: str


offsets = st.lists(st.integers(1, 12), max_size=14)


@given(st.integers(0, 12), offsets, st.integers(0, 14))
def test_contiguous_is_what_counting_says(since, found, top):
    expected = found == list(range(since + 1, top + 1)) and top >= since
    assert is_contiguous(since, [At(offset, "log") for offset in found], top) is expected


@given(offsets, offsets)
def test_splicing_is_the_union_in_order(backlog, held_back):
    logged = [At(offset, "log") for offset in sorted(set(backlog))]
    spliced = splice(logged, [At(offset, "live") for offset in held_back])
    together = sorted({*backlog, *held_back})
    assert [event.offset for event in spliced.events] == together
    assert all((event.source == "log") == (event.offset in backlog) for event in spliced.events)
    whole = not together or together == list(range(together[0], together[-1] + 1))
    assert spliced.gap is not whole


@given(
    last=st.integers(0, 30),
    trimmed=st.integers(0, 30),
    since=st.integers(0, 40),
    read_at=st.integers(0, 30),
    page=st.integers(1, 10),
)
def test_a_subscriber_that_resumes_gets_all_or_is_told(last, trimmed, since, read_at, page):
    """Events go on while a subscriber resumes: pages of what it missed, then what was held back."""
    trimmed, read_at = min(trimmed, last), min(max(read_at, trimmed), last)
    held_back = [At(offset, "live") for offset in range(max(read_at - 1, 1), last + 1)]
    log = range(trimmed + 1, read_at + 1)
    position = Position(epoch="e", offset=since)
    if not is_reachable(position, epoch="e", first_offset=trimmed + 1, last_offset=read_at):
        assert since < trimmed or since > read_at
        return
    backlog = [At(offset, "log") for offset in log if offset > since]
    pages = [backlog[start : start + page] for start in range(0, len(backlog), page)]
    assert all(is_contiguous(part[0].offset - 1, part, part[-1].offset) for part in pages)
    later = [event for event in held_back if event.offset > since]
    spliced = splice(backlog, later)
    assert not spliced.gap
    assert [event.offset for event in spliced.events] == list(range(since + 1, last + 1))


scalars = (
    st.none()
    | st.booleans()
    | st.integers(MIN_INT * 2, MAX_INT * 2)
    | st.floats()
    | st.text(alphabet=st.sampled_from('ab:"\\{},\0\ud800\n é😀'), max_size=6)
)
values = st.recursive(
    scalars,
    lambda below: (
        st.lists(below, max_size=4)
        | st.dictionaries(st.text(alphabet="ab:\\\0", max_size=3), below, max_size=4)
    ),
    max_leaves=20,
)


def acceptable(value: Any, depth: int = 0) -> bool:
    """The rules of the gate, as plainly as they can be said."""
    match value:
        case None | bool():
            return True
        case str():
            return "\0" not in value and not any(0xD800 <= ord(letter) < 0xE000 for letter in value)
        case int():
            return MIN_INT <= value <= MAX_INT
        case float():
            return value == value and abs(value) != float("inf")
        case list():
            return depth < MAX_DEPTH and all(acceptable(item, depth + 1) for item in value)
        case dict():
            inside = [*value, *value.values()]
            return depth < MAX_DEPTH and all(acceptable(item, depth + 1) for item in inside)
        case _:
            return False


def passes(gate: Any, given_value: Any) -> bool:
    try:
        gate(given_value)
    except BadRequest:
        return False
    return True


@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_the_gate_takes_exactly_what_the_rules_allow(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert passes(strict_json, text) is acceptable(value)
    assert passes(check_value, value) is acceptable(value)
    if acceptable(value):
        assert strict_json(text) == value


@given(st.text(alphabet=st.sampled_from('{}[]",:\\u0a1 \n-.eE\ud800\0tru'), max_size=30))
def test_the_gate_never_fails_in_another_way(text):
    passes(strict_json, text)
    passes(strict_json, text.encode(errors="surrogatepass"))


#: An object as text, key by key, so that keys may repeat in every disguise.
keys = st.sampled_from(['"a"', '"\\u0061"', '"b:"', '"b\\u003a"', '""', '"\\u003a"'])
texts = st.recursive(
    st.sampled_from(["1", '":"', '"\\u003a\\u003a"', '"::"', "[]", "{}"]),
    lambda below: (
        st.lists(st.tuples(keys, below), max_size=4).map(
            lambda pairs: "{" + ",".join(f"{key}:{value}" for key, value in pairs) + "}"
        )
        | st.lists(below, max_size=3).map(lambda items: "[" + ",".join(items) + "]")
    ),
    max_leaves=12,
)


def repeats(text: str) -> bool:
    found = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        found.append(len(names) != len(set(names)))

    json.loads(text, object_pairs_hook=look)
    return any(found)


@given(texts)
def test_a_repeated_key_is_found_in_every_disguise(text):
    assert passes(strict_json, text) is not repeats(text)


def test_the_oracle_can_say_no():
    assert not acceptable({"a": "\0"})
    assert repeats('{"a":1,"\\u0061":2}')
    with pytest.raises(BadRequest):
        check_value({"a": "\0"})
