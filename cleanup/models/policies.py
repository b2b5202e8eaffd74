"""By which rule files and rows go. A policy changes, its versions never do: runs point at a version."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

from django.db import models

from cleanup.engine.errors import AreaRefused
from cleanup.models.areas import StagingArea


class Rule(models.TextChoices):
    """What makes a file eligible."""

    AGE = "age", "age"
    EXPIRES_AT = "expires_at", "expires_at"
    ORPHAN = "orphan", "orphan"
    WATERMARK = "watermark", "watermark"
    KEEP_NEWEST = "keep_newest", "keep newest"
    ROWS = "rows", "rows"


class Unit(models.TextChoices):
    """What goes or stays as a whole."""

    FILE = "file", "file"
    BUNDLE = "bundle", "bundle"


class OrderBy(models.TextChoices):
    """Which files go first when space is short."""

    AGE = "age", "the oldest first"
    SIZE = "size", "the largest first"


class CatchUp(models.TextChoices):
    """What becomes of runs that were missed."""

    ONCE = "once", "one run for all"
    SKIP = "skip", "none"


class Mode(models.TextChoices):
    """How far a policy goes by itself."""

    OFF = "off", "off"
    REPORT = "report", "report only"
    ENFORCE = "enforce", "enforce"


class RetentionPolicy(models.Model):
    """One rule for one area, or for the rows of one model. Every save makes an immutable `PolicyVersion`."""

    name = models.SlugField(max_length=100, unique=True)
    #: None for the rule `rows` alone.
    area = models.ForeignKey(
        StagingArea, on_delete=models.PROTECT, related_name="policies", null=True, blank=True
    )
    rule = models.CharField(max_length=16, choices=Rule.choices, default=Rule.AGE)
    age = models.CharField(max_length=40, blank=True, help_text="tmpfiles.d syntax: 2d, 1h30m, 4w")
    age_by = models.CharField(
        max_length=8, default="m", help_text="Any of a (access), b (birth), c (change), m (modification)"
    )
    include = models.JSONField(
        default=list, blank=True, help_text="Globs below the area; re:… is a regex. Empty = all"
    )
    exclude = models.JSONField(default=list, blank=True)
    unit = models.CharField(max_length=8, choices=Unit.choices, default=Unit.FILE)
    bundle_pattern = models.CharField(
        max_length=300,
        blank=True,
        help_text="Regex with a group key on the path. Empty: a directory right below the area is a bundle",
    )
    #: keep_newest: how many of each group stay.
    keep = models.PositiveIntegerField(null=True, blank=True, help_text="How many of each group stay")
    group_pattern = models.CharField(
        max_length=300,
        blank=True,
        help_text="Regex with a group key on the path. Empty: each directory is a group",
    )
    #: watermark: which files go first.
    order_by = models.CharField(max_length=8, choices=OrderBy.choices, default=OrderBy.AGE)
    #: How long what is trashed can be restored even when the disk is full; null = for the whole grace period.
    #: It is promised to each file when it is trashed.
    floor = models.DurationField(null=True, blank=True)
    #: rows: `app_label.Model`, a soft-delete model; the field whose age counts; what else a row must be.
    model = models.CharField(max_length=100, blank=True)
    stamp_field = models.CharField(max_length=60, default="created_at", blank=True)
    row_filter = models.JSONField(default=dict, blank=True)
    #: Specifications of verifiers, such as {"kind": "redis_task", "key": "task:{task_id}:status", "value":
    #: "Complete"}.
    verifiers = models.JSONField(default=list, blank=True)
    task_id_pattern = models.CharField(
        max_length=300,
        blank=True,
        help_text="Regex with a group task_id on the path. Empty: a name that begins with task-",
    )
    skip_in_use = models.BooleanField(default=False, help_text="Leave files that another process has open")
    grace_period = models.DurationField(default=timedelta(days=7))
    mode = models.CharField(max_length=8, choices=Mode.choices, default=Mode.REPORT)
    max_files = models.PositiveBigIntegerField(default=50_000)
    max_bytes = models.PositiveBigIntegerField(default=100_000_000_000)
    max_percent = models.PositiveSmallIntegerField(default=50)
    #: Times the median of the last 30 runs, from the fifth run on.
    max_median_factor = models.PositiveIntegerField(default=10)
    #: Share of what the verifiers were asked about that they could not tell.
    max_unknown_percent = models.PositiveSmallIntegerField(default=5)
    schedule = models.CharField(
        max_length=100,
        default="6h",
        help_text="An interval such as 6h, or cron text: minute hour day month weekday",
    )
    catch_up = models.CharField(max_length=8, choices=CatchUp.choices, default=CatchUp.ONCE)
    #: Ours, because beat drops what it missed.
    next_due_at = models.DateTimeField(null=True, blank=True, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["name"]
        verbose_name_plural = "retention policies"

    def __str__(self) -> str:
        return self.name

    @property
    def scope(self) -> str:
        """The name of the area, or the model of a policy over rows."""
        return self.area.name if self.area else self.model

    def tree(self) -> StagingArea:
        """Return the area. Raises `AreaRefused` for a policy over rows, which has none."""
        if self.area is None:
            raise AreaRefused("no_area", f"{self} is about rows of {self.model}, not about files")
        return self.area


class PolicyVersion(models.Model):
    """A policy as it was saved. Never changed; runs and audit entries point at it."""

    policy = models.ForeignKey(RetentionPolicy, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    #: The engine's JSON form of the policy.
    document = models.JSONField()
    #: When it ran; not of the document, which is what plans are made of. Empty: saved before it was kept.
    schedule = models.CharField(max_length=100, blank=True)
    catch_up = models.CharField(max_length=8, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.CharField(max_length=150, blank=True)

    class Meta:
        ordering: ClassVar = ["policy", "-number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["policy", "number"], name="cleanup_policy_version")
        ]

    def __str__(self) -> str:
        return f"{self.policy_id} v{self.number}"
