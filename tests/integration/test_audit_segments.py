"""Retention of the audit: exported, pruned, proven; and what somebody outside can check of it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.urls import reverse

from cleanup import operations
from cleanup.engine.audit import AuditRecord, Kind
from cleanup.engine.checkpoints import Checkpoint
from cleanup.engine.errors import AuditInvalid, AuditUnavailable
from cleanup.management.commands.cleanup import VERBS
from cleanup.models import AuditCheckpoint, AuditEntry, AuditHead
from cleanup.operations import NotFound, OperationRefused, auditing, segments
from tests.auditing import AUDITOR, AuditFiles, change, command, notes, sql, verdict

pytestmark = pytest.mark.django_db

PROJECT = Path(__file__).resolve().parents[2]


# Retention


@pytest.fixture
def pruned(sealed: AuditFiles) -> AuditFiles:
    """The first two of three stretches are exported and removed."""
    sealed.prune(up_to=20)
    return sealed


def test_pruned_entries_are_gone_and_the_chain_is_verified_across_them(pruned: AuditFiles) -> None:
    assert AuditEntry.objects.order_by("seq").first().seq == 21  # type: ignore[union-attr]
    assert [row.pruned_at is None for row in AuditCheckpoint.objects.order_by("number")] == [
        False,
        False,
        True,
    ]
    said = notes()
    assert "stretch 1-10 was pruned; its segment audit-00000001.jsonl is not at hand" in said
    actions = list(AuditEntry.objects.order_by("seq").values_list("action", flat=True))
    assert actions[-4:] == ["audit_exported"] * 2 + ["audit_pruned"] * 2
    report = operations.verify_audit(segments=pruned.segments)
    assert (report.sound, report.notes) == (True, ())
    assert report.entries == AuditHead.objects.get().seq


@pytest.mark.parametrize(
    "damage", ["changed", "line removed", "line added", "garbage", "of another checkpoint"]
)
def test_a_segment_that_is_not_what_was_exported_is_found(pruned: AuditFiles, damage: str) -> None:
    path = pruned.segments / "audit-00000002.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes({
        "changed": b"".join(lines).replace(b"file 14", b"file 99"),
        "line removed": b"".join(lines[:5] + lines[6:]),
        "line added": b"".join([*lines, lines[-1]]),
        "garbage": b"garbage\n",
        "of another checkpoint": (pruned.segments / "audit-00000001.jsonl").read_bytes(),
    }[damage])  # fmt: skip
    report = operations.verify_audit(segments=pruned.segments)
    assert (report.sound, report.kind, report.checkpoint) == (False, "segment", 2)
    seqs = {"changed": 15, "line removed": 15, "line added": 21}
    assert report.first_bad_seq == seqs.get(damage, 11)


def test_a_segment_is_checked_alone(pruned: AuditFiles, capsys: pytest.CaptureFixture[str]) -> None:
    path = pruned.segments / "audit-00000001.jsonl"
    assert command(capsys, "verify", "--segment", path) == (
        0,
        {"sound": True, "entries": 10, "checkpoints": 1},
    )
    path.write_bytes(path.read_bytes().replace(b"file 3", b"file 9"))
    code, answer = command(capsys, "verify", "--segment", path)
    assert (code, answer["kind"], answer["first_bad_seq"]) == (1, "hash", 4)
    path.write_bytes(b"")
    assert command(capsys, "verify", "--segment", path)[0] == 1
    assert command(capsys, "verify", "--segment", path.with_name("none"))[0] == 2


def test_nothing_is_pruned_that_is_to_be_kept_was_not_exported_or_is_not_sound(sealed: AuditFiles) -> None:
    with pytest.raises(OperationRefused, match="for ever"):
        segments.prune_audit(sealed.segments, AUDITOR)
    sealed.configure(AUDIT_KEEP=timedelta(days=1))
    assert "younger" in segments.prune_audit(sealed.segments, AUDITOR).ended
    sealed.configure(AUDIT_KEEP=timedelta(0))
    assert "not exported" in segments.prune_audit(sealed.segments, AUDITOR).ended
    segments.export_audit(sealed.segments, AUDITOR)
    change("UPDATE cleanup_auditentry SET actor = 'x' WHERE seq = 15")
    with pytest.raises(AuditInvalid, match="entry 15"):
        segments.prune_audit(sealed.segments, AUDITOR)
    assert AuditEntry.objects.filter(seq__lte=30).count() == 20  # the sound stretch before it went
    assert verdict() == (False, "hash", 15)


def test_a_segment_that_was_lost_or_changed_keeps_its_entries(sealed: AuditFiles) -> None:
    sealed.configure(AUDIT_KEEP=timedelta(0))
    segments.export_audit(sealed.segments, AUDITOR)
    path = sealed.segments / "audit-00000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"file 3", b"file 9"))
    with pytest.raises(AuditInvalid, match="not what was exported"):
        segments.prune_audit(sealed.segments, AUDITOR)
    path.unlink()
    with pytest.raises(AuditUnavailable):
        segments.prune_audit(sealed.segments, AUDITOR)
    segments.export_audit(sealed.segments, AUDITOR, again=True)
    assert len(segments.prune_audit(sealed.segments, AUDITOR).checkpoints) == 3
    assert operations.verify_audit(segments=sealed.segments).sound


def test_what_is_not_sound_is_not_exported(sealed: AuditFiles) -> None:
    change("UPDATE cleanup_auditentry SET size = 1 WHERE seq = 15")
    with pytest.raises(AuditInvalid, match="entry 15"):
        segments.export_audit(sealed.segments, AUDITOR)
    assert [path.name for path in sealed.segments.iterdir()] == ["audit-00000001.jsonl"]


def test_a_dry_run_writes_and_removes_nothing(sealed: AuditFiles, capsys: pytest.CaptureFixture[str]) -> None:
    sealed.configure(AUDIT_KEEP=timedelta(0))
    before = sealed.log.read_bytes()
    code, answer = command(capsys, "export", sealed.segments, "--up-to", 25, "--dry-run")
    assert (code, [one["checkpoint"] for one in answer["segments"]]) == (0, [1, 2])
    assert list(sealed.segments.iterdir()) == []
    command(capsys, "export", sealed.segments)
    assert command(capsys, "prune", sealed.segments, "--dry-run")[1]["entries"] == 30
    assert command(capsys, "checkpoint", "--dry-run")[1] == {"unsealed": 6, "dry_run": True}
    command(capsys, "keys", "--renew", "--dry-run")
    assert len(auditing.public_keys().keys) == 1
    assert AuditEntry.objects.filter(seq__lte=30).count() == 30
    assert sealed.log.read_bytes() == before


def test_who_opens_the_door_of_prune_without_the_key_is_found(sealed: AuditFiles) -> None:
    """The triggers let this pass, and need no superuser: the reading does not."""
    with transaction.atomic():
        sql("UPDATE cleanup_auditcheckpoint SET segment = 'x', segment_sha256 = 'y' WHERE number = 1")
        if connection.vendor == "postgresql":
            sql("SET LOCAL cleanup.audit_prune = '1'")
        sql("DELETE FROM cleanup_auditentry WHERE seq <= 10")
        sql("UPDATE cleanup_auditcheckpoint SET pruned_at = CURRENT_TIMESTAMP WHERE number = 1")
    assert verdict() == (False, "pruned", 1)


@pytest.mark.skipif("connection.vendor != 'postgresql'", reason="SQLite has no users to keep from the table")
@pytest.mark.parametrize("statement", [
    "UPDATE cleanup_auditcheckpoint SET merkle_root = 'x'",
    "DELETE FROM cleanup_auditcheckpoint",
    "SET LOCAL cleanup.audit_flush = 'off'; TRUNCATE cleanup_auditcheckpoint",
    "SET LOCAL cleanup.audit_flush = 'off'; TRUNCATE cleanup_auditentry",
    "SET LOCAL cleanup.audit_prune = '1'; DELETE FROM cleanup_auditentry WHERE seq <= 10",
    "UPDATE cleanup_auditcheckpoint SET segment_sha256 = 'y' WHERE number = 1;"
    " SET LOCAL cleanup.audit_prune = '1'; DELETE FROM cleanup_auditentry WHERE seq = 11",
])  # fmt: skip
def test_postgresql_refuses_to_change_checkpoints_and_to_empty_the_audit(
    sealed: AuditFiles, statement: str
) -> None:
    with pytest.raises(DatabaseError, match="never"), transaction.atomic():
        sql(statement)
    assert verdict() == (True, None, None)


# A lost file outside


def test_a_file_that_was_lost_is_made_anew_from_sound_rows_alone_and_only_if_asked(
    pruned: AuditFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OperationRefused, match="is there"):
        segments.rebuild_log(AUDITOR)
    lost = pruned.lines()
    pruned.log.unlink()
    with pytest.raises(AuditUnavailable):
        auditing.cut_checkpoints(force=True)
    with transaction.atomic():
        change("UPDATE cleanup_auditcheckpoint SET head_hash = 'x' WHERE number = 3")
        with pytest.raises(AuditInvalid, match="checkpoint 3"):
            segments.rebuild_log(AUDITOR)
        transaction.set_rollback(True)
    assert not pruned.log.exists()
    assert command(capsys, "checkpoint", "--rebuild") == (0, {"rebuilt": 3})
    assert set(pruned.lines()) >= {line for line in lost if b'"checkpoint"' in line}
    assert AuditEntry.objects.filter(action="audit_log_rebuilt").exists()
    auditing.cut_checkpoints(force=True)
    assert operations.verify_audit(segments=pruned.segments).notes == ()


# Commands and proofs


def test_one_entry_is_proven_without_the_others(
    sealed: AuditFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    code, proof = command(capsys, "prove", 17)
    assert code == 0
    assert (proof["entry"]["seq"], proof["index"], proof["checkpoint"]["number"]) == (17, 6, 2)
    assert len(proof["path"]) == 4
    for seq in (0, 32, 99):
        with pytest.raises(NotFound):
            auditing.prove(seq)


def audit_alone(files: AuditFiles, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """What an auditor does, with the documented program and no Django."""
    program = [
        sys.executable,
        "-I",
        str(PROJECT / "docs" / "verify_audit.py"),
        str(files.keys),
        str(files.log),
    ]
    return subprocess.run(
        [*program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("option", ["--segments", "--log", "--keys"])
def test_a_path_that_is_not_there_is_an_error_and_no_proof(
    sealed: AuditFiles, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    code, said = command(capsys, "verify", option, sealed.segments / "nowhere")
    assert code == 2
    assert "there is no" in said["error"]


def test_an_auditor_without_django_verifies_segments_and_proofs(sealed: AuditFiles) -> None:
    auditing.renew_key(AUDITOR)
    auditing.cut_checkpoints(force=True)
    segments.export_audit(sealed.segments, AUDITOR)
    proof = sealed.folder / "proof.json"
    proof.write_text(json.dumps(auditing.prove(17)))
    paths = sorted(sealed.segments.iterdir())
    assert len(paths) == 4
    outcome = audit_alone(sealed, *paths, proof)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert "4 checkpoints, 35 entries" in outcome.stdout  # of segments 34, of the proof one
    for path, old, new in ((paths[1], b"file 14", b"file 15"), (proof, b"file 16", b"file 17"),
                           (sealed.log, b'"last_seq":20', b'"last_seq":21')):  # fmt: skip
        whole = path.read_bytes()
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        assert audit_alone(sealed, *paths, proof).returncode == 1
        path.write_bytes(whole)
    sealed.put(sealed.lines()[1:])
    assert audit_alone(sealed, *paths).returncode == 1


def test_every_verb_of_the_audit_answers_in_words_and_in_json(
    sealed: AuditFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    sealed.configure(AUDIT_KEEP=timedelta(0))
    assert command(capsys, "checkpoint")[1]["checkpoints"][0]["number"] == 4
    assert len(command(capsys, "export", sealed.segments)[1]["segments"]) == 4
    assert command(capsys, "prune", sealed.segments)[1]["checkpoints"] == [1, 2, 3, 4]
    assert len(command(capsys, "keys", "--renew")[1]["keys"]) == 2
    assert command(capsys, "list", "--action", "audit_pruned")[1]["entries"][0]["actor"]
    assert command(capsys, "verify", "--segments", sealed.segments)[0] == 0
    for words in ("verify", "list", "checkpoint", "prove 34", f"export {sealed.segments}",
                  f"prune {sealed.segments}", "keys"):  # fmt: skip
        call_command("cleanup", "audit", *words.split())
        assert capsys.readouterr().out.strip()


def test_the_console_shows_checkpoints_and_what_became_of_their_entries(pruned: AuditFiles) -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("boss"))
    listed = client.get(reverse("admin:cleanup_auditcheckpoint_changelist")).content.decode()
    assert "21 to 30" in listed
    assert "pruned" in listed
    page = client.get(reverse("admin:cleanup_auditcheckpoint_change", args=[1])).content.decode()
    assert AuditCheckpoint.objects.get(number=1).merkle_root in page


# The page about it


@pytest.mark.sqlite_only
def test_the_page_names_every_kind_every_field_and_every_verb() -> None:
    page = (PROJECT / "docs" / "audit.md").read_text()
    names = [*get_args(Kind), *AuditRecord.__struct_fields__, "seq", "prev_hash", "hash",
             *(name for name in Checkpoint.__struct_fields__)]  # fmt: skip
    assert [name for name in names if f"`{name}`" not in page] == []
    verbs = [verb for verb in VERBS if verb.startswith("audit ")]
    assert [verb for verb in verbs if f"| `{verb}" not in page] == []
