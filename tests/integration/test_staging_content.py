"""A complete file into an area: once for the same bytes, whole, never by a link, and audited."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from django.db import OperationalError

from cleanup import operations
from cleanup.engine.errors import AreaBusy, AreaRefused
from cleanup.models import AuditEntry, StagedContent, StagedFile, StagingArea
from cleanup.operations import NotFound, OperationRefused, schedule
from cleanup.operations.area_changes import set_enabled
from cleanup.operations.areas import opened
from cleanup.staging import content, placing
from cleanup.staging.content import Incoming, open_staged, part_folder, stage, stage_bytes
from cleanup.staging.errors import BadName, StorageFull, TooLarge, WrongDigest, WrongType
from cleanup.staging.placing import references
from cleanup.stores.sql import database_now
from tests.integration.staged import AGENT, at_once, part_of, parts, sha256, staged, visible
from tests.integration.test_cleanup_recovery import interrupted
from tests.retention import ANNA, Staging

HELLO = b"hello, area\n"


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


@pytest.mark.django_db
def test_a_staged_file_lies_under_its_hash_and_has_a_row_and_an_audit_entry(staging: Staging) -> None:
    incoming = Incoming(name="Notes of May.TXT", uploader="key:agent-7", task_id="t-1", origin=5)
    row = stage(staging.area, part_of(staging.area, HELLO), incoming, AGENT)
    digest = sha256(HELLO)
    assert row.path == f"{digest[:2]}/{digest}.txt"
    assert visible(staging.area) == {row.path: HELLO}
    assert (row.name, row.sha256, row.size) == ("Notes of May.TXT", digest, len(HELLO))
    assert (row.content_type, row.uploader, row.task_id, row.origin) == (
        "text/plain", "key:agent-7", "t-1", 5,
    )  # fmt: skip
    entry = AuditEntry.objects.get(action="staged")
    assert (entry.actor, entry.area, entry.path, entry.size) == (
        "key:agent-7", "area", row.path, len(HELLO),
    )  # fmt: skip
    assert digest in entry.evidence
    assert parts(staging.area) == []


@pytest.mark.django_db
def test_the_same_bytes_are_stored_once_however_they_are_called(staging: Staging) -> None:
    first, second = staged(staging.area, HELLO, "a.txt"), staged(staging.area, HELLO, "b.md")
    assert (first.path, first.content) == (second.path, second.content)
    assert (first.name, second.name) == ("a.txt", "b.md")
    assert len(visible(staging.area)) == StagedContent.objects.count() == 1
    assert first.content is not None
    assert references(first.content) == 2


@pytest.mark.django_db
def test_one_more_row_makes_the_file_young(staging: Staging) -> None:
    row = staged(staging.area, HELLO)
    path = staging.root / row.path
    os.utime(path, (1_000_000_000, 1_000_000_000))
    staged(staging.area, HELLO)
    assert path.stat().st_mtime > 1_000_000_000


@pytest.mark.django_db
def test_bytes_in_memory_are_staged_alike(staging: Staging) -> None:
    row = stage_bytes(staging.area, HELLO, Incoming(name="a.txt"), AGENT)
    with open_staged(row) as file:
        assert file.read() == HELLO
    assert parts(staging.area) == []


@pytest.mark.django_db
def test_an_empty_text_can_be_staged(staging: Staging) -> None:
    assert stage_bytes(staging.area, b"", Incoming(name="empty.txt"), AGENT).size == 0


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("incoming", "data", "error"),
    [
        (Incoming(name="../a.txt"), HELLO, BadName),
        (Incoming(name="a.pdf"), HELLO, WrongType),
        (Incoming(name="a.exe"), HELLO, WrongType),
        (Incoming(name="a.txt", sha256="0" * 64), HELLO, WrongDigest),
        (Incoming(name="a.txt"), b"x" * 1_001, TooLarge),
    ],
)
def test_what_is_refused_leaves_nothing(
    staging: Staging, settings: Any, incoming: Incoming, data: bytes, error: type[Exception]
) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "UPLOAD_MAX_SIZE": 1_000}
    with pytest.raises(error):
        stage(staging.area, part_of(staging.area, data), incoming, AGENT)
    assert (visible(staging.area), parts(staging.area)) == ({}, [])
    assert not StagedFile.all_objects.exists()
    assert not AuditEntry.objects.filter(action="staged").exists()


@pytest.mark.django_db
def test_an_area_that_is_gone_or_disabled_takes_nothing(staging: Staging) -> None:
    part = part_of(staging.area, HELLO)
    set_enabled(staging.area, False, ANNA)
    with pytest.raises(OperationRefused, match="disabled"):
        stage(staging.area, part, Incoming(name="a.txt"), AGENT)
    set_enabled(staging.area, True, ANNA)
    (staging.root / ".staging-area").unlink()
    with pytest.raises(AreaRefused, match="staging-area"):
        stage(staging.area, part, Incoming(name="a.txt"), AGENT)
    assert part.exists()
    gone = StagingArea(pk=staging.area.pk + 1, name="gone")
    with pytest.raises(NotFound):
        stage(gone, part, Incoming(name="a.txt"), AGENT)


@pytest.mark.django_db
def test_a_part_that_is_a_link_or_has_two_names_is_refused(staging: Staging, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(HELLO)
    folder = part_folder(staging.area)
    (folder / "link").symlink_to(secret)
    os.link(secret, folder / "twin")
    for name, words in (("link", "regular file"), ("twin", "more than one name")):
        with pytest.raises(OperationRefused, match=words):
            stage(staging.area, folder / name, Incoming(name="a.txt"), AGENT)
    with pytest.raises(NotFound):
        stage(staging.area, folder / "nothing", Incoming(name="a.txt"), AGENT)
    assert secret.read_bytes() == HELLO
    assert visible(staging.area) == {}


@pytest.mark.django_db
@pytest.mark.parametrize("where", ["parts", "folder", "file"])
def test_a_link_in_the_area_is_refused_and_nothing_is_written_behind_it(
    staging: Staging, tmp_path: Path, where: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    digest = sha256(HELLO)
    if where == "parts":
        (staging.root / ".staging-uploads").symlink_to(elsewhere)
    elif where == "folder":
        (staging.root / digest[:2]).symlink_to(elsewhere)
    else:
        victim = elsewhere / "victim.txt"
        victim.write_bytes(b"mine")
        (staging.root / digest[:2]).mkdir()
        (staging.root / digest[:2] / f"{digest}.txt").symlink_to(victim)
    before = sorted(path.name for path in elsewhere.iterdir())
    with pytest.raises(OperationRefused):
        stage_bytes(staging.area, HELLO, Incoming(name="a.txt"), AGENT)
    assert sorted(path.name for path in elsewhere.iterdir()) == before
    assert all(path.read_bytes() == b"mine" for path in elsewhere.iterdir())
    assert not StagedFile.objects.exists()


@pytest.mark.django_db
def test_a_file_that_a_crash_left_without_a_row_is_taken_over(staging: Staging) -> None:
    digest = sha256(HELLO)
    (staging.root / digest[:2]).mkdir()
    (staging.root / digest[:2] / f"{digest}.txt").write_bytes(HELLO)
    row = staged(staging.area, HELLO)
    assert visible(staging.area) == {row.path: HELLO}


@pytest.mark.django_db
def test_a_file_that_holds_other_bytes_than_its_name_says_is_never_taken_over(staging: Staging) -> None:
    digest = sha256(HELLO)
    (staging.root / digest[:2]).mkdir()
    (staging.root / digest[:2] / f"{digest}.txt").write_bytes(b"x" * len(HELLO))
    with pytest.raises(OperationRefused, match="other bytes"):
        staged(staging.area, HELLO)
    assert not StagedFile.objects.exists()


@pytest.mark.django_db
def test_a_trashed_content_is_stored_anew(staging: Staging) -> None:
    first = staged(staging.area, HELLO)
    os.utime(staging.root / first.path, (1_000_000_000, 1_000_000_000))
    assert staging.run(staging.policy()).trashed == 1
    second = staged(staging.area, HELLO)
    assert visible(staging.area) == {second.path: HELLO}
    assert [row.pk for row in StagedFile.objects.all()] == [second.pk]
    assert StagedContent.objects.count() == 1
    (staging.root / second.path).unlink()
    with pytest.raises(FileNotFoundError):
        open_staged(second)


@pytest.mark.django_db
def test_a_run_that_was_interrupted_takes_no_younger_row_along(staging: Staging) -> None:
    first = staged(staging.area, HELLO)
    os.utime(staging.root / first.path, (1_000_000_000, 1_000_000_000))
    policy = staging.policy()
    with interrupted("run.after_move"):
        staging.run(policy)
    assert visible(staging.area) == {}
    second = staged(staging.area, HELLO)
    assert schedule.recover_all() == 0
    assert [row.pk for row in StagedFile.objects.all()] == [second.pk]
    assert visible(staging.area) == {second.path: HELLO}


@pytest.mark.django_db
def test_the_area_is_locked_against_runs_until_the_rows_are_made(staging: Staging) -> None:
    asked = []

    def ask(_: StagedFile) -> None:
        with opened(staging.area) as handle, pytest.raises(AreaBusy), handle.lock():
            pass
        asked.append(True)

    incoming = Incoming(name="a.txt", sha256=sha256(HELLO))
    stage(staging.area, part_of(staging.area, HELLO), incoming, AGENT, also=ask)
    content.restage(staging.area, incoming, AGENT, also=ask)
    assert asked == [True, True]
    with opened(staging.area) as handle, handle.lock():
        pass


@pytest.mark.django_db
def test_rows_that_fail_leave_the_part_where_it_was(staging: Staging) -> None:
    part = part_of(staging.area, HELLO)

    def fail(_: StagedFile) -> None:
        raise OperationalError("database or disk is full")

    with pytest.raises(StorageFull):
        stage(staging.area, part, Incoming(name="a.txt"), AGENT, also=fail)
    assert part.read_bytes() == HELLO
    assert visible(staging.area) == {}
    stage(staging.area, part, Incoming(name="a.txt"), AGENT)
    assert list(visible(staging.area).values()) == [HELLO]


@pytest.mark.django_db
def test_a_full_disk_is_one_error_and_the_part_stays(staging: Staging, monkeypatch: Any) -> None:
    part = part_of(staging.area, HELLO)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(placing, "rename_new", full)
        with pytest.raises(StorageFull):
            stage(staging.area, part, Incoming(name="a.txt"), AGENT)
    assert part.exists()
    assert stage(staging.area, part, Incoming(name="a.txt"), AGENT).size == len(HELLO)


@pytest.mark.django_db
def test_a_released_row_comes_back_and_its_file_stays(staging: Staging) -> None:
    first, second = staged(staging.area, HELLO), staged(staging.area, HELLO)
    assert content.release(first, ANNA, reason="no longer wanted")
    assert not content.release(first, ANNA)
    assert first.content is not None
    assert references(first.content) == 1
    assert content.release(second, ANNA)
    assert visible(staging.area) == {first.path: HELLO}
    assert AuditEntry.objects.filter(action="row_soft_deleted").count() == 2


@pytest.mark.django_db
def test_a_content_is_forgotten_when_no_row_is_left(staging: Staging) -> None:
    row = staged(staging.area, HELLO)
    content.release(row, ANNA)
    assert content.forget_contents() == 0
    StagedFile.all_objects.filter(pk=row.pk).update(purge_after="2020-01-01T00:00:00Z")
    operations.rows.purge_due_rows(database_now())
    assert content.forget_contents() == 1
    assert not StagedContent.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_the_same_bytes_from_many_at_once_are_one_file_and_as_many_rows(staging: Staging) -> None:
    waiting = [part_of(staging.area, HELLO) for _ in range(24)]

    def stages(mine: list[Path]) -> None:
        for part in mine:
            stage(staging.area, part, Incoming(name="a.txt"), AGENT)

    done = at_once(*(partial(stages, waiting[number::4]) for number in range(4)))
    assert done == [None] * 4
    assert list(visible(staging.area).values()) == [HELLO]
    assert references(StagedContent.objects.get()) == 24
    assert parts(staging.area) == []


@pytest.mark.django_db(transaction=True)
def test_no_row_lives_for_a_file_that_a_run_has_just_trashed(staging: Staging) -> None:
    # Old at once, so that a run takes whatever it sees and nobody stages again meanwhile.
    policy, over = staging.policy(age="1us", age_by="m", max_median_factor=10**6), Event()
    rows = StagedFile.all_objects.all()

    def stages() -> None:
        try:
            for number in range(600):
                staged(staging.area, f"file {number % 7}".encode())
                if number >= 30 and rows.deleted().count() >= 10:
                    return
        finally:
            over.set()

    def cleans() -> None:
        while not over.is_set():
            staging.run(policy)

    assert at_once(stages, cleans) == [None, None]
    assert rows.deleted().count() >= 10
    assert set(rows.alive().values_list("path", flat=True)) == set(visible(staging.area))
