"""Which files are taken: names that are names, types that extension and bytes agree on, sizes, hashes."""

from __future__ import annotations

import io
import unicodedata
import zipfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cleanup.engine.names import is_internal
from cleanup.staging import limits
from cleanup.staging.errors import BadName, BadValue, Refused, TooLarge, WrongType


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("[Content_Types].xml", "<Types/>")
    return buffer.getvalue()


#: A beginning of every type.
SAMPLES = {
    **dict.fromkeys(("txt", "log", "md", "rst", "csv", "tsv"), b"a,\xc3\xa4"),
    **dict.fromkeys(("html", "htm", "yaml", "yml", "toml"), b"a,\xc3\xa4"),
    **dict.fromkeys(("json", "jsonl", "ndjson"), b'\xef\xbb\xbf {"a": 1}'),
    **dict.fromkeys(("zip", "docx", "xlsx", "pptx", "epub"), archive()),
    **dict.fromkeys(("jpg", "jpeg"), b"\xff\xd8\xff\xe0\x00\x10JFIF"),
    **dict.fromkeys(("tif", "tiff"), b"II*\x00"),
    **dict.fromkeys(("mp4", "m4a"), b"\x00\x00\x00\x18ftypisom"),
    "xml": b"\n<?xml version='1.0'?><a/>",
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3",
    "png": b"\x89PNG\r\n\x1a\n\x00\x00",
    "gif": b"GIF89a",
    "webp": b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    "tar": b"\0" * 257 + b"ustar\x0000",
    "gz": b"\x1f\x8b\x08",
    "bz2": b"BZh9",
    "xz": b"\xfd7zXZ\x00",
    "zst": b"\x28\xb5\x2f\xfd",
    "lz4": b"\x04\x22\x4d\x18",
    "parquet": b"PAR1",
    "mp3": b"\xff\xfb\x90\x00",
    "wav": b"RIFF\x00\x00\x00\x00WAVEfmt ",
    "ogg": b"OggS",
    "flac": b"fLaC",
    "webm": b"\x1a\x45\xdf\xa3",
}  # fmt: skip

TEXTS = frozenset(kind for kind, data in SAMPLES.items() if data == SAMPLES["txt"])


def check(name: str, data: bytes, allowed: tuple[str, ...] = ()) -> limits.FileType:
    return limits.check_type(name, data[: limits.HEAD], size=len(data), allowed=allowed)


def test_every_type_has_a_sample() -> None:
    assert set(SAMPLES) == set(limits.TYPES)


@pytest.mark.parametrize("suffix", sorted(SAMPLES))
def test_a_type_takes_its_own_beginning_and_no_program(suffix: str) -> None:
    assert check(f"A.File.{suffix.upper()}", SAMPLES[suffix]).suffix == f".{suffix}"
    for other in (b"\x7fELF\x02\x01\x01\x00", b"MZ\x90\x00\x03", b"\x00" * 300):
        with pytest.raises(WrongType, match=rf"a \.{suffix} file begins with"):
            check(f"a.{suffix}", other)


@pytest.mark.parametrize("suffix", sorted(set(SAMPLES) - TEXTS))
def test_an_empty_file_is_a_text_or_nothing(suffix: str) -> None:
    with pytest.raises(WrongType):
        check(f"a.{suffix}", b"")
    assert check("a.txt", b"").content_type == "text/plain"


@pytest.mark.parametrize(
    "name", ["program.exe", "script.py", "none", ".htaccess", "a.txt.", "page.php", "a.txt.exe"]
)
def test_what_is_not_known_is_not_taken(name: str) -> None:
    with pytest.raises(WrongType, match="not taken here"):
        check(name, b"text")


def test_the_setting_narrows_and_adds() -> None:
    assert check("a.pdf", SAMPLES["pdf"], ("pdf", ".TXT")).suffix == ".pdf"
    with pytest.raises(WrongType, match="taken are pdf, txt"):
        check("a.png", SAMPLES["png"], ("pdf", ".TXT"))
    added = check("a.bin", b"\0\xff", ("*", "bin"))
    assert (added.suffix, added.content_type) == (".bin", "application/octet-stream")
    assert check("a.png", SAMPLES["png"], ("*", "bin")).suffix == ".png"


def test_a_character_that_the_end_of_the_head_cuts_is_no_reason_to_refuse() -> None:
    for character in ("\u00e4", "\u20ac", "\U0001f600"):
        for shift in range(5):
            data = b"x" * shift + character.encode() * 5_000
            assert check("a.txt", data).suffix == ".txt"
    with pytest.raises(WrongType):
        check("a.txt", b"x" * 4_095 + b"\xff" + b"x" * 100)
    with pytest.raises(WrongType):
        check("a.txt", b"torn \xe2\x82")


@given(st.binary(max_size=300), st.sampled_from(sorted(SAMPLES)))
@example(b"\xff", "mp3")
def test_any_bytes_are_taken_or_refused_in_words(data: bytes, suffix: str) -> None:
    try:
        refused = ""
        assert check(f"a.{suffix}", data).fits(data)
    except WrongType as error:
        refused = str(error)
    assert not refused or f".{suffix} file begins with" in refused


@pytest.mark.parametrize(
    "name",
    [
        *("a.txt", "Notes of May.md", "\u00fcber \u6587\u5b57.pdf", "..a", "a..", ".a.txt"),
        *("a" * 196 + ".txt", "\U0001f469\u200d\U0001f52c.txt"),
    ],
)  # fmt: skip
def test_a_name_is_given_back_as_it_is(name: str) -> None:
    assert limits.safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "/", "../a", "a/b", "a\\b", "..\\a", "a\0b", "a\nb", "\x1b[31m", "a\x7f", "\x85"),
        *(".trash", ".Trash", ".staging-area", ".staging-uploads", ".STAGING-x", " a", "a ", "a\u2028b"),
        *("gnp.\u202etxt", "a\u2066b", "a" * 201, "\u00e4" * 101, "\ud800"),
        unicodedata.normalize("NFD", "\u00e4"),
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(BadName):
        limits.safe_name(name)


@given(st.text(max_size=220))
def test_a_safe_name_is_one_component_that_every_database_holds(name: str) -> None:
    try:
        safe = limits.safe_name(name)
    except BadName:
        return
    data = safe.encode()
    assert 0 < len(data) <= limits.NAME_BYTES
    assert not {b"/"[0], b"\\"[0], 0} & set(data)
    assert not is_internal(data)


def test_sizes_hashes_and_tasks_are_checked() -> None:
    limits.check_size(5, 5)
    with pytest.raises(TooLarge):
        limits.check_size(6, 5)
    with pytest.raises(BadValue):
        limits.check_size(-1, 5)
    assert limits.check_digest("AB" * 32) == "ab" * 32
    assert limits.check_digest("") == limits.check_task_id("") == ""
    for wrong in ("ab", "g" * 64, "a" * 65, "a" * 63 + "\n"):
        with pytest.raises(BadValue):
            limits.check_digest(wrong)
    assert limits.check_task_id("task-1:a.b_c@d") == "task-1:a.b_c@d"
    for wrong in ("../x", "a/b", "-a", "a b", "a\n", "\u00e4", "a" * 201):
        with pytest.raises(BadValue):
            limits.check_task_id(wrong)


def test_every_refusal_is_a_value_error_with_a_word() -> None:
    codes = {one.code for one in (BadName, BadValue, TooLarge, WrongType, limits.WrongDigest)}
    assert codes == {"bad_name", "bad_value", "too_large", "wrong_type", "wrong_digest"}
    assert issubclass(Refused, ValueError)
