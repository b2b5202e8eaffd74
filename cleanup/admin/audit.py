"""The audit and its checkpoints: read-only, and the button that checks them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import cells
from bus.console import ReadOnlyAdmin, change
from cleanup import operations
from cleanup.engine.errors import EngineError
from cleanup.models import AuditCheckpoint, AuditEntry

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    """Links of the chain."""

    intro = (
        "Who did what to which file, and when: one entry for each step. Each entry carries the hash of the "
        "one before it, so that a change, a gap or an insertion is found."
    )
    refusals = (EngineError,)
    list_display = ("number", "at", "who", "did", "subject", "amount", "because")
    list_display_links = ("number",)
    list_filter = ("action",)
    ordering = ("-seq",)
    search_fields = ("=item", "=run")
    search_help_text = "Id of a run or of a file in the trash"
    fields = (
        ("number", "at", "who", "did"),
        ("subject", "amount", "because"),
        ("run", "item", "policy_version"),
        "facts",
        "prev_hash",
        "hash",
    )

    @display(description="No.", ordering="seq")
    def number(self, row: AuditEntry) -> str:
        return f"{row.seq:,}"

    @display(description="When", ordering="at_us")
    def at(self, row: AuditEntry) -> SafeString | str:
        return cells.moment(_EPOCH + timedelta(microseconds=row.at_us))

    @display(description="Who")
    def who(self, row: AuditEntry) -> SafeString:
        return cells.pair(row.actor, row.actor_kind)

    @display(description="Did")
    def did(self, row: AuditEntry) -> SafeString:
        return cells.badge(row.action.replace("_", " "))

    @display(description="What")
    def subject(self, row: AuditEntry) -> SafeString:
        return cells.path(row.path or row.policy_version or row.area or "—", row.area if row.path else "")

    @display(description="Size")
    def amount(self, row: AuditEntry) -> str:
        return cells.size(row.size) if row.size else "—"

    @display(description="Why")
    def because(self, row: AuditEntry) -> str:
        return row.reason.replace("_", " ") or "—"

    @display(description="Evidence")
    def facts(self, row: AuditEntry) -> SafeString:
        return cells.document(row.evidence)

    @change(
        "Verify",
        permission="cleanup.verify_auditentry",
        role="viewer",
        explain="Reads the whole chain from its first entry, computes every hash again, and compares every "
        "checkpoint with the file outside the database. Only the time of it is noted; with many entries it "
        "takes a while.",
        rows=False,
    )
    def verify(self, request: HttpRequest, rows: QuerySet[AuditEntry] | None, data: dict[str, Any]) -> str:
        report = operations.verify_audit()
        for note in report.notes:
            messages.info(request, f"{note}.")
        if report.sound:
            return (
                f"Sound: {report.entries:,} entries and {report.checkpoints:,} checkpoints, every hash and "
                "every link is right."
            )
        messages.error(
            request,
            f"TAMPERED at entry {report.first_bad_seq}: {report.kind}. "
            f"{report.entries:,} entries before it are sound.",
        )
        return ""


@admin.register(AuditCheckpoint)
class AuditCheckpointAdmin(ReadOnlyAdmin):
    """Sealed stretches of the chain."""

    intro = (
        "Every hour or 10,000 entries the chain is sealed: a root over the entries, signed, here and in a "
        "file outside the database. Entries that were exported may go; their checkpoint stays."
    )
    list_display = ("label", "at", "stretch", "signed_by", "kept")
    list_display_links = ("label",)
    ordering = ("-number",)
    fields = (
        ("label", "at", "stretch"),
        ("signed_by", "kept"),
        ("segment", "segment_sha256"),
        "merkle_root",
        "head_hash",
        "prev_hash",
        "hash",
        "signature",
    )

    @display(description="No.", ordering="number")
    def label(self, row: AuditCheckpoint) -> str:
        return f"{row.number:,}"

    @display(description="Sealed", ordering="at_us")
    def at(self, row: AuditCheckpoint) -> SafeString | str:
        return cells.moment(_EPOCH + timedelta(microseconds=row.at_us))

    @display(description="Entries")
    def stretch(self, row: AuditCheckpoint) -> str:
        return f"{row.first_seq:,} to {row.last_seq:,}"

    @display(description="Key")
    def signed_by(self, row: AuditCheckpoint) -> str:
        return row.key_id or "—"

    @display(description="Entries are")
    def kept(self, row: AuditCheckpoint) -> SafeString:
        return cells.badge("pruned" if row.pruned_at else "exported" if row.segment else "here")
