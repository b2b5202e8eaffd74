"""Rows of cleanup: what is governed, by which rule, what was decided, what was done, and the proof.

A `CleanupRun` is the truth of a run: its state, lease and fencing token live here, never in a Celery message.
Planned files are kept in `PlanBatch` (compressed); a `CleanupItem` row is written when a file is about to
enter the trash. `AuditEntry` rows are a hash chain, written by `cleanup.stores` alone, never changed.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import ClassVar

from django.db import models
from django.db.models import Q

from cleanup.softdelete import SoftDeleteModel


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


class Rule(models.TextChoices):
    """What makes a file eligible."""

    AGE = "age", "age"
    EXPIRES_AT = "expires_at", "expires_at"


class Mode(models.TextChoices):
    """How far a policy goes by itself."""

    OFF = "off", "off"
    REPORT = "report", "report only"
    ENFORCE = "enforce", "enforce"


class RetentionPolicy(models.Model):
    """One rule for one area. Every save makes a new immutable `PolicyVersion`."""

    name = models.SlugField(max_length=100, unique=True)
    area = models.ForeignKey(StagingArea, on_delete=models.PROTECT, related_name="policies")
    rule = models.CharField(max_length=16, choices=Rule.choices, default=Rule.AGE)
    age = models.CharField(max_length=40, blank=True, help_text="tmpfiles.d syntax: 2d, 1h30m, 4w")
    age_by = models.CharField(
        max_length=8, default="m", help_text="Any of a (access), b (birth), c (change), m (modification)"
    )
    include = models.JSONField(
        default=list, blank=True, help_text="Globs below the area; re:… is a regex. Empty = all"
    )
    exclude = models.JSONField(default=list, blank=True)
    #: Specifications of verifiers, such as {"kind": "redis_task", "key": "task:{task_id}:status", "value":
    #: "Complete"}.
    verifiers = models.JSONField(default=list, blank=True)
    task_id_pattern = models.CharField(
        max_length=300,
        blank=True,
        help_text="Regex with a group task_id on the path. Empty: a name that begins with task-",
    )
    grace_period = models.DurationField(default=timedelta(days=7))
    mode = models.CharField(max_length=8, choices=Mode.choices, default=Mode.REPORT)
    max_files = models.PositiveBigIntegerField(default=50_000)
    max_bytes = models.PositiveBigIntegerField(default=100_000_000_000)
    max_percent = models.PositiveSmallIntegerField(default=50)
    #: Runs start this far apart; due times are ours because beat drops what it missed.
    interval = models.DurationField(default=timedelta(hours=6))
    next_due_at = models.DateTimeField(null=True, blank=True, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["name"]
        verbose_name_plural = "retention policies"

    def __str__(self) -> str:
        return self.name


class PolicyVersion(models.Model):
    """A policy as it was saved. Never changed; runs and audit entries point at it."""

    policy = models.ForeignKey(RetentionPolicy, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    #: The engine's JSON form of the policy.
    document = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.CharField(max_length=150, blank=True)

    class Meta:
        ordering: ClassVar = ["policy", "-number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["policy", "number"], name="cleanup_policy_version")
        ]

    def __str__(self) -> str:
        return f"{self.policy_id} v{self.number}"


class RunState(models.TextChoices):
    """Where a run stands."""

    QUEUED = "queued", "queued"
    PLANNING = "planning", "planning"
    AWAITING_APPROVAL = "awaiting_approval", "awaiting approval"
    APPROVED = "approved", "approved"
    RUNNING = "running", "running"
    DONE = "done", "done"
    REPORTED = "reported", "reported"
    FAILED = "failed", "failed"
    REFUSED = "refused", "refused"
    REJECTED = "rejected", "rejected"
    STOPPED = "stopped", "stopped"
    EXPIRED = "expired", "plan expired"


#: States in which a run may still touch its area; one run of an area at most is in one of them.
ACTIVE_STATES = (
    RunState.QUEUED,
    RunState.PLANNING,
    RunState.AWAITING_APPROVAL,
    RunState.APPROVED,
    RunState.RUNNING,
)


class CleanupRun(models.Model):
    """One execution of one version of one policy."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    policy_version = models.ForeignKey(PolicyVersion, on_delete=models.PROTECT, related_name="runs")
    area = models.ForeignKey(StagingArea, on_delete=models.PROTECT, related_name="runs")
    state = models.CharField(max_length=20, choices=RunState.choices, default=RunState.QUEUED)
    #: Report only: ends with the plan.
    dry_run = models.BooleanField(default=False)
    actor = models.CharField(max_length=150)
    actor_kind = models.CharField(max_length=16, default="system")
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    # The plan
    plan_digest = models.CharField(max_length=64, blank=True)
    plan_created_at = models.DateTimeField(null=True, blank=True)
    plan_expires_at = models.DateTimeField(null=True, blank=True)
    planned_files = models.BigIntegerField(default=0)
    planned_bytes = models.BigIntegerField(default=0)
    #: Regular files that the walk saw.
    scanned = models.BigIntegerField(default=0)
    #: Reason -> number of files kept.
    kept = models.JSONField(default=dict, blank=True)
    #: [{"brake", "limit", "value"}] that the plan is above.
    brakes = models.JSONField(default=list, blank=True)
    approvals = models.JSONField(default=list, blank=True)
    # What happened
    trashed = models.BigIntegerField(default=0)
    trashed_bytes = models.BigIntegerField(default=0)
    skipped = models.BigIntegerField(default=0)
    errors = models.BigIntegerField(default=0)
    #: Eligible files left although no brake stopped the run; null until counted.
    residue = models.BigIntegerField(null=True, blank=True)
    message = models.CharField(max_length=500, blank=True)
    #: Batches of the plan already carried out.
    next_batch = models.PositiveIntegerField(default=0)
    # Lease
    lease_owner = models.CharField(max_length=120, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True, db_index=True)
    #: Raised with every change of owner; a write with an older token is refused.
    fencing_token = models.BigIntegerField(default=0)
    stop_requested = models.BooleanField(default=False)

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["area"],
                condition=Q(state__in=["queued", "planning", "awaiting_approval", "approved", "running"]),
                name="cleanup_one_active_run_per_area",
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)


class PlanBatch(models.Model):
    """A slice of a run's plan, compressed, and how far its move into the trash has come.

    The intent of a whole batch is one update of this row, committed before the first rename; item rows are
    written once, with the outcome. An intent without `settled_at` is what recovery looks for after a crash.
    """

    run = models.ForeignKey(CleanupRun, on_delete=models.CASCADE, related_name="batches")
    number = models.PositiveIntegerField()
    items = models.PositiveIntegerField()
    body = models.BinaryField()
    #: Where in `body` the items stand that were to be moved; null = all of them.
    chosen = models.JSONField(null=True, blank=True)
    #: `<YYYYMMDD>/<uuid>` below `.trash`, known before anything is moved.
    trash_batch = models.CharField(max_length=45, blank=True, db_index=True)
    intent_at = models.DateTimeField(null=True, blank=True)
    purge_after = models.DateTimeField(null=True, blank=True)
    #: When every outcome was committed.
    settled_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["run", "number"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["run", "number"], name="cleanup_plan_batch")]
        indexes: ClassVar = [
            models.Index(
                fields=["run"],
                condition=Q(intent_at__isnull=False, settled_at__isnull=True),
                name="cleanup_open_intent",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.run_id}/{self.number}"


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
    area = models.ForeignKey(StagingArea, on_delete=models.PROTECT, related_name="items")
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
    trash_id = models.CharField(max_length=80, blank=True, db_index=True)
    #: Another path below the area that a restore under way was asked to use, escaped.
    restore_to = models.TextField(blank=True)
    trashed_at = models.DateTimeField(null=True, blank=True)
    purge_after = models.DateTimeField(null=True, blank=True)
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["-trashed_at", "id"]
        verbose_name = "trashed file"
        verbose_name_plural = "trash"
        indexes: ClassVar = [
            models.Index(fields=["state", "purge_after"], name="cleanup_item_due"),
            models.Index(fields=["area", "state", "-trashed_at"], name="cleanup_item_area"),
        ]

    def __str__(self) -> str:
        return self.path


class Hold(models.Model):
    """A promise that matching files are neither trashed nor purged."""

    area = models.ForeignKey(StagingArea, on_delete=models.CASCADE, related_name="holds")
    pattern = models.CharField(max_length=500, help_text="Glob below the area")
    until = models.DateTimeField(null=True, blank=True, help_text="Empty = until released")
    reason = models.CharField(max_length=300)
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField(auto_now_add=True)
    released_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.pattern} in {self.area_id}"


class AuditEntry(models.Model):
    """One link of the chain. Written once; PostgreSQL refuses UPDATE and DELETE by trigger."""

    seq = models.BigIntegerField(primary_key=True)
    at_us = models.BigIntegerField(db_index=True, help_text="Microseconds since 1970 UTC")
    actor = models.CharField(max_length=150)
    actor_kind = models.CharField(max_length=16)
    action = models.CharField(max_length=40, db_index=True)
    run = models.CharField(max_length=36, blank=True, db_index=True)
    item = models.CharField(max_length=36, blank=True, db_index=True)
    area = models.CharField(max_length=100, blank=True)
    path = models.TextField(blank=True)
    size = models.BigIntegerField(null=True, blank=True)
    policy_version = models.CharField(max_length=120, blank=True)
    reason = models.CharField(max_length=300, blank=True)
    #: Canonical JSON text, so that what was hashed is what is kept.
    evidence = models.TextField(default="{}")
    prev_hash = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)

    class Meta:
        ordering: ClassVar = ["-seq"]
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.seq} {self.action}"


class AuditHead(models.Model):
    """The end of the chain: the one row that every writer locks."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    seq = models.BigIntegerField(default=0)
    hash = models.CharField(max_length=64)

    def __str__(self) -> str:
        return f"{self.seq}"


class CleanupTotal(models.Model):
    """What was ever trashed and purged, for counters that survive every restart."""

    area = models.CharField(max_length=100)
    policy = models.CharField(max_length=100)
    files_trashed = models.BigIntegerField(default=0)
    bytes_trashed = models.BigIntegerField(default=0)
    files_purged = models.BigIntegerField(default=0)
    bytes_purged = models.BigIntegerField(default=0)
    files_restored = models.BigIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["area", "policy"], name="cleanup_total_once")
        ]

    def __str__(self) -> str:
        return f"{self.area}/{self.policy}"


class StagedFile(SoftDeleteModel):
    """A file that was put into a staging area, and by whom."""

    area = models.ForeignKey(StagingArea, on_delete=models.PROTECT, related_name="staged_files")
    path = models.TextField()
    sha256 = models.CharField(max_length=64, blank=True)
    size = models.BigIntegerField(default=0)
    content_type = models.CharField(max_length=100, blank=True)
    task_id = models.CharField(max_length=200, blank=True, db_index=True)
    uploader = models.CharField(max_length=180, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta(SoftDeleteModel.Meta):
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return self.path
