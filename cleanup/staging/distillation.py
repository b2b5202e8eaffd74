"""What a text is about, in pieces: what the second step of the pipeline does. Pure, and always the same.

A text is cut into *chunks* of whole paragraphs, at most 200 words each, that never reach over a heading.
Each has a title (the heading above it, else its first words), its words counted, and its key sentences,
chosen by Luhn's method: a word weighs the logarithm of how often the text uses it (used once: nothing), words
of up to three letters and those of a short list of common ones nothing, and a sentence the mean weight of its
different words; the heaviest two of a chunk are its key sentences, in the order of the text.

`vector` is a hashing vectoriser: each word of a text adds to one of 256 numbers, which and with what sign its
BLAKE2 hash says, and the vector is brought to length 1. It needs no model and knows no meaning, only words.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b

CHUNK_WORDS = 200
KEY_SENTENCES = 2
DIMENSIONS = 256
_TITLE_WORDS = 8

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_SENTENCE = re.compile(r"(?<=[.!?\u2026])\s+|\n+")
_HEADING = re.compile(r"#{1,6}\s+(.*)")
_COMMON_WORDS = """
about after again also because been before being between both could does each from have having here into
itself just like made make many more most much must only other over same should some such than that their
them then there these they this those through under until very were what when where which while will with
would your
"""
_COMMON = frozenset(_COMMON_WORDS.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a text."""

    #: From 1 on.
    chunk: int
    title: str
    words: int
    key_sentences: list[str]
    text: str


def distil(text: str) -> list[Chunk]:
    """Return the chunks of an extracted text, in its order."""
    weights = _weights(text)
    return [
        Chunk(
            chunk=number, title=title or _first_words(body), words=len(_WORD.findall(body)),
            key_sentences=_key_sentences(body, weights), text=body,
        )
        for number, (title, body) in enumerate([*_pieces(text)] or [("", text)], 1)
    ]  # fmt: skip


def as_lines(chunks: Sequence[Chunk]) -> bytes:
    """Write chunks as JSON lines, one object each."""
    return "".join(json.dumps(asdict(chunk), ensure_ascii=False) + "\n" for chunk in chunks).encode()


def from_lines(data: bytes) -> list[Chunk]:
    """Read what `as_lines` has written."""
    return [Chunk(**json.loads(line)) for line in data.decode().split("\n") if line]


def vector(text: str) -> list[float]:
    """Return the vector of a text; of one without words that of the empty word, since no vector is zero."""
    sums = [0.0] * DIMENSIONS
    for word, count in Counter(_words(text) or [""]).items():
        number = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "big")
        sums[number % DIMENSIONS] += (1 if number >> 63 else -1) * (1 + math.log(count))
    length = math.sqrt(sum(value * value for value in sums))
    if not length:  # words that cancel each other out
        return vector("")
    return [value / length for value in sums]


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Title and body of each chunk; none of a text that is nothing but headings."""
    title, held, count = "", list[str](), 0
    for paragraph in _paragraphs(text):
        heading = _HEADING.fullmatch(paragraph)
        words = len(_WORD.findall(paragraph))
        if held and (heading or count + words > CHUNK_WORDS):
            yield title, "\n\n".join(held)
            held, count = [], 0
        if heading:
            title = heading[1].strip()
        else:
            held.append(paragraph)
            count += words
    if held:
        yield title, "\n\n".join(held)


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of no more words than a chunk has; headings by themselves."""
    for block in text.split("\n\n"):
        lines = list[str]()
        for line in block.split("\n"):
            if _HEADING.fullmatch(line):
                yield from _cut("\n".join(lines))
                lines.clear()
                yield line
            else:
                lines.append(line)
        yield from _cut("\n".join(lines))


def _cut(paragraph: str) -> Iterator[str]:
    """A long paragraph in parts, cut behind the last word that a chunk holds."""
    start, ends = 0, [match.end() for match in _WORD.finditer(paragraph)]
    for end in ends[CHUNK_WORDS - 1 : -1 : CHUNK_WORDS]:
        yield paragraph[start:end].strip()
        start = end
    if rest := paragraph[start:].strip():
        yield rest


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _weights(text: str) -> dict[str, float]:
    counts = Counter(word for word in _words(text) if len(word) > 3 and word not in _COMMON)
    return {word: math.log(count) for word, count in counts.items()}


def _key_sentences(body: str, weights: dict[str, float]) -> list[str]:
    sentences = [one for one in map(str.strip, _SENTENCE.split(body)) if one]
    scores = [_score(sentence, weights) for sentence in sentences]
    best = sorted(range(len(sentences)), key=lambda at: (-scores[at], at))[:KEY_SENTENCES]
    return [sentences[at] for at in sorted(best)]


def _score(sentence: str, weights: dict[str, float]) -> float:
    words = sorted(set(_words(sentence)))
    # Rounded: a sum may differ in its last digits, and with it which of two equal sentences is chosen.
    return round(sum(weights.get(word, 0.0) for word in words) / len(words), 9) if words else 0.0


def _first_words(body: str) -> str:
    words = body.split()
    title = " ".join(words[:_TITLE_WORDS])
    return (title + (" …" if len(words) > _TITLE_WORDS else ""))[:120]
