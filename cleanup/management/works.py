"""The verbs on what is made of staged files: `results list` and `show`, `pipeline run` and `list`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from typing import Any

from django.db import transaction

from cleanup import operations
from cleanup.management.output import SOME_SKIPPED, Answer, size, table
from cleanup.management.verbs import actor
from cleanup.models import JobState, PipelineJob, StagedFile
from cleanup.staging import pipeline
from cleanup.staging.results import NoResult, ResultCorrupt, ResultStore, Summary
from cleanup.stores import Actor

Options = dict[str, Any]


def results_list(options: Options) -> Answer:
    """The results of an area, none of them read."""
    store = _store(options["area"])
    found, troubles = list[Summary](), list[str]()
    for task_id in sorted(store.tasks())[: options["limit"]]:
        try:
            found.append(store.summary(task_id))
        except NoResult:
            continue  # it went meanwhile
        except ResultCorrupt as error:
            troubles.append(str(error))
    rows = [[one.task_id, one.entries, size(one.file_size), f"{one.expires_at:%F %T}"] for one in found]
    lines = table(rows, header=["TASK", "ENTRIES", "SIZE", "EXPIRES"]) if rows else ["There are no results."]
    data = {"results": [_as_json(one) for one in found], "corrupt": troubles}
    return Answer(data=data, lines=[*lines, *troubles], code=SOME_SKIPPED if troubles else 0)


def results_show(options: Options) -> Answer:
    """One result: what is known of it, and a page of its entries."""
    store, task_id = _store(options["area"]), options["task"]
    summary = store.summary(task_id)
    page = store.page(task_id, options["page"], size=options["size"])
    data = {**_as_json(summary), "page": page.number, "pages": page.pages, "page_entries": page.entries}
    lines = [
        f"{task_id}: {summary.entries} entries, {size(summary.size)}, compressed {size(summary.file_size)}; "
        f"made {summary.created_at:%F %T}, expires {summary.expires_at:%F %T}; page {page.number} "
        f"of {page.pages}:",
        *(json.dumps(entry, ensure_ascii=False) for entry in page.entries),
    ]
    return Answer(data=data, lines=lines)


def _store(area: str) -> ResultStore:
    return ResultStore(operations.find_area(area).path)


def _as_json(summary: Summary) -> dict[str, Any]:
    told = asdict(summary) | {"compression_ratio": summary.compression_ratio}
    return told | {name: told[name].isoformat() for name in ("created_at", "expires_at")}


def pipeline_run(options: Options) -> Answer:
    """Take files through the pipeline, here and now or by a worker."""
    rows = pipeline.chosen(options["what_to_run"])
    if options["dry_run"]:
        lines = [f"{len(rows)} files would go through the pipeline.", *(str(row.name or row) for row in rows)]
        return Answer(data={"files": len(rows), "dry_run": True}, lines=lines)
    who = actor()
    if options["queue"]:
        for row in rows:
            pipeline.queue(row, who)
        return Answer(data={"queued": len(rows)}, lines=[f"{len(rows)} files are queued."])
    return _told(_carried_out(rows, who))


def _carried_out(rows: Iterable[StagedFile], who: Actor) -> list[PipelineJob]:
    keys = []
    for row in rows:
        with transaction.atomic():
            keys.append(pipeline.queue(row, who, wake=False).pk)
    for key in keys:
        pipeline.carry_out(key)
    return list(PipelineJob.objects.filter(pk__in=keys).order_by("created_at", "raw"))


def _told(jobs: list[PipelineJob]) -> Answer:
    states = Counter(job.state for job in jobs)
    done, rejected = states.pop(JobState.DONE, 0), states.pop(JobState.REFUSED, 0)
    waiting = sum(states.values())
    lines = [f"{done} files are through, {rejected} were rejected, {waiting} wait."]
    lines += [f"{job.name}: {job.message}" for job in jobs if job.message]
    data = {"done": done, "rejected": rejected, "waiting": waiting, "jobs": [_job(job) for job in jobs]}
    return Answer(data=data, lines=lines, code=SOME_SKIPPED if rejected or waiting else 0)


def pipeline_list(options: Options) -> Answer:
    """The jobs of the pipeline, the newest first."""
    found = PipelineJob.objects.order_by("-created_at", "-raw")
    if options["state"]:
        found = found.filter(state=options["state"])
    jobs = list(islice(found.iterator(), options["limit"]))
    rows = [[job.raw, job.name, job.task_id, job.state, job.message[:60]] for job in jobs]
    lines = table(rows, header=["FILE", "NAME", "TASK", "STATE", "WHY"]) if rows else ["There are no jobs."]
    return Answer(data={"jobs": [_job(job) for job in jobs]}, lines=lines)


def _job(job: PipelineJob) -> dict[str, Any]:
    names = ("raw", "name", "task_id", "state", "extracted", "distilled", "rejected", "points", "failures")
    told = {name: getattr(job, name) for name in names}
    at = {"next_at": job.next_at, "finished_at": job.finished_at, "created_at": job.created_at}
    return {**told, "message": job.message} | {
        name: None if value is None else value.isoformat() for name, value in at.items()
    }
