"""What may be cleaned, what in it stays all the same, and how full its disk was."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models

from cleanup.engine.holds import RESTORED


class StagingArea(models.Model):
    """A directory tree that the system may clean."""

    name = models.SlugField(max_length=100, unique=True)
    path = models.CharField(max_length=4096)
    #: Also in the marker file of the tree; a run refuses a tree that does not carry it.
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    #: `st_dev` at registration, as text: it can exceed 64 bits on some systems.
    device = models.CharField(max_length=32, blank=True, editable=False)
    high_watermark = models.PositiveSmallIntegerField(default=90, help_text="Percent of the disk in use")
    low_watermark = models.PositiveSmallIntegerField(default=80, help_text="Percent of the disk in use")
    #: Two people must approve a plan above its brakes.
    protected = models.BooleanField(default=False)
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class Hold(models.Model):
    """A promise that matching files are neither trashed nor purged."""

    area = models.ForeignKey(StagingArea, on_delete=models.CASCADE, related_name="holds")
    pattern = models.CharField(max_length=500, help_text="Glob below the area")
    #: Exact paths instead of a pattern, as `cleanup.engine.holds.pack_paths` packs them: what was restored.
    paths = models.BinaryField(null=True, blank=True, editable=False)
    until = models.DateTimeField(null=True, blank=True, help_text="Empty = until released")
    reason = models.CharField(max_length=300)
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField(auto_now_add=True)
    released_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.shown} in {self.area_id}"

    @property
    def shown(self) -> str:
        """The pattern, or what stands for a list of paths."""
        return self.pattern or RESTORED


class UsageSample(models.Model):
    """How full an area's disk was at a moment: what the forecast is made of."""

    area = models.ForeignKey(StagingArea, on_delete=models.CASCADE, related_name="usage")
    #: To the minute: of each there is one sample.
    at = models.DateTimeField()
    used_bytes = models.BigIntegerField()
    total_bytes = models.BigIntegerField()

    class Meta:
        ordering: ClassVar = ["area", "-at"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["area", "at"], name="cleanup_usage_once")]

    def __str__(self) -> str:
        return f"{self.area_id} {self.at}"
