"""Rows of cleanup: what is governed, by which rule, what was decided, what was done, and the proof."""

from cleanup.models.areas import Hold, StagingArea, UsageSample
from cleanup.models.audit import AuditCheckpoint, AuditEntry, AuditHead
from cleanup.models.console import (
    AreaUsage,
    DailyTotal,
    JobState,
    OrderVerb,
    PolicyPreview,
    PreviewBatch,
    TrashOrder,
    VerifierCheck,
)
from cleanup.models.items import CleanupItem, CleanupTotal, ItemState, OrphanBatch, StagedFile, VerifierTotal
from cleanup.models.pipeline import PipelineJob
from cleanup.models.policies import CatchUp, Mode, OrderBy, PolicyVersion, RetentionPolicy, Rule, Unit
from cleanup.models.runs import ACTIVE_STATES, CleanupRun, PlanBatch, RunState
from cleanup.models.staging import Source, SourceState, StagedContent, Upload, UploadState

__all__ = [
    "ACTIVE_STATES",
    "AreaUsage",
    "AuditCheckpoint",
    "AuditEntry",
    "AuditHead",
    "CatchUp",
    "CleanupItem",
    "CleanupRun",
    "CleanupTotal",
    "DailyTotal",
    "Hold",
    "ItemState",
    "JobState",
    "Mode",
    "OrderBy",
    "OrderVerb",
    "OrphanBatch",
    "PipelineJob",
    "PlanBatch",
    "PolicyPreview",
    "PolicyVersion",
    "PreviewBatch",
    "RetentionPolicy",
    "Rule",
    "RunState",
    "Source",
    "SourceState",
    "StagedContent",
    "StagedFile",
    "StagingArea",
    "TrashOrder",
    "Unit",
    "Upload",
    "UploadState",
    "UsageSample",
    "VerifierCheck",
    "VerifierTotal",
]
