"""API keys: made, rotated and revoked here; the key itself is shown once, in the answer, and put nowhere."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminSplitDateTimeWidget

from bus import cells, operating
from bus.access.keys import check_reach
from bus.admin.forms import operator_of
from bus.console import Change, ConfirmForm, LinesField, ReadOnlyAdmin, change
from bus.models import ApiKey
from bus.protocol.errors import BusError

_SCOPES = (
    "One a line: publish, publish:agent, publish:task, publish:broadcast. None: it may only read. For "
    "operators: read:connections, manage:connections, manage:tokens, manage:topics (docs/http.md). "
    "To upload files: upload (docs/staging.md)."
)
_PATTERNS = "One a line, such as task:*. None: every topic that its scopes and the rules allow."

#: A key that expires within this is marked: time to rotate it.
SOON = timedelta(days=7)


class ApiKeyForm(forms.ModelForm):  # type: ignore[type-arg]
    """What a new key may do."""

    scopes = LinesField(required=False, help_text=_SCOPES)
    topics = LinesField(required=False, label="Topic patterns", help_text=_PATTERNS)

    class Meta:
        model = ApiKey
        fields = ("name", "agent_id", "scopes", "topics", "expires_at")
        labels: ClassVar = {"agent_id": "Agent", "expires_at": "Expires"}
        help_texts: ClassVar = {
            "name": "Who holds it, such as “nightly importer”.",
            "agent_id": "The agent it acts as. Empty: a server that publishes for any.",
            "expires_at": "Empty: good until it is revoked.",
        }

    def clean(self) -> dict[str, Any]:
        """Refuse what no topic and no rule could ever fit."""
        given = super().clean() or {}
        _check_reach(given.get("agent_id", ""), given)
        return given


class RightsForm(ConfirmForm):
    """What a key may do from now on."""

    scopes = LinesField(required=False, help_text=_SCOPES)
    topics = LinesField(required=False, label="Topic patterns", help_text=_PATTERNS)
    expires_at = forms.SplitDateTimeField(
        required=False,
        label="Expires",
        help_text="Empty: good until it is revoked.",
        widget=UnfoldAdminSplitDateTimeWidget,
    )

    def __init__(self, *args: Any, rows: QuerySet[ApiKey] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, rows=rows, **kwargs)
        row = rows.first() if rows is not None else None
        if row is not None:
            self.initial.update(scopes=row.scopes, topics=row.topics, expires_at=row.expires_at)

    def clean(self) -> dict[str, Any]:
        """Refuse what no topic and no rule could ever fit."""
        given = super().clean() or {}
        _check_reach("", given)
        return given


class RotateForm(ConfirmForm):
    """How long the former key stays good."""

    overlap = forms.ChoiceField(
        label="The former key stays good for",
        choices=[("0", "not at all"), ("3600", "1 hour"), ("86400", "1 day"), ("604800", "7 days")],
        initial="86400",
        widget=UnfoldAdminSelectWidget(),
        help_text="If it has leaked: not at all. Connections that were made with it are then closed.",
    )


def _check_reach(agent_id: str, given: dict[str, Any]) -> None:
    try:
        check_reach(agent_id, given.get("scopes", ()), given.get("topics", ()))
    except BusError as error:
        raise forms.ValidationError(error.message) from error


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    """Keys of agents and servers."""

    intro = (
        "A key lets an agent or a server in. Only its hash is kept: it is shown once, when it is made. A "
        "lost key is revoked and replaced."
    )
    when_empty = "No key was made yet, so only people who are logged in, and holders of tokens, get in."
    refusals = (BusError,)
    list_display = ("name", "state", "acts_as", "reach", "used", "expires", "prefix")
    search_fields = ("name", "prefix", "agent_id")
    ordering = ("name",)
    fields = (("name", "state", "prefix"), ("acts_as", "reach"), ("used", "expires", "made"))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("bus.add_apikey")

    def get_form(
        self, request: HttpRequest, obj: Model | None = None, change: bool = False, **kwargs: Any
    ) -> Any:
        if obj is None:
            kwargs["form"] = ApiKeyForm
        return super().get_form(request, obj, change, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> Any:
        return self.fields if obj is not None else ("name", "agent_id", "scopes", "topics", "expires_at")

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Make the key. The row of the form becomes the row that was made."""
        made, secret = operating.make_key(operator_of(request), **form.cleaned_data)
        obj.__dict__.update(made.__dict__)
        form.shown_once = secret

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> Any:
        request.console_form = form  # type: ignore[attr-defined]  # `response_add` gets no form
        return super().save_form(request, form, change)

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Show the key in this very answer: it is put in no session, cookie or log."""
        return self._show(request, obj, request.console_form.shown_once)  # type: ignore[attr-defined]

    def _show(self, request: HttpRequest, row: ApiKey, secret: str, former: str = "") -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": "API key",
            "opts": self.opts,
            "row": row,
            "key": secret,
            "former": former,
        }
        response = TemplateResponse(request, "console/key_shown.html", context)
        response["Cache-Control"] = "no-store"
        return response

    @display(description="State")
    def state(self, row: ApiKey) -> SafeString:
        if row.revoked_at is not None:
            return cells.badge("revoked", "bad")
        now = timezone.now()
        if row.expires_at is not None and row.expires_at <= now:
            return cells.badge("expired", "warn")
        if row.expires_at is not None and row.expires_at <= now + SOON:
            return cells.badge(f"expires in {cells.span(row.expires_at - now)}", "warn")
        return cells.badge("valid", "good")

    @display(description="Acts as", ordering="agent_id")
    def acts_as(self, row: ApiKey) -> SafeString | str:
        return cells.mono(row.agent_id) if row.agent_id else "a server"

    @display(description="May do, and where")
    def reach(self, row: ApiKey) -> SafeString:
        return cells.pair(
            ", ".join(row.scopes) or "read", ", ".join(row.topics) or "wherever the rules allow"
        )

    @display(description="Last used", ordering="last_used_at")
    def used(self, row: ApiKey) -> SafeString | str:
        return cells.moment(row.last_used_at, empty="never")

    @display(description="Expires", ordering="expires_at")
    def expires(self, row: ApiKey) -> SafeString | str:
        return cells.moment(row.expires_at, empty="never")

    @display(description="Made", ordering="created_at")
    def made(self, row: ApiKey) -> SafeString | str:
        return cells.moment(row.created_at)

    def applies(self, change: Change, row: Any) -> bool:
        is_over = row.expires_at is not None and row.expires_at <= timezone.now()
        return row.revoked_at is None and not (is_over and change.name == "rotate")

    @change(
        "Change rights",
        permission="bus.change_rights_apikey",
        role="admin",
        form=RightsForm,
        bulk=False,
        explain=(
            "The key may do this from now on. Connections that were made with it go on with these rights "
            "within seconds, and leave the topics that they may not read any more."
        ),
    )
    def change_rights(self, request: HttpRequest, rows: QuerySet[ApiKey], data: dict[str, Any]) -> str:
        row = rows.get()
        operating.change_key(
            operator_of(request),
            row,
            scopes=data["scopes"],
            topics=data["topics"],
            expires_at=data["expires_at"],
        )
        return f"Changed: {row.name}."

    @change(
        "Rotate",
        permission="bus.rotate_apikey",
        role="admin",
        form=RotateForm,
        bulk=False,
        explain=(
            "A new key with the same name and rights is made and shown once. The former one stays good for as"
            " long as you say, so that its holder can change over."
        ),
    )
    def rotate(self, request: HttpRequest, rows: QuerySet[ApiKey], data: dict[str, Any]) -> HttpResponse:
        overlap = timedelta(seconds=int(data["overlap"]))
        made, secret = operating.rotate_key(operator_of(request), rows.get(), overlap=overlap)
        if not overlap:
            return self._show(request, made, secret, "The former key is useless from now on.")
        until = f"The former key is good for {cells.span(overlap)} more."
        return self._show(request, made, secret, until)

    @change(
        "Revoke",
        permission="bus.revoke_apikey",
        role="admin",
        explain=(
            "The key is useless from now on, for good; connections that were made with it are closed within"
            " seconds."
        ),
        danger=True,
    )
    def revoke(self, request: HttpRequest, rows: QuerySet[ApiKey], data: dict[str, Any]) -> str:
        operator, chosen = operator_of(request), list(rows)
        for row in chosen:
            operating.revoke_key(operator, row)
        return f"Revoked: {', '.join(row.name for row in chosen)}."
