"""The audit chain in a file: one JSON object a line, fsynced before `write` returns.

This is the audit of the engine when no database is at hand. The file is locked from reading its tail until
the new lines are on disk, so writers in several processes never fork the chain. A last line without its line
feed is a write that never returned to anybody: it is cut off before the next one. A last line that is whole
but is no entry is not ours to mend, and the sink refuses to go on.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cleanup.engine.audit import GENESIS, AuditEntry, AuditRecord, seal
from cleanup.engine.errors import AuditInvalid
from cleanup.engine.faults import crash_point

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AuditEntry)

#: How far back the last line is sought at a time; an entry is a few hundred bytes.
_TAIL_STEP = 8192


class JsonlAuditSink:
    """An audit sink that appends to a JSON-lines file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name the file; it is made by the first write."""
        self._path = Path(path)

    def write(self, records: Sequence[AuditRecord]) -> list[AuditEntry]:
        """Append `records` in order, fsynced, and return them sealed.

        Raises:
            AuditInvalid: a record cannot be sealed, or the file's last line is not an audit entry.
        """
        if not records:
            return []
        with self._locked() as fd:
            end, (seq, prev_hash) = _tail(fd)
            entries = seal(records, prev_seq=seq, prev_hash=prev_hash)
            crash_point("audit.before_append")
            os.ftruncate(fd, end)
            _append(fd, b"".join(_encoder.encode(entry) + b"\n" for entry in entries), end)
            crash_point("audit.after_append")
        return entries

    def __iter__(self) -> Iterator[AuditEntry]:
        """Yield the entries from the first on, a torn last line left out.

        Raises:
            AuditInvalid: a whole line is not an audit entry.
        """
        if not self._path.exists():
            return
        with self._path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield _decode(line)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        made = not self._path.exists()
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if made:
                _fsync_parent(self._path)
            yield fd
        finally:
            os.close(fd)


def _fsync_parent(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _append(fd: int, data: bytes, at: int) -> None:
    """Write all of `data` at `at` and fsync; on failure leave the file as it was."""
    view = memoryview(data)
    try:
        while view:
            written = os.pwrite(fd, view, at + len(data) - len(view))
            view = view[written:]
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, at)
        raise


def _decode(line: bytes) -> AuditEntry:
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise AuditInvalid(f"a line of the audit file is not an audit entry: {error}") from error


def _tail(fd: int) -> tuple[int, tuple[int, str]]:
    """Return where the last whole line ends, and the head of the chain it holds."""
    start = os.fstat(fd).st_size
    buffer = b""
    while start > 0 and buffer.count(b"\n") < 2:
        step = min(_TAIL_STEP, start)
        start -= step
        buffer = os.pread(fd, step, start) + buffer
    whole = buffer[: buffer.rfind(b"\n") + 1]
    if not whole:
        return 0, (0, GENESIS)
    entry = _decode(whole[whole.rfind(b"\n", 0, len(whole) - 1) + 1 :])
    return start + len(whole), (entry.seq, entry.hash)
