"""What the trash itself says of a file: on its page and by the command, read from the disk alone."""

from __future__ import annotations

import io
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from cleanup import operations
from cleanup.models import CleanupItem, ItemState
from cleanup.operations.manifests import OnDisk, on_disk
from cleanup.stores.items import version_name
from tests.retention import ANNA, DAY, Staging, write

pytestmark = pytest.mark.django_db


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    staging = Staging(tmp_path)
    path = write(staging.root / "box" / "one", "content", age=5 * DAY)
    path.chmod(0o640)
    staging.run(staging.policy("old"))
    return staging


def item() -> CleanupItem:
    return CleanupItem.objects.select_related("area", "run__policy_version__policy").get()


def found() -> OnDisk:
    read = on_disk(item())
    assert read is not None
    return read


def manifest_file(staging: Staging) -> Path:
    (path,) = staging.root.glob(".trash/*/*/manifest.json")
    return path


def shown() -> str:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    reply = client.get(reverse("admin:cleanup_cleanupitem_change", args=[item().pk]))
    assert reply.status_code == 200
    return str(reply.content.decode()).replace("\u00a0", " ")


def command(*words: str) -> tuple[int, dict[str, Any]]:
    out, code = io.StringIO(), 0
    try:
        call_command("cleanup", "manifest", *words, "--json", stdout=out)
    except SystemExit as end:
        code = int(end.code or 0)
    return code, json.loads(out.getvalue())


def test_the_manifest_says_what_was_moved_by_whom_and_why(staging: Staging) -> None:
    read, row = found(), item()
    assert (read.is_whole, read.is_taken, read.differences, read.trouble) == (True, False, [], "")
    (member,) = read.members
    assert (member["path"], member["size"], member["mode"]) == ("box/one", 7, "0640")
    assert (member["uid"], member["gid"]) == (os.getuid(), os.getgid())
    assert read.says["policy_version"] == version_name(row) == "old v1"
    assert (read.says["reason"], read.says["trashed_at"]) == ("older_than_age", row.trashed_at)
    page = shown()
    for words in ("The manifest and the row agree", "old v1", "0640", f"{os.getuid()}:{os.getgid()}"):
        assert words in page, words


def test_more_grace_than_the_manifest_promises_is_no_difference(staging: Staging) -> None:
    operations.extend_grace(staging.items(), by=7 * DAY, actor=ANNA)
    assert found().differences == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"path": "box/other"}, "path"),
        ({"size": 8}, "bytes"),
        ({"reason": "expired"}, "reason"),
        ({"task_id": "7"}, "task_id"),
        (
            {"run": None, "members": [{"path": "x", "device": 1, "inode": 1, "size": 1, "mtime_ns": 1}]},
            "files",
        ),
    ],
)
def test_a_row_that_says_something_else_is_told(staging: Staging, changes: dict[str, Any], name: str) -> None:
    CleanupItem.objects.update(**changes)
    (difference,) = found().differences
    assert difference.startswith(f"{name}: ")
    assert "disagree" in shown()
    code, data = command(str(item().pk))
    assert (code, data["differences"]) == (1, [difference])


def test_a_row_that_promises_less_time_is_told(staging: Staging) -> None:
    row = item()
    assert row.purge_after is not None
    CleanupItem.objects.update(purge_after=row.purge_after - timedelta(seconds=1))
    assert found().differences[0].startswith("purge_after: ")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda staging: manifest_file(staging).write_text("{"), "cannot be read"),
        (lambda staging: manifest_file(staging).unlink(), "no manifest"),
        (lambda staging: (staging.root / ".staging-area").unlink(), "is its disk mounted"),
        (lambda staging: CleanupItem.objects.update(trash_id=""), "does not say where"),
        (lambda staging: CleanupItem.objects.update(trash_id="../../etc/passwd"), "not a trash id"),
    ],
)
def test_what_cannot_be_read_is_said(staging: Staging, harm: Any, words: str) -> None:
    harm(staging)
    read = found()
    assert words in read.trouble
    assert (read.members, read.says) == ([], {})
    assert "The manifest cannot be read" in shown()
    code, data = command(str(item().pk))
    assert (code, data["trouble"]) == (1, read.trouble)


def test_files_that_are_gone_changed_or_whose_name_is_taken_are_told(staging: Staging) -> None:
    write(staging.root / "box" / "one", "younger")
    assert found().is_taken
    (data,) = staging.root.glob(".trash/*/*/data/*")
    data.write_text("forged!")
    assert not found().is_whole
    assert "something else lies in the trash" in found().files
    data.unlink()
    assert found().files == "not in the trash any more"
    assert command(str(item().pk))[0] == 1


def test_looking_writes_nothing(staging: Staging) -> None:
    before = {path: path.stat().st_mtime_ns for path in staging.root.rglob("*")}
    row = CleanupItem.objects.values().get()
    shown()
    assert command(str(item().pk))[0] == 0
    assert {path: path.stat().st_mtime_ns for path in staging.root.rglob("*")} == before
    assert CleanupItem.objects.values().get() == row


def test_what_is_not_in_the_trash_has_no_manifest(staging: Staging) -> None:
    operations.restore(staging.items(), actor=ANNA)
    assert item().state == ItemState.RESTORED
    assert on_disk(item()) is None
    assert "On the disk" not in shown()
    with pytest.raises(CommandError, match="nothing of it is in the trash"):
        call_command("cleanup", "manifest", str(item().pk))
    with pytest.raises(CommandError, match="no item"):
        call_command("cleanup", "manifest", "8b1c6f6e-2d3a-4d5e-9f00-0123456789ab")
