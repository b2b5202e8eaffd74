"""Names as text, patterns, ages."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cleanup.engine.ages import format_age, parse_age
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.names import Patterns, escape, is_below, is_internal, task_pattern, unescape


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain.txt", "plain.txt"),
        ("café/日本".encode(), "café/日本"),
        (b"two\nlines", r"two\x0alines"),
        (b"back\\slash", r"back\x5cslash"),
        (b"half \xc3", r"half \xc3"),
        (b"\x1b[31mred", r"\x1b[31mred"),
        ("right\u202eleft".encode(), r"right\xe2\x80\xaeleft"),
    ],
)
def test_escape_writes_what_is_not_printable_as_hex(name: bytes, text: str) -> None:
    assert escape(name) == text
    assert unescape(text) == name


@pytest.mark.parametrize("text", ["a\\", r"\xZZ", r"\x0A", r"\n", "\udc80"])
def test_unescape_refuses_what_escape_never_writes(text: str) -> None:
    with pytest.raises(PolicyInvalid):
        unescape(text)


def test_the_marker_and_the_trash_are_internal_wherever_they_are() -> None:
    assert is_internal(b".staging-area")
    assert is_internal(b"a/.trash/b")
    assert is_internal(b".staging-upload-7")
    assert not is_internal(b"a/.hidden/trash")


@pytest.mark.parametrize("path", [b"", b"/a", b"a//b", b"../a", b"a/./b", b"a/..", b"a\0b"])
def test_a_path_that_could_leave_the_area_is_not_below(path: bytes) -> None:
    assert not is_below(path)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.tmp", ["a.tmp", "deep/er/a.tmp", ".tmp"], ["a.tmpx", "a.tmp/b"]),
        ("logs/*.txt", ["logs/a.txt"], ["a.txt", "logs/b/a.txt", "x/logs/a.txt"]),
        ("**/*.tmp", ["a.tmp", "x/y/a.tmp"], ["a.tmp.d"]),
        ("keep/**", ["keep/a", "keep/b/c"], ["keep", "x/keep/a"]),
        ("a/**/z", ["a/z", "a/b/c/z"], ["az", "a/bz"]),
        ("old/", ["old/a", "x/old/b/c"], ["old", "older/a"]),
        ("/top", ["top"], ["x/top"]),
        ("file?", ["file1", r"file\xff", "fileé"], ["file", "file12", "file/"]),
        ("[a-c]x", ["ax", "y/cx"], ["dx"]),
        ("[!a-c]x", ["dx"], ["ax", "/x"]),
        ("[", ["["], ["a"]),
        ("a]b", ["a]b"], ["ab"]),
        ("re:^a/[0-9]+$", ["a/12"], ["b/a/12", "a/1x"]),
        ("re:(?i)SECRET$", ["x/secret"], ["secret/x"]),
        ("re:secret", ["x/secret/y", "my-secrets"], ["public"]),
    ],
)
def test_patterns_match_as_they_promise(pattern: str, matching: list[str], others: list[str]) -> None:
    patterns = Patterns([pattern])
    assert [text for text in matching if not patterns.match(text)] == []
    assert [text for text in others if patterns.match(text)] == []


def test_a_subtree_pattern_covers_what_lies_below_a_directory() -> None:
    patterns = Patterns(["keep", "a/b"], subtree=True)
    assert patterns.match("x/keep/y/z") == "keep"
    assert patterns.match("a/b/c") == "a/b"
    assert patterns.match("a/bc") is None
    assert patterns.match("keeper/y") is None


@pytest.mark.parametrize("pattern", ["", "/", "re:", "re:(", "re:*"])
def test_a_pattern_that_cannot_be_compiled_is_refused(pattern: str) -> None:
    with pytest.raises(PolicyInvalid):
        Patterns([pattern])


def test_a_task_pattern_without_a_group_is_refused() -> None:
    with pytest.raises(PolicyInvalid, match="group"):
        task_pattern("task-[0-9]+")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2d", timedelta(days=2)),
        ("1h30m", timedelta(minutes=90)),
        ("1h 30min", timedelta(minutes=90)),
        ("1w", timedelta(weeks=1)),
        ("90", timedelta(seconds=90)),
        ("0", timedelta(0)),
        ("1M", timedelta(days=30, hours=10, minutes=30)),
        ("1y", timedelta(days=365, hours=6)),
        ("1m", timedelta(minutes=1)),
        ("250ms", timedelta(milliseconds=250)),
        ("7us", timedelta(microseconds=7)),
        ("1.5h", timedelta(minutes=90)),
        (" 2d ", timedelta(days=2)),
    ],
)
def test_an_age_is_read_as_tmpfiles_does(text: str, expected: timedelta) -> None:
    assert parse_age(text) == expected


@pytest.mark.parametrize(
    "text", ["", "  ", "d", "-2d", "2 parsecs", "1h-30m", "9" * 30 + "y", "2D", "٣d", "1" * 200]
)
def test_what_is_no_age_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(PolicyInvalid, match="age"):
        parse_age(text)


@pytest.mark.parametrize("text", ["0s", "2d", "1w2d3h4min5s6ms7us"])
def test_a_written_age_reads_back_the_same(text: str) -> None:
    assert format_age(parse_age(text)) == text
