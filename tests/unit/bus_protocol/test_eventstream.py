"""Server-sent events as bytes: a reader by the letter of the standard gets back what went in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.protocol import eventstream
from bus.protocol.errors import BadRequest
from bus.protocol.limits import MAX_INT
from bus.protocol.positions import Position


def read(stream: bytes) -> list[dict[str, str]]:
    """The events of a stream, as the HTML standard says how to read one."""
    found: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    for line in stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line:
            if fields:
                found.append(fields)
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = fields.get(name, "") + value.removeprefix(" ")
    return found


def test_an_event_has_its_position_its_type_and_its_data() -> None:
    assert eventstream.event("e1", 7, "output", b'{"n":1}') == b'id: e1:7\nevent: output\ndata: {"n":1}\n\n'


def test_an_event_that_is_not_logged_leaves_the_last_id_alone() -> None:
    assert eventstream.event("", 0, "stats", b"{}") == b"event: stats\ndata: {}\n\n"


@pytest.mark.parametrize("name", ["gap", "disconnect", "", "two\nlines", "carriage\rreturn", "nul\0"])
def test_no_publisher_can_speak_for_the_server_or_begin_a_line(name: str) -> None:
    assert eventstream.event("e1", 1, name, b"1") == b"id: e1:1\ndata: 1\n\n"


@given(st.text(max_size=100), st.text(), st.integers(1, MAX_INT))
def test_whatever_is_published_is_one_event_with_one_position(name: str, text: str, offset: int) -> None:
    payload = json.dumps(text).encode()
    (told,) = read(eventstream.event("e1", offset, name, payload))
    assert eventstream.position_of(told["id"]) == Position(epoch="e1", offset=offset)
    assert json.loads(told["data"]) == text
    assert told.get("event", name) == name


def test_a_word_of_the_server_may_move_the_reader() -> None:
    at = Position(epoch="e2", offset=3)
    assert eventstream.word("gap", b"{}", at) == b"id: e2:3\nevent: gap\ndata: {}\n\n"
    assert eventstream.word("disconnect", b"{}") == b"event: disconnect\ndata: {}\n\n"


def test_comments_and_retries_are_no_events() -> None:
    assert read(eventstream.COMMENT + eventstream.retry(1500)) == [{"retry": "1500"}]


@pytest.mark.parametrize(
    "text", ["", "7", "e1:", ":7", "e1:-1", "e-1:7", "e1:7 ", f"e1:{MAX_INT + 1}", "e1:\u0667"]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        eventstream.position_of(text)


@pytest.mark.parametrize("text", ["2026-11-22T09:15:02Z", "1795337616", "1795337616.5", "now"])
def test_a_time_is_not_taken_for_an_id(text: str) -> None:
    assert not eventstream.is_id(text)
