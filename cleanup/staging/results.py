"""Results of tasks: `<task id>.result.json.lz4` and, beside it, `<task id>.metadata.json` with `expires_at`.

These are the files that the rule `expires_at` and the `ResultCleanupDaemon` know. A result is written to a
hidden part, synced and renamed, so it is there whole or not at all, and whoever stores last under an id has
stored the result that is read. Metadata are in place before the result is: no result ever stands there
without an expiry, nor with one that is earlier than was promised. A result says itself what it must hold;
metadata without a result are no result.

It needs a folder and neither a database nor the settings of the site.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from cleanup.engine.expiry import MAX_COMPANION_BYTES, METADATA_SUFFIX, RESULT_SUFFIX, moment, read_expiry
from cleanup.engine.kernel import DIRECTORY
from cleanup.staging import lz4pages
from cleanup.staging.errors import StagingError
from cleanup.staging.lz4pages import Contents, Corrupt, Writer
from cleanup.staging.room import needing_room

#: How long a result is kept if nobody says otherwise.
TTL = timedelta(days=7)

#: Hidden: whoever walks an area passes names that begin like this.
_PARTS = b".staging-results"
_LOCK = b"lock"
#: A part that nobody holds is left over from a crash; this long it may just not be held yet.
_LEFT_OVER = timedelta(hours=1)

_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Clock = Callable[[], datetime]


class ResultRefused(StagingError):
    """Not an id, not JSON, no time in which to keep it, or no such page."""

    code = "result_refused"


class NoResult(StagingError):
    """The task has no result here."""

    code = "no_result"


class ResultCorrupt(StagingError):
    """A result, or its metadata, is not what was stored; the message names the file."""

    code = "result_corrupt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is known of a result without reading it."""

    task_id: str
    created_at: datetime
    expires_at: datetime
    #: `list` = pages are of its entries; `value` = it is one entry.
    kind: str
    entries: int
    #: Of the JSON text, before compression.
    size: int
    sha256: str
    #: Of the compressed file.
    file_size: int

    @property
    def compression_ratio(self) -> float:
        """Compressed bytes for one byte."""
        return round(self.file_size / self.size, 4) if self.size else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some entries of a result, in their order."""

    task_id: str
    #: From 1 on.
    number: int
    pages: int
    #: Of the whole result.
    total: int
    entries: list[Any]


def _now() -> datetime:
    return datetime.now(UTC)


class ResultStore:
    """The results in one folder. Any number of processes may use it at once."""

    def __init__(self, folder: str | os.PathLike[str], *, clock: Clock = _now) -> None:
        """Take the existing `folder`, such as that of the area `results`."""
        self.folder = Path(folder)
        self._clock = clock

    def store(self, task_id: str, data: Any, *, ttl: timedelta = TTL) -> Summary:
        """Store a result in place of the one that the task has, if it has one.

        Args:
            task_id: becomes the name of the files.
            data: a JSON value; or an iterator of JSON values, which is stored as a list while it comes.
            ttl: how long from now on it is kept.

        Raises:
            ResultRefused: not an id, not JSON, or no time in which to keep it.
            StorageFull: there is no room; the former result is still there.
        """
        name, now = _name_of(task_id), self._clock()
        expires_at = _expiry(now, ttl)
        with needing_room(), self._opened() as folder, _parts_of(folder) as parts:
            _drop_left_over(parts)
            with _part(parts) as (part, file):
                contents = _write(file, data, {"task_id": task_id, "created_at": now.isoformat()})
                _sync(file)
                summary = _summary(contents, expires_at)
                self._publish(folder, parts, part, name, summary)
        return summary

    def retrieve(self, task_id: str) -> Any:
        """Read a whole result, and check it.

        Raises:
            NoResult: there is none.
            ResultCorrupt: it is not what was stored.
        """
        with self._reading(task_id) as (file, contents):
            text = bytearray()
            for data in _checked(file, contents):
                text += data
            return msgspec.json.decode(text)

    def page(self, task_id: str, number: int = 1, *, size: int = 100) -> Page:
        """Read the entries of one page; of the file no more than what holds them.

        Raises:
            ResultRefused: there are no such pages.
            NoResult: there is none.
            ResultCorrupt: what was read is not what was stored.
        """
        if number < 1 or size < 1:
            raise ResultRefused("pages begin with 1 and have at least 1 entry")
        with self._reading(task_id) as (file, contents):
            entries = list(islice(_entries(file, contents, (number - 1) * size), size))
            pages = -(-_count(contents) // size)
            return Page(task_id=task_id, number=number, pages=pages, total=_count(contents), entries=entries)

    def entries(self, task_id: str, *, first: int = 0) -> Iterator[Any]:
        """Yield the entries from `first` on, one at a time; errors as of `page`."""
        with self._reading(task_id) as (file, contents):
            yield from _entries(file, contents, first)

    def summary(self, task_id: str) -> Summary:
        """Say what is known of a result: its table of contents and its metadata are read.

        Raises:
            NoResult: there is none, or it has no metadata.
            ResultCorrupt: one of them cannot be read.
        """
        with self._reading(task_id) as (_, contents), self._opened() as folder:
            return _summary(contents, _expires_at(folder, _name_of(task_id)))

    def checksum(self, task_id: str) -> str:
        """Read a whole result, in bounded memory; return its SHA-256. Errors as of `retrieve`."""
        with self._reading(task_id) as (file, contents):
            for _ in _checked(file, contents):
                pass
            return contents.sha256

    def touch(self, task_id: str, *, ttl: timedelta = TTL) -> Summary:
        """Keep a result for `ttl` from now on, never shorter than was said before; errors as of `summary`."""
        name, expires_at = _name_of(task_id), _expiry(self._clock(), ttl)
        with (
            needing_room(), self._opened() as folder, _parts_of(folder) as parts, _locked(parts),
            self._reading(task_id) as (_, contents),
        ):  # fmt: skip
            summary = _summary(contents, max(expires_at, _expires_at(folder, name)))
            _put_metadata(folder, parts, name, summary)
        return summary

    def tasks(self) -> Iterator[str]:
        """Yield the ids of all results that have metadata, in no order."""
        with self._opened() as folder, os.scandir(folder) as found:
            for entry in found:
                task_id = entry.name.removesuffix(os.fsdecode(RESULT_SUFFIX))
                if task_id != entry.name and _TASK_ID.fullmatch(task_id) and _has_metadata(folder, task_id):
                    yield task_id

    def _publish(self, folder: int, parts: int, part: bytes, name: bytes, summary: Summary) -> None:
        """Metadata, the result, metadata: between two of these steps nothing expires before its time."""
        with _locked(parts):
            latest = summary.expires_at
            with suppress(NoResult, ResultCorrupt):
                latest = max(latest, _expires_at(folder, name))
            _put_metadata(folder, parts, name, summary, latest)
            os.replace(part, name + RESULT_SUFFIX, src_dir_fd=parts, dst_dir_fd=folder)
            os.fsync(folder)
            if latest != summary.expires_at:
                _put_metadata(folder, parts, name, summary)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        folder = os.open(self.folder, DIRECTORY)
        try:
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _reading(self, task_id: str) -> Iterator[tuple[BinaryIO, Contents]]:
        """The open result and its table. It stays the same one, whatever is stored meanwhile."""
        name = _name_of(task_id)
        with self._opened() as folder, _open(folder, name + RESULT_SUFFIX, task_id) as file:
            if not _has_metadata(folder, task_id):
                raise NoResult(f"the result of {task_id} has no metadata, so it is not ready, or not ours")
            try:
                yield file, lz4pages.read_contents(file)
            except Corrupt as error:
                raise ResultCorrupt(f"{os.fsdecode(name + RESULT_SUFFIX)} is corrupt: {error}") from error


# What is in a file ------------------------------------------------------------------------------------------


def _write(file: BinaryIO, data: Any, facts: dict[str, Any]) -> Contents:
    """Write `data` as JSON; a list gets a line for each entry, which is still the same JSON."""
    writer = Writer(file)
    if not isinstance(data, (list, tuple, Iterator)):
        writer.begin_line()
        writer.write(_encode(data))
        return writer.finish({**facts, "kind": "value"})
    writer.begin_line()
    writer.write(b"[\n")
    for number, entry in enumerate(data):
        # In front of the next one, since nobody knows yet which is the last.
        writer.write(b",\n" if number else b"")
        writer.begin_line()
        writer.write(_encode(entry))
    writer.write(b"\n]" if writer.lines > 1 else b"]")
    return writer.finish({**facts, "kind": "list"})


def _encode(value: Any) -> bytes:
    """JSON in one line."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:  # ValueError: UnicodeEncodeError too
        raise ResultRefused(f"the result is no JSON: {error}") from error


def _count(contents: Contents) -> int:
    return 1 if contents.facts.get("kind") == "value" else contents.lines - 1


def _entries(file: BinaryIO, contents: Contents, first: int) -> Iterator[Any]:
    """The entries from `first` on. The first line of a list is its bracket, and the last has one, too."""
    is_list = contents.facts.get("kind") == "list"
    lines = lz4pages.lines_of(file, contents, first + is_list)
    for line in islice(lines, max(_count(contents) - first, 0)):
        yield _decode(line.removesuffix(b",") if is_list else line)


def _decode(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"an entry is no JSON ({error})") from error


def _checked(file: BinaryIO, contents: Contents) -> Iterator[bytes]:
    """The content; at its end it is compared with what was stored."""
    state, size = sha256(), 0
    for data in lz4pages.content_of(file, contents):
        state.update(data)
        size += len(data)
        yield data
    if (size, state.hexdigest()) != (contents.size, contents.sha256):
        raise Corrupt("its SHA-256 is not that of what was stored")


def _summary(contents: Contents, expires_at: datetime) -> Summary:
    try:
        facts = contents.facts
        return Summary(
            task_id=str(facts["task_id"]), created_at=datetime.fromisoformat(facts["created_at"]),
            expires_at=expires_at, kind=str(facts["kind"]), entries=_count(contents), size=contents.size,
            sha256=contents.sha256, file_size=contents.file_size,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt("its table of contents tells of no result") from error


# What stands beside it --------------------------------------------------------------------------------------


def _put_metadata(
    folder: int, parts: int, name: bytes, summary: Summary, expires_at: datetime | None = None
) -> None:
    told = asdict(summary) | {"compression_ratio": summary.compression_ratio}
    told |= {
        "created_at": summary.created_at.isoformat(),
        "expires_at": (expires_at or summary.expires_at).isoformat(),
    }
    with _part(parts) as (part, file):
        file.write(json.dumps(told).encode() + b"\n")
        _sync(file)
        os.replace(part, name + METADATA_SUFFIX, src_dir_fd=parts, dst_dir_fd=folder)
    os.fsync(folder)


def _expires_at(folder: int, name: bytes) -> datetime:
    file_name = os.fsdecode(name + METADATA_SUFFIX)
    with _open(folder, name + METADATA_SUFFIX, os.fsdecode(name)) as file:
        found = read_expiry(file.read(MAX_COMPANION_BYTES + 1))
    if found.expires_at is None:
        raise ResultCorrupt(f"{file_name} is corrupt: {found.error}")
    try:
        return moment(found.expires_at, UTC)
    except OverflowError as error:
        raise ResultCorrupt(f"{file_name} is corrupt: expires_at is no moment of ours") from error


def _has_metadata(folder: int, task_id: str) -> bool:
    try:
        os.stat(task_id.encode() + METADATA_SUFFIX, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _expiry(now: datetime, ttl: timedelta) -> datetime:
    try:
        if ttl > timedelta(0):
            return now + ttl
    except OverflowError as error:
        raise ResultRefused("no result is kept for so long") from error
    raise ResultRefused("a result is kept for some time, or not stored at all")


def _name_of(task_id: str) -> bytes:
    if not _TASK_ID.fullmatch(task_id):
        raise ResultRefused("a task has an id of at most 200 letters, digits and . _ : @ -")
    return task_id.encode()


# Files ------------------------------------------------------------------------------------------------------


def _open(folder: int, name: bytes, task_id: str) -> BinaryIO:
    """Open a plain file for reading, never through a link."""
    try:
        fd = os.open(name, _READ, dir_fd=folder)
    except FileNotFoundError as error:
        raise NoResult(f"there is no result of {task_id}") from error
    except OSError as error:
        raise ResultCorrupt(f"{os.fsdecode(name)} cannot be opened: {error.strerror}") from error
    return os.fdopen(fd, "rb")


@contextmanager
def _parts_of(folder: int) -> Iterator[int]:
    with suppress(FileExistsError):
        os.mkdir(_PARTS, 0o700, dir_fd=folder)
    fd = os.open(_PARTS, DIRECTORY, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _part(parts: int) -> Iterator[tuple[bytes, BinaryIO]]:
    """A new, empty file that is held while it is written, and gone afterwards unless it was renamed."""
    name = f"{secrets.token_hex(8)}.part".encode()
    with os.fdopen(os.open(name, _NEW, 0o640, dir_fd=parts), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield name, file
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parts)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _locked(parts: int) -> Iterator[None]:
    """Whoever puts files in place does so alone: two of them must not mix theirs."""
    fd = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parts)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _drop_left_over(parts: int) -> None:
    """Remove parts whose writer is dead."""
    with os.scandir(parts) as found:
        names = [entry.name for entry in found if entry.name.endswith(".part")]
    for name in names:
        with suppress(FileNotFoundError, BlockingIOError):
            if time.time() - os.stat(name, dir_fd=parts).st_mtime < _LEFT_OVER.total_seconds():
                continue
            fd = os.open(name, _READ, dir_fd=parts)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=parts)
            finally:
                os.close(fd)
