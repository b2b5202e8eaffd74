"""What the engine's tests share: a real area in a temporary folder, and ways to fill, plan and trash it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from cleanup.engine.area import AreaHandle, open_area, register_area
from cleanup.engine.audit import AuditRecord
from cleanup.engine.auditlog import JsonlAuditSink
from cleanup.engine.plan import Plan, PlanItem, build_plan
from cleanup.engine.policy import Policy, Stat
from cleanup.engine.scan import Skips, walk
from cleanup.engine.trash import Header, Moved, PreparedBatch, move, prepare, trash_ids

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)

AGE = Policy(name="old files", rule="age", age=2 * DAY)
EXPIRY = Policy(name="results", rule="expires_at", include=("*.result.json.lz4",))


def ns(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def a_stat(**changes: object) -> Stat:
    """A regular file of 100 bytes, ten days old by every stamp."""
    old = ns(NOW - 10 * DAY)
    fields: dict[str, object] = {
        "kind": "file",
        "device": 1,
        "inode": 2,
        "nlink": 1,
        "size": 100,
        "mtime_ns": old,
        "atime_ns": old,
        "ctime_ns": old,
        "btime_ns": old,
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
    }
    return Stat(**{**fields, **changes})  # type: ignore[arg-type]


class Garden:
    """An area on disk."""

    def __init__(self, root: Path, uuid: UUID | None = None) -> None:
        self.root = root
        self.uuid = uuid or uuid4()
        register_area(root, self.uuid)

    def open(self) -> AreaHandle:
        return open_area(self.root, uuid=self.uuid)

    def write(self, name: str | bytes, content: bytes = b"content", *, days: float = 10) -> bytes:
        """Write a file that many days old and return its path below the area."""
        path = os.path.join(os.fsencode(self.root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
        stamp = ns(NOW - timedelta(days=days))
        os.utime(path, ns=(stamp, stamp))
        return os.fsencode(name)

    def result(self, stem: str, *, expired: bool = True, metadata: object = None) -> bytes:
        """Write a result with its companion and return the result's path."""
        moment = NOW - DAY if expired else NOW + DAY
        content = {"expires_at": moment.isoformat()} if metadata is None else metadata
        self.write(f"{stem}.metadata.json", json.dumps(content).encode())
        return self.write(f"{stem}.result.json.lz4", b"result " + stem.encode())

    def path(self, name: str | bytes) -> bytes:
        return os.path.join(os.fsencode(self.root), os.fsencode(name))

    def read(self, name: str | bytes) -> bytes | None:
        try:
            with open(self.path(name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def files(self) -> set[bytes]:
        """Every file outside the trash but the marker."""
        found = set()
        for folder, folders, names in os.walk(os.fsencode(self.root)):
            folders[:] = [name for name in folders if name != b".trash"]
            found |= {os.path.relpath(os.path.join(folder, name), os.fsencode(self.root)) for name in names}
        return found - {b".staging-area"}

    def trashed_files(self) -> set[bytes]:
        """Every file under a data directory of the trash."""
        trash = os.path.join(os.fsencode(self.root), b".trash")
        return {
            os.path.relpath(os.path.join(folder, name), trash)
            for folder, _, names in os.walk(trash)
            if os.path.basename(folder) == b"data"
            for name in names
        }

    def plan(self, area: AreaHandle, policy: Policy = AGE) -> Plan:
        candidates = walk(area, policy=policy, on_skip=Skips())
        return build_plan(policy, candidates, now=NOW, area_uuid=area.uuid)

    def prepare(self, area: AreaHandle, items: Sequence[PlanItem]) -> PreparedBatch:
        ids = trash_ids(uuid4(), len(items), day=NOW.date())
        return prepare(area, items, ids=ids, header=header())

    def trash(self, area: AreaHandle, policy: Policy = AGE) -> list[Moved]:
        """Plan and move everything that `policy` lets go."""
        return move(area, self.prepare(area, self.plan(area, policy).items))


def header() -> Header:
    return Header(
        policy="old files", policy_version="3", run="run-1", trashed_at=NOW, purge_after=NOW + 7 * DAY
    )


def write_many(path: str, count: int) -> None:
    """Write to an audit file from a process of its own."""
    sink = JsonlAuditSink(path)
    for number in range(count):
        record = AuditRecord(at_us=number, actor="ops", actor_kind="user", action="trashed")
        sink.write([record, record])


def outcomes(moved: list[Moved]) -> list[str]:
    return [one.outcome for one in moved]
