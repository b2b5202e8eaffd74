"""`manage.py cleanup uploads|stage`, and the tasks by which beat tends uploads."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from cleanup.models import AuditEntry, StagedContent, StagedFile, Upload, UploadState
from cleanup.staging.uploads import Uploader, create, write_part
from cleanup.stores.sql import database_now
from cleanup.tasks import forget, tend_uploads
from tests.integration.staged import parts, sha256, visible
from tests.integration.test_cleanup_commands import Shell
from tests.retention import Staging

AGENT = Uploader(name="key:agent-7", may_upload=True, kind="key")
TEXT = b"some text\n"

pytestmark = [pytest.mark.django_db, pytest.mark.sqlite_only]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def begun(staging: Staging) -> Upload:
    upload = create(area=staging.area.name, name="a.txt", size=len(TEXT), uploader=AGENT)
    return write_part(upload.pk, AGENT, 0, [TEXT[:4]])


def overdue(staging: Staging) -> Upload:
    upload = begun(staging)
    Upload.objects.filter(pk=upload.pk).update(expires_at=database_now() - timedelta(seconds=1))
    return upload


def test_uploads_are_listed_with_how_far_they_are(shell: Shell, staging: Staging) -> None:
    upload = begun(staging)
    code, said = shell("uploads", "list", "--state", "open")
    (one,) = said["uploads"]
    assert (code, one["id"], one["offset"], one["size"]) == (0, str(upload.pk), 4, len(TEXT))
    assert "4 of 10" in shell.text("uploads", "list")
    assert shell("uploads", "list", "--state", "done")[1] == {"uploads": []}


def test_an_upload_is_given_up_and_a_dry_run_of_it_changes_nothing(shell: Shell, staging: Staging) -> None:
    upload = begun(staging)
    assert shell("uploads", "terminate", str(upload.pk), "--dry-run")[1]["dry_run"] is True
    assert Upload.objects.get().state == UploadState.OPEN
    assert shell("uploads", "terminate", str(upload.pk))[1]["state"] == "terminated"
    assert AuditEntry.objects.get(action="upload_terminated").actor_kind == "command"
    assert parts(staging.area) == []
    for unknown in (str(upload.pk), "no-upload"):
        assert shell("uploads", "terminate", unknown)[0] == 2


def test_uploads_expire_by_command_and_by_beat(shell: Shell, staging: Staging) -> None:
    overdue(staging)
    assert shell("uploads", "expire", "--dry-run")[1] == {"expired": 1, "dry_run": True}
    assert shell("uploads", "expire")[1] == {"expired": 1, "recovered": 0}
    overdue(staging)
    tend_uploads()
    assert set(Upload.objects.values_list("state", flat=True)) == {"expired"}
    overdue(staging)
    assert shell("tick")[1]["uploads_expired"] == 1


def test_a_file_of_this_host_is_staged(shell: Shell, staging: Staging, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(TEXT)
    code, said = shell("stage", "area", str(file), "--dry-run")
    assert (code, said["type"], said["bytes"]) == (0, "text/plain", len(TEXT))
    assert not StagedFile.objects.exists()
    code, said = shell("stage", "area", str(file), "--name", "May.md", "--task-id", "t-1")
    assert (code, said["sha256"]) == (0, sha256(TEXT))
    row = StagedFile.objects.get(pk=said["row"])
    assert (row.name, row.task_id, row.content_type) == ("May.md", "t-1", "text/markdown")
    assert row.uploader.startswith("command:")
    assert visible(staging.area) == {row.path: TEXT}
    assert parts(staging.area) == []
    assert file.read_bytes() == TEXT


def test_a_file_that_is_not_taken_is_refused_with_a_code(
    shell: Shell, staging: Staging, tmp_path: Path
) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(TEXT)
    for words in (["stage", "area", str(file)], ["stage", "area", str(file), "--dry-run"]):
        code, said = shell(*words)
        assert (code, said["error"]) == (2, "wrong_type")
    assert shell("stage", "area", str(tmp_path / "nothing.txt"))[0] == 2
    assert shell("stage", "nowhere", str(file))[0] == 2
    assert (visible(staging.area), parts(staging.area)) == ({}, [])


def test_beat_forgets_contents_that_nobody_refers_to(staging: Staging) -> None:
    StagedContent.objects.create(area=staging.area, sha256="0" * 64, size=1, path="00/x.txt")
    forget()
    assert not StagedContent.objects.exists()
