"""What the console and its commands order or remember: previews, changes of the whole trash by filter, what
an area holds, and what verifiers answered.

None of it is needed to keep a promise about a file; all of it may be removed without loss.
"""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models

from cleanup.models.areas import StagingArea
from cleanup.models.policies import RetentionPolicy


class JobState(models.TextChoices):
    """Where something that a worker does for a person stands."""

    QUEUED = "queued", "queued"
    RUNNING = "running", "running"
    DONE = "done", "done"
    REFUSED = "refused", "refused"
    FAILED = "failed", "failed"
    STOPPED = "stopped", "stopped"


class Job(models.Model):
    """What previews and orders have in common: who wants it, how far it is, and which worker is at it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    state = models.CharField(max_length=10, choices=JobState.choices, default=JobState.QUEUED)
    actor = models.CharField(max_length=150)
    actor_kind = models.CharField(max_length=16, default="user")
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    #: Why it was refused or has failed.
    message = models.CharField(max_length=500, blank=True)
    stop_requested = models.BooleanField(default=False)
    # Lease
    lease_owner = models.CharField(max_length=120, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return str(self.id)


class PolicyPreview(Job):
    """What a policy, as saved or as somebody is about to save it, would do. It touches no file."""

    policy = models.ForeignKey(
        RetentionPolicy, on_delete=models.CASCADE, related_name="previews", null=True, blank=True
    )
    #: The fields of the form where they are not saved yet; null: the policy as it is.
    draft = models.JSONField(null=True, blank=True)
    #: Totals, histograms, reasons, the first files of each kind, and the difference to the saved version.
    result = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]


class PreviewBatch(models.Model):
    """A stretch of a preview's files, packed: what its CSV is written from."""

    preview = models.ForeignKey(PolicyPreview, on_delete=models.CASCADE, related_name="batches")
    number = models.PositiveIntegerField()
    body = models.BinaryField()

    class Meta:
        ordering: ClassVar = ["preview", "number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["preview", "number"], name="cleanup_preview_batch")
        ]

    def __str__(self) -> str:
        return f"{self.preview_id}/{self.number}"


class OrderVerb(models.TextChoices):
    """What may be done to everything in the trash that a filter finds."""

    RESTORE = "restore", "restore"
    EXTEND = "extend", "extend grace"
    PURGE = "purge", "purge now"


class TrashOrder(Job):
    """A change of everything in the trash that a filter found when it was ordered, done by a worker."""

    verb = models.CharField(max_length=8, choices=OrderVerb.choices)
    #: `area`, `path` (glob), `policy`, `run`, `reason`, `purge_before`, `trashed_before`, ...
    filter = models.JSONField(default=dict)
    #: What the filter found when it was confirmed; only what was in the trash before `created_at` is touched.
    files = models.BigIntegerField(default=0)
    bytes = models.BigIntegerField(default=0)
    #: Kept in the audit with every file.
    reason = models.CharField(max_length=300, blank=True)
    #: For `extend`.
    by = models.DurationField(null=True, blank=True)
    #: For `restore`: what a file is called whose name is taken; empty: it stays in the trash.
    rename = models.CharField(max_length=100, blank=True)
    done_files = models.BigIntegerField(default=0)
    done_bytes = models.BigIntegerField(default=0)
    #: Files that stay, by reason, and the first of those whose names are taken.
    kept = models.JSONField(default=dict, blank=True)
    conflicts = models.JSONField(default=list, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]


class AreaUsage(models.Model):
    """What an area held when it was measured last: one row an area."""

    area = models.OneToOneField(StagingArea, on_delete=models.CASCADE, related_name="holds_now")
    #: When files were counted, and how long it took.
    measured_at = models.DateTimeField(null=True, blank=True)
    seconds = models.FloatField(default=0)
    #: Files of the area, those that its policies would trash, and those that a hold keeps.
    live_files = models.BigIntegerField(default=0)
    live_bytes = models.BigIntegerField(default=0)
    eligible_files = models.BigIntegerField(default=0)
    eligible_bytes = models.BigIntegerField(default=0)
    held_files = models.BigIntegerField(default=0)
    held_bytes = models.BigIntegerField(default=0)
    #: When the trash was summed up, and what is in it.
    trash_at = models.DateTimeField(null=True, blank=True)
    trash_files = models.BigIntegerField(default=0)
    trash_bytes = models.BigIntegerField(default=0)
    #: `{"YYYY-MM-DD": [files, bytes]}` by the day (UTC) on which it is purged.
    purges = models.JSONField(default=dict, blank=True)
    message = models.CharField(max_length=300, blank=True)

    def __str__(self) -> str:
        return f"{self.area_id}"


class VerifierCheck(models.Model):
    """One test of a verifier: its canaries, asked by hand or by a run, and whether they were right."""

    #: The specification in its canonical form.
    verifier = models.CharField(max_length=500, db_index=True)
    at = models.DateTimeField(auto_now_add=True, db_index=True)
    sound = models.BooleanField()
    detail = models.CharField(max_length=500, blank=True)
    milliseconds = models.FloatField(default=0)
    #: Who asked: a person, or the policy whose run did.
    asked_by = models.CharField(max_length=150, blank=True)

    class Meta:
        ordering: ClassVar = ["-at", "-id"]

    def __str__(self) -> str:
        return f"{self.verifier}: {'sound' if self.sound else 'not sound'}"
