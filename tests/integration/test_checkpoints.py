"""Checkpoints of the audit: sealed in the database and outside it, and read again."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.db import connection, transaction

from cleanup import operations, tasks
from cleanup.conf import problems
from cleanup.engine.errors import AuditInvalid, AuditUnavailable
from cleanup.models import AuditCheckpoint, AuditEntry, AuditHead
from cleanup.operations import auditing
from cleanup.stores.sql import database_now
from tests.auditing import AUDITOR, AuditFiles, change, command, notes, sql, verdict, write

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


# Sealing


def test_whole_stretches_are_sealed_at_once_and_the_rest_after_an_hour(files: AuditFiles) -> None:
    write(25)
    now = database_now()
    cut = auditing.cut_checkpoints(now, stretch=10)
    assert [(one.number, one.first_seq, one.last_seq) for one in cut] == [(1, 1, 10), (2, 11, 20)]
    assert auditing.cut_checkpoints(now + HOUR / 2, stretch=10) == []
    (rest,) = auditing.cut_checkpoints(now + HOUR * 1.1, stretch=10)
    assert (rest.first_seq, rest.last_seq, rest.prev_hash) == (21, 25, cut[1].hash)
    assert auditing.cut_checkpoints(now + HOUR * 9, stretch=10) == []
    assert verdict() == (True, None, None)


def test_a_clock_that_was_ahead_does_not_put_the_next_checkpoint_off(files: AuditFiles) -> None:
    write(3)
    assert len(auditing.cut_checkpoints(database_now() - timedelta(days=400))) == 1


def test_an_empty_chain_is_not_sealed(files: AuditFiles) -> None:
    assert auditing.cut_checkpoints(force=True) == []
    assert not files.key.exists()


def test_the_key_is_for_its_owner_alone_and_the_same_is_used_again(sealed: AuditFiles) -> None:
    assert sealed.key.stat().st_mode & 0o777 == 0o600
    assert {row.key_id for row in AuditCheckpoint.objects.all()} == {auditing.public_keys().keys[0].key_id}


def test_a_lost_key_is_not_replaced_in_silence(sealed: AuditFiles) -> None:
    sealed.key.unlink()
    with pytest.raises(AuditUnavailable, match="audit_key"):
        auditing.cut_checkpoints(force=True)
    assert not sealed.key.exists()
    assert verdict() == (True, None, None)  # reading needs the public keys alone


def test_a_key_that_others_may_read_seals_nothing(sealed: AuditFiles) -> None:
    sealed.key.chmod(0o644)
    with pytest.raises(AuditUnavailable, match="chmod 600"):
        auditing.cut_checkpoints(force=True)


def test_a_renewed_key_is_endorsed_by_the_old_one_which_seals_nothing_more(sealed: AuditFiles) -> None:
    old = sealed.key.read_bytes()
    renewed = auditing.renew_key(AUDITOR)
    assert AuditEntry.objects.filter(action="audit_key_renewed").exists()
    auditing.cut_checkpoints(force=True)
    assert [row.key_id for row in AuditCheckpoint.objects.order_by("number")][-1] == renewed.key_id
    assert verdict() == (True, None, None)
    sealed.key.write_bytes(old)
    write(1)
    auditing.cut_checkpoints(force=True)
    assert verdict() == (False, "key", 35)


def test_what_does_not_link_is_not_sealed(sealed: AuditFiles) -> None:
    change("UPDATE cleanup_auditentry SET hash = %s WHERE seq = 32", "0" * 64)
    with pytest.raises(AuditInvalid, match="33"):
        auditing.cut_checkpoints(force=True)
    assert AuditCheckpoint.objects.count() == 3


# Torn apart by a crash


def test_a_line_without_its_row_is_a_crash_and_the_next_checkpoint_takes_it_over(sealed: AuditFiles) -> None:
    before = sealed.log.read_bytes()
    change("DELETE FROM cleanup_auditcheckpoint WHERE number = 3")
    assert "checkpoint 3 is in the file outside the database only" in notes()
    write(7)
    assert [one.number for one in sealed.cut()] == [4]
    assert sealed.log.read_bytes().startswith(before)
    assert AuditCheckpoint.objects.count() == 4
    assert notes() == ""


def test_a_line_that_was_cut_short_stays_and_is_passed_over(sealed: AuditFiles) -> None:
    whole = sealed.log.read_bytes()
    sealed.log.write_bytes(whole + sealed.lines()[2][:40])
    assert "cut short" in notes()
    auditing.cut_checkpoints(force=True)
    assert sealed.log.read_bytes().startswith(whole)
    assert len(sealed.lines()) == 5
    assert "1 lines" in notes()


def test_a_whole_line_without_its_line_feed_counts(sealed: AuditFiles) -> None:
    change("DELETE FROM cleanup_auditcheckpoint WHERE number = 3")
    sealed.log.write_bytes(sealed.log.read_bytes()[:-1])
    auditing.cut_checkpoints(force=True)
    assert len(sealed.lines()) == 4
    assert notes() == ""


def test_a_line_that_somebody_else_has_added_is_not_taken_over(sealed: AuditFiles) -> None:
    line = msgspec.json.decode(sealed.lines()[2])
    line |= {"number": 4, "first_seq": 31, "last_seq": 33, "prev_hash": line["hash"]}
    sealed.put([*sealed.lines(), msgspec.json.encode(line) + b"\n"])
    with pytest.raises(AuditInvalid, match="checkpoint 4"):
        auditing.cut_checkpoints(force=True)
    assert verdict() == (False, "checkpoint", 31)


@contextmanager
def attribute(path: Path, letter: str) -> Iterator[None]:
    """Give a file an attribute for a while; the test is skipped where there are none."""
    command = shutil.which("chattr")
    if (
        not command
        or subprocess.run([command, f"+{letter}", path], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs chattr, and a file system and a user that may use it")
    try:
        yield
    finally:
        subprocess.run([command, f"-{letter}", path], check=True)


def test_a_file_that_cannot_be_written_leaves_no_row(sealed: AuditFiles) -> None:
    with attribute(sealed.log, "i"), pytest.raises(AuditUnavailable):
        auditing.cut_checkpoints(force=True)
    assert AuditCheckpoint.objects.count() == 3


def test_an_append_only_file_is_enough(sealed: AuditFiles) -> None:
    with attribute(sealed.log, "a"):
        auditing.cut_checkpoints(force=True)
        assert verdict() == (True, None, None)
        with pytest.raises(PermissionError):
            sealed.put([])


# Could not check


def test_without_the_file_or_the_keys_it_could_not_be_checked(
    sealed: AuditFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (sealed.log, sealed.keys):
        aside = path.rename(path.with_suffix(".aside"))
        code, answer = command(capsys, "verify")
        assert (code, answer["sound"]) == (2, None)
        assert str(path) in answer["error"]
        aside.rename(path)
    assert command(capsys, "verify")[0] == 0


def test_even_if_every_row_is_gone_the_keys_tell_that_there_were_checkpoints(sealed: AuditFiles) -> None:
    change("DELETE FROM cleanup_auditcheckpoint")
    assert verdict() == (False, "checkpoint", 1)
    sealed.log.unlink()
    with pytest.raises(AuditUnavailable):
        operations.verify_audit()


def test_a_database_that_is_away_could_not_be_checked(
    sealed: AuditFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE cleanup_auditentry RENAME TO elsewhere")
        code, answer = command(capsys, "verify")
        transaction.set_rollback(True)
    assert (code, answer["sound"]) == (2, None)


def test_keys_that_nobody_has_endorsed_are_not_trusted(
    sealed: AuditFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    auditing.renew_key(AUDITOR)
    first, second = sealed.keys.read_bytes().splitlines(keepends=True)
    forged = msgspec.json.decode(second) | {"endorsement": "ab" * 64}
    sealed.keys.write_bytes(first + msgspec.json.encode(forged) + b"\n")
    code, answer = command(capsys, "verify")
    assert (code, answer["sound"]) == (2, None)


# A file outside that a forger had, and its copy elsewhere


def test_a_tail_cut_off_inside_and_outside_is_found_by_a_copy_elsewhere(
    sealed: AuditFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = sealed.folder / "copy.jsonl"
    copy.write_bytes(sealed.log.read_bytes())
    kept = AuditEntry.objects.get(seq=20)
    for table, last in (("entry WHERE seq", 20), ("checkpoint WHERE number", 2)):
        change(f"DELETE FROM cleanup_audit{table} > %s", last)  # noqa: S608
    sql("UPDATE cleanup_audithead SET seq = 20, hash = %s", kept.hash)
    sealed.put(sealed.lines()[:2])
    assert command(capsys, "verify")[0] == 0
    code, answer = command(capsys, "verify", "--log", copy)
    assert (code, answer["kind"], answer["first_bad_seq"]) == (1, "gap", 21)


# Reading by the clock


def test_the_nightly_reading_goes_on_in_slices_and_begins_again_after_a_day(sealed: AuditFiles) -> None:
    now, nothing = database_now(), timedelta(0)
    marks = []
    while (report := auditing.read_slice(nothing, now)) is None:
        marks.append(AuditHead.objects.get().verifying)
    assert marks == [2, 3, 4]
    head = AuditHead.objects.get()
    assert (report.sound, head.verified_sound, head.verifying) == (True, True, None)
    assert auditing.read_slice(nothing, now + HOUR * 23) is None
    assert AuditHead.objects.get().verifying is None
    assert auditing.read_slice(HOUR, now + HOUR * 25) is not None


def test_the_nightly_reading_finds_what_was_changed(
    sealed: AuditFiles, caplog: pytest.LogCaptureFixture
) -> None:
    change("UPDATE cleanup_auditentry SET actor = 'x' WHERE seq = 15")
    with caplog.at_level(logging.ERROR):
        tasks.audit()
    head = AuditHead.objects.get()
    assert (head.verified_sound, head.verifying) == (False, None)
    assert "entry 15" in caplog.text


def test_a_mark_beyond_the_file_outside_begins_the_reading_anew(sealed: AuditFiles) -> None:
    AuditHead.objects.update(verifying=99)
    report = auditing.read_slice(HOUR)
    assert report is not None
    assert (report.sound, report.entries) == (True, 33)


def test_the_task_says_what_keeps_it_from_sealing_and_does_not_fail(
    sealed: AuditFiles, caplog: pytest.LogCaptureFixture
) -> None:
    sealed.log.unlink()
    with caplog.at_level(logging.WARNING):
        tasks.audit()
    assert "could not be sealed or read" in caplog.text
    assert not sealed.log.exists(), "a lost file is not begun anew"


def test_a_negative_age_to_keep_is_a_mistake_that_the_check_names(files: AuditFiles) -> None:
    files.configure(AUDIT_KEEP=-HOUR)
    assert problems() == ["CLEANUP['AUDIT_KEEP'] must not be negative; None keeps the audit for ever."]


def test_beat_knows_the_task(settings: Any) -> None:
    assert settings.CELERY_BEAT_SCHEDULE["cleanup: audit"]["task"] == tasks.audit.name
