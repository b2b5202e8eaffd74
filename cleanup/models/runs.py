"""What was decided and how far it is carried out.

A `CleanupRun` is the truth of a run: its state, lease and fencing token live here, never in a Celery message.
Planned files are kept in `PlanBatch`, compressed.
"""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.db.models import Q

from cleanup.engine.errors import AreaRefused
from cleanup.models.areas import StagingArea
from cleanup.models.policies import PolicyVersion


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
    #: None for a policy over rows.
    area = models.ForeignKey(
        StagingArea, on_delete=models.PROTECT, related_name="runs", null=True, blank=True
    )
    #: The model of a policy over rows, `app_label.Model`; else empty.
    rows_of = models.CharField(max_length=100, blank=True)
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
    #: What a rule found besides: orphans counted, bytes blocked below a watermark by reason.
    facts = models.JSONField(default=dict, blank=True)
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
            models.UniqueConstraint(
                fields=["rows_of"],
                condition=Q(state__in=["queued", "planning", "awaiting_approval", "approved", "running"])
                & ~Q(rows_of=""),
                name="cleanup_one_active_run_per_model",
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)

    @property
    def scope(self) -> str:
        """The name of the area, or the model of a policy over rows."""
        return self.area.name if self.area else self.rows_of

    def tree(self) -> StagingArea:
        """Return the area. Raises `AreaRefused` for a policy over rows, which has none."""
        if self.area is None:
            raise AreaRefused("no_area", f"{self} is about rows of {self.rows_of}, not about files")
        return self.area


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
    #: As `CleanupItem.purge_floor`.
    purge_floor = models.DateTimeField(null=True, blank=True)
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
