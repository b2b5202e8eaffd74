"""One LZ4 frame that can be entered in the middle, and its table of contents behind it.

The frame is an ordinary one (`lz4 -d` reads it): independent blocks of 256 KiB, a checksum on each and on the
whole. Behind it stands a *skippable frame*, which every decoder passes over: what the content is, as a JSON
object, and of each block in which a line begins where it stands, which line that is, and where in the block.
A page is made of lines. So reading some of them costs the blocks that hold them, whatever the size of the
file; and a file says itself what it must hold, so that it can be judged without anything beside it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, BinaryIO

import lz4.frame

#: A page reads a few blocks of this size, and the table takes 20 bytes for each.
BLOCK = 256 * 1024
_SETTINGS = {
    "block_size": lz4.frame.BLOCKSIZE_MAX256KB,
    "block_linked": False,
    "block_checksum": True,
    "content_checksum": True,
    # One block for each call, so that we know where each begins.
    "auto_flush": True,
}
#: Magic number of a skippable frame, one of sixteen that the format sets aside, and the length of the rest.
_SKIPPABLE = struct.Struct("<II")
_MAGIC = 0x184D2A5A
#: In front of the entries: length of the JSON object. Behind them, at the very end: length of all of it.
_HEAD, _END = struct.Struct("<I"), struct.Struct("<I8s")
_WORD = b"xnaipage"
#: Where a block begins in the file, the first line that begins in it, and where in the block.
_ENTRY = struct.Struct("<QQI")
#: As a table a content of terabytes; what claims more is no table of ours.
_MAX_TABLE = 256 * 2**20
_CHUNK = 1 << 16


class Corrupt(ValueError):
    """The file is not what was written; the message says in which way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What the table says."""

    #: Bytes and SHA-256 of the content, uncompressed.
    size: int
    sha256: str
    lines: int
    #: What the writer said besides.
    facts: dict[str, Any]
    #: Length of the header of the frame, and where its blocks end in the file.
    header: int
    end: int
    #: Length of the file, this table included.
    file_size: int
    blocks: bytes = field(repr=False)

    def way_to(self, line: int) -> tuple[int, int, int]:
        """Where to begin for `line`: place of a block in the file, a line that begins in it, and where."""
        low, high = 0, len(self.blocks) // _ENTRY.size
        while low < high:
            middle = (low + high) // 2
            if self._entry(middle)[1] <= line:
                low = middle + 1
            else:
                high = middle
        return self._entry(low - 1) if low else (self.header, 0, 0)

    def _entry(self, number: int) -> tuple[int, int, int]:
        place, line, within = _ENTRY.unpack_from(self.blocks, number * _ENTRY.size)
        return place, line, within


class Writer:
    """Writes lines to an empty file, in bounded memory."""

    def __init__(self, file: BinaryIO) -> None:
        """Begin the frame."""
        self.file = file
        self.hash, self.size, self.lines = sha256(), 0, 0
        self._frame = lz4.frame.LZ4FrameCompressor(**_SETTINGS)
        self._block, self._entries = bytearray(), bytearray()
        #: The first line that begins in the block at hand, and where.
        self._first: tuple[int, int] | None = None
        self._header = self._place = file.write(self._frame.begin())

    def begin_line(self) -> None:
        """Say that what is written next begins a line."""
        if self._first is None:
            self._first = self.lines, len(self._block)
        self.lines += 1

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self.hash.update(data)
        self.size += len(data)
        for start in range(0, len(data), BLOCK):
            self._take(data[start : start + BLOCK])

    def _take(self, data: bytes) -> None:
        room = BLOCK - len(self._block)
        self._block += data[:room]
        if len(self._block) == BLOCK:
            self._flush()
            self._block += data[room:]

    def _flush(self) -> None:
        if self._first is not None:
            self._entries += _ENTRY.pack(self._place, *self._first)
            self._first = None
        self._place += self.file.write(self._frame.compress(bytes(self._block)))
        self._block.clear()

    def finish(self, facts: dict[str, Any]) -> Contents:
        """End the frame, write the table behind it, and return what it says."""
        if self._block:
            self._flush()
        end = self._place
        frame = end + self.file.write(self._frame.flush())
        told: dict[str, Any] = {
            "size": self.size, "sha256": self.hash.hexdigest(), "lines": self.lines, "facts": facts,
            "header": self._header, "end": end,
        }  # fmt: skip
        text = json.dumps(told, separators=(",", ":")).encode()
        body = _HEAD.pack(len(text)) + text + self._entries
        whole = len(body) + _END.size
        self.file.write(_SKIPPABLE.pack(_MAGIC, whole) + body + _END.pack(whole, _WORD))
        size = frame + _SKIPPABLE.size + whole
        return Contents(**told, file_size=size, blocks=bytes(self._entries))


def read_contents(file: BinaryIO) -> Contents:
    """Read the table of a file.

    Raises:
        Corrupt: there is none, or it does not fit the file.
    """
    size = file.seek(0, os.SEEK_END)
    if size < _SKIPPABLE.size + _END.size:
        raise Corrupt("it is cut short")
    file.seek(size - _END.size)
    whole, word = _END.unpack(file.read(_END.size))
    if word != _WORD or not _HEAD.size + _END.size < whole <= min(size - _SKIPPABLE.size, _MAX_TABLE):
        raise Corrupt("its table of contents is missing: it is cut short, or was not written here")
    file.seek(size - whole)
    return _contents_of(file.read(whole - _END.size), size)


def _contents_of(body: bytes, size: int) -> Contents:
    try:
        (length,) = _HEAD.unpack_from(body)
        told = json.loads(body[_HEAD.size : _HEAD.size + length])
        found = Contents(**told, file_size=size, blocks=body[_HEAD.size + length :])
        sound = 0 < found.header <= found.end < size and len(found.blocks) % _ENTRY.size == 0
    except (ValueError, TypeError, struct.error) as error:
        raise Corrupt("its table of contents cannot be read") from error
    if not sound:
        raise Corrupt("its table of contents does not fit it")
    return found


def content_of(file: BinaryIO, contents: Contents, place: int | None = None) -> Iterator[bytes]:
    """Yield the content from the block at `place` on, or all of it; a block is checked before it is given.

    Raises:
        Corrupt: a block is not what was written. What was yielded before is right.
    """
    file.seek(0)
    header = file.read(contents.header)
    file.seek(contents.header if place is None else place)
    left = contents.end - file.tell()
    frame = lz4.frame.LZ4FrameDecompressor()
    try:
        frame.decompress(header)
        while left > 0:
            data = file.read(min(_CHUNK, left))
            if not data:
                raise Corrupt("it is cut short")
            left -= len(data)
            yield from _decoded(frame, data)
    except RuntimeError as error:  # what lz4 raises
        raise Corrupt(f"a block of it is not what was written ({error})") from error


def _decoded(frame: lz4.frame.LZ4FrameDecompressor, data: bytes) -> Iterator[bytes]:
    """What `data` stands for, a block at a time: little input may stand for very much."""
    while True:
        found = frame.decompress(data, max_length=BLOCK)
        if found:
            yield found
        if frame.needs_input or frame.eof:
            return
        data = b""


def lines_of(file: BinaryIO, contents: Contents, first: int) -> Iterator[bytes]:
    """Yield the lines from `first` on, without their ends.

    Raises:
        Corrupt: a block is not what was written.
    """
    if first >= contents.lines:
        return
    place, line, within = contents.way_to(first)
    rest, skip = bytearray(), within
    for data in content_of(file, contents, place):
        *ends, last = data[skip:].split(b"\n") if skip < len(data) else (b"",)
        skip = max(skip - len(data), 0)
        for end in ends:
            if line >= first:
                yield bytes(rest + end)
            line += 1
            rest.clear()
        rest += last
    if rest and line >= first:
        yield bytes(rest)
