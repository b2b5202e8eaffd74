"""Text out of files, and what it is about: the two pure steps of the pipeline."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanup.staging import limits
from cleanup.staging.distillation import CHUNK_WORDS, DIMENSIONS, as_lines, distil, from_lines, vector
from cleanup.staging.extraction import READABLE, Unreadable, extract

pytestmark = pytest.mark.sqlite_only

PAGE = b"""<!doctype html><html><head><title>Tides &amp; moons</title><style>p {}</style></head>
<body><script>steal()</script><h1>What
pulls</h1><p>The moon pulls <b>most</b>.</p><p>The sun&nbsp;helps.</p><!-- secret -->
<ul><li>spring tide</li><li>neap tide</li></ul></body></html>"""


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.txt", b"\xef\xbb\xbfone\r\n\r\n\r\n  two \t words\x07 \r\n", "one\n\ntwo words"),
        ("a.md", b"# Title\n\nBody *text*", "# Title\n\nBody *text*"),
        ("A.HTML", b"<p>one<p>two", "one\n\ntwo"),
        (
            "a.json",
            b'{"a": {"b": [1, 2, {"c": null, "d": true}]}, "e": ""}',
            "a.b: 1\na.b: 2\na.b[2].d: True",
        ),
        ("a.jsonl", b'{"a": 1}\n\n{"a": 2}\n', "a: 1\n\na: 2"),
        (
            "a.csv",
            b'name,age\n"Lee, Ann",7\nBo,,extra\n',
            "name: Lee, Ann\nage: 7\n\nname: Bo\ncolumn 3: extra",
        ),
        ("a.tsv", b"name\tage\nBo\t8\n", "name: Bo\nage: 8"),
        ("a.csv", b"only,names", "only, names"),
        ("a.xml", b'<?xml version="1.0" encoding="latin-1"?><r><t>A &lt; B</t><p>C</p></r>', "A < B\n\nC"),
        ("a.yaml", b"key: value", "key: value"),
    ],
)
def test_the_text_of_a_file(name: str, data: bytes, text: str) -> None:
    assert extract(name, data) == text


def test_of_a_page_comes_what_a_reader_sees() -> None:
    text = extract("page.html", PAGE)
    assert text.split("\n\n") == [
        "# Tides & moons",
        "# What\npulls",
        "The moon pulls most.",
        "The sun helps.",
        "spring tide",
        "neap tide",
    ]


BOMB = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>"""


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.pdf", b"%PDF-1.7", r"no text is extracted from \.pdf"),
        ("a", b"text", "no text is extracted"),
        ("a.txt", b"caf\xe9", "not UTF-8 at byte 3"),
        ("a.txt", b" \n\t\n", "there is no text"),
        ("a.html", b"<script>only()</script>", "there is no text"),
        ("a.json", b'{"a": ', "it is no JSON"),
        ("a.json", b"[" * 100_000, "no JSON|nested too deeply"),
        ("a.json", b"[" * 500 + b"1" + b"]" * 500, "nested too deeply"),
        ("a.jsonl", b'{"a": 1}\n{"a"\n', "line 2 is no JSON"),
        ("a.xml", b"<a><b></a>", "it is no XML"),
        ("a.xml", BOMB, "declares entities"),
        ("a.csv", b'a,"b\n', "it is no table"),
    ],
)
def test_what_has_no_text_is_refused_with_a_reason(name: str, data: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        extract(name, data)


def test_every_type_that_is_read_is_one_that_is_taken() -> None:
    assert set(limits.TYPES) >= READABLE


@given(st.binary(max_size=300), st.sampled_from(sorted(READABLE)))
def test_any_bytes_give_text_or_a_reason(data: bytes, suffix: str) -> None:
    try:
        text = extract(f"file.{suffix}", data)
    except Unreadable as reason:
        text = str(reason)
    assert text.strip() == text
    assert text


STORY = """# Tides

The tide follows the moon. Nobody minds. Fishermen know the tide and the moon well.

Small talk here. Really.

# Winds

Wind moves sand."""


def test_chunks_never_reach_over_a_heading_and_say_what_they_are_about() -> None:
    tides, winds = distil(STORY)
    assert (tides.chunk, tides.title, tides.words) == (1, "Tides", 19)
    assert tides.key_sentences == ["The tide follows the moon.", "Fishermen know the tide and the moon well."]
    assert (winds.chunk, winds.title, winds.key_sentences) == (2, "Winds", ["Wind moves sand."])


def test_a_text_without_headings_is_called_by_its_first_words() -> None:
    (chunk,) = distil("one two three four five six seven eight nine")
    assert chunk.title == "one two three four five six seven eight …"


def test_nothing_but_headings_is_a_chunk_of_its_own() -> None:
    (chunk,) = distil("# One\n\n# Two")
    assert chunk.text == "# One\n\n# Two"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n .#"), max_size=3_000))
def test_no_word_is_lost_and_no_chunk_is_too_long(text: str) -> None:
    try:
        found = extract("a.txt", text.encode())
    except Unreadable:
        return
    chunks = distil(found)
    assert chunks
    assert all(chunk.words <= CHUNK_WORDS for chunk in chunks[:-1])
    assert [chunk.chunk for chunk in chunks] == list(range(1, len(chunks) + 1))
    assert from_lines(as_lines(chunks)) == chunks == distil(found)
    for line in as_lines(chunks).decode().split("\n")[:-1]:
        json.loads(line)


def test_a_long_paragraph_is_cut_between_words() -> None:
    words = [f"word{number}" for number in range(1_050)]
    chunks = distil(" ".join(words))
    assert [chunk.words for chunk in chunks] == [200, 200, 200, 200, 200, 50]
    assert " ".join(chunk.text for chunk in chunks).split() == words


@pytest.mark.parametrize("text", ["the moon pulls the tide", "", "…", "a", "ä ö ü " * 1_000])
def test_a_vector_has_length_one_and_is_always_the_same(text: str) -> None:
    found = vector(text)
    assert len(found) == DIMENSIONS
    assert math.isclose(math.hypot(*found), 1)
    assert found == vector(text)


def test_texts_that_share_words_are_nearer_than_those_that_do_not() -> None:
    def likeness(one: str, two: str) -> float:
        return sum(a * b for a, b in zip(vector(one), vector(two), strict=True))

    tide = "the moon pulls the tide"
    assert likeness(tide, "Tide and MOON") > likeness(tide, "a recipe for bread")
