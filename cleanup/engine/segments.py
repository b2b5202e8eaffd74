"""Exported stretches of the audit: one file of JSON lines for each checkpoint.

The first line is the checkpoint, the others are its entries. So a segment can be checked alone: its entries
must link, hash and add up to the root that the checkpoint's signature vouches for. It is written under
another name, fsynced and then renamed: a file under its final name is whole.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from cleanup.engine.audit import AuditEntry, canonical
from cleanup.engine.checkpointlog import fsync_folder
from cleanup.engine.checkpoints import Checkpoint, Flaw, flaw_of_stretch
from cleanup.engine.errors import AuditInvalid, AuditUnavailable

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_checkpoint = msgspec.json.Decoder(Checkpoint)
_entry = msgspec.json.Decoder(AuditEntry)

#: Bytes of one line at most: an entry holds a path and some evidence, never this much.
_LINE = 16 * 1024 * 1024


def segment_name(checkpoint: Checkpoint) -> str:
    """Return the file name of a checkpoint's segment; names sort as checkpoints do."""
    return f"audit-{checkpoint.number:08d}.jsonl"


def write_segment(folder: Path, checkpoint: Checkpoint, entries: Iterable[AuditEntry]) -> str:
    """Write the segment of a checkpoint into `folder`, fsynced, and return its SHA-256 in hex.

    Raises:
        AuditUnavailable: it cannot be written.
        AuditInvalid: the entries are not those that were sealed; nothing is left behind.
    """
    path = folder / segment_name(checkpoint)
    new = path.with_name(path.name + ".new")
    digest = hashlib.sha256()
    try:
        with new.open("wb") as file:
            for line in _lines(checkpoint, entries):
                file.write(line)
                digest.update(line)
            file.flush()
            os.fsync(file.fileno())
        _refuse_flaw(new, checkpoint)
        new.replace(path)
        fsync_folder(folder)
    except OSError as error:
        raise AuditUnavailable(f"{error.filename or path}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)
    return digest.hexdigest()


def _lines(checkpoint: Checkpoint, entries: Iterable[AuditEntry]) -> Iterator[bytes]:
    yield _encoder.encode(checkpoint) + b"\n"
    for entry in entries:
        yield canonical(entry.fields()) + b"\n"


def _refuse_flaw(path: Path, checkpoint: Checkpoint) -> None:
    found, flaw = check_segment(path)
    if flaw is not None or found != checkpoint:
        seq = flaw.seq if flaw else checkpoint.first_seq
        raise AuditInvalid(f"entry {seq} is not as it was sealed: it is not exported")


def check_segment(path: Path) -> tuple[Checkpoint, Flaw | None]:
    """Read a segment again: its checkpoint, unjudged, and what is wrong with the entries below it.

    Raises:
        AuditUnavailable: the file cannot be read.
        AuditInvalid: it is no segment.
    """
    try:
        with path.open("rb") as file:
            checkpoint = _decoded(_checkpoint, file.readline(_LINE), path)
            entries = (_decoded(_entry, line, path) for line in iter(lambda: file.readline(_LINE), b""))
            return checkpoint, flaw_of_stretch(entries, checkpoint, prev_hash=None)
    except OSError as error:
        raise AuditUnavailable(f"{path}: {error.strerror}") from error


def _decoded(decoder: "msgspec.json.Decoder[T]", line: bytes, path: Path) -> T:
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AuditInvalid(f"a line of {path} is not what a segment holds: {error}") from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex.

    Raises:
        AuditUnavailable: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AuditUnavailable(f"{path}: {error.strerror}") from error
