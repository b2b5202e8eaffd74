"""What the pipeline has done with a staged file: one row for each, whatever happens to its worker."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from cleanup.models.console import Job


class PipelineJob(Job):
    """A raw file on its way: extracted, distilled, put into the index, its task told Complete; or rejected.

    Each step writes its outcome here in the transaction that makes its file, so a step is done once, and
    whoever goes on begins with the first that is not. `refused` = the file was rejected; `message` says why.
    """

    #: Key of the staged file. No reference, as with `StagedFile.origin`.
    raw = models.BigIntegerField(unique=True)
    name = models.CharField(max_length=255)
    task_id = models.CharField(max_length=200, db_index=True)
    #: Keys of the staged files that were made of it.
    extracted = models.BigIntegerField(null=True, blank=True)
    distilled = models.BigIntegerField(null=True, blank=True)
    rejected = models.BigIntegerField(null=True, blank=True)
    #: Points in the index; empty = not told yet, or there is no index.
    points = models.PositiveIntegerField(null=True, blank=True)
    #: How often in a row a worker has begun it and was not heard of again.
    attempts = models.PositiveSmallIntegerField(default=0)
    #: How often in a row something that it needs was not there; and when it is tried again.
    failures = models.PositiveIntegerField(default=0)
    next_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]
        indexes: ClassVar = [models.Index(fields=["state", "next_at"], name="cleanup_pipeline_due")]

    def __str__(self) -> str:
        return self.name
