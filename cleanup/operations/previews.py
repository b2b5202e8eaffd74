"""Previews: what a policy would do, judged by a worker for a person who watches. No file is touched.

A preview is ordered, taken by a worker under a lease, and kept for a day. It is of a policy as it is saved,
of a draft that nobody has saved yet, or of an old version; of the latter two it also says the difference to
what is saved, both judged at the same moment. A worker that died is followed by another, twice at most.
Every person has one preview of a policy at a time: a new one ends the one before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from cleanup.engine.errors import EngineError, RunStopped
from cleanup.models import AreaUsage, CleanupRun, JobState, PolicyPreview, PreviewBatch, RetentionPolicy
from cleanup.operations.outcomes import NotFound, OperationRefused
from cleanup.operations.policies import check_policy, save_policy
from cleanup.operations.runs import queue_run, send
from cleanup.operations.surveys import Survey, survey
from cleanup.operations.versions import fields_of, fields_of_version, find_version, with_fields
from cleanup.stores import Actor, jobs
from cleanup.stores.feed import JobFeed
from cleanup.stores.feed import topic_of as topic_of_job
from cleanup.stores.previews import PreviewWriter
from cleanup.stores.sql import database_now

logger = logging.getLogger(__name__)

#: By name, since tasks stand above operations.
TASK = "cleanup.tasks.preview"

#: How long a preview is kept: as long as a plan lives.
KEPT = timedelta(hours=24)

#: Workers that may die over one preview.
MOST_ATTEMPTS = 3

_STOPPED = "stopped on request"

#: Seconds between two looks at the row, each a commit; and between two events on the bus.
_BEAT, _TELL = 0.5, 0.25


def topic_of(preview: PolicyPreview) -> str:
    """Where its progress is told."""
    return topic_of_job("preview", preview.pk)


def find_preview(preview_id: UUID | str) -> PolicyPreview:
    """The preview of this id.

    Raises:
        NotFound: there is none, or no more.
    """
    try:
        key = UUID(str(preview_id))
    except ValueError as error:
        raise NotFound(f"{preview_id!r} is not the id of a preview") from error
    found = PolicyPreview.objects.select_related("policy__area").filter(pk=key).first()
    if found is None:
        raise NotFound(f"there is no preview {preview_id}; they are kept for a day")
    return found


# Ordering and ending


def order_preview(
    policy: RetentionPolicy, actor: Actor, *, is_draft: bool = False, of_version: int | None = None
) -> PolicyPreview:
    """Have a worker say what a policy would do.

    Args:
        policy: as it is saved; with `is_draft`, as it would be saved.
        actor: who wants to know.
        is_draft: checked as if it were saved.
        of_version: an old version instead.

    Raises:
        PolicyInvalid: a draft could not be obeyed.
        OperationRefused: nor saved.
        NotFound: there is no such version.
    """
    stored = RetentionPolicy.objects.filter(pk=policy.pk).first()
    draft = None
    if of_version is not None:
        draft = fields_of_version(find_version(policy, of_version))
    elif is_draft:
        check_policy(policy)
        draft = fields_of(policy)
    if stored is not None and draft == fields_of(stored):
        draft = None  # the form says what is saved
    with transaction.atomic():
        _end_others(stored, policy.name, actor)
        made = PolicyPreview.objects.create(
            policy=stored, name=policy.name, draft=draft, of_version=of_version, version=_newest(stored),
            actor=actor.name[:150], actor_kind=actor.kind,
        )  # fmt: skip
        wake(made.pk)
    return made


def _newest(stored: RetentionPolicy | None) -> int:
    newest = None if stored is None else stored.versions.order_by("-number").first()
    return 0 if newest is None else newest.number


def _end_others(stored: RetentionPolicy | None, name: str, actor: Actor) -> None:
    same = Q(policy__isnull=True, name=name) if stored is None else Q(policy=stored)
    mine = PolicyPreview.objects.filter(same, actor=actor.name[:150], state__in=jobs.OPEN_STATES)
    for preview in mine:
        _stop(preview)


def wake(preview_id: UUID) -> None:
    """Tell the worker, once the open transaction is committed, that a preview waits."""
    transaction.on_commit(partial(send, TASK, str(preview_id)), robust=True)


def cancel_preview(preview: PolicyPreview) -> PolicyPreview:
    """End a preview: at once if nobody is at it, else within moments.

    Raises:
        OperationRefused: it is over.
    """
    if not _stop(preview):
        raise OperationRefused("the preview is over")
    return find_preview(preview.pk)


def _stop(preview: PolicyPreview) -> bool:
    """End it, or have it ended; False if it is over."""
    rows = PolicyPreview.objects.filter(pk=preview.pk)
    with transaction.atomic():
        if rows.filter(state=JobState.QUEUED).update(
            state=JobState.STOPPED, finished_at=database_now(), message=_STOPPED
        ):
            _tell_end(preview, JobState.STOPPED, _STOPPED)
            return True
        return bool(rows.filter(state=JobState.RUNNING).update(stop_requested=True))


def _said(preview: PolicyPreview, data: Mapping[str, Any]) -> dict[str, Any]:
    return {"preview": str(preview.pk), "state": "running", "policy": preview.name, **data}


def _tell_end(preview: PolicyPreview, state: JobState, message: str) -> None:
    """Tell the last word, and end the topic."""
    JobFeed("preview", preview.pk).finish(_said(preview, {"state": str(state), "message": message}))


def drafted(preview: PolicyPreview) -> RetentionPolicy:
    """The policy that a preview is about, as it was when it was ordered if that was not what is saved.

    Raises:
        PolicyInvalid: a draft holds an age that is none.
    """
    if preview.draft is None and preview.policy is not None:
        return preview.policy
    return with_fields(preview.policy, preview.draft or {})


def save_draft(preview: PolicyPreview, actor: Actor) -> RetentionPolicy:
    """Save what a preview was about.

    Raises:
        OperationRefused: it is saved already, or somebody has saved another version since.
        PolicyInvalid: it can no longer be obeyed.
    """
    if preview.draft is None:
        raise OperationRefused("the preview is of the policy as it is saved")
    with transaction.atomic():
        stored = None
        if preview.policy_id is not None:
            stored = RetentionPolicy.objects.select_for_update().get(pk=preview.policy_id)
        if _newest(stored) != preview.version:
            raise OperationRefused(
                f"policy {preview.name!r} was changed after this preview was ordered: look at it again"
            )
        policy = with_fields(stored, preview.draft)
        note = "" if preview.of_version is None else f"version {preview.of_version} put back"
        save_policy(policy, actor, note=note)
        # Saved twice it would be a second policy, or the same version again.
        PolicyPreview.objects.filter(pk=preview.pk).update(policy=policy, draft=None, version=_newest(policy))
    return policy


def run_previewed(preview: PolicyPreview, actor: Actor) -> CleanupRun:
    """Queue a run of the very version that was looked at.

    Raises:
        OperationRefused: it is a draft, or the policy was changed since.
        RunActive: its area has a run that is not over.
    """
    if preview.draft is not None or preview.policy is None:
        raise OperationRefused("this version is not saved: save it first")
    if _newest(preview.policy) != preview.version:
        raise OperationRefused(f"policy {preview.name!r} was changed since: look at it again")
    return queue_run(preview.policy, actor=actor)


# Carrying out


def carry_out_preview(preview_id: UUID) -> None:
    """Judge, unless somebody else is at it or it is over. Whatever happens ends the preview with a message.

    Raises:
        django.db.DatabaseError: the lease will run out, and another worker goes on.
    """
    preview = jobs.take(PolicyPreview, preview_id, now=database_now())
    if preview is not None:
        _Looking(preview).look()


class _Looking:
    """One attempt at one preview, under its lease."""

    def __init__(self, preview: PolicyPreview) -> None:
        self.preview, self.began = preview, time.monotonic()
        self.feed = JobFeed("preview", preview.pk)
        self.next_beat = self.next_word = 0.0
        self.before = self.total = 0
        self.what = ""

    def look(self) -> None:
        with jobs.ended_by(self.preview, self.end):
            self.judge()
        if not PolicyPreview.objects.filter(pk=self.preview.pk).exists():
            _tell_end(self.preview, JobState.STOPPED, "its policy was removed meanwhile")

    def judge(self) -> None:
        preview, now = self.preview, database_now()
        if preview.attempts >= MOST_ATTEMPTS:
            self.end(JobState.FAILED, f"{MOST_ATTEMPTS} workers died over it")
            return
        jobs.renew(preview, now=now, attempts=preview.attempts + 1)
        policy = drafted(preview)
        saved = preview.policy if preview.draft is not None else None
        self.total = _expected(policy) * (1 if saved is None else 2)
        self.beat(0)
        found = survey(policy, PreviewWriter(preview), now=now, beat=self.beat)
        result = {**found.result, "of": _scope(policy)}
        if saved is not None:
            result["saved"] = self.judge_saved(saved, found, now)
        self.end(JobState.DONE, "", result)

    def judge_saved(self, policy: RetentionPolicy, found: Survey, now: datetime) -> dict[str, Any]:
        """What the saved version would do at the same moment; in words, if it can do nothing."""
        self.before, self.what = found.scanned, "the saved version, to compare"
        try:
            saved = survey(policy, None, now=now, beat=self.beat)
        except EngineError as error:
            return {"refusal": str(error)}
        same = saved.files == found.files and saved.fingerprint == found.fingerprint
        return {"files": saved.files, "bytes": saved.bytes, "same": same}

    def beat(self, count: int) -> None:
        """Keep the lease, notice a stop, tell how far it is; called more often than that is due."""
        now, done = time.monotonic(), self.before + count
        if now >= self.next_beat:
            self.next_beat = now + _BEAT
            progress = {"scanned": done, "total": self.total}
            jobs.renew(self.preview, now=database_now(), result=progress)
            self.check_stop()
        if now >= self.next_word:
            self.next_word = now + _TELL
            told = {"done": done, "total": self.total, "message": self.what}
            self.feed.tell(_said(self.preview, told))

    def check_stop(self) -> None:
        if PolicyPreview.objects.filter(pk=self.preview.pk, stop_requested=True).exists():
            raise RunStopped(_STOPPED)

    def end(self, state: JobState, message: str, result: Mapping[str, Any] | None = None) -> None:
        result = {**(result or {}), "seconds": round(time.monotonic() - self.began, 2)}
        with transaction.atomic():
            if jobs.end(self.preview, state, now=database_now(), message=message, result=result):
                _tell_end(self.preview, state, message)
            else:
                logger.warning("preview %s would have been %s, but has passed on", self.preview.pk, state)


def _scope(policy: RetentionPolicy) -> dict[str, Any]:
    """Where the files are, as it was then."""
    if policy.area is None:
        return {"name": policy.model, "path": ""}
    return {"name": policy.area.name, "path": policy.area.path}


def _expected(policy: RetentionPolicy) -> int:
    """How many files the area had when somebody looked last; 0: nobody has."""
    if policy.area_id is None:
        return 0
    measured = AreaUsage.objects.filter(area_id=policy.area_id).values_list("live_files", flat=True).first()
    runs = CleanupRun.objects.filter(area_id=policy.area_id, scanned__gt=0).order_by("-created_at")
    return measured or runs.values_list("scanned", flat=True).first() or 0


# By the clock


def abandoned_previews(now: datetime) -> list[UUID]:
    """Previews that nobody is at."""
    return jobs.abandoned(PolicyPreview, now=now)


def tend_previews(now: datetime) -> None:
    """Carry out here what no worker is at, and forget what is old: for those without a worker."""
    for preview_id in abandoned_previews(now):
        carry_out_preview(preview_id)
    forget_previews(now)


def forget_previews(now: datetime) -> int:
    """Remove what is older than a day, its files first; return how many previews."""
    rows = PolicyPreview.objects.filter(created_at__lt=now - KEPT)
    rows = rows.exclude(state=JobState.RUNNING, lease_until__gte=now).order_by("pk")
    old = list(rows.only("state", "name")[:100])
    for preview in old:
        if preview.state in jobs.OPEN_STATES:
            _tell_end(preview, JobState.FAILED, "nobody carried it out within a day")
    PreviewBatch.objects.filter(preview__in=old).delete()
    keys = [preview.pk for preview in old]
    return PolicyPreview.objects.filter(pk__in=keys).delete()[0] if keys else 0
