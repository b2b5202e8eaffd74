"""Bytes on the wire that are made for many at once."""

from __future__ import annotations

import json

import msgspec
import pytest

from bus.protocol import frames
from bus.protocol.frames import Command, Malformed


class Told(msgspec.Struct):
    offset: int
    payload: bytes
    tags: bytes | None = None
    info: bytes | None = None


def test_joined_pushes_are_the_pushes_one_by_one():
    events = [
        Told(7, b'{"n":1}', b'{"id":"a"}', b'{"user":"u"}'),
        Told(8, b"[1]", None, b'{"user":"u"}'),
        Told(9, b'"%d"', b'{"id":"b"}'),
        Told(0, b"null"),
    ]
    alone = [
        frames.push_publication("task:1", frames.publication(e.offset, e.payload, e.tags, e.info))
        for e in events
    ]
    assert frames.push_publications("task:1", events) == frames.join(alone)
    assert all(json.loads(line)["push"]["channel"] == "task:1" for line in alone)
    assert frames.push_publications("task:1", []) == b""


PUBLISH = b'{"id":%d,"publish":{"channel":"task:1","data":%b}}'
#: What is wrong with one command of three, or only unusual: the second number is how many are malformed.
SECONDS = {
    "nothing": (b'{"a":1}', 0),
    "blanks": (b'{ "a" : 1 }', 0),
    "an escape": (b'"\\u00e9"', 0),
    "a key twice": (b'{"a":1,"a":2}', 1),
    "an integer of 65 bits": (b"[18446744073709551615]", 1),
    "a time in ns": (b"1795337702113204000", 0),
    "33 levels": (b"[" * 33 + b"]" * 33, 1),
    "a NUL": (b'"\\u0000"', 1),
    "no JSON": (b"{", 1),
    "two commands in a line": (b"1}}{}", 1),
    "too much": (b'"' + b"x" * 300 + b'"', 1),
}


@pytest.mark.parametrize(("data", "malformed"), SECONDS.values(), ids=SECONDS)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_joined_frame_gives_what_its_commands_give_one_by_one(data, malformed, as_text):
    lines = [PUBLISH % (1, b"1"), PUBLISH % (2, data), PUBLISH % (3, b"3")]
    frame = b"\n".join(lines)
    found = frames.decode(frame.decode() if as_text else frame, max_bytes=200)
    alone = [command for line in lines for command in frames.decode(line, max_bytes=200)]
    assert [(type(one), one.id) for one in found] == [(type(one), one.id) for one in alone]
    assert [one for one in found if isinstance(one, Command)] == [
        one for one in alone if isinstance(one, Command)
    ]
    assert sum(isinstance(one, Malformed) for one in found) == malformed
    assert len(found) == 3


def test_empty_lines_and_pongs_in_a_frame_are_told_apart():
    assert frames.decode(b"\n{}\n\n{}\n") == [Command(), Command()]
    assert frames.decode("") == []
