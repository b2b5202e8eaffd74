"""A raw file becomes text, chunks and points; or it is rejected, with the reason. Nothing is ever lost of it.

    raw (any area)      extracted              distilled                index, status
    report.html    ->   report.txt        ->   report.jsonl        ->   points in Qdrant, task Complete
                   \\->  rejected: the file, and beside it report.html.reason.json; task Failed

Every file that comes of it is staged like any other, with the key of the raw file as its origin and the same
task id; the raw file stays until its policy takes it. A job has a row and a lease: each step writes its
outcome in the transaction that makes its file, so whoever goes on after a crash begins with the first step
that is not done, and two workers never make two files of one. What is not there for the moment (Valkey,
Qdrant, room on the disk, an area) is waited for, as long as it takes.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property, partial
from uuid import UUID

from django.db import DatabaseError, connection, transaction
from django.db.models import Exists, OuterRef, Q

from bus.progress import Progress
from cleanup.conf import conf
from cleanup.engine.errors import EngineError
from cleanup.models import JobState, PipelineJob, StagedFile, StagingArea
from cleanup.operations import NotFound, OperationRefused, find_area
from cleanup.operations.runs import send
from cleanup.staging.content import Incoming, open_staged, stage_bytes, stage_stream
from cleanup.staging.distillation import Chunk, as_lines, distil, from_lines
from cleanup.staging.errors import Refused
from cleanup.staging.extraction import Unreadable, extract
from cleanup.staging.limits import NAME_BYTES
from cleanup.staging.telling import COMPLETE, FAILED, RUNNING, tell_points, tell_status
from cleanup.stores import Actor, jobs
from cleanup.stores.leases import LeaseLost
from cleanup.stores.sql import database_now

logger = logging.getLogger(__name__)

TASK = "cleanup.tasks.pipeline"
ACTOR = Actor.system("pipeline")

#: A file that ended its worker so often in a row is rejected: it would end the next one, too.
MAX_ATTEMPTS = 3
#: No pause between two tries is longer, however often it failed.
LONGEST_PAUSE = timedelta(minutes=10)
#: A lease is renewed this many times in its length.
_RENEWALS = 4
#: Wake-ups that one tick sends; the rest waits for the next.
_MOST_WOKEN = 100
#: A job is remembered as long as its file is, and at least for a day.
_KEPT = timedelta(days=1)
_STEPS = ("extract", "distil", "index", "done")


# Which files --------------------------------------------------------------------------------------------


def queue(row: StagedFile, actor: Actor, *, wake: bool = True) -> PipelineJob:
    """Have a worker take a staged file through the pipeline, once the open transaction is committed.

    One that was through is told of again, and one that was rejected is tried again; one that is under way is
    left to whoever is at it. Without `wake` nobody is woken: the caller carries it out.
    """
    with transaction.atomic():
        given = {"name": row.name or row.path[-255:], "task_id": row.task_id or f"pipeline-{row.pk}"}
        given |= {"actor": actor.name[:150], "actor_kind": actor.kind}
        job, made = PipelineJob.objects.get_or_create(raw=row.pk, defaults=given)
        if not row.task_id:
            row.task_id = job.task_id
            StagedFile.all_objects.filter(pk=row.pk).update(task_id=job.task_id)
        if not made:
            _begin_again(job)
        if wake:
            transaction.on_commit(partial(send, TASK, str(job.pk)), robust=True)
    return job


def _begin_again(job: PipelineJob) -> None:
    over = PipelineJob.objects.filter(pk=job.pk).exclude(state__in=jobs.OPEN_STATES)
    over.update(
        state=JobState.QUEUED, finished_at=None, rejected=None, points=None, message="", attempts=0,
        failures=0, next_at=None,
    )  # fmt: skip


def chosen(what: str) -> list[StagedFile]:
    """The living files that `what` names: the key of one, or an area, of which those that were never queued.

    Raises:
        NotFound: there is no such file or area.
    """
    if what.isdecimal() and len(what) < 19:
        row = StagedFile.objects.filter(pk=int(what)).select_related("area").first()
        if row is None:
            raise NotFound(f"there is no staged file {what}")
        return [row]
    known = PipelineJob.objects.filter(raw=OuterRef("pk"))
    rows = StagedFile.objects.filter(~Exists(known), area=find_area(what), origin=None)
    return list(rows.select_related("area").order_by("pk"))


def due(now: datetime) -> list[UUID]:
    """Jobs that nobody is at and whose time has come, the oldest first."""
    waiting = jobs.abandoned(PipelineJob, now=now)
    early = set(PipelineJob.objects.filter(next_at__gt=now).values_list("pk", flat=True))
    return [job_id for job_id in waiting if job_id not in early][:_MOST_WOKEN]


def forget_jobs(now: datetime, limit: int = 1_000) -> int:
    """Remove jobs that are over and whose file is gone for good; return how many."""
    files = StagedFile.all_objects.filter(pk=OuterRef("raw"))
    over = PipelineJob.objects.exclude(state__in=jobs.OPEN_STATES).filter(finished_at__lt=now - _KEPT)
    keys = list(over.filter(~Exists(files)).order_by("pk").values_list("pk", flat=True)[:limit])
    return PipelineJob.objects.filter(pk__in=keys).delete()[0] if keys else 0


# One job ------------------------------------------------------------------------------------------------


def carry_out(job_id: UUID) -> PipelineJob | None:
    """Take a job as far as it goes now. None if somebody else is at it, it is over, or its time is to come.

    Raises:
        Exception: something unforeseen; the job is tried again, but not for ever.
    """
    now = database_now()
    if PipelineJob.objects.filter(pk=job_id, next_at__gt=now).exists():
        return None
    job = jobs.take(PipelineJob, job_id, now=now)
    if job is None:
        return None
    with _kept(job):
        _Passage(job).go()
    job.refresh_from_db()
    return job


@contextmanager
def _kept(job: PipelineJob) -> Iterator[None]:
    """Renew the lease meanwhile: a large file on a busy machine may take longer than it lasts."""
    over = threading.Event()

    def renew() -> None:
        try:
            while not over.wait(conf().run_lease.total_seconds() / _RENEWALS):
                jobs.renew(job, now=database_now())
        except (LeaseLost, DatabaseError) as error:
            logger.warning("the lease of pipeline job %s was not renewed: %s", job.pk, error)
        finally:
            connection.close()

    thread = threading.Thread(target=renew, name="pipeline-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Passage:
    """One attempt at one job, under its lease."""

    def __init__(self, job: PipelineJob) -> None:
        self.job = job
        self.progress = Progress(f"pipeline-{job.raw}", unit="steps")

    def go(self) -> None:
        """Do what is left to be done; whatever happens, the job is over afterwards or will be tried again."""
        try:
            self.begin()
            self.advance()
        except LeaseLost as lost:
            logger.warning("%s", lost)
            self.progress.retry("another worker goes on with it")
        except (EngineError, OSError, DatabaseError) as error:
            self.wait(error)
        except Exception as error:
            self.wait(error, attempts=self.job.attempts)
            raise

    def begin(self) -> None:
        """Count the attempt, and tell that it goes on."""
        job = self.job
        self.note(attempts=job.attempts + 1, next_at=None)
        # A run that said it would be tried again has left its topic open; one that died has not.
        if job.failures and job.attempts == 1:
            self.progress.resume()
        else:
            self.progress.start()

    def advance(self) -> None:
        """Every step that is not done, in their order."""
        self.tell()
        try:
            if self.job.rejected is not None:
                raise Unreadable(self.job.message)
            if self.job.attempts > MAX_ATTEMPTS:
                raise Unreadable(f"it failed, or ended its worker, {MAX_ATTEMPTS} times")
            self.extract()
            self.distil()
            self.index()
        except (Unreadable, Refused) as reason:
            self.reject(str(reason))
            self.finish(JobState.REFUSED, str(reason))
        else:
            self.finish(JobState.DONE)

    def wait(self, error: Exception, attempts: int = 0) -> None:
        """Try it again later: what it needs is not there."""
        failures = self.job.failures + 1
        pause = min(conf().pipeline_pause * 2 ** min(failures - 1, 20), LONGEST_PAUSE)
        at, words = database_now() + pause, f"{type(error).__name__}: {error}"[:500]
        logger.warning("pipeline job %s waits until %s: %s", self.job.pk, at, words)
        # Why it was rejected is not forgotten because that could not be told.
        message = self.job.message if self.job.rejected or self.job.finished_at else words
        jobs.give_back(
            self.job, state=JobState.QUEUED, attempts=attempts, failures=failures, next_at=at, message=message
        )
        self.progress.retry(words, at)

    # Steps ----------------------------------------------------------------------------------------------

    def extract(self) -> None:
        self.step("extract")
        if self.job.extracted is None:
            name = _renamed(self.job.name, ".txt")
            self.stage("extracted", name, self.text.encode())

    def distil(self) -> None:
        self.step("distil")
        if self.job.distilled is None:
            name = _renamed(self.job.name, ".jsonl")
            self.stage("distilled", name, as_lines(self.chunks))

    def index(self) -> None:
        self.step("index")
        if self.job.points is None:
            row = StagedFile.all_objects.get(pk=self.job.distilled or 0)
            self.note(points=tell_points(self.job, row, self.chunks))

    def step(self, name: str) -> None:
        done = _STEPS.index(name)
        self.progress.update(done, len(_STEPS) - 1, step=name, message=self.job.name)

    def stage(self, step: str, name: str, data: bytes) -> None:
        """Stage what came of a step; the job notes it in the same transaction, or loses it with the lease."""
        stage_bytes(
            _area(step), data, self.incoming(name), ACTOR, also=lambda row: self.note(**{step: row.pk})
        )

    def note(self, **changes: object) -> None:
        """Write to the job's row. Raises `LeaseLost`, and nothing was written."""
        jobs.renew(self.job, now=database_now(), **changes)
        for name, value in changes.items():
            setattr(self.job, name, value)

    def incoming(self, name: str) -> Incoming:
        uploader = self.raw.uploader if self.raw else ""
        return Incoming(name=name, task_id=self.job.task_id, origin=self.job.raw, uploader=uploader)

    # What there is --------------------------------------------------------------------------------------

    @cached_property
    def raw(self) -> StagedFile | None:
        found: StagedFile | None = (
            StagedFile.all_objects.filter(pk=self.job.raw).select_related("area").first()
        )
        return found

    @cached_property
    def text(self) -> str:
        """The extracted text: as it was staged, or of the raw file."""
        if (data := _read(self.job.extracted)) is not None:
            return data.decode()
        data = _read(self.job.raw, limit=conf().pipeline_max_bytes)
        if data is None:
            raise Unreadable("the file is gone")
        return extract(self.job.name, data)

    @cached_property
    def chunks(self) -> list[Chunk]:
        data = _read(self.job.distilled)
        return distil(self.text) if data is None else from_lines(data)

    # The end --------------------------------------------------------------------------------------------

    def reject(self, reason: str) -> None:
        """Stage the file and the reason in the area of rejected ones; what is there already stays."""
        area, name = _area("rejected"), _renamed(self.job.name, ".reason.json", keep=True)
        told = {"file": self.job.name, "task_id": self.job.task_id, "reason": reason}
        there = StagedFile.all_objects.filter(area=area, origin=self.job.raw, name=name)
        if not there.exists():
            data = (json.dumps(told, ensure_ascii=False) + "\n").encode()
            stage_bytes(area, data, self.incoming(name), ACTOR, also=lambda _: self.note())
        if self.job.rejected is None and self.raw is not None:
            try:
                self.copy(self.raw, area, reason)
            except (FileNotFoundError, Refused) as error:
                logger.warning("%s was rejected without a copy of it: %s", self.job.name, error)

    def copy(self, raw: StagedFile, area: StagingArea, reason: str) -> None:
        """Stage the raw file once more, however large it is."""
        with open_staged(raw) as source:
            stage_stream(
                area, source, self.incoming(self.job.name), ACTOR,
                also=lambda row: self.note(rejected=row.pk, message=reason[:500]),
            )  # fmt: skip

    def finish(self, state: JobState, message: str = "") -> None:
        """Tell the task's status and end job and topic. Told first: nobody looks at a job that is over."""
        self.note(finished_at=database_now(), message=message[:500])
        self.tell()
        done = state == JobState.DONE
        self.progress.update(len(_STEPS) - 1 if done else None, step="done" if done else "reject")
        with transaction.atomic():
            if not jobs.end(self.job, state, now=database_now(), message=message, failures=0):
                raise LeaseLost(f"pipeline job {self.job.pk} has passed to another worker")
            self.progress.finish("completed" if done else "failed", message or None)

    def tell(self) -> None:
        """Tell the status of the task, which may have more files than this one.

        Again until it is still so afterwards: another worker may have ended the task's last file meanwhile.
        """
        told = ""
        while (status := status_of(self.job.task_id)) != told:
            tell_status(self.job.task_id, status)
            told = status


def status_of(task_id: str) -> str:
    """The status of a task by its files: complete when all are through, failed when one was rejected."""
    task = PipelineJob.objects.filter(task_id=task_id)
    if task.filter(finished_at=None).exists():
        return RUNNING
    rejected = Q(state=JobState.REFUSED) | ~Q(message="")
    return FAILED if task.filter(rejected).exists() else COMPLETE


def _area(role: str) -> StagingArea:
    name = conf().pipeline_areas.get(role, role)
    try:
        return find_area(name)
    except NotFound as error:
        raise OperationRefused(f"the pipeline needs an area {name!r}; make it by areas add") from error


def _read(key: int | None, *, limit: int | None = None) -> bytes | None:
    """The bytes of a staged file; None if it is gone.

    Raises:
        Unreadable: more than `limit`.
    """
    row = StagedFile.all_objects.filter(pk=key).select_related("area").first() if key else None
    if row is None:
        return None
    if limit is not None and row.size > limit:
        raise Unreadable(f"it has {row.size} bytes; text is extracted of at most {limit}")
    try:
        with open_staged(row) as file:
            return file.read()
    except FileNotFoundError:
        return None


def _renamed(name: str, suffix: str, *, keep: bool = False) -> str:
    """`name` with another extension, or with one more; short enough for the name of a file."""
    stem = name if keep else name.rpartition(".")[0] or name
    room = NAME_BYTES - len(suffix.encode())
    return stem.encode()[:room].decode(errors="ignore").rstrip() + suffix
