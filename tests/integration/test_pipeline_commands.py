"""The commands on what is made of staged files: results and the pipeline."""

from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from cleanup import operations
from cleanup.models import JobState, PipelineJob, StagedFile, StagingArea
from cleanup.staging import pipeline
from cleanup.staging.content import Incoming, stage_bytes
from cleanup.staging.results import ResultStore
from tests.retention import ANNA, Staging

pytestmark = pytest.mark.django_db(transaction=True)


def command(*words: str, code: int = 0) -> str:
    """Run a command and return what it printed."""
    out = StringIO()
    try:
        call_command("cleanup", *words, stdout=out)
        left = 0
    except SystemExit as end:
        left = int(end.code or 0)
    assert left == code
    return out.getvalue()


def as_json(*words: str, code: int = 0) -> Any:
    return json.loads(command(*words, "--json", code=code))


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(Staging(tmp_path, "results").root)


@pytest.fixture
def incoming(tmp_path: Path, settings: Any) -> StagingArea:
    settings.CLEANUP = {**settings.CLEANUP, "PIPELINE_PAUSE": timedelta(hours=1)}
    for role in ("incoming", "extracted", "distilled", "rejected"):
        (tmp_path / role).mkdir()
        operations.add_area(role, tmp_path / role, ANNA)
    return StagingArea.objects.get(name="incoming")


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    sent: list[str] = []
    monkeypatch.setattr(pipeline, "send", lambda task, job_id: sent.append(job_id))
    return sent


def staged(area: StagingArea, name: str, data: bytes = b"{}") -> StagedFile:
    return stage_bytes(area, data, Incoming(name=name), ANNA)


def test_results_are_listed_with_what_is_wrong_with_them(store: ResultStore) -> None:
    assert "There are no results." in command("results", "list", "results")
    for number in range(3):
        store.store(f"task-{number}", [number] * 10)
    assert [one["task_id"] for one in as_json("results", "list", "results")["results"]] == [
        "task-0",
        "task-1",
        "task-2",
    ]
    assert len(as_json("results", "list", "results", "--limit", "2")["results"]) == 2
    (store.folder / "task-1.result.json.lz4").write_bytes(b"spoilt")
    told = as_json("results", "list", "results", code=1)
    assert [one["task_id"] for one in told["results"]] == ["task-0", "task-2"]
    assert "task-1.result.json.lz4 is corrupt" in told["corrupt"][0]
    assert "task-1.result.json.lz4 is corrupt" in command("results", "list", "results", code=1)


def test_a_page_of_a_result_is_shown(store: ResultStore) -> None:
    store.store("task-1", [{"n": number} for number in range(50)])
    told = as_json("results", "show", "results", "task-1", "--page", "3")
    assert (told["entries"], told["page"], told["pages"]) == (50, 3, 3)
    assert told["page_entries"] == [{"n": number} for number in range(40, 50)]
    text = command("results", "show", "results", "task-1", "--size", "1")
    assert text.splitlines()[1:] == ['{"n": 0}']
    assert "50 entries" in text


def test_what_cannot_be_shown_is_refused(store: ResultStore) -> None:
    for words, why in (
        (("nowhere", "task-1"), "not_found"),
        (("results", "task-1"), "no_result"),
        (("results", "../task"), "result_refused"),
        (("results", "task-1", "--page", "0"), "no_result"),
    ):
        assert as_json("results", "show", *words, code=2)["error"] == why
    with pytest.raises(CommandError, match="there is no result of task-1"):
        command("results", "show", "results", "task-1")


def test_an_area_goes_through_the_pipeline_once(incoming: StagingArea, woken: list[str]) -> None:
    for name in ("a.txt", "b.json", "c.pdf"):
        staged(incoming, name, b"%PDF-1.7" if name == "c.pdf" else b'{"of": "%s"}' % name.encode())
    assert as_json("pipeline", "run", "incoming", "--dry-run") == {"files": 3, "dry_run": True}
    assert PipelineJob.objects.count() == 0
    told = as_json("pipeline", "run", "incoming", code=1)
    assert (told["done"], told["rejected"], told["waiting"]) == (2, 1, 0)
    assert woken == []
    assert as_json("pipeline", "run", "incoming")["done"] == 0
    listed = as_json("pipeline", "list")["jobs"]
    assert {one["name"]: one["state"] for one in listed} == {
        "a.txt": "done",
        "b.json": "done",
        "c.pdf": "refused",
    }
    assert [one["name"] for one in as_json("pipeline", "list", "--state", "refused")["jobs"]] == ["c.pdf"]
    assert "no text is extracted from .pdf" in command("pipeline", "list", "--limit", "3")


def test_one_file_is_handed_to_a_worker(incoming: StagingArea, woken: list[str]) -> None:
    row = staged(incoming, "a.json")
    assert as_json("pipeline", "run", str(row.pk), "--queue") == {"queued": 1}
    job = PipelineJob.objects.get()
    assert (job.raw, job.state, woken) == (row.pk, JobState.QUEUED, [str(job.pk)])


def test_what_waits_is_said_to_wait(incoming: StagingArea, woken: list[str]) -> None:
    row = staged(incoming, "a.txt", b"text")
    StagingArea.objects.filter(name="extracted").update(name="elsewhere")
    text = command("pipeline", "run", str(row.pk), code=1)
    assert "0 files are through, 0 were rejected, 1 wait." in text
    assert "needs an area 'extracted'" in text


def test_no_file_and_no_area_is_refused(incoming: StagingArea) -> None:
    for what in ("4711", "nowhere"):
        assert as_json("pipeline", "run", what, code=2)["error"] == "not_found"
    assert "There are no jobs." in command("pipeline", "list")
