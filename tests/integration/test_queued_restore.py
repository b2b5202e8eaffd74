"""A restore that a worker carries out: claimed at once, finished by the task or by the next tick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from cleanup import operations, tasks
from cleanup.models import AuditEntry, CleanupItem, Hold
from cleanup.operations import schedule
from cleanup.operations.restoring import is_waiting
from tests.retention import ANNA, Staging, write

pytestmark = pytest.mark.django_db


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def trashed(staging: Staging, count: int = 5) -> tuple[set[str], list[Any]]:
    """Trash some files; their names and the keys of their rows."""
    names = staging.fill(count)
    staging.run(staging.policy())
    assert staging.files() == set()
    return names, list(CleanupItem.objects.values_list("pk", flat=True))


def test_the_worker_brings_back_what_was_queued_and_a_taken_name_returns_to_the_trash(
    staging: Staging,
) -> None:
    names, items = trashed(staging)
    taken = sorted(names)[0]
    write(staging.root / taken, "newer")
    assert operations.queue_restore(items, actor=ANNA) == 5
    assert set(CleanupItem.objects.values_list("state", flat=True)) == {"restoring"}
    assert is_waiting()

    tasks.restore()
    assert not is_waiting()
    assert staging.files() == names
    assert (staging.root / taken).read_text() == "newer"
    conflict = CleanupItem.objects.get(state="trashed")
    assert conflict.path == taken
    assert conflict.detail
    assert CleanupItem.objects.filter(state="restored").count() == 4
    queued = AuditEntry.objects.get(action="restore_queued")
    assert (queued.actor, json.loads(queued.evidence)) == (ANNA.name, {"items": 5})
    assert AuditEntry.objects.filter(action="restored").count() == 4
    assert Hold.objects.filter(released_at__isnull=True).count() == 1


def test_a_lost_message_is_made_good_by_the_next_tick(staging: Staging) -> None:
    names, items = trashed(staging)
    operations.queue_restore(items, actor=ANNA)
    assert schedule.tick().recovered == 5
    assert staging.files() == names


def test_a_large_queue_is_finished_in_parts(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cleanup.operations.restoring._AT_ONCE", 2)
    names, items = trashed(staging)
    operations.queue_restore(items, actor=ANNA)
    assert [schedule.recover_all() for _ in range(4)] == [2, 2, 1, 0]
    assert staging.files() == names


def test_what_is_not_in_the_trash_is_not_queued(staging: Staging) -> None:
    _, items = trashed(staging)
    operations.restore(items[:2], actor=ANNA)
    assert operations.queue_restore(items, actor=ANNA) == 3


@pytest.mark.parametrize("more", [["--to", "x"], ["--rows"]])
def test_the_verb_queues_files_under_their_own_names_only(
    staging: Staging, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trashed(staging)
    what = ["--rows", "cleanup.StagedFile"] if more == ["--rows"] else ["--area", "area", *more]
    with pytest.raises(SystemExit) as ended:
        call_command("cleanup", "restore", *what, "--queue", "--json")
    assert ended.value.code == 2
    assert json.loads(capsys.readouterr().out)["error"] == "refused"
    assert not is_waiting()
    call_command("cleanup", "restore", "--area", "area", "--queue", "--json")
    assert json.loads(capsys.readouterr().out) == {"queued": 5}
