"""The audit and its checkpoints: read-only; what is known of the whole chain, and the button that reads it.

The list follows indexes, however long the chain is (`cleanup.admin.finding`). A short chain is read at once
when somebody asks; a long one by a worker, and the page shows how far it is and what was found at last.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.decorators import display

from bus import cells
from bus.console import ReadOnlyAdmin, change
from bus.paging import Route, Sought
from cleanup import operations
from cleanup.admin import finding
from cleanup.admin.fields import actor_of
from cleanup.engine.errors import EngineError
from cleanup.models import AuditCheckpoint, AuditEntry
from cleanup.operations import excerpts, reading

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    """Links of the chain."""

    intro = (
        "Who did what to which file, and when: one entry for each step. Each entry carries the hash of the "
        "one before it, so that a change, a gap or an insertion is found."
    )
    when_empty = "Nothing was done yet. The first area, policy or move to the trash makes the first entry."
    when_empty_see = ("Areas", "admin:cleanup_stagingarea_changelist")
    refusals = (EngineError,)
    list_display = ("number", "at", "who", "did", "subject", "amount", "because")
    list_display_links = ("number",)
    list_filter = finding.AUDIT_FILTERS
    list_before_template = "console/audit_before.html"
    ordering = ("-seq",)
    routes = finding.AUDIT_ROUTES
    search_fields = ("path",)
    search_help_text = "Part of a path, or the number of an entry, or the id of a run or file"
    fields = (
        ("number", "at", "who", "did"),
        ("subject", "amount", "because"),
        ("run", "item", "policy_version"),
        "facts",
        "prev_hash",
        "hash",
    )

    def seek(self, term: str, sought: Sought) -> None:
        finding.seek_entry(term, sought)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        query = self.filter_query(request)
        address = reverse("admin:cleanup_auditentry_export")
        extra = {
            "standing": _shown(reading.standing()),
            "export": f"{address}?{query}" if query else address,
            **(extra_context or {}),
        }
        return super().changelist_view(request, extra)

    def get_urls(self) -> list[URLPattern]:
        export = path("export/", self.admin_site.admin_view(self.export), name="cleanup_auditentry_export")
        return [export, *super().get_urls()]

    def export(self, request: HttpRequest) -> StreamingHttpResponse:
        """Everything that the filter finds as JSON lines, in order, however many there are."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        rows = self.found(request).select_related(None)
        answer = StreamingHttpResponse(_pages(rows), content_type="application/jsonl")
        stamp = timezone.now().strftime("%Y%m%d-%H%M%S")
        answer["Content-Disposition"] = f'attachment; filename="audit-{stamp}.jsonl"'
        return answer

    def name_of(self, row: AuditEntry) -> str:
        return f"Entry {row.seq:,}: {row.action.replace('_', ' ')}"

    @display(description="No.", ordering="seq")
    def number(self, row: AuditEntry) -> str:
        return f"{row.seq:,}"

    @display(description="When")
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
        "checkpoint with the file outside the database. A long chain is read by a worker, and the page of "
        "the audit says how far it is. Nothing but the result is noted.",
        rows=False,
    )
    def verify(self, request: HttpRequest, rows: QuerySet[AuditEntry] | None, data: dict[str, Any]) -> str:
        if not reading.is_short():
            return self._ask(request)
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

    def _ask(self, request: HttpRequest) -> str:
        """Leave a long chain to a worker."""
        if reading.ask(actor_of(request)):
            return "A worker reads the whole audit now. This page says how far it is, and what it finds."
        messages.info(request, "A worker reads the whole audit already: somebody has asked before you.")
        return ""


async def _pages(rows: QuerySet[AuditEntry]) -> AsyncIterator[bytes]:
    """Page by page, each read when the one before it has gone: a server would read a plain iterator whole."""
    last: int | None = 0
    while last is not None:
        lines, last = await sync_to_async(excerpts.page_of_lines)(rows, after=last)
        if lines:
            yield lines


def _shown(known: reading.Standing) -> dict[str, Any]:
    """What is known of the chain, in words for the page."""
    word, tone, text = _verdict(known)
    return {
        "badge": cells.badge(word, tone),
        "text": text,
        "at": cells.moment(known.at) if known.at else "",
        "notes": known.report.get("notes", []),
        "trouble": known.trouble,
        "reading": known.reading and bool(known.asked_by),
        "percent": known.percent,
        "asked_by": known.asked_by,
        "topic": reading.TOPIC,
        "tampered": known.sound is False,
    }


def _verdict(known: reading.Standing) -> tuple[str, str, str]:
    """A word, its tone and a sentence."""
    if known.sound is None:
        return "not verified yet", "neutral", "Verify reads every entry and says whether any was changed."
    if not known.sound:
        said = reading.said(known.report) if known.report else "The chain was changed. Verify says where."
        return "TAMPERED", "bad", said
    number = known.report.get("up_to", 0)
    since = known.last - number
    more = f" {since:,} came since." if number and since > 0 else ""
    return (
        "sound",
        "good",
        (f"{number:,} entries, every hash and every link is right.{more}" if number else ""),
    )


@admin.register(AuditCheckpoint)
class AuditCheckpointAdmin(ReadOnlyAdmin):
    """Sealed stretches of the chain."""

    intro = (
        "Every hour or 10,000 entries the chain is sealed: a root over the entries, signed, here and in a "
        "file outside the database. Entries that were exported may go; their checkpoint stays. `manage.py "
        "cleanup audit export DIR` writes the sealed stretches as segments, which prove themselves to an "
        "auditor without this database."
    )
    when_empty = (
        "No checkpoint yet: a worker makes the first within an hour of the first entry. `manage.py "
        "cleanup audit checkpoint` does it at once."
    )
    when_empty_see = ("Entries", "admin:cleanup_auditentry_changelist")
    list_display = ("label", "at", "stretch", "signed_by", "kept")
    list_display_links = ("label",)
    ordering = ("-number",)
    routes = (Route(by="number", unique=True),)
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

    def name_of(self, row: AuditCheckpoint) -> str:
        return f"Checkpoint {row.number:,}"

    @display(description="No.", ordering="number")
    def label(self, row: AuditCheckpoint) -> str:
        return f"{row.number:,}"

    @display(description="Sealed")
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
