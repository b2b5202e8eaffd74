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
    #: The policy's name when it was ordered: that of a draft may be anything.
    name = models.CharField(max_length=100, blank=True)
    #: Number of the version that was the newest then; 0: the policy is not saved yet.
    version = models.PositiveIntegerField(default=0)
    #: An old version that is to be looked at or put back.
    of_version = models.PositiveIntegerField(null=True, blank=True)
    #: The fields of what is not what is saved; null: the policy as it is.
    draft = models.JSONField(null=True, blank=True)
    #: How often a worker has begun it.
    attempts = models.PositiveSmallIntegerField(default=0)
    #: While it runs how far it is; then totals, histograms, reasons and the difference to the saved version.
    result = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return self.name or str(self.id)


class PreviewBatch(models.Model):
    """Files of one kind and reason of a preview, packed: its lists and its CSV are read from these."""

    preview = models.ForeignKey(PolicyPreview, on_delete=models.CASCADE, related_name="batches")
    number = models.PositiveIntegerField()
    #: `goes`, `stays` or `doubt`.
    kind = models.CharField(max_length=8)
    reason = models.CharField(max_length=30)
    files = models.PositiveIntegerField()
    #: Between these two, escaped and by code point, all its paths lie: others need not be unpacked.
    low = models.TextField()
    high = models.TextField()
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
    #: Files met so far, and the last of them as `[trashed_at, id]`: a worker goes on behind it.
    seen = models.BigIntegerField(default=0)
    position = models.JSONField(null=True, blank=True)
    #: Ids of the batch at hand: what became of them is looked at before an interrupted order goes on.
    pending = models.JSONField(default=list, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]
        verbose_name = "order"


class AreaUsage(models.Model):
    """What an area held when it was measured last: one row an area."""

    area = models.OneToOneField(StagingArea, on_delete=models.CASCADE, related_name="holds_now")
    #: When files were counted; when that was tried last, how long it took, and why it did not work out.
    measured_at = models.DateTimeField(null=True, blank=True)
    tried_at = models.DateTimeField(null=True, blank=True)
    seconds = models.FloatField(default=0)
    message = models.CharField(max_length=300, blank=True)
    #: Files of the area, those that its policies would trash, and those that a hold keeps.
    live_files = models.BigIntegerField(default=0)
    live_bytes = models.BigIntegerField(default=0)
    eligible_files = models.BigIntegerField(default=0)
    eligible_bytes = models.BigIntegerField(default=0)
    held_files = models.BigIntegerField(default=0)
    held_bytes = models.BigIntegerField(default=0)
    #: When the trash was summed up, how long it took, at which entry of the audit, and what is in it.
    trash_at = models.DateTimeField(null=True, blank=True)
    trash_seconds = models.FloatField(default=0)
    trash_seq = models.BigIntegerField(default=-1)
    trash_files = models.BigIntegerField(default=0)
    trash_bytes = models.BigIntegerField(default=0)
    #: `{"YYYY-MM-DD": [files, bytes]}` by the day, in the zone of the site, on which it may be purged.
    purges = models.JSONField(default=dict, blank=True)

    def __str__(self) -> str:
        return f"{self.area_id}"


class DailyTotal(models.Model):
    """What became of files on one day, in the zone of the site; added to with every batch."""

    area = models.CharField(max_length=100)
    day = models.DateField()
    files_trashed = models.BigIntegerField(default=0)
    bytes_trashed = models.BigIntegerField(default=0)
    files_purged = models.BigIntegerField(default=0)
    bytes_purged = models.BigIntegerField(default=0)
    files_restored = models.BigIntegerField(default=0)
    bytes_restored = models.BigIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [
            # The day first: the overview asks for the last fortnight of all areas.
            models.UniqueConstraint(fields=["day", "area"], name="cleanup_daily_once")
        ]

    def __str__(self) -> str:
        return f"{self.day} {self.area}"


class VerifierCheck(models.Model):
    """One test of a verifier: its canaries, asked by hand or by a run, and whether they were right."""

    #: The specification in its canonical form.
    verifier = models.CharField(max_length=500)
    at = models.DateTimeField(auto_now_add=True, db_index=True)
    sound = models.BooleanField()
    detail = models.CharField(max_length=500, blank=True)
    milliseconds = models.FloatField(default=0)
    #: Who asked: a person, or the policy whose run did.
    asked_by = models.CharField(max_length=150, blank=True)

    class Meta:
        ordering: ClassVar = ["-at", "-id"]
        indexes: ClassVar = [
            models.Index(fields=["verifier", "-at", "-id"], name="cleanup_check_of_verifier")
        ]

    def __str__(self) -> str:
        return f"{self.verifier}: {'sound' if self.sound else 'not sound'}"
