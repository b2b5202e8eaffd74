"""For the tests of staging: parts in an area's folder, files that are whole, and what there is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import uuid4

from django.db import connection

from cleanup.models import StagedFile, StagingArea
from cleanup.operations import Actor
from cleanup.staging.content import Incoming, part_folder, stage

AGENT = Actor(name="key:agent-7", kind="key")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def part_of(area: StagingArea, data: bytes) -> Path:
    """A part that somebody has written and synced."""
    part = part_folder(area) / str(uuid4())
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    return part


def staged(area: StagingArea, data: bytes, name: str = "notes.txt") -> StagedFile:
    return stage(area, part_of(area, data), Incoming(name=name, uploader=AGENT.name), AGENT)


def visible(area: StagingArea) -> dict[str, bytes]:
    """Every file under a final name, with what it holds."""
    root = Path(area.path)
    found = (path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file())
    return {
        str(path): (root / path).read_bytes()
        for path in found
        if not path.parts[0].startswith((".staging-", ".trash"))
    }


def parts(area: StagingArea) -> list[str]:
    folder = Path(area.path) / ".staging-uploads"
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def cut_after(*chunks: bytes) -> Iterator[bytes]:
    """A body whose sender goes away."""
    yield from chunks
    raise ConnectionResetError("the client has gone away")


def at_once(*jobs: Callable[[], Any]) -> list[Any]:
    """Do all jobs at the same time, each in a thread of its own; what each has returned, or raised."""
    start = Barrier(len(jobs))

    def work(job: Callable[[], Any]) -> Any:
        start.wait()
        try:
            return job()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(jobs)) as pool:
        working = [pool.submit(work, job) for job in jobs]
    return [done.exception() or done.result() for done in working]
