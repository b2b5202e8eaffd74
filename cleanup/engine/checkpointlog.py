"""The file outside the database: one line for each checkpoint, and one for each stretch that was removed.

It is only ever appended to, under a lock and fsynced, so it may lie on another disk, be mounted from another
host, or carry the append-only attribute (`chattr +a`). A line that a crash cut short stays where it is and is
passed over; the next one begins on a line of its own. A checkpoint is written here before its transaction
commits: the file is never behind the database, and at most one checkpoint ahead of it.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cleanup.engine.checkpoints import Checkpoint, Pruned
from cleanup.engine.errors import AuditUnavailable

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Checkpoint | Pruned] = msgspec.json.Decoder(Checkpoint | Pruned)


@dataclass(slots=True, kw_only=True)
class Outside:
    """What the file holds: a few hundred bytes for every 10,000 entries."""

    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)
    pruned: dict[int, Pruned] = field(default_factory=dict)
    #: Lines that are nothing, as a crash in the middle of a write leaves them.
    torn: int = 0
    #: The first checkpoint that does not follow the one above it.
    disorder: int | None = None

    @property
    def last(self) -> Checkpoint | None:
        """The newest checkpoint."""
        return self.checkpoints[max(self.checkpoints)] if self.checkpoints else None

    def take(self, line: Checkpoint | Pruned) -> None:
        """Add the next line."""
        if isinstance(line, Pruned):
            self.pruned[line.number] = line
        elif line.number == len(self.checkpoints) + 1:
            self.checkpoints[line.number] = line
        elif self.disorder is None:
            self.disorder = min(line.number, len(self.checkpoints) + 1)


class CheckpointLog:
    """The file, by its path. It is made by the first line."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name the file."""
        self.path = Path(path)

    def read(self, *, expected: bool = True) -> Outside:
        """Read all lines.

        Args:
            expected: False where no checkpoint was ever made: then a missing file is an empty one.

        Raises:
            AuditUnavailable: it is missing or cannot be read.
        """
        found = Outside()
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError as error:
            if not expected:
                return found
            raise AuditUnavailable(f"{self.path}: {error.strerror}") from error
        except OSError as error:
            raise AuditUnavailable(f"{self.path}: {error.strerror}") from error
        for line in filter(None, lines):
            try:
                found.take(_decoder.decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                found.torn += 1
        return found

    def begin(self, lines: Sequence[Checkpoint | Pruned]) -> None:
        """Make the file with these lines, whole or not at all.

        Raises:
            AuditUnavailable: it cannot be made.
        """
        new = CheckpointLog(self.path.with_name(self.path.name + ".new"))
        try:
            new.path.unlink(missing_ok=True)
            with new.locked(make=True) as file:
                for line in lines:
                    file.append(line)
            new.path.rename(self.path)
            fsync_folder(self.path.parent)
        except OSError as error:
            raise AuditUnavailable(f"{self.path}: {error.strerror}") from error

    @contextmanager
    def locked(self, *, make: bool = False) -> Iterator["Appender"]:
        """Hold the file for writing: who seals or removes does so alone.

        Args:
            make: make the file if it is missing. Only for the first checkpoint: a lost file is not to be
                taken for one that is empty.

        Raises:
            AuditUnavailable: the file cannot be opened.
        """
        try:
            made = make and not self.path.exists()
            if made:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if make else 0)
            fd = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise AuditUnavailable(f"{self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if made:
                fsync_folder(self.path.parent)
            yield Appender(fd)
        finally:
            os.close(fd)


class Appender:
    """The file, locked."""

    def __init__(self, fd: int) -> None:
        """Take the open file."""
        self._fd = fd

    def append(self, line: Checkpoint | Pruned) -> None:
        """Write one line, on disk when this returns.

        Raises:
            AuditUnavailable: it is not; what was written of it is passed over by readers.
        """
        try:
            data = memoryview(self._start() + _encoder.encode(line) + b"\n")
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)
        except OSError as error:
            raise AuditUnavailable(f"the file of checkpoints cannot be written: {error.strerror}") from error

    def _start(self) -> bytes:
        """A line feed where the last line has none."""
        size = os.fstat(self._fd).st_size
        return b"" if size == 0 or os.pread(self._fd, 1, size - 1) == b"\n" else b"\n"


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
