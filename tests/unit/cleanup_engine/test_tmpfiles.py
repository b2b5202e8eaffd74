"""The format of tmpfiles.d, and the patterns in it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from cleanup.engine.globs import expansions, is_match
from cleanup.engine.tmpfiles import Age, Line, aging_lines, read
from cleanup.engine.translation import lines_for


def only(text: str, **options: object) -> Line:
    config = read(text.encode(), **options)
    assert not config.troubles
    (line,) = config.lines
    return line


def why_not(text: str, **options: object) -> str:
    config = read(text.encode(), **options)
    (trouble,) = config.troubles
    return trouble.why


def test_a_line_is_taken_apart():
    line = only("d /srv/stage 0755 root root 2d -\n")
    assert (line.type, line.path, line.mode, line.user, line.group) == (
        "d",
        b"/srv/stage",
        "0755",
        "root",
        "root",
    )
    assert line.age == Age(after=timedelta(days=2))
    assert line.argument == b""


def test_comments_and_empty_lines_say_nothing():
    assert read(b"# a comment\n\n   \t\n  # another\n").lines == ()


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ('"/with space"', b"/with space"),
        ("'/with \"quote'", b'/with "quote'),
        (r"/tab\tand\x41\101", b"/tab\tandAA"),
        (r'"/line\nfeed"', b"/line\nfeed"),
        (r"/\u00fc", "/ü".encode()),
        (r"/raw\xff", b"/raw\xff"),
        ("/a//b/./c/", b"/a/b/c"),
        ("/%%t", b"/%t"),
        ("%t/%H", b"/run/box"),
        ("/unknown%Q", b"/unknown%Q"),
        ("/var/run/x", b"/run/x"),
    ],
)
def test_paths_have_quotes_escapes_and_specifiers(written: str, path: bytes):
    assert only(f"d {written}", specifiers={"t": "/run", "H": "box"}).path == path


@pytest.mark.parametrize(
    ("written", "age"),
    [
        ("10", Age(after=timedelta(seconds=10))),
        ("1h30m", Age(after=timedelta(minutes=90))),
        ("~2w", Age(after=timedelta(weeks=2), keep_first_level=True)),
        ("m:1d", Age(after=timedelta(days=1), file_stamps=frozenset("m"))),
        ("aB:1d", Age(after=timedelta(days=1), file_stamps=frozenset("a"), directory_stamps=frozenset("b"))),
        ("~M:0", Age(after=timedelta(0), keep_first_level=True, directory_stamps=frozenset("m"))),
        ("infinity", Age(after=None)),
    ],
)
def test_ages_have_units_first_levels_and_stamps(written: str, age: Age):
    assert only(f"e /x - - - {written}").age == age


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("d", "type and a path"),
        ("k /x", "unknown type"),
        ("d& /x", "unknown modifiers"),
        ("d++ /x", "unknown modifiers"),
        ("d relative", "does not begin with a slash"),
        ('d "/x', "not closed"),
        (r"d /x\q", "escape is not understood"),
        (r"d /x\x00", "NUL"),
        (r"d /x\400", "above 255"),
        (r"d /x\ud800", "no character"),
        ("d /x 0999", "invalid mode"),
        ("d /x 17777", "invalid mode"),
        ("d /x - - - 5 parsecs", ""),
        ("d /x - - - 5parsecs", "unknown unit"),
        ("d /x - - - z:5d", "invalid age-by"),
        ("d /x - - - :5d", "invalid age-by"),
        ("w /x", "needs an argument"),
        ("d! /x", "while the system starts"),
        ("d /%b", "cannot be told"),
        ("d /x - nobody-such", "no user"),
        ("d /x - - nobody-such", "no group"),
        (f"d /{'x' * 4100}", "4095"),
    ],
)
def test_a_line_that_cannot_be_obeyed_is_named_and_the_others_count(line: str, part: str):
    config = read(
        f"d /before - - - 1d\n{line}\nd /after".encode(),
        specifiers={"b": None},
        user_id=lambda name: {"root": 0}.get(name),
        group_id=lambda name: {"root": 0}.get(name),
    )
    assert [one.path for one in config.lines if one.path in (b"/before", b"/after")] == [
        b"/before",
        b"/after",
    ]
    if line != "d /x - - - 5 parsecs":  # the age is 5, the rest is an argument
        (trouble,) = config.troubles
        assert trouble.number == 2
        assert part in trouble.why


def test_a_line_for_the_start_of_the_system_counts_when_it_starts():
    assert only("r! /x", boot=True).modifiers == "!"


def test_of_two_lines_for_one_path_that_disagree_the_first_counts():
    assert "line 1 is about the same path" in why_not("d /x - - - 1d\nd /x - - - 2d\n")


def test_lines_for_one_path_may_agree_or_be_about_something_else():
    assert len(read(b"d /x - - - 1d\nD /x - - - 1d\nz /x 0700\n").lines) == 3
    assert len(read(b"w+ /x - - - - a\nw+ /x - - - - b\n").lines) == 2


def test_only_lines_with_an_age_clean():
    config = read(b"d /a - - - 1d\nd /b\nf /c - - - 1d\ne /d - - - infinity\nX /e* - - - 1d\n")
    assert [line.path for line in aging_lines(config)] == [b"/a", b"/e*"]


@pytest.mark.parametrize(
    "file", sorted(Path("/usr/lib/tmpfiles.d").glob("*.conf")), ids=lambda file: file.name
)
def test_every_line_of_this_machine_is_understood_or_named(file: Path):
    text = file.read_bytes()
    config = read(text)
    told = {line.number for line in config.lines} | {trouble.number for trouble in config.troubles}
    lines = enumerate(text.splitlines(), 1)
    assert told == {number for number, line in lines if line.strip() and not line.strip().startswith(b"#")}
    for trouble in config.troubles:
        assert "while the system starts" in trouble.why or "same path" in trouble.why


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        (b"/a/*", b"/a/b", True),
        (b"/a/*", b"/a/b/c", False),
        (b"/a/*", b"/a/.b", False),
        (b"/a/.*", b"/a/.b", True),
        (b"/a/?", b"/a/.", False),
        (b"/a/[!x]y", b"/a/.y", False),
        (b"/a/[!x]y", b"/a/zy", True),
        (b"/a/[^x]y", b"/a/xy", False),
        (b"/a/[a-c]", b"/a/b", True),
        (b"/a/[c-a]", b"/a/b", False),
        (b"/a/[]x]", b"/a/]", True),
        (b"/a/[[:digit:]]", b"/a/7", True),
        (b"/a/[[:digit:]]", b"/a/x", False),
        (b"/a/[x", b"/a/[x", True),
        (b"/a/[a/b]", b"/a/[a/b]", True),
        (rb"/a/\*", b"/a/*", True),
        (rb"/a/\*", b"/a/b", False),
        (b"/a/?", b"/a/\xff", True),
        (b"/a/?", "/a/ü".encode(), False),
        (b"/a/{b,c}", b"/a/b", False),
        (b"/a/b$", b"/a/b$", True),
        (b"/a/*\n", b"/a/x\n", True),
    ],
)
def test_patterns_are_those_of_the_c_library(pattern: bytes, path: bytes, fits: bool):
    assert is_match(pattern, path) is fits


def test_braces_are_alternatives():
    assert list(expansions(b"/a/{b,c{1,2},}/d")) == [b"/a/b/d", b"/a/c1/d", b"/a/c2/d", b"/a//d"]
    assert list(expansions(b"/a/{b")) == [b"/a/{b"]


@pytest.mark.parametrize(
    "pattern", ["*.keep", "/a/**", "re:x", "/a/", "/*backup", "/a?", "/[ab]", "/*/*/*/*", "a/**/b"]
)
def test_an_exclude_that_lines_cannot_say_is_refused(pattern: str):
    with pytest.raises(ValueError, match=r"tmpfiles\.d"):
        lines_for(b"/x", age=timedelta(days=1), age_by=frozenset("m"), exclude=[pattern])


def test_a_backslash_takes_the_meaning_from_a_brace():
    assert list(expansions(rb"a\{b,c}")) == [rb"a\{b,c}"]
    assert list(expansions(rb"{a\,b,c}")) == [rb"a\,b", b"c"]
