"""A chain of audit entries with checkpoints in files of its own, and what a forger may do to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from cleanup import operations
from cleanup.conf import conf
from cleanup.engine.audit import AuditRecord
from cleanup.engine.checkpoints import Checkpoint
from cleanup.operations import Actor, auditing, segments
from cleanup.stores import DatabaseAuditSink
from cleanup.stores.audit import micros
from cleanup.stores.sql import database_now

AUDITOR = Actor(name="otto", kind="command")

#: Tables whose changes PostgreSQL refuses.
GUARDED = ("cleanup_auditentry", "cleanup_auditcheckpoint")


def happened(number: int, **fields: Any) -> AuditRecord:
    """Something that was done."""
    return AuditRecord(at_us=number, actor="anna", actor_kind="user", action="tested", **fields)


def write(count: int) -> None:
    """Add so many entries to the chain, of this moment."""
    now = micros(database_now())
    records = (
        happened(now + n, path=f"file {n}", area="area", size=n, evidence={"n": n}) for n in range(count)
    )
    DatabaseAuditSink().write(list(records))


@contextmanager
def unguarded() -> Iterator[None]:
    """What a superuser of PostgreSQL can do: switch the triggers off."""
    guarded = GUARDED if connection.vendor == "postgresql" else ()
    with connection.cursor() as cursor:
        for table in guarded:
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        yield
        for table in guarded:
            cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")


def sql(statement: str, *values: object) -> None:
    """One statement, without asking anybody."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def change(statement: str, *values: object) -> None:
    """One statement by somebody whom no trigger stops."""
    with unguarded():
        sql(statement, *values)


class AuditFiles:
    """Key, keys and outside file of one test."""

    def __init__(self, folder: Path, settings: Any, **more: Any) -> None:
        self.folder = folder
        self.key = folder / "secret" / "audit_key"
        self.keys = folder / "secret" / "audit_key.pub"
        self.log = folder / "outside" / "checkpoints.jsonl"
        self.segments = folder / "segments"
        self.segments.mkdir()
        self._settings = settings
        self.configure(AUDIT_KEY_FILE=self.key, AUDIT_LOG_FILE=self.log, **more)

    def configure(self, **options: Any) -> None:
        """Set some keys of `CLEANUP`."""
        self._settings.CLEANUP = {**self._settings.CLEANUP, **options}
        assert all(getattr(conf(), name.lower()) == value for name, value in options.items())

    def cut(self, stretch: int = 10) -> list[Checkpoint]:
        """Seal every whole stretch, and leave the rest."""
        return auditing.cut_checkpoints(stretch=stretch)

    def prune(self, up_to: int) -> None:
        """Export and remove the stretches up to an entry."""
        self.configure(AUDIT_KEEP=timedelta(0))
        segments.export_audit(self.segments, AUDITOR, up_to=up_to)
        segments.prune_audit(self.segments, AUDITOR)

    def lines(self) -> list[bytes]:
        """Of the outside file."""
        return self.log.read_bytes().splitlines(keepends=True)

    def put(self, lines: Sequence[bytes]) -> None:
        """Write the outside file anew."""
        self.log.write_bytes(b"".join(lines))


def verdict() -> tuple[bool, str | None, int | None]:
    """Whether the audit is sound, else the kind and the first bad entry."""
    report = operations.verify_audit()
    return report.sound, report.kind, report.first_bad_seq


def notes() -> str:
    """What a sound audit has to say."""
    report = operations.verify_audit()
    assert report.sound
    return "; ".join(report.notes)


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    """Exit code and answer of a verb of `cleanup audit`."""
    capsys.readouterr()
    try:
        call_command("cleanup", "audit", *map(str, words), "--json")
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, json.loads(capsys.readouterr().out)
