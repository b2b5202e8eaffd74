"""The trash: what is in it, why, until when; Restore, Extend grace, Purge now."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.db.models import QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from bus import cells
from bus.console import Change, ConfirmForm, ReadOnlyAdmin, change
from bus.paging import Sought
from cleanup import operations
from cleanup.admin import finding, orders
from cleanup.admin.fields import AgeField, actor_of, reasons, words
from cleanup.admin.orders import suffix
from cleanup.engine.errors import EngineError
from cleanup.models import AreaUsage, AuditEntry, CleanupItem, ItemState
from cleanup.operations.areas import active_holds, held_by
from cleanup.operations.manifests import on_disk
from cleanup.operations.restoring import can_be_named, taken_names

#: A purge that comes within this time is marked.
SOON = timedelta(days=1)

#: Days of the strip above the list.
MOST_DAYS = 14

#: Files of a bundle that the page shows as the manifest has them.
MOST_OF_BUNDLE = 100

#: Entries of one file's life that its page shows, the newest.
MOST_OF_LIFE = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: States in which bytes lie in the trash.
IN_TRASH = (ItemState.TRASHED, ItemState.PURGE_INTENT, ItemState.RESTORING, ItemState.ERROR)

_TONES = {
    ItemState.TRASHED: "warn",
    ItemState.RESTORED: "good",
    ItemState.LOST: "bad",
    ItemState.ERROR: "bad",
}


class RestoreForm(ConfirmForm):
    """Under which name one item comes back, and what happens to files whose names are taken."""

    #: As it is typed: spaces at the ends of a name belong to it.
    to = forms.CharField(
        required=False,
        strip=False,
        label="Path below the area",
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off", "spellcheck": "false"}),
        help_text="Where the file goes. Bytes that cannot be shown are written \\xNN. A result takes its "
        "metadata along.",
    )
    rename = forms.CharField(
        required=False,
        max_length=100,
        label="Where a name is taken, add",
        widget=UnfoldAdminTextInputWidget(),
        help_text="With “new”, report.csv comes back as report.new.csv. Left empty, such a file stays in the "
        "trash. Nothing is overwritten either way.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["rename"].initial = suffix()
        self.former = self._former()
        if self.former is None:
            del self.fields["to"]
        else:
            self.fields["to"].initial = self.former

    def _former(self) -> str | None:
        """The path of the one item that may have another; None: the old names it is."""
        chosen = [] if self.rows is None else list(self.rows[:2])
        return chosen[0].path if len(chosen) == 1 and can_be_named(chosen[0]) else None

    def clean_to(self) -> str | None:
        """None where it is the old path, or nothing."""
        return self.cleaned_data["to"] if self.cleaned_data["to"] not in ("", self.former) else None


class ExtendForm(ConfirmForm):
    """By how much."""

    by = AgeField(
        label="Longer by",
        initial="7d",
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="Such as 7d, 12h or 4w. It is added to what each file was promised.",
    )


class PurgeForm(ConfirmForm):
    """Why it cannot wait."""

    reason = forms.CharField(
        max_length=300,
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="Kept in the audit.",
    )


@admin.register(CleanupItem)
class CleanupItemAdmin(ReadOnlyAdmin):
    """Files on their way through the trash."""

    intro = (
        "Files that a run has moved to the trash. Until its time is over each can be restored, with its "
        "bytes, mode and times; then it is purged, unless a hold keeps it. Its page says why it is here."
    )
    when_empty = (
        "The trash is empty: nothing was moved here, or all of it was restored or purged. The audit "
        "says which."
    )
    when_empty_see = ("Audit", "admin:cleanup_auditentry_changelist")
    refusals = (EngineError,)
    list_display = ("original", "bytes", "why", "by_policy", "moved", "purge")
    list_filter = finding.ITEM_FILTERS
    list_select_related = ("area", "run__policy_version__policy")
    ordering = ("-trashed_at", "-pk")
    routes = finding.ITEM_ROUTES
    search_fields = ("path",)
    search_help_text = "Part of the path; with * at its end: the beginning"
    fields = (
        ("original", "standing", "bytes"),
        ("why", "by_policy", "task_id"),
        ("moved", "purge", "trash_id"),
        "detail",
        "files",
    )

    change_form_outer_after_template = "console/item_details.html"

    list_before_template = "console/trash_before.html"

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        days, summed_at = purges()
        extra = {"purges": days, "purges_at": summed_at and cells.moment(summed_at), **(extra_context or {})}
        return super().changelist_view(request, extra)

    def filter_buttons(self, request: HttpRequest) -> list[dict[str, Any]]:
        return orders.buttons(request)

    def buttons(self, request: HttpRequest, row: CleanupItem) -> list[dict[str, Any]]:
        """The changes, and the pages that go on from here."""
        offered = super().buttons(request, row)
        place = urlencode({"area": row.area_id, "pattern": row.path, "reason": ""})
        if request.user.has_perm("cleanup.add_hold"):
            offered.append({"label": "Hold this path", "url": f"{reverse('admin:cleanup_hold_add')}?{place}"})
        whole = urlencode({"path": f"{row.area.path.rstrip('/')}/{row.path}"})
        return [*offered, {"label": "Explain this path", "url": f"{reverse('cleanup-explain')}?{whole}"}]

    def context(self, request: HttpRequest, row: CleanupItem) -> dict[str, Any]:
        holds = active_holds(row.area_id, now=timezone.now())
        return {
            "disk": disk_of(row),
            "life": life_of(row),
            "held": held_by(holds, [member["path"] for member in row.members]),
            "item": row,
        }

    def _asking(
        self, request: HttpRequest, entry: Change, rows: QuerySet[Any] | None, form: ConfirmForm
    ) -> dict[str, Any]:
        """Of a restore, which names are taken at this moment."""
        asking = super()._asking(request, entry, rows, form)
        if entry.name == "restore" and rows is not None:
            try:
                asking["taken"] = taken_names(_ids(rows))
            except (EngineError, OSError) as trouble:
                asking["trouble"] = str(trouble)
        return asking

    def seek(self, term: str, sought: Sought) -> None:
        finding.seek_item(term, sought)

    def describe(self, rows: QuerySet[CleanupItem]) -> str:
        return cells.files_and_bytes(rows.count(), rows.aggregate(total=Sum("size"))["total"] or 0)

    def applies(self, change: Change, row: Any) -> bool:
        if change.name == "restore":
            return row.state in (ItemState.TRASHED, ItemState.ERROR)
        return bool(row.state == ItemState.TRASHED)

    @display(description="Original path")
    def original(self, row: CleanupItem) -> SafeString:
        return cells.path(row.path, row.area.name)

    @display(description="State")
    def standing(self, row: CleanupItem) -> SafeString:
        return cells.badge(row.get_state_display(), _TONES.get(ItemState(row.state), "neutral"))

    @display(description="Size")
    def bytes(self, row: CleanupItem) -> str:
        return cells.size(row.size)

    @display(description="Why")
    def why(self, row: CleanupItem) -> SafeString:
        return cells.pair(words(row.reason), row.detail)

    @display(description="Policy")
    def by_policy(self, row: CleanupItem) -> SafeString | str:
        if row.run is None:
            return "found in the trash"
        version = row.run.policy_version
        return format_html(
            '<a class="x-link" href="{}">{}</a>',
            reverse("admin:cleanup_cleanuprun_change", args=[row.run_id]),
            f"{version.policy.name} v{version.number}",
        )

    @display(description="Trashed", ordering="trashed_at")
    def moved(self, row: CleanupItem) -> SafeString | str:
        return cells.moment(row.trashed_at)

    @display(description="Purge", ordering="purge_after")
    def purge(self, row: CleanupItem) -> SafeString | str:
        if row.state not in IN_TRASH:
            return cells.badge(row.get_state_display(), _TONES.get(ItemState(row.state), "neutral"))
        if row.purge_after is None:
            return "not by time"
        if row.purge_after <= timezone.now():
            return cells.badge("due", "warn")
        return cells.moment(row.purge_after)

    @display(description="Files")
    def files(self, row: CleanupItem) -> SafeString:
        return cells.document(row.members)

    @change(
        "Restore",
        permission="cleanup.restore_cleanupitem",
        explain="The files go back to their original paths, with their bytes, modes and times; a single one "
        "to another path, if you wish. Nothing is overwritten: where another file has taken the name, the "
        "trashed one stays in the trash and you are told, or it gets another name.",
        form=RestoreForm,
    )
    def restore(self, request: HttpRequest, rows: QuerySet[CleanupItem], data: dict[str, Any]) -> str:
        to = data.get("to")
        report = operations.restore(_ids(rows), actor=actor_of(request), to=to, rename=data["rename"])
        place = f" as {to}" if to and report.restored and not data["rename"] else ""
        said = [f"Restored {cells.files_and_bytes(report.restored, report.bytes)}{place}."]
        if report.conflicts:
            names = ", ".join(conflict.path for conflict in report.conflicts[:5])
            said.append(f"{len(report.conflicts):,} stay in the trash, since the name is taken: {names}.")
        if report.lost:
            said.append(f"{report.lost:,} were not in the trash any more.")
        return " ".join([*said, *report.errors[:5]])

    @change(
        "Extend grace",
        permission="cleanup.extend_cleanupitem",
        explain=(
            "The files stay in the trash for longer before they are purged. A grace period is never made "
            "shorter."
        ),
        form=ExtendForm,
    )
    def extend(self, request: HttpRequest, rows: QuerySet[CleanupItem], data: dict[str, Any]) -> str:
        number = operations.extend_grace(_ids(rows), by=data["by"], actor=actor_of(request))
        return f"{number:,} {'file stays' if number == 1 else 'files stay'} {cells.span(data['by'])} longer."

    @change(
        "Purge now",
        permission="cleanup.purge_cleanupitem",
        explain="The files are removed for good, before their grace period is over. This cannot be undone. "
        "Held files stay, and so does a file that a verifier no longer vouches for.",
        form=PurgeForm,
        danger=True,
    )
    def purge_now(self, request: HttpRequest, rows: QuerySet[CleanupItem], data: dict[str, Any]) -> str:
        report = operations.purge_now(_ids(rows), reason=data["reason"], actor=actor_of(request))
        said = [f"Purged {cells.files_and_bytes(report.purged, report.bytes)}."]
        said += [f"{number} kept: {reason}." for reason, number in reasons(report.kept)]
        return " ".join([*said, *report.errors[:5]])


def purges() -> tuple[list[dict[str, str]], datetime | None]:
    """Files and bytes by the next days on which they are purged, as areas were summed up last; and when."""
    sums: dict[str, list[int]] = {}
    usages = list(AreaUsage.objects.exclude(trash_at=None))
    today = timezone.localdate().isoformat()
    for usage in usages:
        for day, (files, size) in usage.purges.items():
            total = sums.setdefault(max(day, today), [0, 0])
            total[0], total[1] = total[0] + files, total[1] + size
    days = [
        {"day": day, "label": "today" if day == today else day, "amount": cells.files_and_bytes(*sums[day])}
        for day in sorted(sums)[:MOST_DAYS]
    ]
    return days, min((usage.trash_at for usage in usages if usage.trash_at), default=None)


def disk_of(row: CleanupItem) -> dict[str, Any] | None:
    """What the trash itself says of one file, for its page; None if it has nothing to say."""
    found = on_disk(row)
    if found is None:
        return None
    says = found.says
    facts = [
        ("Moved by", says["policy_version"]),
        ("Why", " · ".join(filter(None, (words(says["reason"]), says["detail"])))),
        ("Task", says["task_id"] or "—"),
        ("Trashed", cells.moment(says["trashed_at"])),
        ("Not purged before", cells.moment(says["purge_after"])),
    ] if says else []  # fmt: skip
    files = [
        (
            one["path"], cells.size(one["size"]), cells.moment(one["mtime"]), one["mode"],
            f"{one['uid']}:{one['gid']}", one["inode"],
        )
        for one in found.members[:MOST_OF_BUNDLE]
    ]  # fmt: skip
    more = max(0, len(found.members) - MOST_OF_BUNDLE)
    return {"found": found, "facts": facts, "files": files, "more": more}


def life_of(row: CleanupItem) -> list[dict[str, Any]]:
    """What the audit says of one file, the oldest first; what the verifiers answered beside it."""
    entries = AuditEntry.objects.filter(item=str(row.pk)).order_by("-seq")[:MOST_OF_LIFE]
    return [
        {
            "action": words(entry.action),
            "at": cells.moment(_EPOCH + timedelta(microseconds=entry.at_us)),
            "actor": entry.actor,
            "reason": words(entry.reason or ""),
            "verifiers": sorted(_evidence(entry).get("verifiers", {}).items()),
            "order": _evidence(entry).get("order", ""),
            "to": _evidence(entry).get("to", ""),
            "seq": entry.seq,
        }
        for entry in reversed(entries)
    ]


def _evidence(entry: AuditEntry) -> dict[str, Any]:
    found = json.loads(entry.evidence) if entry.evidence else {}
    return found if isinstance(found, dict) else {}


def _ids(rows: QuerySet[CleanupItem]) -> list[Any]:
    return list(rows.values_list("pk", flat=True))
