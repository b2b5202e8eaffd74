"""Text out of a file: the first step of the pipeline. Pure: bytes come in, text or a refusal goes out.

The text is UTF-8 with paragraphs between empty lines; headings are lines that begin with `# `. Markup goes,
and with it scripts, styles and comments. Of tables and JSON every value stands beside its name. No parser
here fetches anything, and XML that declares entities is refused: a few lines of them unfold to gigabytes.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any
from xml.parsers import expat

#: A field of a table may be as long as a file.
_MAX_FIELD = 2**31 - 1
_SPACES = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
#: Above this depth a document was made to be deep.
_MAX_DEPTH = 200


class Unreadable(ValueError):
    """There is no text to be had of the file; the message says why."""


def extract(name: str, data: bytes) -> str:
    """Return the text of a file.

    Args:
        name: its extension says what it is.
        data: all of it.

    Raises:
        Unreadable: of a type that has no text for us, not what its type says, or empty.
    """
    suffix = name.rpartition(".")[2].lower()
    reader = _READERS.get(suffix)
    if reader is None:
        raise Unreadable(f"no text is extracted from .{suffix} files")
    try:
        text = _tidy(reader(data.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise Unreadable("it is nested too deeply") from error
    if not text:
        raise Unreadable("there is no text in it")
    return text


def _tidy(text: str) -> str:
    """One kind of line ends and spaces, no control characters, one empty line between paragraphs."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    text = "".join(char for char in text if char in "\n\t" or char.isprintable())
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return _EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip()


def _plain(text: str) -> str:
    return text


# HTML -------------------------------------------------------------------------------------------------------


#: Elements that stand by themselves.
_BLOCK_TAGS = """
address article aside blockquote br dd div dl dt fieldset figcaption figure footer form header hr li main nav
ol p pre section table td th tr ul
"""


class _Page(HTMLParser):
    """Collects what a reader of the page would see."""

    _HIDDEN = frozenset({"script", "style", "template", "noscript", "svg", "head"})
    _BLOCKS = frozenset(_BLOCK_TAGS.split())
    _HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.title: list[str] = []
        #: The hidden elements that are open, the innermost last.
        self.hidden: list[str] = []
        self.in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.in_title = tag == "title" and "svg" not in self.hidden
        if tag == "body":
            self.hidden.clear()  # a head that nobody closed
        elif tag in self._HIDDEN:
            self.hidden.append(tag)
        elif tag in self._HEADINGS:
            self.parts.append("\n\n# ")
        elif tag in self._BLOCKS:
            self.parts.append("\n" if tag in ("br", "tr", "td", "th", "li") else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        self.in_title = False
        if tag in self.hidden:
            del self.hidden[self.hidden.index(tag) :]
        elif tag in self._HEADINGS or tag in self._BLOCKS:
            self.parts.append("\n\n" if tag not in ("td", "th", "li") else "\n")

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title.append(data)
        elif not self.hidden:
            self.parts.append(data)


def _html(text: str) -> str:
    page = _Page()
    page.feed(text)
    page.close()
    title, body = " ".join("".join(page.title).split()), "".join(page.parts)
    # In a heading of the source a line may be broken; in ours it may not.
    body = re.sub(r"(?m)^# \s+", "# ", body)
    return f"# {title}\n\n{body}" if title and body.strip() else body


# XML --------------------------------------------------------------------------------------------------------


def _xml(text: str) -> str:
    parser, parts = expat.ParserCreate(), list[str]()

    def refuse(*_: Any) -> None:
        raise Unreadable("it is XML that declares entities")

    def broken(*_: Any) -> None:
        parts.append("\n")

    parser.EntityDeclHandler = refuse
    parser.CharacterDataHandler = parts.append
    parser.StartElementHandler = parser.EndElementHandler = broken
    # The text was decoded already: what the declaration says of its encoding counts no more.
    declared = re.match(r"\s*<\?xml[^>]*\?>", text)
    try:
        parser.Parse(text[declared.end() :] if declared else text, True)
    except expat.ExpatError as error:
        raise Unreadable(f"it is no XML: {error}") from error
    return "\n\n".join(line for line in map(str.strip, "".join(parts).split("\n")) if line)


# Values -----------------------------------------------------------------------------------------------------


def _json(text: str) -> str:
    return "\n".join(_flat(_value(text, "it is no JSON"), "", 0))


def _json_lines(text: str) -> str:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    records = (_value(line, f"line {number} is no JSON") for number, line in lines)
    return "\n\n".join("\n".join(_flat(record, "", 0)) for record in records)


def _value(text: str, trouble: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Unreadable(f"{trouble}: {error}") from error


def _flat(value: Any, name: str, depth: int) -> Iterator[str]:
    """Every value beside the way to it: `author.name: Anna`."""
    if depth > _MAX_DEPTH:
        raise Unreadable("it is nested too deeply")
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _flat(below, f"{name}.{key}" if name else key, depth + 1)
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from _flat(below, f"{name}[{number}]" if _is_nested(below) else name, depth + 1)
    elif value is not None and value != "":
        yield f"{name}: {value}" if name else str(value)


def _is_nested(value: Any) -> bool:
    return isinstance(value, (dict, list))


def _table(text: str, delimiter: str) -> str:
    csv.field_size_limit(_MAX_FIELD)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise Unreadable(f"it is no table: {error}") from error
    if not rows:
        return ""
    names, *records = rows
    if not records:
        return ", ".join(names)
    return "\n\n".join(_record(names, record) for record in records if any(record))


def _record(names: list[str], record: list[str]) -> str:
    named = names + [f"column {number}" for number in range(len(names) + 1, len(record) + 1)]
    return "\n".join(f"{name}: {value}" for name, value in zip(named, record, strict=False) if value)


_READERS: dict[str, Callable[[str], str]] = {
    **dict.fromkeys(("txt", "md", "rst", "log", "yaml", "yml", "toml"), _plain),
    **dict.fromkeys(("html", "htm"), _html),
    "xml": _xml,
    "json": _json,
    **dict.fromkeys(("jsonl", "ndjson"), _json_lines),
    "csv": lambda text: _table(text, ","),
    "tsv": lambda text: _table(text, "\t"),
}
#: Extensions of which there is text.
READABLE = frozenset(_READERS)
