"""When sources are asked, and by whom: ticks, leases, workers that die or come late, and the bus."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.db import connection

from bus.models import RunningTask, Topic
from cleanup.conf import conf, problems
from cleanup.models import AuditEntry, Source, SourceState, StagedFile
from cleanup.operations import OperationRefused
from cleanup.staging import refreshing, sources
from cleanup.staging.refreshing import Refreshed
from cleanup.stores.sql import database_now
from cleanup.tasks import refresh_source, tick_sources
from tests.integration.fetched import HOUR, make_due, notes, refreshed, told
from tests.integration.staged import parts, visible
from tests.retention import ANNA, DAY, Staging, in_threads
from tests.servers import wait_until
from tests.web import Visit, Web

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nearby")]


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path, "incoming")


@pytest.fixture
def source(web: Web, staging: Staging) -> Source:
    return notes(web, staging)


# When


def test_a_tick_queues_each_due_source_once_and_wakes_for_those_that_wait(source):
    now = make_due(source)
    assert list(sources.tick(now)) == [source.pk]
    source.refresh_from_db()
    first = source.task_id
    assert source.state == SourceState.QUEUED
    assert list(sources.tick(now)) == [source.pk]  # its message may be lost
    source.refresh_from_db()
    assert source.task_id == first
    done = sources.refresh(source.pk)
    assert done is not None
    assert not sources.tick(now)


def test_a_source_is_due_an_interval_after_it_was_due_not_after_it_was_asked(source):
    make_due(source)
    source.refresh_from_db()
    due = source.next_check_at
    refreshed(source)
    assert source.next_check_at == due + source.interval


def test_a_source_that_is_asked_long_after_its_time_is_due_an_interval_later(source):
    Source.objects.filter(pk=source.pk).update(next_check_at=database_now() - 10 * DAY)
    before = database_now()
    refreshed(source)
    assert source.next_check_at >= before + source.interval


def test_the_tasks_do_what_is_due(source, web, django_capture_on_commit_callbacks, monkeypatch):
    sent: list[tuple[str, ...]] = []
    monkeypatch.setattr(sources, "send", lambda *message: sent.append(message))
    with django_capture_on_commit_callbacks(execute=True):
        tick_sources()
    assert sent == [(sources.TASK, str(source.pk))]
    refresh_source(str(source.pk))
    refresh_source(str(source.pk))  # a message that comes twice
    assert StagedFile.objects.count() == 1
    assert len(web.seen) == 1


def test_nobody_is_asked_who_does_not_wait(source, web):
    assert sources.refresh(source.pk) is None
    assert sources.refresh(10**6) is None
    assert web.seen == []


# Leases


def while_asking(source: Source, web: Web, meanwhile: Callable[[], object]) -> Refreshed:
    """Refresh, and have something else done, by another connection, before the server answers."""
    troubles: list[Exception] = []

    def answer(visit: Visit) -> None:
        web.serve("/notes.txt", b"late\n")
        try:
            meanwhile()
        except Exception as trouble:  # noqa: BLE001 - the server's thread tells nobody
            troubles.append(trouble)
        finally:
            connection.close()
        visit.reply(b"late\n")

    sources.queue(source, ANNA)
    web.answers["/notes.txt"] = answer
    done = sources.refresh(source.pk)
    assert done is not None
    assert not troubles
    source.refresh_from_db(from_queryset=Source.all_objects.all())
    return done


def expire_lease(source: Source) -> None:
    Source.objects.filter(pk=source.pk).update(lease_until=database_now() - HOUR)


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_lost_its_lease_stages_nothing(source, web, staging):
    others: list[Refreshed | None] = []

    def take_over() -> None:
        expire_lease(source)
        others.append(sources.refresh(source.pk))

    assert while_asking(source, web, take_over).outcome == "lost"
    assert [found.outcome for found in others if found is not None] == ["new"]
    assert [row.version for row in StagedFile.all_objects.all()] == [1]
    assert source.version == 1
    assert parts(staging.area) == []
    assert [entry["outcome"] for entry in told("source_refreshed")] == ["new"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "call_off",
    [
        lambda source: sources.remove(source, ANNA),
        lambda source: sources.set_enabled(source, False, ANNA),
        lambda source: sources.change(source, ANNA, url="http://a.example/"),
    ],
)
def test_a_source_that_is_changed_while_it_is_asked_stages_nothing(source, web, staging, call_off):
    assert while_asking(source, web, lambda: call_off(source)).outcome == "lost"
    assert visible(staging.area) == {}
    assert not StagedFile.all_objects.exists()
    assert (source.version, source.state) == (0, SourceState.IDLE)
    assert parts(staging.area) == []


def test_a_worker_that_died_is_followed_by_another_under_a_new_task(source, staging):
    sources.queue(source, ANNA)
    turn = refreshing._take(source.pk, ANNA)
    assert turn is not None
    left = Path(staging.area.path) / ".staging-uploads"
    left.mkdir(mode=0o700)
    (left / f"source-{source.pk}-dead.part").write_bytes(b"half")
    (left / "source-999-other.part").write_bytes(b"another one's")
    assert sources.refresh(source.pk) is None
    assert not sources.tick(database_now())
    with pytest.raises(OperationRefused, match="being asked"):
        sources.queue(source, ANNA)
    expire_lease(source)
    assert list(sources.tick(database_now())) == [source.pk]
    done = sources.refresh(source.pk)
    assert done is not None
    assert done.outcome == "new"
    assert done.task_id != turn.source.task_id
    assert parts(staging.area) == ["source-999-other.part"]


@pytest.mark.django_db(transaction=True)
def test_a_lease_is_renewed_while_bytes_come(source, web, settings):
    # Renewed at every look: a quarter of this is over at once.
    settings.CLEANUP = {**settings.CLEANUP, "RUN_LEASE": timedelta(microseconds=1)}
    seen: list[datetime] = []

    def slow(visit: Visit) -> None:
        visit.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        for number in range(2):
            before = lease_of(source)
            visit.raw(b"x")
            if number == 0:
                wait_until(lambda before=before: lease_of(source) > before)
        connection.close()
        seen.append(before)

    web.answers["/notes.txt"] = slow
    assert refreshed(source).outcome == "new"
    assert len(seen) == 1


def lease_of(source: Source) -> datetime:
    until = Source.objects.values_list("lease_until", flat=True).get(pk=source.pk)
    assert until is not None
    return until


def all_at_once(source: Source) -> list[Refreshed | None]:
    done: list[Refreshed | None] = []
    in_threads(6, lambda _: done.append(sources.refresh(source.pk)))
    assert len(done) == 6
    return done


@pytest.mark.django_db(transaction=True)
def test_many_workers_at_once_make_one_version_of_each_content(source, web):
    for number in range(3):
        web.serve("/notes.txt", f"content {number}\n".encode())
        sources.queue(source, ANNA)
        assert [found.outcome for found in all_at_once(source) if found is not None] == ["new"]
    assert sorted(StagedFile.objects.values_list("version", flat=True)) == [1, 2, 3]
    source.refresh_from_db()
    assert source.version == 3
    assert len(web.seen) == 3


# On the bus


def test_a_refresh_is_told_on_a_task_of_its_own_that_ends(source, web):
    first = refreshed(source)
    web.answers["/notes.txt"] = lambda visit: visit.reply(status=500)
    second = refreshed(source)
    assert first.task_id != second.task_id
    topics = Topic.objects.filter(name__in=[f"task:{done.task_id}" for done in (first, second)])
    assert len(topics) == 2
    assert all(topic.ended_at is not None for topic in topics)
    assert not RunningTask.objects.exists()


def test_settings_of_sources_are_checked(settings):
    for wrong in (
        {"SOURCE_NETWORKS": ["nonsense"]},
        {"SOURCE_IDLE_TIMEOUT": timedelta(hours=1)},
        {"SOURCE_TIMEOUT": timedelta(hours=1)},
    ):
        settings.CLEANUP = {**settings.CLEANUP, **wrong}
        assert any("SOURCE" in line for line in problems())
    assert conf().source_timeout == HOUR


def test_an_actor_of_the_system_stands_beside_what_beat_did(source):
    make_due(source)
    sources.tick(database_now())
    sources.refresh(source.pk)
    entry = AuditEntry.objects.get(action="source_refreshed")
    assert (entry.actor, entry.actor_kind) == ("sources", "system")
