"""Trees of small files, made fast: what a benchmark finds, moves and removes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Files in one directory: what a staging area with a directory a day or a task looks like.
PER_DIRECTORY = 1_000

#: What is to go was last changed so many seconds ago, what is to stay a minute ago.
OLD, YOUNG = 5 * 86_400, 60

_NEW = os.O_CREAT | os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC


@contextmanager
def workplace(on: Path | None) -> Iterator[Path]:
    """A folder for the length of a ``with`` statement, removed with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="cleanup-bench-", dir=on)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def make(root: Path, files: int, *, old_every: int = 1) -> None:
    """Make a tree of empty files, of which every `old_every`-th is old."""
    root.mkdir()
    now = time.time()
    old, young = (now - OLD,) * 2, (now - YOUNG,) * 2
    for first in range(0, files, PER_DIRECTORY):
        directory = os.open(_directory(root, first), os.O_RDONLY)
        for number in range(first, min(first + PER_DIRECTORY, files)):
            name = name_of(number)
            os.close(os.open(name, _NEW, 0o644, dir_fd=directory))
            os.utime(name, old if number % old_every == 0 else young, dir_fd=directory)
        os.close(directory)


def _directory(root: Path, first: int) -> Path:
    path = root / directory_of(first)
    path.mkdir()
    return path


def directory_of(number: int) -> str:
    """The directory of a file."""
    return f"d{number // PER_DIRECTORY:05}"


def name_of(number: int) -> str:
    """The name of a file in its directory."""
    return f"task-{number:07}.json"


def make_pairs(root: Path, pairs: int) -> None:
    """Make results with metadata that has expired, all in one directory, as a result store does."""
    root.mkdir()
    metadata = json.dumps({"task_id": "x", "expires_at": "2020-01-01T00:00:00+00:00", "size": 7})
    for number in range(pairs):
        (root / f"task-{number:06}.result.json.lz4").write_bytes(b"content")
        (root / f"task-{number:06}.metadata.json").write_text(metadata)


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`, as the mount table names it."""
    best, found = -1, "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, place, kind, options = line.split(" ")[:4]
        if path.is_relative_to(place) and len(place) > best:
            best, found = len(place), f"{kind} on {device} ({options[:60]})"
    return found
