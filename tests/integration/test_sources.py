"""Sources: asked when they are due, each new content one version; trouble is told and tried again."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from cleanup.models import AuditEntry, Source, SourceState, StagedFile
from cleanup.operations import NotFound, OperationRefused, set_enabled
from cleanup.operations.rows import purge_due_rows
from cleanup.staging import sources
from cleanup.staging.addresses import AddressRefused
from cleanup.staging.content import open_staged
from cleanup.staging.refreshing import FIRST_PAUSE, MAX_PAUSE, pause_after
from cleanup.stores.sql import database_now
from tests.integration.fetched import HOUR, notes, refreshed, told
from tests.integration.staged import parts, visible
from tests.retention import ANNA, DAY, Staging
from tests.web import Web

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nearby")]


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path, "incoming")


@pytest.fixture
def source(web: Web, staging: Staging) -> Source:
    return notes(web, staging)


# Adding, changing, removing


def test_a_source_is_added_by_somebody_and_due_at_once(source, staging):
    assert (source.area, source.created_by, source.state) == (staging.area, "anna", SourceState.IDLE)
    assert list(sources.tick(database_now())) == [source.pk]
    entry = AuditEntry.objects.get(action="source_added")
    assert (entry.actor, entry.area) == ("anna", "incoming")
    assert told("source_added")[0]["url"] == source.url


@pytest.mark.parametrize(
    "url", ["ftp://a.example/", "http://u:p@a.example/", "http://10.0.0.1/", "http://[::1]/", "nonsense", ""]
)
def test_an_address_that_may_not_be_fetched_is_no_source(staging, url):
    with pytest.raises(AddressRefused):
        sources.add("notes", url, staging.area, ANNA)
    assert not Source.all_objects.exists()
    assert not told("source_added")


@pytest.mark.parametrize("name", ["", "../etc", "a b", "ä" * 200])
def test_a_name_is_a_word(staging, name):
    with pytest.raises(OperationRefused):
        sources.add(name, "http://a.example/", staging.area, ANNA)


@pytest.mark.parametrize("interval", [timedelta(0), timedelta(seconds=-5), timedelta(days=1_000)])
def test_an_interval_makes_sense(staging, interval):
    with pytest.raises(OperationRefused, match="interval"):
        sources.add("notes", "http://a.example/", staging.area, ANNA, interval=interval)


def test_a_name_is_taken_also_by_what_was_removed(source, staging):
    with pytest.raises(OperationRefused, match="already"):
        sources.add("notes", "http://a.example/", staging.area, ANNA)
    sources.remove(source, ANNA)
    with pytest.raises(OperationRefused, match="restored"):
        sources.add("notes", "http://a.example/", staging.area, ANNA)


def test_another_address_is_asked_anew_and_its_former_marks_are_not_sent_there(source, web):
    refreshed(source)
    web.serve("/other.txt", b"second\n")
    sources.change(source, ANNA, url=web.url("/other.txt"), interval=HOUR)
    assert (source.etag, source.interval) == ("", HOUR)
    assert refreshed(source).version == 2
    assert "If-None-Match" not in web.seen[-1][1]
    assert told("source_changed")[0]["former_url"].endswith("/notes.txt")


def test_a_removed_source_is_asked_no_more_and_comes_back(source):
    sources.remove(source, ANNA)
    assert not sources.tick(database_now() + DAY)
    with pytest.raises(OperationRefused, match="removed"):
        sources.queue(source, ANNA)
    for verb in (sources.remove, lambda row, actor: sources.set_enabled(row, False, actor)):
        with pytest.raises(OperationRefused):
            verb(source, ANNA)
    with pytest.raises(NotFound):
        sources.find("notes")
    sources.restore(sources.find("notes", removed=True), ANNA)
    assert refreshed(sources.find("notes")).outcome == "new"
    assert [len(told(f"source_{word}")) for word in ("removed", "restored")] == [1, 1]
    with pytest.raises(OperationRefused):
        sources.restore(source, ANNA)


def test_a_disabled_source_is_left_alone_until_it_is_enabled(source):
    sources.set_enabled(source, False, ANNA)
    sources.set_enabled(source, False, ANNA)
    assert not sources.tick(database_now() + DAY)
    with pytest.raises(OperationRefused, match="disabled"):
        sources.queue(source, ANNA)
    sources.set_enabled(source, True, ANNA)
    assert list(sources.tick(database_now())) == [source.pk]
    assert [len(told(f"source_{word}")) for word in ("disabled", "enabled")] == [1, 1]


def test_files_of_a_source_stay_when_its_row_is_purged(source):
    row = StagedFile.objects.get(pk=refreshed(source).staged_file)
    sources.remove(source, ANNA)
    purge_due_rows(database_now() + 8 * DAY)
    assert not Source.all_objects.exists()
    row.refresh_from_db()
    assert (row.source, row.version) == (None, 1)
    with open_staged(row) as file:
        assert file.read() == b"first\n"


# What comes of a refresh


def test_new_content_becomes_a_version_in_the_registry(source, staging):
    done = refreshed(source)
    assert (done.outcome, done.version, done.size) == ("new", 1, 6)
    row = StagedFile.objects.get()
    assert (row.source, row.version, row.name, row.uploader) == (source, 1, "notes.txt", "source:notes")
    assert row.task_id == source.task_id == done.task_id
    assert list(visible(staging.area).values()) == [b"first\n"]
    assert parts(staging.area) == []
    assert (source.version, source.sha256, source.etag) == (1, row.sha256, '"1"')
    assert (source.state, source.failures, source.lease_by) == (SourceState.IDLE, 0, "")
    assert source.last_changed_at is not None
    assert told("source_refreshed")[0] | {"row": 0} == {
        "source": "notes", "outcome": "new", "version": 1, "sha256": row.sha256, "task": row.task_id, "row": 0
    }  # fmt: skip
    assert told("source_refresh_asked") == [{"source": "notes", "task": row.task_id}]


def test_what_the_server_says_is_unchanged_is_no_new_version(source, web):
    refreshed(source)
    web.answers["/notes.txt"] = lambda visit: visit.reply(status=304)
    assert refreshed(source).outcome == "unchanged"
    assert web.seen[-1][1]["If-None-Match"] == '"1"'
    assert (StagedFile.objects.count(), source.version, source.etag) == (1, 1, '"1"')
    assert told("source_refreshed")[1]["outcome"] == "unchanged"


def test_the_same_bytes_again_are_no_new_version(source, web, staging):
    refreshed(source)
    web.serve("/notes.txt", b"first\n", ETag='"2"')
    assert refreshed(source).outcome == "unchanged"
    assert (StagedFile.objects.count(), source.etag) == (1, '"2"')
    assert parts(staging.area) == []


def test_each_new_content_is_the_next_version_and_the_former_one_is_superseded(source, web):
    for number, text in enumerate((b"first\n", b"second\n", b"first\n"), start=1):
        web.serve("/notes.txt", text)
        assert refreshed(source).version == number
    rows = list(StagedFile.objects.order_by("version"))
    assert [row.version for row in rows] == [1, 2, 3]
    assert [row.superseded_at is None for row in rows] == [False, False, True]
    assert rows[0].content == rows[2].content
    assert [row.version for row in sources.versions(source)] == [3, 2, 1]


def test_a_file_without_an_extension_is_named_by_the_type_it_came_with(source, web):
    web.serve("/feed/", b"<html></html>", Content_Type="text/html; charset=utf-8")
    sources.change(source, ANNA, url=web.url("/feed/"))
    assert refreshed(source).outcome == "new"
    assert StagedFile.objects.get().name == "notes.html"


# Trouble


def failed(source: Source) -> str:
    done = refreshed(source)
    assert done.outcome == "failed"
    assert (source.state, source.last_error) == (SourceState.IDLE, done.message)
    assert parts(source.area) == []
    return done.message


def test_a_failure_is_told_and_tried_again_after_a_pause_that_grows(source, web):
    web.answers["/notes.txt"] = lambda visit: visit.reply(status=500)
    pauses = []
    for number in (1, 2, 3):
        before = database_now()
        assert "500" in failed(source)
        assert source.failures == number
        pauses.append(source.next_check_at - before)
    assert FIRST_PAUSE <= pauses[0] < pauses[1] < pauses[2]
    assert [entry["outcome"] for entry in told("source_refreshed")] == ["failed"] * 3
    web.serve("/notes.txt", b"well again\n")
    assert refreshed(source).outcome == "new"
    assert (source.failures, source.last_error) == (0, "")


def test_pauses_double_up_to_a_day_and_heed_what_the_server_wants():
    assert [pause_after(number) for number in (1, 2, 3)] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pause_after(100) == MAX_PAUSE == timedelta(hours=24)
    assert pause_after(1, 3 * HOUR) == 3 * HOUR
    assert pause_after(3, timedelta(seconds=5)) == 4 * FIRST_PAUSE
    assert pause_after(1, timedelta(days=365)) == MAX_PAUSE


def test_a_server_that_wants_to_be_left_alone_is(source, web):
    web.answers["/notes.txt"] = lambda visit: visit.reply(status=503, Retry_After="7200")
    before = database_now()
    failed(source)
    assert source.next_check_at - before >= 2 * HOUR


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [("/notes.pdf", b"no PDF at all", "PDF"), ("/notes.exe", b"MZ", "exe"),
     ("/x/..%2F..%2Fetc.txt", b"1", "name"), ("/notes.txt", b"\x00\x01", "text")],
)  # fmt: skip
def test_what_staging_refuses_is_a_failure_and_leaves_nothing(source, web, staging, path, body, words):
    web.serve(path, body)
    sources.change(source, ANNA, url=web.url(path))
    assert words in failed(source)
    assert visible(staging.area) == {}
    assert not StagedFile.all_objects.exists()


def test_a_file_above_the_limit_is_a_failure(source, web, settings):
    settings.CLEANUP = {**settings.CLEANUP, "UPLOAD_MAX_SIZE": 5}
    assert "limit" in failed(source)


def test_a_redirect_inside_is_a_failure(source, web):
    web.answers["/notes.txt"] = lambda visit: visit.reply(status=302, Location="http://169.254.169.254/")
    assert "not a public address" in failed(source)


def test_an_area_that_takes_no_files_is_a_failure(source, staging):
    set_enabled(staging.area, False, ANNA)
    assert "disabled" in failed(source)


def test_a_link_in_the_place_of_the_parts_is_a_failure(source, staging, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (staging.root / ".staging-uploads").symlink_to(elsewhere)
    sources.queue(source, ANNA)
    done = sources.refresh(source.pk)
    assert done is not None
    assert done.outcome == "failed"
    assert os.listdir(elsewhere) == []


def test_a_source_without_an_area_s_directory_is_a_failure_not_an_error(source, staging):
    staging.root.rename(staging.root.with_name("away"))
    sources.queue(source, ANNA)
    done = sources.refresh(source.pk)
    assert done is not None
    assert done.outcome == "failed"
