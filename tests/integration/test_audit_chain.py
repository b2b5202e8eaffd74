"""The audit chain in the database: it does not fork, and any change to it is found."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from threading import Barrier, Thread

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction

from bus.models import Event
from cleanup import operations
from cleanup.engine.audit import AuditSink, MemoryAuditSink
from cleanup.engine.auditlog import JsonlAuditSink
from cleanup.engine.errors import AuditInvalid
from cleanup.models import AuditEntry, AuditHead
from cleanup.stores import DatabaseAuditSink, entries
from tests.auditing import change, happened

pytestmark = pytest.mark.django_db

ENTRIES = 10


@pytest.fixture
def chain() -> DatabaseAuditSink:
    sink = DatabaseAuditSink()
    sink.write([happened(n, path=f"file {n}", size=n, evidence={"n": n}) for n in range(ENTRIES)])
    return sink


@pytest.fixture(params=["memory", "file", "database"])
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> AuditSink:
    made = {"memory": MemoryAuditSink, "file": lambda: JsonlAuditSink(tmp_path / "audit"),
            "database": DatabaseAuditSink}  # fmt: skip
    return made[request.param]()


# Every sink


def test_every_sink_numbers_and_chains_what_it_writes(sink: AuditSink) -> None:
    first = sink.write(
        [happened(1), happened(2, path="a", size=0, reason="why", evidence={"deep": [1, None]})]
    )
    second = sink.write([happened(3)])
    assert [entry.seq for entry in [*first, *second]] == [1, 2, 3]
    assert second[0].prev_hash == first[1].hash
    assert sink.write([]) == []


def test_every_sink_writes_all_or_nothing(sink: AuditSink) -> None:
    sink.write([happened(1)])
    with pytest.raises(AuditInvalid):
        sink.write([happened(2), happened(3, evidence={"half": 0.5})])
    assert [entry.seq for entry in sink.write([happened(4)])] == [2]


# The database


def test_what_was_written_is_read_back(chain: DatabaseAuditSink) -> None:
    written = chain.write(
        [happened(99, path="x\\x0a", reason="", evidence={"ü": ["\U0001f642", True, None]})]
    )
    assert list(entries(after=ENTRIES)) == written
    assert operations.verify_audit().entries == ENTRIES + 1
    assert operations.verify_audit().sound


def test_an_empty_chain_is_sound() -> None:
    assert operations.verify_audit().sound


def test_an_entry_is_written_with_its_change_or_not_at_all(chain: DatabaseAuditSink) -> None:
    with transaction.atomic():
        chain.write([happened(1)])
        transaction.set_rollback(True)
    assert AuditEntry.objects.count() == ENTRIES
    assert operations.verify_audit().sound


@pytest.mark.parametrize("column", [
    "at_us", "actor", "actor_kind", "action", "run", "item", "area", "path", "size", "policy_version",
    "reason", "evidence", "prev_hash", "hash",
])  # fmt: skip
def test_a_changed_column_is_found_where_it_is(chain: DatabaseAuditSink, column: str) -> None:
    value: object = 77 if column in ("at_us", "size") else "forged"
    change(f"UPDATE cleanup_auditentry SET {column} = %s WHERE seq = 5", value)  # noqa: S608
    report = operations.verify_audit()
    assert (report.sound, report.first_bad_seq) == (False, 5)


def test_even_the_spelling_of_the_evidence_is_part_of_it(chain: DatabaseAuditSink) -> None:
    change("UPDATE cleanup_auditentry SET evidence = %s WHERE seq = 4", '{"n": 3}')
    assert operations.verify_audit().first_bad_seq == 4


@pytest.mark.parametrize(
    ("sql", "seq", "kind"),
    [
        ("DELETE FROM cleanup_auditentry WHERE seq = 4", 4, "gap"),
        ("DELETE FROM cleanup_auditentry WHERE seq = 1", 1, "gap"),
        ("DELETE FROM cleanup_auditentry WHERE seq > 7", 8, "head"),
        ("UPDATE cleanup_auditentry SET seq = 11 WHERE seq = 10", 10, "head"),
        ("UPDATE cleanup_audithead SET seq = 9", 10, "head"),
        ("UPDATE cleanup_audithead SET hash = 'x'", 11, "head"),
        ("DELETE FROM cleanup_audithead", 1, "head"),
        ("UPDATE cleanup_auditentry SET seq = -1 WHERE seq = 1", 1, "gap"),
    ],
)
def test_removed_renumbered_and_cut_off_entries_are_found(
    chain: DatabaseAuditSink, sql: str, seq: int, kind: str
) -> None:
    change(sql)
    report = operations.verify_audit()
    assert not report.sound
    assert (report.first_bad_seq, report.kind) == (seq, kind) or kind == "head"


def test_swapped_entries_are_found(chain: DatabaseAuditSink) -> None:
    for old, new in ((3, 1003), (4, 3), (1003, 4)):
        change("UPDATE cleanup_auditentry SET seq = %s WHERE seq = %s", new, old)
    assert operations.verify_audit().first_bad_seq == 3


def test_an_entry_beyond_the_head_is_found(chain: DatabaseAuditSink) -> None:
    change(
        "INSERT INTO cleanup_auditentry SELECT 12, at_us, actor, actor_kind, action, run, item, area, path,"
        " size, policy_version, reason, evidence, prev_hash, hash FROM cleanup_auditentry WHERE seq = 10"
    )
    report = operations.verify_audit()
    assert (report.sound, report.first_bad_seq, report.kind) == (False, 12, "head")


def test_a_chain_that_lost_its_head_is_not_continued(chain: DatabaseAuditSink) -> None:
    AuditHead.objects.all().delete()
    with pytest.raises(AuditInvalid, match="tampered"):
        chain.write([happened(1)])


@pytest.mark.skipif("connection.vendor != 'postgresql'", reason="SQLite has no users to keep from the table")
@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE cleanup_auditentry SET actor = 'x'",
        "DELETE FROM cleanup_auditentry",
        "SET LOCAL cleanup.audit_prune = '1'; DELETE FROM cleanup_auditentry",
    ],
)
def test_postgresql_refuses_to_change_entries(chain: DatabaseAuditSink, sql: str) -> None:
    with (
        pytest.raises(DatabaseError, match="never changed"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(sql)
    assert operations.verify_audit().sound


@pytest.mark.django_db(transaction=True)
def test_writers_at_once_never_fork_the_chain() -> None:
    writers, rounds, size = 8, 10, 3
    start = Barrier(writers)

    def write(number: int) -> None:
        start.wait()
        try:
            for turn in range(rounds):
                batch = [happened(turn, path=f"{number}/{turn}/{n}") for n in range(size)]
                with transaction.atomic():
                    DatabaseAuditSink().write(batch)
        finally:
            connection.close()

    threads = [Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    report = operations.verify_audit()
    assert (report.sound, report.entries) == (True, writers * rounds * size)


@pytest.mark.django_db(transaction=True)
def test_entries_are_told_on_the_bus_after_the_commit_one_by_one_or_as_a_summary() -> None:
    with transaction.atomic():
        DatabaseAuditSink().write([happened(n, path="x", size=10) for n in range(20)])
        assert not Event.objects.exists()
    assert list(Event.objects.values_list("event_type", flat=True)) == ["audit.entry"] * 20
    DatabaseAuditSink().write([happened(n, path="x", size=10) for n in range(21)])
    last = Event.objects.order_by("-offset").first()
    assert last is not None
    assert last.event_type == "audit.batch"


def test_the_command_says_sound_tampered_or_where(
    chain: DatabaseAuditSink, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("cleanup", "audit", "verify", "--json")
    assert json.loads(capsys.readouterr().out) == {"sound": True, "entries": ENTRIES, "checkpoints": 0}
    change("UPDATE cleanup_auditentry SET actor = %s WHERE seq = 2", "nobody")
    with pytest.raises(SystemExit) as ended:
        call_command("cleanup", "audit", "verify", "--json")
    assert ended.value.code == 1
    assert '"first_bad_seq": 2' in capsys.readouterr().out


@pytest.mark.django_db(transaction=True)
def test_a_bus_in_trouble_changes_nothing_about_what_was_audited(caplog: pytest.LogCaptureFixture) -> None:
    def rename(old: str, new: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")

    rename("bus_event", "bus_event_away")
    try:
        with caplog.at_level(logging.WARNING), transaction.atomic():
            DatabaseAuditSink().write([happened(1)])
    finally:
        rename("bus_event_away", "bus_event")
    assert "was not told" in caplog.text
    report = operations.verify_audit()
    assert (report.sound, report.entries) == (True, 1)
