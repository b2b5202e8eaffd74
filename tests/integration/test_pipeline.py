"""The pipeline: every step once, whatever dies or is away meanwhile; what is unreadable is rejected whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db import connection, transaction

from bus.models import RunningTask, Topic
from cleanup import operations
from cleanup.conf import conf
from cleanup.engine.verify import Answer, Deadline, Subject
from cleanup.models import AuditEntry, JobState, PipelineJob, StagedFile, StagingArea
from cleanup.operations import NotFound, OperationRefused
from cleanup.staging import pipeline, telling
from cleanup.staging.content import Incoming, open_staged, stage_bytes
from cleanup.stores.sql import database_now
from cleanup.verifiers.specifications import build
from tests.retention import ANNA, in_threads
from tests.servers import Valkey, free_port

pytestmark = pytest.mark.django_db(transaction=True)

TEXT = b"# Tides\n\nThe tide follows the moon.\n\n# Winds\n\nWind moves sand."
ROLES = ("incoming", "extracted", "distilled", "rejected")


@pytest.fixture
def areas(tmp_path: Path, settings: Any) -> dict[str, StagingArea]:
    settings.CLEANUP = {**settings.CLEANUP, "PIPELINE_PAUSE": timedelta(milliseconds=1)}
    found = {}
    for role in ROLES:
        (tmp_path / role).mkdir()
        found[role] = operations.add_area(role, tmp_path / role, ANNA)
    return found


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The wake-ups that would be sent: the tests are the worker."""
    sent: list[str] = []
    monkeypatch.setattr(pipeline, "send", lambda task, job_id: sent.append(job_id))
    return sent


@pytest.fixture
def qdrant(tmp_path: Path, settings: Any) -> str:
    pytest.importorskip("qdrant_client")
    settings.CLEANUP = {**settings.CLEANUP, "QDRANT_URL": f"file://{tmp_path / 'qdrant'}"}
    return str(tmp_path / "qdrant")


@pytest.fixture
def broken_valkey(settings: Any) -> Iterator[Valkey]:
    """A server of the test's own, which is not there yet."""
    server = Valkey()
    server.start()
    server.kill()
    settings.CLEANUP = {**settings.CLEANUP, "REDIS_URL": server.url}
    yield server
    server.stop()


def staged(area: StagingArea, data: bytes = TEXT, name: str = "tides.md", task_id: str = "") -> StagedFile:
    return stage_bytes(area, data, Incoming(name=name, task_id=task_id, uploader="key:agent-7"), ANNA)


def run(row: StagedFile) -> PipelineJob:
    """Take a file as far as it goes, as a worker would."""
    pipeline.carry_out(pipeline.queue(row, ANNA).pk)
    return PipelineJob.objects.get(raw=row.pk)


def read(row: StagedFile) -> bytes:
    with open_staged(row) as file:
        return file.read()


def made(area: StagingArea) -> list[StagedFile]:
    return list(StagedFile.objects.filter(area=area).order_by("pk"))


def status(task_id: str) -> str | None:
    with redis.Redis.from_url(conf().redis_url, decode_responses=True) as client:
        return client.get(f"task:{task_id}:status")


def verdict(kind: str, row: StagedFile, **options: str) -> Answer:
    """What a verifier says of a file."""
    (verifier,) = build([{"kind": kind, **options}])
    subject = Subject(path=row.path, task_id=row.task_id, sha256=row.sha256)
    (finding,) = verifier.verify([subject], Deadline(timedelta(seconds=60)))
    return finding.answer


def test_a_file_becomes_text_and_chunks_with_its_origin_and_its_task(
    areas: dict[str, StagingArea], woken: list[str]
) -> None:
    row = staged(areas["incoming"], task_id="import-7")
    job = run(row)
    (text,), (chunks,) = made(areas["extracted"]), made(areas["distilled"])
    assert read(text) == TEXT
    assert [json.loads(line)["title"] for line in read(chunks).splitlines()] == ["Tides", "Winds"]
    assert (text.name, chunks.name) == ("tides.txt", "tides.jsonl")
    for one in (text, chunks):
        assert (one.origin, one.task_id, one.uploader) == (row.pk, "import-7", "key:agent-7")
    assert (job.state, job.extracted, job.distilled) == (JobState.DONE, text.pk, chunks.pk)
    assert (job.lease_owner, job.points) == ("", None)
    assert status("import-7") == "Complete"
    assert made(areas["rejected"]) == []
    assert StagedFile.objects.filter(pk=row.pk).exists()


def test_a_file_without_a_task_gets_one(areas: dict[str, StagingArea], woken: list[str]) -> None:
    row = staged(areas["incoming"])
    run(row)
    row.refresh_from_db()
    assert row.task_id == f"pipeline-{row.pk}"
    assert status(row.task_id) == "Complete"


def test_the_topic_of_a_job_moves_on_and_ends_once(areas: dict[str, StagingArea], woken: list[str]) -> None:
    from bus.models import Event

    row = staged(areas["incoming"])
    run(row)
    topic = Topic.objects.get(name=f"task:pipeline-{row.pk}")
    kinds = list(Event.objects.filter(topic=topic).order_by("offset").values_list("event_type", flat=True))
    assert kinds[0] == "task.started"
    assert set(kinds[1:-1]) == {"task.progress"}
    assert kinds[-1] == "task.completed"
    assert not RunningTask.objects.filter(topic=topic.name).exists()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("scan.pdf", b"%PDF-1.7 nothing", "no text is extracted from .pdf files"),
        ("empty.html", b"<script>x()</script>", "there is no text in it"),
        ("odd.json", b'{"a": }', "it is no JSON"),
    ],
)
def test_what_is_unreadable_is_rejected_whole_with_the_reason(
    areas: dict[str, StagingArea], woken: list[str], name: str, data: bytes, reason: str
) -> None:
    row = staged(areas["incoming"], data, name, task_id="bad-1")
    job = run(row)
    rejected = {one.name: one for one in made(areas["rejected"])}
    assert set(rejected) == {name, f"{name}.reason.json"}
    assert read(rejected[name]) == data
    told = json.loads(read(rejected[f"{name}.reason.json"]))
    assert (told["file"], told["task_id"]) == (name, "bad-1")
    assert told["reason"].startswith(reason)
    assert {one.origin for one in rejected.values()} == {row.pk}
    assert (job.state, job.rejected) == (JobState.REFUSED, rejected[name].pk)
    assert job.message.startswith(reason)
    assert status("bad-1") == "Failed"
    assert read(row) == data
    assert Topic.objects.get(name=f"task:pipeline-{row.pk}").ended_at is not None


def test_too_large_a_file_is_rejected_without_being_read(
    areas: dict[str, StagingArea], woken: list[str], settings: Any
) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "PIPELINE_MAX_BYTES": 10}
    job = run(staged(areas["incoming"]))
    assert job.message == f"it has {len(TEXT)} bytes; text is extracted of at most 10"
    assert read(StagedFile.objects.get(pk=job.rejected)) == TEXT


def test_a_rejected_file_can_be_tried_again(
    areas: dict[str, StagingArea], woken: list[str], settings: Any
) -> None:
    plain = settings.CLEANUP
    settings.CLEANUP = {**plain, "PIPELINE_MAX_BYTES": 10}
    row = staged(areas["incoming"], task_id="again-1")
    assert run(row).state == JobState.REFUSED
    settings.CLEANUP = plain
    assert run(row).state == JobState.DONE
    assert status("again-1") == "Complete"


def test_a_file_that_is_gone_is_rejected(areas: dict[str, StagingArea], woken: list[str]) -> None:
    row = staged(areas["incoming"])
    (Path(areas["incoming"].path) / row.path).unlink()
    job = run(row)
    assert (job.state, job.message, job.rejected) == (JobState.REFUSED, "the file is gone", None)
    assert [one.name for one in made(areas["rejected"])] == ["tides.md.reason.json"]


def test_two_runs_of_a_job_make_one_set_of_files(areas: dict[str, StagingArea], woken: list[str]) -> None:
    row = staged(areas["incoming"])
    for _ in range(3):
        assert run(row).state == JobState.DONE
    assert (len(made(areas["extracted"])), len(made(areas["distilled"]))) == (1, 1)


def test_workers_that_are_woken_at_once_make_one_set_of_files(
    areas: dict[str, StagingArea], woken: list[str]
) -> None:
    rows = [staged(areas["incoming"], TEXT + str(n).encode(), task_id="many") for n in range(4)]
    keys = [pipeline.queue(row, ANNA).pk for row in rows]
    in_threads(4, lambda number: [pipeline.carry_out(key) for key in keys[number:] + keys[:number]])
    while waiting := PipelineJob.objects.filter(state__in=[JobState.QUEUED, JobState.RUNNING]):
        for job in waiting:
            pipeline.carry_out(job.pk)
    assert (len(made(areas["extracted"])), len(made(areas["distilled"]))) == (4, 4)
    assert status("many") == "Complete"


def test_a_task_of_several_files_is_complete_with_the_last(
    areas: dict[str, StagingArea], woken: list[str]
) -> None:
    first = staged(areas["incoming"], task_id="two")
    second = staged(areas["incoming"], b"second file", "b.txt", task_id="two")
    pipeline.queue(second, ANNA)
    run(first)
    assert status("two") == "Running"
    assert verdict("redis_task", first) is Answer.FAIL
    run(second)
    assert status("two") == "Complete"
    assert verdict("redis_task", first) is Answer.PASS


def test_valkey_is_waited_for(areas: dict[str, StagingArea], woken: list[str], broken_valkey: Valkey) -> None:
    row = staged(areas["incoming"], task_id="late")
    job = run(row)
    assert (job.state, job.failures, job.lease_owner) == (JobState.QUEUED, 1, "")
    assert "status of late was not written" in job.message
    assert job.next_at is not None
    broken_valkey.start()
    while (job := run(row)).state != JobState.DONE:
        assert job.state == JobState.QUEUED
    assert status("late") == "Complete"
    assert (job.failures, job.message) == (0, "")
    assert len(made(areas["extracted"])) == 1


def test_why_a_file_was_rejected_outlives_the_wait_for_valkey(
    areas: dict[str, StagingArea], woken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(task_id: str, word: str) -> None:
        if word == "Failed":
            raise telling.NotTold("not now")

    row = staged(areas["incoming"], b"%PDF-1.7", "scan.pdf", task_id="late-2")
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "tell_status", away)
        job = run(row)
        assert (job.state, job.message[:20]) == (JobState.QUEUED, "no text is extracted")
    while (job := run(row)).state != JobState.REFUSED:
        assert job.state == JobState.QUEUED
    assert job.message == "no text is extracted from .pdf files"
    assert len(made(areas["rejected"])) == 2
    assert status("late-2") == "Failed"


def test_an_area_that_is_missing_is_waited_for(
    areas: dict[str, StagingArea], woken: list[str], tmp_path: Path
) -> None:
    StagingArea.objects.filter(name="distilled").update(name="elsewhere")
    row = staged(areas["incoming"])
    job = run(row)
    assert (job.state, "needs an area 'distilled'" in job.message) == (JobState.QUEUED, True)
    StagingArea.objects.filter(name="elsewhere").update(name="distilled")
    while (job := run(row)).state != JobState.DONE:
        assert job.state == JobState.QUEUED
    assert (len(made(areas["extracted"])), len(made(areas["distilled"]))) == (1, 1)


def test_pauses_grow_and_end_at_ten_minutes(
    areas: dict[str, StagingArea], woken: list[str], settings: Any, broken_valkey: Valkey
) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "PIPELINE_PAUSE": timedelta(seconds=10)}
    row = staged(areas["incoming"])
    for failures, seconds in ((0, 10), (1, 20), (3, 80), (50, 600)):
        pipeline.queue(row, ANNA)
        PipelineJob.objects.update(failures=failures, next_at=None)
        began = database_now()
        pipeline.carry_out(PipelineJob.objects.get().pk)
        at = PipelineJob.objects.get().next_at
        assert at is not None
        assert at >= began + timedelta(seconds=seconds)
        assert at <= database_now() + timedelta(seconds=seconds)
    assert pipeline.carry_out(PipelineJob.objects.get().pk) is None, "before its time"
    assert pipeline.due(database_now()) == []
    assert pipeline.due(database_now() + timedelta(hours=1)) == [PipelineJob.objects.get().pk]


def test_a_file_that_ends_its_worker_again_and_again_is_rejected(
    areas: dict[str, StagingArea], woken: list[str]
) -> None:
    row = staged(areas["incoming"])
    job = pipeline.queue(row, ANNA)
    PipelineJob.objects.filter(pk=job.pk).update(
        state=JobState.RUNNING, attempts=3, lease_owner="dead", lease_until=database_now() - timedelta(1)
    )
    assert pipeline.due(database_now()) == [job.pk]
    assert run(row).state == JobState.REFUSED
    assert PipelineJob.objects.get().message == "it failed, or ended its worker, 3 times"


def test_whoever_lost_the_job_stages_nothing_more(
    areas: dict[str, StagingArea], woken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = staged(areas["incoming"])
    job = pipeline.queue(row, ANNA)
    extract = pipeline.extract

    def slow(name: str, data: bytes) -> str:
        PipelineJob.objects.filter(pk=job.pk).update(lease_owner="another worker")
        return extract(name, data)

    monkeypatch.setattr(pipeline, "extract", slow)
    pipeline.carry_out(job.pk)
    assert made(areas["extracted"]) == []
    assert PipelineJob.objects.get().lease_owner == "another worker"
    assert not AuditEntry.objects.filter(action="staged", area="extracted").exists()


def test_new_files_of_an_area_are_queued_with_their_row_and_what_comes_of_them_is_not(
    areas: dict[str, StagingArea], woken: list[str], settings: Any
) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "PIPELINE_AUTO": ["incoming", "extracted"]}
    row = staged(areas["incoming"])
    job = PipelineJob.objects.get()
    assert (job.raw, woken) == (row.pk, [str(job.pk)])
    staged(areas["rejected"], b"other", "o.txt")
    pipeline.carry_out(job.pk)
    assert PipelineJob.objects.count() == 1
    assert StagedFile.objects.get(pk=row.pk).task_id == f"pipeline-{row.pk}"
    with transaction.atomic():
        StagedFile.objects.create(area=areas["incoming"], path="x", name="x.txt")
        transaction.set_rollback(True)
    assert PipelineJob.objects.count() == 1
    assert len(woken) == 1


def test_files_are_chosen_by_area_or_by_key(areas: dict[str, StagingArea], woken: list[str]) -> None:
    first, second = staged(areas["incoming"]), staged(areas["incoming"], b"two", "b.txt")
    assert pipeline.chosen("incoming") == [first, second]
    run(first)
    assert pipeline.chosen("incoming") == [second]
    assert pipeline.chosen(str(first.pk)) == [first]
    for what in ("nowhere", "999999", "1" * 30):
        with pytest.raises(NotFound):
            pipeline.chosen(what)


def test_jobs_are_forgotten_once_their_file_is_gone_for_good(
    areas: dict[str, StagingArea], woken: list[str]
) -> None:
    gone, kept = staged(areas["incoming"]), staged(areas["incoming"], b"two", "b.txt")
    for row in (gone, kept):
        run(row)
    StagedFile.all_objects.filter(pk=gone.pk)._raw_delete("default")
    assert pipeline.forget_jobs(database_now()) == 0
    assert pipeline.forget_jobs(database_now() + timedelta(days=2)) == 1
    assert PipelineJob.objects.get().raw == kept.pk


@pytest.mark.sqlite_only
def test_points_in_the_index_are_what_the_verifier_asks_for(
    areas: dict[str, StagingArea], woken: list[str], qdrant: str
) -> None:
    from qdrant_client import QdrantClient

    row = staged(areas["incoming"], task_id="points-1")
    same = staged(areas["incoming"], task_id="points-2")
    assert run(row).points == run(same).points == 2
    assert run(row).points == 2, "told again"
    distilled = made(areas["distilled"])[0]
    assert verdict("qdrant_points", distilled, collection="distilled", exactly="2") is Answer.PASS
    client = QdrantClient(path=qdrant)
    points, _ = client.scroll("distilled", limit=10)
    client.close()
    assert len(points) == 4
    chosen = sorted(
        (p.payload for p in points if p.payload["task_id"] == "points-1"), key=lambda p: p["chunk"]
    )
    assert [payload["title"] for payload in chosen] == ["Tides", "Winds"]
    assert {payload["file"] for payload in chosen} == {distilled.pk}


def test_an_index_that_is_away_is_waited_for_and_the_task_is_not_complete(
    areas: dict[str, StagingArea], woken: list[str], settings: Any
) -> None:
    pytest.importorskip("qdrant_client")
    settings.CLEANUP = {**settings.CLEANUP, "QDRANT_URL": f"http://127.0.0.1:{free_port()}"}
    job = run(staged(areas["incoming"], task_id="no-index"))
    assert (job.state, "the index was not written" in job.message) == (JobState.QUEUED, True)
    assert status("no-index") == "Running"
    assert len(made(areas["distilled"])) == 1


def test_a_missing_area_says_what_to_do() -> None:
    with pytest.raises(OperationRefused, match="needs an area 'distilled'"):
        pipeline._area("distilled")


def test_no_name_becomes_too_long(areas: dict[str, StagingArea], woken: list[str]) -> None:
    name = "ä" * 98 + ".md"
    job = run(staged(areas["incoming"], name=name))
    assert job.state == JobState.DONE
    bad = "ä" * 98 + ".pdf"
    job = run(staged(areas["incoming"], b"%PDF-1.7", bad))
    assert job.state == JobState.REFUSED
    assert all(len(one.name.encode()) <= 200 for one in made(areas["rejected"]))
    assert len(made(areas["rejected"])) == 2
    assert os.listdir(Path(areas["rejected"].path) / ".staging-uploads") == []
    connection.close()
