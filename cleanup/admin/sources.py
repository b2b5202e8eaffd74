"""Sources: addresses that are asked for news, when next, and what came of it; add one, or ask it now.

A removed source stays in the list until its time is over, so that it can be restored there. The page of one
shows its versions, and how far the refresh is that is under way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.admin import SimpleListFilter
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from bus import cells
from bus.console import Change, ConfirmForm, change
from cleanup.admin.fields import AgeField, actor_of
from cleanup.admin.verbs import VerbAdmin
from cleanup.models import Source, SourceState
from cleanup.staging import sources
from cleanup.staging.addresses import MAX_URL

#: On the page of a source.
_VERSIONS = 20

_INTERVAL_HELP = "Such as 1h or 1d12h. Beat looks every hour for those that are due."


class SourceForm(forms.ModelForm):  # type: ignore[type-arg]
    """A new source. What may not be fetched is an error on the form."""

    #: Text, for the verb says what is wrong with an address.
    url = forms.CharField(
        max_length=MAX_URL,
        label="Address",
        widget=UnfoldAdminTextInputWidget,
        help_text="http or https, at a public host, without user and password.",
    )
    interval = AgeField(initial="1d", help_text=_INTERVAL_HELP)

    class Meta:
        model = Source
        fields = ("name", "url", "area", "interval")
        help_texts: ClassVar = {
            "name": "Letters, digits, - and _.",
            "area": "Where what is new becomes a file.",
        }


class ChangeForm(ConfirmForm):
    """Another address, another interval."""

    url = forms.CharField(max_length=MAX_URL, label="Address", widget=UnfoldAdminTextInputWidget)
    interval = AgeField(help_text=_INTERVAL_HELP)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        source = None if self.rows is None else self.rows.first()
        if source is not None:
            self.initial = {"url": source.url, "interval": source.interval}


class RemovedFilter(SimpleListFilter):
    """Everything, unless one half is asked for."""

    title = "removed"
    parameter_name = "removed"

    def lookups(self, request: HttpRequest, page: Any) -> Iterable[tuple[str, str]]:
        return [("no", "not removed"), ("yes", "removed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Source]) -> QuerySet[Source]:
        if self.value() not in ("no", "yes"):
            return queryset
        return queryset.filter(deleted_at__isnull=self.value() == "no")


@admin.register(Source)
class SourceAdmin(VerbAdmin):
    """Addresses that are asked for news."""

    intro = (
        "An address that is asked for news at an interval. What is new becomes a file of its area, and one "
        "more version in the registry; what is superseded goes when a policy says so. Only public hosts are "
        "asked, and networks that the settings allow."
    )
    when_empty = (
        "No address is asked for news. Add the first one: it is asked within the hour, or at once by "
        "Refresh now."
    )
    form = SourceForm
    list_display = ("title", "standing", "newest", "asked", "due", "scope")
    list_filter = (RemovedFilter, "area")
    list_select_related = ("area",)
    search_fields = ("name", "url")
    ordering = ("name",)
    fields = (
        ("title", "standing", "scope"), ("newest", "changed", "every"), ("asked", "due", "trouble"),
        ("marks", "made"),
    )  # fmt: skip
    readonly_fields = (
        "title", "standing", "scope", "newest", "changed", "every", "asked", "due", "trouble", "marks",
        "made",
    )  # fmt: skip
    change_form_outer_after_template = "console/source_details.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Source]:
        rows: Any = Source.all_objects.all()
        return rows  # type: ignore[no-any-return]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("name", "url", "area", "interval") if obj is None else self.fields

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else self.readonly_fields

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def carry_out(self, request: HttpRequest, form: Any) -> Source:
        data = form.cleaned_data
        return sources.add(
            data["name"], data["url"], data["area"], actor_of(request), interval=data["interval"]
        )

    def context(self, request: HttpRequest, row: Source) -> dict[str, Any]:
        return {
            "source": row,
            "topic": f"task:{row.task_id}" if row.state == SourceState.ACTIVE else "",
            "versions": [
                (file, cells.moment(file.created_at), cells.size(file.size), _file_state(file))
                for file in sources.versions(row, _VERSIONS)
            ],
        }

    def applies(self, change: Change, row: Any) -> bool:
        if row.deleted_at is not None:
            return change.name == "restore"
        if change.name in ("refresh", "disable"):
            return bool(row.enabled)
        return change.name not in ("enable", "restore") or (change.name == "enable" and not row.enabled)

    # What is shown

    @display(description="Source", ordering="name")
    def title(self, row: Source) -> SafeString:
        return cells.path(row.name, row.url)

    @display(description="State")
    def standing(self, row: Source) -> SafeString:
        if row.deleted_at is not None:
            return cells.badge("removed", "warn")
        if not row.enabled:
            return cells.badge("disabled", "warn")
        if row.state != SourceState.IDLE:
            return cells.badge(row.get_state_display(), "info")
        return cells.badge("failing", "bad") if row.failures else cells.badge("waits", "good")

    @display(description="Area", ordering="area__name")
    def scope(self, row: Source) -> str:
        return row.area.name

    @display(description="Newest", ordering="version")
    def newest(self, row: Source) -> SafeString | str:
        return f"version {row.version}" if row.version else "nothing so far"

    @display(description="Changed", ordering="last_changed_at")
    def changed(self, row: Source) -> SafeString | str:
        return cells.moment(row.last_changed_at, empty="never")

    @display(description="Interval", ordering="interval")
    def every(self, row: Source) -> str:
        return cells.span(row.interval)

    @display(description="Asked", ordering="last_checked_at")
    def asked(self, row: Source) -> SafeString | str:
        return cells.moment(row.last_checked_at, empty="never")

    @display(description="Due", ordering="next_check_at")
    def due(self, row: Source) -> SafeString | str:
        if row.deleted_at is not None or not row.enabled:
            return "not any more"
        return cells.moment(row.next_check_at, empty="now")

    @display(description="Trouble")
    def trouble(self, row: Source) -> str:
        times = f"{row.failures:,} {'time' if row.failures == 1 else 'times'} in a row"
        return f"{row.last_error} ({times})" if row.failures else "none"

    @display(description="What the server calls it")
    def marks(self, row: Source) -> SafeString:
        return cells.mono(row.etag or row.last_modified or "—")

    @display(description="Added", ordering="created_at")
    def made(self, row: Source) -> SafeString | str:
        return cells.moment(row.created_at)

    # What may be done

    @change(
        "Refresh now",
        permission="cleanup.refresh_source",
        explain="A worker asks the address now, though it is not due. If there is news, it becomes one more "
        "file of the area; nothing that is there is changed.",
    )
    def refresh(self, request: HttpRequest, rows: QuerySet[Source], data: dict[str, Any]) -> str:
        names = []
        for source in rows.select_related("area"):
            sources.wake(sources.queue(source, actor_of(request)).pk)
            names.append(source.name)
        return f"A worker asks now: {', '.join(names)}."

    @change(
        "Disable",
        permission="cleanup.disable_source",
        explain="The address is asked no more until it is enabled again. A refresh that is under way is "
        "called off. Its files stay.",
    )
    def disable(self, request: HttpRequest, rows: QuerySet[Source], data: dict[str, Any]) -> str:
        return _switch(request, rows, enabled=False)

    @change(
        "Enable",
        permission="cleanup.enable_source",
        role="admin",
        explain="The address is asked again, from the next tick on.",
    )
    def enable(self, request: HttpRequest, rows: QuerySet[Source], data: dict[str, Any]) -> str:
        return _switch(request, rows, enabled=True)

    @change(
        "Change",
        permission="cleanup.change_source",
        role="admin",
        explain="From now on another address is asked, or at another interval. It is due at once; a refresh "
        "that is under way is called off. Its versions count on.",
        form=ChangeForm,
        bulk=False,
    )
    def edit(self, request: HttpRequest, rows: QuerySet[Source], data: dict[str, Any]) -> str:
        source = sources.change(
            _one(rows), actor_of(request), url=data["url"].strip(), interval=data["interval"]
        )
        return f"{source.name} is {source.url} now, asked every {cells.span(source.interval)}."

    @change(
        "Remove",
        permission="cleanup.remove_source",
        role="admin",
        explain="The address is asked no more. For 7 days “Restore” brings the source back; then its row is "
        "removed for good. Its files stay, and go by policies as all others.",
        danger=True,
    )
    def remove(self, request: HttpRequest, rows: QuerySet[Source], data: dict[str, Any]) -> str:
        names = [sources.remove(source, actor_of(request)).name for source in rows.select_related("area")]
        return f"Removed: {', '.join(names)}."

    @change(
        "Restore",
        permission="cleanup.restore_source",
        role="admin",
        explain="The source is asked again, from the next tick on. Its versions count on.",
    )
    def restore(self, request: HttpRequest, rows: QuerySet[Source], data: dict[str, Any]) -> str:
        names = [sources.restore(source, actor_of(request)).name for source in rows.select_related("area")]
        return f"Restored: {', '.join(names)}."


def _one(rows: QuerySet[Source]) -> Source:
    return rows.select_related("area").get()


def _switch(request: HttpRequest, rows: QuerySet[Source], *, enabled: bool) -> str:
    names = [
        sources.set_enabled(source, enabled, actor_of(request)).name for source in rows.select_related("area")
    ]
    return f"{'Enabled' if enabled else 'Disabled'}: {', '.join(names)}."


def _file_state(file: Any) -> SafeString:
    if file.deleted_at is not None:
        return cells.badge("soft-deleted", "warn")
    return cells.badge("superseded") if file.superseded_at else cells.badge("newest", "good")
