"""Files: on their way through the trash, staged, orphaned, and how many there ever were.

A `CleanupItem` row is written when a file is about to enter the trash.
"""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.db.models import Q

from cleanup.models.areas import StagingArea
from cleanup.models.heads import PathHead
from cleanup.models.runs import CleanupRun
from cleanup.models.staging import Source, StagedContent
from cleanup.softdelete import SoftDeleteModel


class ItemState(models.TextChoices):
    """Where one planned bundle of files stands. The engine's table says which moves are allowed."""

    INTENT = "intent", "about to be trashed"
    TRASHED = "trashed", "in trash"
    PURGE_INTENT = "purge_intent", "about to be purged"
    PURGED = "purged", "purged"
    RESTORING = "restoring", "being restored"
    RESTORED = "restored", "restored"
    SKIPPED = "skipped", "skipped"
    HELD = "held", "held"
    CHANGED = "changed", "changed"
    VANISHED = "vanished", "vanished"
    LOST = "lost", "lost"
    ERROR = "error", "error"


class CleanupItem(models.Model):
    """One file, or a bundle that goes together, on its way through the trash."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    run = models.ForeignKey(CleanupRun, on_delete=models.PROTECT, related_name="items", null=True, blank=True)
    #: Without an index of its own: `cleanup_item_area` begins with it.
    area = models.ForeignKey(StagingArea, on_delete=models.PROTECT, related_name="items", db_index=False)
    #: Path below the area, escaped (`\\xNN` for bytes that are not printable UTF-8).
    path = models.TextField()
    #: [{"path", "device", "inode", "size", "mtime_ns"}] of every file of the bundle.
    members = models.JSONField()
    size = models.BigIntegerField()
    state = models.CharField(max_length=16, choices=ItemState.choices)
    reason = models.CharField(max_length=40)
    detail = models.CharField(max_length=500, blank=True)
    task_id = models.CharField(max_length=200, blank=True)
    #: `<YYYYMMDD>/<uuid>/<n>` below `.trash`.
    trash_id = models.CharField(max_length=80, blank=True)
    #: Another path below the area that a restore under way was asked to use, escaped.
    restore_to = models.TextField(blank=True)
    trashed_at = models.DateTimeField(null=True, blank=True)
    purge_after = models.DateTimeField(null=True, blank=True)
    #: Promised when it was trashed: not purged before this even when the disk is full. Null = `purge_after`.
    purge_floor = models.DateTimeField(null=True, blank=True)
    #: A verifier or a hold kept it from being purged: it is asked about again from then on.
    ask_again_at = models.DateTimeField(null=True, blank=True)
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["-trashed_at", "id"]
        verbose_name = "trashed file"
        verbose_name_plural = "trash"
        indexes: ClassVar = [
            models.Index(fields=["state", "purge_after", "ask_again_at"], name="cleanup_item_due"),
            models.Index(fields=["area", "state", "-trashed_at"], name="cleanup_item_area"),
            # Not `db_index`, which on PostgreSQL adds a second index, for LIKE, that nobody asks by.
            models.Index(fields=["trash_id"], name="cleanup_item_trash"),
            # Lists: the newest first, page after page; and paths by their beginning.
            models.Index(fields=["state", "trashed_at", "id"], name="cleanup_item_newest"),
            models.Index(PathHead("path"), name="cleanup_item_path"),
        ]

    def __str__(self) -> str:
        return self.path


class OrphanBatch(models.Model):
    """A slice of the orphans that the last scan of an area saw: sorted, each with its first sighting."""

    area = models.ForeignKey(StagingArea, on_delete=models.CASCADE, related_name="orphan_batches")
    #: `file` (no row knows it) or `row` (its file is not there).
    kind = models.CharField(max_length=4)
    number = models.PositiveIntegerField()
    items = models.PositiveIntegerField()
    #: How many files, or rows, were compared in all.
    total = models.BigIntegerField(default=0)
    body = models.BinaryField()
    seen_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["area", "kind", "number"]
        verbose_name = "orphans"
        verbose_name_plural = "orphans"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["area", "kind", "number"], name="cleanup_orphan_batch")
        ]

    def __str__(self) -> str:
        return f"{self.area_id} {self.kind}/{self.number}"


class CleanupTotal(models.Model):
    """What was ever trashed and purged, for counters that survive every restart."""

    area = models.CharField(max_length=100)
    policy = models.CharField(max_length=100)
    files_trashed = models.BigIntegerField(default=0)
    bytes_trashed = models.BigIntegerField(default=0)
    files_purged = models.BigIntegerField(default=0)
    bytes_purged = models.BigIntegerField(default=0)
    files_restored = models.BigIntegerField(default=0)
    bytes_restored = models.BigIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["area", "policy"], name="cleanup_total_once")
        ]

    def __str__(self) -> str:
        return f"{self.area}/{self.policy}"


class VerifierTotal(models.Model):
    """How often each verifier gave each answer, for counters that survive every restart."""

    verifier = models.CharField(max_length=200)
    answer = models.CharField(max_length=10)
    count = models.BigIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["verifier", "answer"], name="cleanup_verifier_total_once")
        ]

    def __str__(self) -> str:
        return f"{self.verifier} {self.answer}"


class StagedFile(SoftDeleteModel):
    """A file that was put into a staging area, and by whom."""

    area = models.ForeignKey(StagingArea, on_delete=models.PROTECT, related_name="staged_files")
    #: Below the area, escaped. Sorts by its bytes (on PostgreSQL the column has the collation `C`): in the
    #: order in which files are listed, with which living rows are merged to find orphans.
    path = models.TextField()
    sha256 = models.CharField(max_length=64, blank=True)
    size = models.BigIntegerField(default=0)
    content_type = models.CharField(max_length=100, blank=True)
    task_id = models.CharField(max_length=200, blank=True, db_index=True)
    uploader = models.CharField(max_length=180, blank=True)
    #: As the uploader called it; the path may be made of the hash alone.
    name = models.CharField(max_length=255, blank=True, db_default="")
    #: The bytes, where they are kept once for all who staged them.
    content = models.ForeignKey(
        StagedContent, on_delete=models.PROTECT, null=True, blank=True, related_name="files", db_index=False
    )
    #: Where it was fetched, and which of the contents seen there it is.
    source = models.ForeignKey(
        Source, on_delete=models.SET_NULL, null=True, blank=True, related_name="files", db_index=False
    )
    version = models.PositiveIntegerField(null=True, blank=True)
    #: When a newer version of its source was staged; empty for the newest, and for what has no source.
    superseded_at = models.DateTimeField(null=True, blank=True, editable=False)
    #: Key of the file that it was made of, which may be gone by now. No reference: rows of files are purged
    #: by the hundred thousand, and what refers to them would have to be looked up each time.
    origin = models.BigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta(SoftDeleteModel.Meta):
        ordering: ClassVar = ["-created_at"]
        indexes: ClassVar = [
            models.Index(
                fields=["area", "path"], condition=Q(deleted_at__isnull=True), name="cleanup_staged_living"
            ),
            # A row follows its file out of the trash: it is found by the moment at which both went.
            models.Index(
                fields=["area", "path", "deleted_at"],
                condition=Q(deleted_at__isnull=False),
                name="cleanup_staged_deleted",
            ),
            # Most rows were never staged through us: an index of the others alone.
            models.Index(
                fields=["content"], condition=Q(content__isnull=False), name="cleanup_staged_content"
            ),
            models.Index(
                fields=["source", "-version"], condition=Q(source__isnull=False), name="cleanup_staged_source"
            ),
            models.Index(fields=["origin"], condition=Q(origin__isnull=False), name="cleanup_staged_origin"),
        ]

    def __str__(self) -> str:
        return self.path
