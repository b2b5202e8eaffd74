"""How files get into areas: contents stored once, uploads under way, sources that are asked for news."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from cleanup.models.areas import StagingArea
from cleanup.softdelete import SoftDeleteModel


class StagedContent(models.Model):
    """The one file that holds some bytes in an area, however often they were staged.

    Who stages the same bytes again gets a row of their own (`StagedFile.content`) and no second file. How
    many refer to it is counted from those rows, so that it cannot go wrong; whoever adds one or takes one
    away holds the lock on this row.
    """

    area = models.ForeignKey(StagingArea, on_delete=models.PROTECT, related_name="contents", db_index=False)
    sha256 = models.CharField(max_length=64)
    size = models.BigIntegerField()
    #: Below the area, escaped; made of the hash, never of a name that somebody gave.
    path = models.CharField(max_length=300)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["area", "sha256"]
        verbose_name = "content"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["area", "sha256"], name="cleanup_content_once")
        ]

    def __str__(self) -> str:
        return self.path


class UploadState(models.TextChoices):
    """Where an upload stands. Only an open one takes more bytes."""

    OPEN = "open", "under way"
    FINISHING = "finishing", "being checked"
    DONE = "done", "done"
    FAILED = "failed", "refused"
    TERMINATED = "terminated", "given up"
    EXPIRED = "expired", "expired"


class Upload(models.Model):
    """One file on its way in, part by part. Any web process can take the next part."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    area = models.ForeignKey(StagingArea, on_delete=models.PROTECT, related_name="uploads")
    #: As the uploader called it; never a path.
    name = models.CharField(max_length=255)
    content_type = models.CharField(max_length=100, blank=True)
    size = models.BigIntegerField()
    #: Bytes that are on disk and synced: what was acknowledged, and where the next part begins.
    offset = models.BigIntegerField(default=0)
    #: What the uploader says it is, hexadecimal; empty = nothing was said. What it is, once all is there.
    sha256 = models.CharField(max_length=64, blank=True)
    #: Upload-Metadata as it was sent, to be given back.
    metadata = models.TextField(blank=True)
    state = models.CharField(max_length=12, choices=UploadState.choices, default=UploadState.OPEN)
    detail = models.CharField(max_length=500, blank=True)
    #: Who may go on with it: nobody else does.
    uploader = models.CharField(max_length=180)
    task_id = models.CharField(max_length=200, blank=True)
    #: Key of the staged file that came of it.
    staged_file = models.BigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField(auto_now=True)
    #: An open one that got no byte until then is over.
    expires_at = models.DateTimeField()
    #: Who writes a part, and until when nobody else may.
    lease_by = models.CharField(max_length=100, blank=True, editable=False)
    lease_until = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering: ClassVar = ["-created_at"]
        indexes: ClassVar = [
            models.Index(fields=["state", "expires_at"], name="cleanup_upload_due"),
            models.Index(fields=["uploader", "state"], name="cleanup_upload_mine"),
            # What one uploader has begun within a minute and announced within a day.
            models.Index(fields=["uploader", "created_at"], name="cleanup_upload_lately"),
            models.Index(fields=["-created_at", "id"], name="cleanup_upload_newest"),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(offset__gte=0) & Q(offset__lte=F("size")), name="cleanup_upload_offset"
            )
        ]

    def __str__(self) -> str:
        return self.name


class SourceState(models.TextChoices):
    """Whether a source is being asked right now."""

    IDLE = "idle", "waits"
    QUEUED = "queued", "about to be asked"
    ACTIVE = "active", "being asked"


class Source(SoftDeleteModel):
    """An address that is asked for news at an interval; what is new becomes a staged file."""

    name = models.SlugField(max_length=100, unique=True)
    url = models.URLField(max_length=2_000)
    area = models.ForeignKey(StagingArea, on_delete=models.PROTECT, related_name="sources")
    interval = models.DurationField(default=timedelta(hours=24))
    enabled = models.BooleanField(default=True)
    #: Given back to the server, so that it sends nothing that we have.
    etag = models.CharField(max_length=500, blank=True, editable=False)
    last_modified = models.CharField(max_length=100, blank=True, editable=False)
    #: Counts the contents that were seen: each new one is a version in the registry.
    version = models.PositiveIntegerField(default=0, editable=False)
    sha256 = models.CharField(max_length=64, blank=True, editable=False)
    last_checked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_changed_at = models.DateTimeField(null=True, blank=True, editable=False)
    next_check_at = models.DateTimeField(null=True, blank=True, editable=False, db_index=True)
    state = models.CharField(
        max_length=8, choices=SourceState.choices, default=SourceState.IDLE, editable=False
    )
    failures = models.PositiveIntegerField(default=0, editable=False)
    last_error = models.CharField(max_length=500, blank=True, editable=False)
    #: The task of the last refresh, whose topic tells of it.
    task_id = models.CharField(max_length=200, blank=True, editable=False)
    created_by = models.CharField(max_length=150, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    lease_by = models.CharField(max_length=100, blank=True, editable=False)
    lease_until = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta(SoftDeleteModel.Meta):
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name
