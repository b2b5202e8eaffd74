"""Names of topics, rules by pattern, positions, and codes."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

import bus.protocol
from bus.protocol import errors, positions, topics
from bus.protocol.errors import (
    BadRequest,
    BusError,
    DisconnectCode,
    ErrorCode,
    UnsubscribeCode,
    may_reconnect,
)
from bus.protocol.positions import Position, is_contiguous, is_reachable, splice


@dataclass(frozen=True)
class Rule:
    pattern: str
    name: str = ""


@dataclass(frozen=True)
class At:
    offset: int
    source: str = "log"


@pytest.mark.parametrize(
    "name", ["a", "task:8f2c", "broadcast", "cleanup:run:7", "agent:a.b@c-d_e", "x" * 200]
)
def test_a_good_name_is_a_topic(name):
    assert topics.is_topic(name)
    assert topics.check_topic(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a\n", "ü", "task:*", "a/b", "x" * 201, None, 7, b"a"])
def test_a_bad_name_is_refused(name):
    assert not topics.is_topic(name)
    with pytest.raises(BadRequest):
        topics.check_topic(name)


def test_area_and_id_part_at_the_first_colon():
    assert topics.split("cleanup:run:7") == ("cleanup", "run:7")
    assert topics.split("broadcast") == ("broadcast", "")


def test_a_group_name_is_good_for_any_layer_and_tells_topics_apart():
    names = {topics.group_name(f"task:{number}@x") for number in range(100)} | {topics.group_name("t" * 200)}
    assert len(names) == 101
    assert all(len(name) < 100 and name.replace(".", "").isalnum() for name in names)


def test_the_most_specific_rule_wins_and_among_equals_the_first():
    rules = [Rule("*"), Rule("task:*", "first"), Rule("task:*", "second"), Rule("task:a*"), Rule("task:abc")]
    book = topics.RuleBook(rules)
    assert book.find("task:abc") == Rule("task:abc")
    assert book.find("task:ab") == Rule("task:a*")
    assert book.find("task:x") == Rule("task:*", "first")
    assert book.find("other") == Rule("*")


def test_without_a_rule_there_is_no_topic():
    book = topics.RuleBook([Rule("task:*")])
    assert book.find("other") is None
    assert book.find("task:") == Rule("task:*")


def test_nothing_but_the_star_is_special_in_a_pattern():
    assert topics.matches("a.c", "a.c")
    assert not topics.matches("a.c", "abc")
    assert topics.matches("*:x:*", "a:b:x:")
    with pytest.raises(ValueError, match="no pattern"):
        topics.RuleBook([Rule("task:[ab]")])


def test_a_book_forgets_rather_than_grow_without_end(monkeypatch):
    monkeypatch.setattr(topics, "_REMEMBERED", 10)
    book = topics.RuleBook([Rule("task:*")])
    for number in range(1000):
        assert book.find(f"task:{number}") is not None
    assert len(book._known) <= 10


@pytest.mark.parametrize(
    ("since", "offsets", "top", "whole"),
    [
        (0, [1, 2, 3], 3, True),
        (3, [], 3, True),
        (2, [3], 3, True),
        (0, [1, 3], 3, False),
        (0, [2, 3], 3, False),
        (0, [1, 2], 3, False),
        (0, [1, 2, 2, 3], 3, False),
        (0, [2, 1], 2, False),
    ],
)
def test_contiguous_means_every_offset_once_and_up_to_the_top(since, offsets, top, whole):
    assert is_contiguous(since, [At(offset) for offset in offsets], top) is whole


def test_a_position_is_reachable_from_just_before_the_oldest_event_to_the_top():
    reached = [
        offset
        for offset in range(15)
        if is_reachable(Position(epoch="e", offset=offset), epoch="e", first_offset=5, last_offset=9)
    ]
    assert reached == [4, 5, 6, 7, 8, 9]


def test_a_position_of_another_epoch_is_never_reachable():
    other = Position(epoch="former", offset=5)
    assert not is_reachable(other, epoch="e", first_offset=1, last_offset=9)
    assert is_reachable(Position(epoch="", offset=5), epoch="e", first_offset=1, last_offset=9)


def test_a_negative_offset_is_a_mistake():
    with pytest.raises(ValueError, match="negative"):
        Position(epoch="e", offset=-1)


def test_splicing_gives_every_offset_once_and_prefers_the_log():
    spliced = splice([At(4), At(5)], [At(6, "live"), At(5, "live"), At(7, "live")])
    assert spliced.events == [At(4), At(5), At(6, "live"), At(7, "live")]
    assert not spliced.gap


def test_splicing_tells_of_a_gap():
    assert splice([At(4)], [At(6)]).gap
    assert not splice([], [At(6), At(7)]).gap
    assert not splice([], []).gap


def test_reconnecting_follows_the_ranges_of_the_protocol():
    for code in (3000, 3499, 4000, 4499, 5000, 1006):
        assert may_reconnect(code)
    for code in (3500, 3999, 4500, 4501, 4999):
        assert not may_reconnect(code)


def test_every_code_has_words():
    assert all(code.reason for code in DisconnectCode)
    assert all(code.reason for code in UnsubscribeCode)


def _errors() -> list[type[BusError]]:
    return [
        found
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, BusError) and found is not BusError
    ]


def test_every_error_code_has_one_class_and_every_class_its_own_code():
    codes = [found.default_code for found in _errors()]
    assert sorted(codes) == sorted(ErrorCode)


def test_the_tree_at_the_top_of_the_module_names_every_class():
    tree = ast.get_docstring(ast.parse(Path(errors.__file__).read_text())) or ""
    assert all(found.__name__ in tree for found in _errors())


def test_the_library_is_pure():
    forbidden = {"django", "channels", "redis", "asyncio", "socket", "time", "os"}
    for path in Path(bus.protocol.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not forbidden & {name.split(".")[0] for name in names}, path.name


def test_an_error_may_carry_another_code_and_its_own_words():
    error = BusError("out of paper", code=1234, retryable=True)
    assert (error.code, error.message, error.retryable, str(error)) == (
        1234,
        "out of paper",
        True,
        "1234: out of paper",
    )


def test_positions_are_values():
    assert Position(epoch="e", offset=1) == Position(epoch="e", offset=1)
    assert positions.Spliced(events=[], gap=False) == splice([], [])
